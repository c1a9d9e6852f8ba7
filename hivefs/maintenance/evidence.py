"""What the engine knows of nodes: keeps evidence, weighs it (placement/evidence.py), tells when it comes to something else.

Everything that can change the outcome ends here: a certificate or an address from the roster, what a node says of itself,
an attestation or a trusted key from the user, the user's table, a measured time, and the time at which an attestation ends.
The outcome is stored, so that the mount, the pool and what judges stripes all see the same, also after a restart.

Addresses count because a node is used where it answers. One that is away could sign others and never answer there, so the
address at which it answered last counts beside those of its newest record, until it answers at one of these
(docs/decisions/0034).

Atomic between two checkpoints of trio: ``weigh`` and all that takes something in; ``weigh_all`` goes in slices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import trio
import trio.lowlevel

from hivefs.errors import BadAttestation, BadSetting, DiskFull
from hivefs.formats import attestation
from hivefs.formats.invite import SKEW_NS
from hivefs.maintenance.turns import Turns
from hivefs.model.attestation import Attestation, Said, Statement, TrustedKey
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.model.words import showable
from hivefs.placement.evidence import Table, Weighed, current, weigh
from hivefs.protocol.failures import printable

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds after which it is looked whether an attestation has begun or ended meanwhile."""

SLICE = 3
"""Nodes weighed, or statements checked, without letting others work: some 0.1 ms for each."""

BATCH = 20
MOST_TRUSTED = 1000
MOST_NAME = attestation.MAX_NAME


class Store(Protocol):
    """The engine's store, as evidence uses it."""

    def writing(self) -> AbstractContextManager[Any]: ...
    def afterwards(self, call: Callable[[], None]) -> None: ...
    def each_node(self) -> Iterator[NodeId]: ...
    def roster_entry(self, node_id: NodeId) -> RosterEntry | None: ...
    def trusted_keys(self) -> list[TrustedKey]: ...
    def attestations_of(self, node_id: NodeId) -> list[Attestation]: ...
    def statement_of(self, node_id: NodeId) -> Statement | None: ...
    def weighed(self, node_id: NodeId) -> Weighed: ...
    def is_weighed(self, node_id: NodeId) -> bool: ...
    def info(self, name: str) -> Any: ...
    def save_info(self, name: str, value: Any) -> None: ...
    def save_trusted(self, made: TrustedKey) -> None: ...
    def remove_trusted(self, key: bytes) -> bool: ...
    def save_attestation(self, made: Attestation) -> bool: ...
    def save_statement(self, made: Statement, now_ns: int) -> bool: ...
    def save_weighed(self, node_id: NodeId, weighed: Weighed) -> None: ...


class Evidence:
    """See the head of the file. ``clock`` gives ns since 1970; ``on_change`` hears of which nodes something else is known
    now; ``refuted`` gives the reason in words when measured times refute that a node is in a country, else "".
    """

    def __init__(self, store: Store, clock: Callable[[], int], on_change: Callable[[list[NodeId]], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_change = on_change
        self.refuted: Callable[[NodeId, str], str] = lambda node_id, country: ""
        self.registry: Table | None = None
        self._next_ns = 0
        self._again = trio.Event()
        self.trusted: frozenset[bytes] = frozenset()
        self.reload()

    def reload(self) -> None:
        """Read again whom the user trusts (also after the book was loaded from the hive), and weigh all soon."""
        self.trusted = frozenset(made.key for made in self._store.trusted_keys())
        self._again.set()

    # ---- weighing -------------------------------------------------------------------------------------------------------

    def weigh(self, node_ids: Iterable[NodeId]) -> list[NodeId]:
        """Weigh what is known of these nodes; those of which it is something else than before. Raises DiskFull: then all
        are weighed when there is room.
        """
        changed = []
        try:
            with self._store.writing():
                for node_id in node_ids:
                    entry = self._store.roster_entry(node_id)
                    if entry is not None and self._weigh_one(node_id, entry):
                        changed.append(node_id)
                if changed:
                    self._store.afterwards(lambda: self._on_change(changed))
        except DiskFull:
            self._again.set()
            raise
        return changed

    def _made(self, node_id: NodeId, entry: RosterEntry) -> Weighed:
        now = self._clock()
        said = self._store.statement_of(node_id)
        attestations = self._store.attestations_of(node_id)
        if said is not None:
            attestations += said.attestations
        claims = () if said is None else said.claims
        addresses = self._addresses(node_id, entry)
        made = self._weighed(entry, attestations, claims, now, {}, addresses)
        country = next((a.value for a in made.attributes if a.name == "country"), "")
        reason = self.refuted(node_id, country) if country else ""
        if reason:
            made = self._weighed(entry, attestations, claims, now, {"country": reason}, addresses)
        self._note_times(attestations, now)
        return made

    def _is_other(self, node_id: NodeId) -> bool:
        """Whether something else is known of it than is written; nothing is written for that."""
        entry = self._store.roster_entry(node_id)
        if entry is None:
            return False
        made = self._made(node_id, entry)
        return made != self._store.weighed(node_id) or not self._store.is_weighed(node_id)

    def _weigh_one(self, node_id: NodeId, entry: RosterEntry) -> bool:
        made = self._made(node_id, entry)
        before, known = self._store.weighed(node_id), self._store.is_weighed(node_id)
        if known and made == before:
            return False
        self._store.save_weighed(node_id, made)
        if made == before:
            return False
        if known:
            log.info("node %s: %s", node_id.hex()[:12], printable(difference(before, made)))
        for problem in made.problems:
            if problem not in before.problems or not known:
                log.warning("node %s: %s", node_id.hex()[:12], printable(problem))
        return True

    def _addresses(self, node_id: NodeId, entry: RosterEntry) -> tuple[str, ...]:
        told, last = entry.address.telling, self._store.info(_name(node_id))
        return (*told, last) if isinstance(last, str) and last and last not in told else told

    def _weighed(
        self,
        entry: RosterEntry,
        attestations: list[Attestation],
        claims: Said,
        now: int,
        refuted: Mapping[str, str],
        addresses: tuple[str, ...],
    ) -> Weighed:
        return weigh(
            entry.membership,
            attestations,
            self.trusted,
            refuted,
            self.registry,
            addresses=addresses,
            claims=claims,
            now_ns=now,
        )

    def _note_times(self, attestations: Sequence[Attestation], now: int) -> None:
        for made in attestations:
            if made.attester in self.trusted:
                for moment in (made.issued_ns - SKEW_NS, made.expires_ns + SKEW_NS if made.expires_ns else 0):
                    if moment > now and (not self._next_ns or moment < self._next_ns):
                        self._next_ns = moment

    async def weigh_all(self) -> None:
        """All nodes of the book, some at a time."""
        self._next_ns = 0
        turns, batch = Turns(), list[NodeId]()
        for node_id in self._store.each_node():
            if self._is_other(node_id):  # of most nodes it is not, and to find that out needs no transaction
                batch.append(node_id)
            if len(batch) == SLICE:
                await turns.over()
                self.weigh(batch)
                batch = []
            await turns.item()
        self.weigh(batch)

    async def run(self) -> None:
        """Weigh all at the start, when the user changed something that all hangs on, and when the time changes something;
        until cancelled.
        """
        while True:
            self._again = trio.Event()
            await self.weigh_all()
            due = False
            while not due:
                with trio.move_on_after(EVERY):
                    await self._again.wait()
                due = self._again.is_set() or bool(self._next_ns and self._clock() >= self._next_ns)

    # ---- what comes from nodes ---

    def answered(self, node_id: NodeId, way: str, relayed: bool) -> None:
        """We speak with a node now, by this address of its record; where it is behind a relay nobody knows."""
        last = "" if relayed else way
        if (way or relayed) and self._store.info(_name(node_id)) != last:
            with self._store.writing():
                self._store.save_info(_name(node_id), last)
                self.weigh([node_id])

    async def hear(self, statements: Iterable[Statement]) -> int:
        """``take_statements`` for many: checks them in slices, and takes them in batches."""
        good: list[Statement] = []
        news, turns = 0, Turns()
        for made in statements:
            if self._is_news(made) and attestation.statement_valid(made):
                good.append(made)
            await turns.item()
            if len(good) == BATCH:
                news += self._save(good)
                good = []
        return news + self._save(good)

    def take_statements(self, statements: Iterable[Statement]) -> int:
        """What nodes say of themselves; how many were news. Of nodes that are not in the book nothing is kept."""
        return self._save([made for made in statements if self._is_news(made) and attestation.statement_valid(made)])

    def _is_news(self, made: Statement) -> bool:
        known = self._store.roster_entry(made.node_id) is not None
        return known and attestation.newer(made, self._store.statement_of(made.node_id), self._clock())

    def _save(self, good: Sequence[Statement]) -> int:
        with self._store.writing():
            news = [made.node_id for made in good if self._store.save_statement(made, self._clock())]
            self.weigh(news)
        return len(news)

    # ---- what comes from the user ---

    def trust(self, key: bytes, name: str) -> bool:
        """Believe the attestations of a key, from now on; whether that is news. Raises BadSetting."""
        if not showable(name):
            raise BadSetting(name="--name", reason="it has characters that cannot be shown")
        if len(name) > MOST_NAME:
            raise BadSetting(name="--name", reason=f"it is longer than {MOST_NAME} characters")
        known = {made.key: made for made in self._store.trusted_keys()}
        if key in known and known[key].name == name:
            return False
        if key not in known and len(known) >= MOST_TRUSTED:
            raise BadSetting(name="KEY", reason=f"a vault trusts at most {MOST_TRUSTED} keys")
        with self._store.writing():
            self._store.save_trusted(TrustedKey(key, name, self._clock()))
        self.reload()
        return True

    def use_registry(self, registry: Table | None) -> None:
        """The user's table of networks, from now on."""
        self.registry = registry
        self.again()

    def again(self) -> None:
        """Weigh all soon: something that all hangs on has changed."""
        self._again.set()

    def country(self, node_id: NodeId) -> str:
        """Where a node is taken to be; "" when that is not known."""
        return next((a.value for a in self._store.weighed(node_id).attributes if a.name == "country"), "")

    def attesters(self, node_id: NodeId) -> list[bytes]:
        """Trusted keys whose attestations count for that node now."""
        said = self._store.statement_of(node_id)
        attestations = self._store.attestations_of(node_id) + ([] if said is None else list(said.attestations))
        return [made.attester for made in current(attestations, node_id, self.trusted, self._clock())]

    def distrust(self, key: bytes) -> bool:
        """Believe them no more; whether they were believed."""
        with self._store.writing():
            gone = self._store.remove_trusted(key)
        if gone:
            self.reload()
        return gone

    def take_attestations(self, attestations: Sequence[Attestation]) -> int:
        """Attestations that the user brings; how many were news. All or none: raises BadAttestation for the first that
        counts for nothing.
        """
        now = self._clock()
        for made in attestations:
            reason = attestation.problem(made, now)
            if not reason and made.attester not in self.trusted:
                who = made.attester.hex()
                reason = f"its attester {who} is not trusted; say 'hivefs trust {who}' if you do"
            if reason:
                raise BadAttestation(reason=f"the one about node {made.subject.hex()[:12]}: {reason}")
        with self._store.writing():
            news = [made for made in attestations if self._store.save_attestation(made)]
            self.weigh({NodeId(made.subject) for made in news})
        return len(news)


def _name(node_id: NodeId) -> str:
    return "answered-" + node_id.hex()


def difference(before: Weighed, after: Weighed) -> str:
    """What changed, in words for a log."""
    old = {(a.name, a.value): a.evidence for a in before.attributes}
    new = {(a.name, a.value): a.evidence for a in after.attributes}
    words = []
    for (name, value), evidence in new.items():
        if (name, value) not in old:
            words.append(f"{name} is {value or 'unknown'} now ({evidence.name.lower()})")
        elif old[name, value] != evidence:
            words.append(f"{name} {value} is {evidence.name.lower()} now, it was {old[name, value].name.lower()}")
    names = {name for name, _ in new}
    words += [f"{name} {value} is not said any more" for name, value in old if name not in names]
    return ", ".join(words) or "other problems with what is known of it"
