"""Trust in nodes: what their answers and their absences say, kept in the engine's store, asked for by pool and audit.

``tick`` is called by the pool some times a second. **Absence** is time that this machine saw a node away, not time of the
clock (that counts for the decision to give a node up, see ``away``, but for no history): while this machine is the one that
is cut off nothing should be counted. When
no node answers at all no time counts; while fewer than half of those not given up answer, time counts an eighth, since that
many seldom fail by themselves at once, and if they did after all they are given up later. An absence of which a part did
not count whole is no part of anybody's history.

Atomic between two checkpoints of trio: everything. Rows are written when something was decided, and else every SAVE_EVERY
seconds, so a SIGKILL loses a minute or two of counting and no decision. Rows are written SAVE_SLICE at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Final, Protocol

import trio

from hivefs.model.ids import NodeId, StripeId
from hivefs.placement import reputation
from hivefs.placement.outages import History, domains
from hivefs.placement.reputation import Owed, Reputation

log = logging.getLogger(__name__)

SAVE_EVERY: Final = 60.0
CUT_OFF_SPEED: Final = 0.125
LEARN_EVERY: Final = 600.0
SAVE_SLICE: Final = 64
TICK: Final = 10.0
GRACE_S: Final = 600.0
LONGEST_TICK: Final = 30.0
"""More than this between two ticks was a sleep of the machine, not time in which anybody looked."""
FOUNDING_NS: Final = 3600 * 10**9
"""Nodes that were met within so long of the very first count as vetted: there is nobody whom they could be measured by."""
READ_EVERY: Final = 600.0
"""A right answer to a read counts once in so long, as an audit would: a node chooses which shares it serves well."""
MOST_SUSPENDED: Final = 3
"""At most one in so many nodes is suspended: when more seem bad, the book that says so may be the one that is wrong."""


def _history(row: Reputation, now_s: float) -> History:
    """Since when outages are known: the first that is kept, or since the node is."""
    since = row.outages[0][0] if len(row.outages) >= reputation.KEPT else row.first_seen_ns / 1e9
    return History(row.outages, max(86_400.0, now_s - since))


class TrustBook(Protocol):
    """Where rows are kept (metadata/engine_trust.py)."""

    def reputations(self) -> dict[NodeId, Reputation]: ...

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None: ...

    def save_distrusted(self, nodes: Collection[NodeId]) -> None: ...


class Trust:
    """``clock`` gives nanoseconds since 1970; ``gone_after`` is the vault's setting in seconds."""

    def __init__(self, book: TrustBook, clock: Callable[[], int], gone_after: float) -> None:
        self._book = book
        self._clock = clock
        self._setting = gone_after
        self._rows = book.reputations()
        self._unsaved: dict[
            NodeId, None
        ] = {}  # oldest first, so that none waits for ever, in an order that no hash decides
        self._since_save = 0.0
        self._online: set[NodeId] = set()
        self._folded: dict[NodeId, float] = {}
        """Up to when the time of those online is counted in their rows."""
        self._read_due: dict[NodeId, float] = {}
        self._time = 0.0
        self._waited = 0.0
        self._seen_away: dict[NodeId, float] = {}
        self.longest_tick = LONGEST_TICK
        self._founded = min((row.first_seen_ns for row in self._rows.values()), default=0)
        self._suspended = self._worst()
        book.save_distrusted(self._suspended)
        self.cut_off = False
        """Whether this machine seems to be the one that is away."""
        self.on_failed: Callable[[NodeId], None] = lambda node_id: None
        self.on_suspended: Callable[[NodeId], None] = lambda node_id: None
        self.on_changed: Callable[[NodeId], None] = lambda node_id: None
        """Hears of nodes of which weight(), vetted(), suspended() or outage() may say something else now."""
        self.domains: Mapping[NodeId, str] = {}

    # ---- what others ask --------------------------------------------------------------------------------------------

    def row(self, node_id: NodeId) -> Reputation:
        """What is known; a fresh row for a node that is met for the first time."""
        row = self._rows.get(node_id)
        if row is None:
            now = self._clock()
            row = self._rows[node_id] = Reputation(max(0, now), max(0, now))
            self._founded = min(self._founded or row.first_seen_ns, row.first_seen_ns)
            self._unsaved[node_id] = None
        return row

    @property
    def rows(self) -> Mapping[NodeId, Reputation]:
        """All that are known."""
        return self._rows

    def gone_after(self, node_id: NodeId) -> float:
        """Seconds of absence after which this node is given up."""
        return reputation.gone_after(self.row(node_id), self._setting)

    def away(self, node_id: NodeId, since_s: float) -> float:
        """Seconds that it is away now, as far as they count. ``since_s`` is how long ago it was last there by the clock:
        that includes times when no engine ran. It counts once the node was away for a while (GRACE_S) before our own eyes,
        unless we were cut off.
        """
        row = self.row(node_id)
        seen = row.away_ms / 1000
        grace = min(GRACE_S, self.gone_after(node_id) / 4)
        trusted = not row.doubted and not self.cut_off and self._seen_away.get(node_id, 0.0) >= grace
        return max(seen, since_s) if trusted else seen

    def weight(self, node_id: NodeId) -> float:
        """Candidate.weight."""
        return reputation.weight(self.row(node_id))

    def vetted(self, node_id: NodeId) -> bool:
        """Candidate.vetted."""
        row = self.row(node_id)
        return row.first_seen_ns - self._founded <= FOUNDING_NS or reputation.vetted(row, self._clock())

    def suspended(self, node_id: NodeId) -> bool:
        """Too many wrong answers: its shares move away and it gets none."""
        return node_id in self._suspended

    @property
    def suspended_nodes(self) -> int:
        """How many are."""
        return len(self._suspended)

    @property
    def unsaved(self) -> int:
        """Rows that are not written yet."""
        return len(self._unsaved)

    def outage(self, node_id: NodeId) -> frozenset[str]:
        """The learnt domain of nodes that fail together (placement/outages.py); empty for none."""
        name = self.domains.get(node_id)
        return frozenset() if name is None else frozenset({name})

    def status(self, node_id: NodeId) -> dict[str, Any]:
        """For ``hivefs status``: ``score`` and ``availability`` are between 0 and 1, ``gone_after_s`` is in seconds."""
        row = self.row(node_id)
        return {
            "score": round(reputation.score(row), 4),
            "availability": round(reputation.availability(row), 4),
            "audits": row.audits,
            "vetted": self.vetted(node_id),
            "suspended": self.suspended(node_id),
            "first_seen_ns": row.first_seen_ns,
            "gone_after_s": self.gone_after(node_id),
            "outage_domain": self.domains.get(node_id, ""),
        }

    # ---- evidence ---------------------------------------------------------------------------------------------------

    def read(self, node_id: NodeId) -> None:
        """A read was answered rightly."""
        if self._read_due.get(node_id, 0.0) <= self._time:
            self._read_due[node_id] = self._time + READ_EVERY
            self._set(node_id, reputation.answered(self.row(node_id), True, self._clock()))

    def passed(self, node_id: NodeId) -> None:
        """An audit was passed."""
        self._set(node_id, reputation.audited(self.row(node_id), self._clock()))

    def failed(self, node_id: NodeId) -> None:
        """A share that it should hold is wrong, missing or withheld. Saved at once: nobody may be killed out of it."""
        self._set(node_id, reputation.answered(self.row(node_id), False, self._clock()))
        self._save([node_id])
        self.on_failed(node_id)

    def silent(self, node_id: NodeId, stripe_id: StripeId, index: int, strike: bool) -> Owed:
        """It did not answer for that share in time, or said that it is busy; how often that was."""
        row, entry = reputation.owes(self.row(node_id), stripe_id, index, self._clock(), strike)
        self._set(node_id, row)
        return entry

    def owed_since(self, owed: Owed) -> float:
        """Seconds by the clock since a node was first silent or busy for a share."""
        return self._clock() / 1e9 - owed.since_s

    def settled(self, node_id: NodeId, stripe_id: StripeId, index: int) -> None:
        """It answered for a share that it owed."""
        row = self.row(node_id)
        if row.owed:
            self._set(node_id, reputation.settled(row, stripe_id, index))

    def sweep(self, node_id: NodeId, upto: bytes) -> None:
        """All its shares were looked at up to that stripe; empty: the sweep is over."""
        self._set(node_id, replace(self.row(node_id), sweep=upto))
        self._save([node_id])

    def _set(self, node_id: NodeId, row: Reputation) -> None:
        before = self._rows.get(node_id)
        self._rows[node_id] = row
        self._unsaved[node_id] = None
        self.on_changed(node_id)
        if before is None or before.suspended != row.suspended or row.suspended:
            self._suspended, old = self._worst(), self._suspended
            if self._suspended != old:
                self._book.save_distrusted(self._suspended)
            for changed in sorted(self._suspended ^ old):
                bad = changed in self._suspended
                log.warning(
                    "node %s %s", changed.hex()[:12], "is out of trust: its shares move" if bad else "is trusted again"
                )
                self.on_changed(changed)
                self.on_suspended(changed)

    def _worst(self) -> frozenset[NodeId]:
        bad = [node_id for node_id, row in self._rows.items() if row.suspended]
        bad.sort(key=lambda node_id: (reputation.score(self._rows[node_id]), node_id))
        return frozenset(bad[: max(1, len(self._rows) // MOST_SUSPENDED)])

    async def run(self) -> None:
        """Learn which nodes fail together, again and again, until cancelled."""
        while True:
            now = self._clock() / 1e9
            seen = {node_id: _history(row, now) for node_id, row in list(self._rows.items()) if row.outages}
            found = await trio.to_thread.run_sync(domains, seen)
            for name in set(found.values()) - set(self.domains.values()):
                log.info("%d nodes fail together: %s", sum(1 for other in found.values() if other == name), name)
            before, self.domains = self.domains, found
            for node_id in sorted({*before, *found}):
                if before.get(node_id) != found.get(node_id):
                    self.on_changed(node_id)
            await trio.sleep(LEARN_EVERY)

    # ---- absence ----------------------------------------------------------------------------------------------------

    def tick(self, seconds: float, online: Iterable[NodeId], away: Iterable[NodeId], gone: Iterable[NodeId]) -> None:
        """So much time passed since the last tick; ``away`` are those not given up yet."""
        self._waited += seconds if 0 < seconds <= self.longest_tick else 0.0
        if self._waited < min(TICK, self._setting / 16):
            return
        seconds, self._waited = self._waited, 0.0
        self._time += seconds
        here, missing = set(online), list(away)
        expected = len(here) + len(missing)
        cut_off = bool(missing) and 2 * len(here) < expected
        if cut_off != self.cut_off:
            log.log(
                logging.WARNING if cut_off else logging.INFO,
                "%d of %d nodes answer: %s",
                len(here),
                expected,
                "it seems to be this machine that is away" if cut_off else "most are there",
            )
            self.cut_off = cut_off
        counted = 1.0 if not cut_off else CUT_OFF_SPEED if here else 0.0
        for node_id in here - self._online:
            self._seen_away.pop(node_id, None)
            row = self.row(node_id)
            if row.away_ms or row.doubted:
                self._rows[node_id] = reputation.returned(row, self._clock(), self._setting)
                self.on_changed(node_id)
            self._folded[node_id] = self._time - seconds
        for node_id in self._online - here:
            self._fold(node_id, self._time - seconds)
            del self._folded[node_id]
        for node_id in (*missing, *gone):
            self._rows[node_id] = reputation.watched(self.row(node_id), seconds, False, counted)
            self._seen_away[node_id] = self._seen_away.get(node_id, 0.0) + seconds * counted
        self._online = here
        self._since_save += seconds
        if self._since_save >= max(1.0, min(SAVE_EVERY, self._setting / 8)):
            self._since_save = 0.0
            self._unsaved |= dict.fromkeys(self._rows)
        if self._unsaved:
            self._save(list(islice(self._unsaved, SAVE_SLICE)))

    def _fold(self, node_id: NodeId, upto: float) -> None:
        """Count the time since when it is online. Not with each tick: most nodes are, and there may be many."""
        self._rows[node_id] = reputation.watched(self.row(node_id), upto - self._folded[node_id], True, 1.0)
        self._folded[node_id] = upto
        self.on_changed(node_id)

    def _save(self, nodes: list[NodeId]) -> None:
        for node_id in nodes:
            if node_id in self._folded:
                self._fold(node_id, self._time)
        self._book.save_reputations({node_id: self._rows[node_id] for node_id in nodes})
        for node_id in nodes:
            self._unsaved.pop(node_id, None)
