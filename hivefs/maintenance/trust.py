"""Trust in nodes: what their answers and their absences say, kept in the engine's store, asked for by pool and audit.

``tick`` is called by the pool some times a second; it costs the same however many nodes there are, since the time of a node
is added to its row when that is looked at. **Absence** is time that this machine saw a node away, not time of the
clock (that counts for the decision to give a node up, see ``away``, but for no history): while this machine is the one that
is cut off nothing should be counted. When
no node answers at all no time counts; while fewer than half of those not given up answer, time counts an eighth, since that
many seldom fail by themselves at once, and if they did after all they are given up later. An absence of which a part did
not count whole is no part of anybody's history.

Atomic between two checkpoints of trio: everything. Rows are written when something was decided, and else every SAVE_EVERY
seconds, so a SIGKILL loses a minute or two of counting and no decision. Rows are written SAVE_RATE a second, so of very
many nodes more is lost: of 100 000 an hour of counting. What a full disk does not take is written with a later tick:
whoever tells of a node hears nothing of that.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import trio

from hivefs.errors import DiskFull
from hivefs.maintenance.ring import Ring
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, StripeId
from hivefs.placement import reputation
from hivefs.placement.outages import History, domains
from hivefs.placement.reputation import Owed, Reputation
from hivefs.placement.reputations import Reputations

log = logging.getLogger(__name__)

T = TypeVar("T")

SAVE_EVERY: Final = 60.0
CUT_OFF_SPEED: Final = 0.125
LEARN_EVERY: Final = 600.0
SAVE_SLICE: Final = 64
SAVE_RATE: Final = 32
"""Rows that are written in a second, and at once, at most."""

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


class _Away(NamedTuple):
    """Up to where of a Trust's sums the row of a node that is away is counted; ``since_ms``: where its absence began."""

    passed_ms: int
    counted_ms: int
    whole_ms: int
    since_ms: int


_AWAY: Final = Struct("<4q")
"""An _Away as it is kept: the collector of garbage does not look at bytes (placement/reputations.py says why)."""


def _note(kept: dict[NodeId, T], node_id: NodeId, value: T, is_so: bool) -> None:
    if is_so:
        kept[node_id] = value
    else:
        kept.pop(node_id, None)


def _history(row: Reputation, now_s: float) -> History:
    """Since when outages are known: the first that is kept, or since the node is."""
    since = row.outages[0][0] if len(row.outages) >= reputation.KEPT else row.first_seen_ns / 1e9
    return History(row.outages, max(86_400.0, now_s - since))


class TrustBook(Protocol):
    """Where rows are kept (metadata/engine_trust.py)."""

    def reputations(self) -> Iterable[tuple[NodeId, Reputation]]: ...

    def reputation(self, node_id: NodeId) -> Reputation | None: ...

    def distrusted(self) -> Collection[NodeId]: ...

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None: ...

    def save_distrusted(self, nodes: Collection[NodeId]) -> None: ...


class Trust:
    """``clock`` gives nanoseconds since 1970; ``gone_after`` is the vault's setting in seconds. ``later``: rows are read by
    ``load``, with turns for others. Until then a row is read when it is asked for, who is out of trust is what was written,
    and nobody counts as vetted for having been met first.
    """

    def __init__(self, book: TrustBook, clock: Callable[[], int], gone_after: float, later: bool = False) -> None:
        self._book = book
        self._clock = clock
        self._setting = gone_after
        self._rows = Reputations()
        self._unsaved: OrderedDict[NodeId, None] = OrderedDict()
        """Oldest first, so that none waits for ever, in an order that no hash decides. (A plain dictionary of which the
        first are taken is looked through from its beginning, over all that were taken, each time.)
        """
        self._since_save = 0.0
        self._met = Ring()
        self._round = self._written = 0
        """So many of those that were met are written in turn, since the time of their nodes goes on, and so many are."""
        self._folded: dict[NodeId, float] = {}
        """Those online, and up to when their time is counted in their rows."""
        self._away: dict[NodeId, bytes] = {}
        self._passed_ms = self._counted_ms = self._whole_ms = 0
        """Of all ticks: time, as much of it as counted for those away, and as was counted whole."""
        self._read_due: dict[NodeId, float] = {}
        self._time = 0.0
        self._waited = 0.0
        self.longest_tick = LONGEST_TICK
        self._founded = 0
        self._bad: dict[NodeId, None] = {}
        self._owing: dict[NodeId, int] = {}
        self._swept: dict[NodeId, None] = {}
        self._said: frozenset[NodeId] | None = None
        """Who is out of trust by what is written."""
        self._loaded = False
        self._suspended: frozenset[NodeId] = frozenset()
        self.cut_off = False
        """Whether this machine seems to be the one that is away."""
        self.on_failed: Callable[[NodeId], None] = lambda node_id: None
        self.on_suspended: Callable[[NodeId], None] = lambda node_id: None
        self.on_changed: Callable[[NodeId], None] = lambda node_id: None
        """Hears of nodes of which weight(), vetted(), suspended() or outage() may say something else now."""
        self.domains: Mapping[NodeId, str] = {}
        if later:
            self._suspended = frozenset(book.distrusted())
        else:
            for node_id, row in book.reputations():
                self._take(node_id, row)
            self._all_here()

    async def load(self) -> None:
        """Read the rows, with turns for others: what begins before that must do with what a single row says."""
        turns = Turns()
        for node_id, row in self._book.reputations():
            if node_id not in self._rows:
                self._take(node_id, row)
            await turns.item()
        self._all_here()

    def _take(self, node_id: NodeId, row: Reputation) -> None:
        self._rows[node_id] = row
        self._met.add(node_id)
        self._note_row(node_id, row)

    def _all_here(self) -> None:
        self._loaded = True
        self._suspended = self._worst()
        self._save_distrusted()

    # ---- what others ask --------------------------------------------------------------------------------------------

    def row(self, node_id: NodeId) -> Reputation:
        """What is known; a fresh row for a node that is met for the first time."""
        row = self._rows.get(node_id)
        if row is None and not self._loaded and (row := self._book.reputation(node_id)) is not None:
            self._take(node_id, row)
        if row is None:
            now = max(0, self._clock())
            row = Reputation(now, now)
            self._take(node_id, row)
            self._unsaved[node_id] = None
        away = self._away_of(node_id)
        if away is not None and away.passed_ms != self._passed_ms:
            return self._fold_away(node_id, row, away)
        return row

    def _away_of(self, node_id: NodeId) -> _Away | None:
        kept = self._away.get(node_id)
        return None if kept is None else _Away(*_AWAY.unpack(kept))

    @property
    def rows(self) -> Mapping[NodeId, Reputation]:
        """All that are known, with all that passed counted."""
        for node_id in self._away:
            self.row(node_id)
        return self._rows

    def gone_after(self, node_id: NodeId) -> float:
        """Seconds of absence after which this node is given up."""
        return reputation.gone_after(self._rows.get(node_id) or self.row(node_id), self._setting)

    def away(self, node_id: NodeId, since_s: float) -> float:
        """Seconds that it is away now, as far as they count. ``since_s`` is how long ago it was last there by the clock:
        that includes times when no engine ran. It counts once the node was away for a while (GRACE_S) before our own eyes,
        unless we were cut off. (What passed is not written into the row for this: it is asked for very many, often.)
        """
        row = self._rows.get(node_id) or self.row(node_id)
        away = self._away_of(node_id)
        seen, doubted, before_our_eyes = row.away_ms / 1000, row.doubted, 0.0
        if away is not None:
            seen += (self._counted_ms - away.counted_ms) / 1000
            doubted = doubted or self._whole_ms - away.whole_ms < self._passed_ms - away.passed_ms
            before_our_eyes = (self._counted_ms - away.since_ms) / 1000
        grace = min(GRACE_S, reputation.gone_after(row, self._setting) / 4)
        trusted = not doubted and not self.cut_off and before_our_eyes >= grace
        return max(seen, since_s) if trusted else seen

    def weight(self, node_id: NodeId) -> float:
        """Candidate.weight."""
        return reputation.weight(self.row(node_id))

    def vetted(self, node_id: NodeId) -> bool:
        """Candidate.vetted."""
        row = self.row(node_id)
        founder = self._loaded and row.first_seen_ns - self._founded <= FOUNDING_NS
        return founder or reputation.vetted(row, self._clock())

    def suspended(self, node_id: NodeId) -> bool:
        """Too many wrong answers: its shares move away and it gets none."""
        return node_id in self._suspended

    @property
    def suspended_nodes(self) -> int:
        """How many are."""
        return len(self._suspended)

    @property
    def owed(self) -> int:
        """Shares that nodes owe an answer for."""
        return sum(self._owing.values())

    @property
    def sweeps(self) -> int:
        """Nodes of which all shares are looked at."""
        return len(self._swept)

    @property
    def unsaved(self) -> int:
        """Rows that are not written yet."""
        return len(self._unsaved)

    def outage(self, node_id: NodeId) -> frozenset[str]:
        """The learnt domain of nodes that fail together (placement/outages.py); empty for none."""
        name = self.domains.get(node_id)
        return frozenset() if name is None else frozenset({name})

    def status(self, node_id: NodeId) -> dict[str, Any]:
        """For ``hivefs status``: ``score`` and ``availability`` are between 0 and 1, ``gone_after_s`` is in seconds,
        ``answers_left`` how many right answers end that it is suspended.
        """
        row = self.row(node_id)
        return {
            "score": round(reputation.score(row), 4),
            "availability": round(reputation.availability(row), 4),
            "audits": row.audits,
            "vetted": self.vetted(node_id),
            "suspended": self.suspended(node_id),
            "answers_left": reputation.answers_left(row) if self.suspended(node_id) else 0,
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
        self._note_row(node_id, row)
        self._unsaved[node_id] = None
        self.on_changed(node_id)
        if self._loaded and (before is None or before.suspended != row.suspended or row.suspended):
            self._suspended, old = self._worst(), self._suspended
            self._save_distrusted()
            for changed in sorted(self._suspended ^ old):
                bad = changed in self._suspended
                log.warning(
                    "node %s %s", changed.hex()[:12], "is out of trust: its shares move" if bad else "is trusted again"
                )
                self.on_changed(changed)
                self.on_suspended(changed)

    def _note_row(self, node_id: NodeId, row: Reputation) -> None:
        """What is asked of all rows together is kept as they come and change."""
        self._founded = min(self._founded or row.first_seen_ns, row.first_seen_ns)
        _note(self._bad, node_id, None, row.suspended)
        _note(self._owing, node_id, len(row.owed), bool(row.owed))
        _note(self._swept, node_id, None, bool(row.sweep))

    def _worst(self) -> frozenset[NodeId]:
        bad = sorted(self._bad, key=lambda node_id: (reputation.score(self._rows[node_id]), node_id))
        return frozenset(bad[: max(1, len(self._rows) // MOST_SUSPENDED)])

    async def run(self) -> None:
        """Learn which nodes fail together, again and again, until cancelled."""
        while True:
            now = self._clock() / 1e9
            seen, turns = dict[NodeId, History](), Turns()
            for node_id in self._met.walk():
                row = self._rows.get(node_id)
                if row is not None and row.outages:
                    seen[node_id] = _history(row, now)
                await turns.item()
            found = await trio.to_thread.run_sync(domains, seen)
            for name in set(found.values()) - set(self.domains.values()):
                log.info("%d nodes fail together: %s", sum(1 for other in found.values() if other == name), name)
            before, self.domains = self.domains, found
            for node_id in sorted({*before, *found}):
                if before.get(node_id) != found.get(node_id):
                    self.on_changed(node_id)
            await trio.sleep(LEARN_EVERY)

    # ---- absence ----------------------------------------------------------------------------------------------------

    def came(self, node_id: NodeId) -> None:
        """It answers from now on. (What passed since the last tick counts with the next one.)"""
        if node_id in self._folded:
            return
        row = self.row(node_id)
        if self._away.pop(node_id, None) is not None:
            if row.away_ms or row.doubted:
                self._rows[node_id] = reputation.returned(row, self._clock(), self._setting)
            self.on_changed(node_id)
        elif row.away_ms or row.doubted:  # before the start of this process
            self._rows[node_id] = reputation.returned(row, self._clock(), self._setting)
            self.on_changed(node_id)
        self._folded[node_id] = self._time

    def went(self, node_id: NodeId) -> None:
        """It does not answer from now on, or never did."""
        if node_id in self._away:
            return
        if node_id in self._folded:
            self._fold(node_id)
            del self._folded[node_id]
        self.row(node_id)
        self._note_away(node_id, self._counted_ms)

    def _note_away(self, node_id: NodeId, since_ms: int) -> None:
        """Its row is counted up to now."""
        self._away[node_id] = _AWAY.pack(self._passed_ms, self._counted_ms, self._whole_ms, since_ms)

    def forget(self, node_id: NodeId) -> None:
        """It is not known any more."""
        if self._rows.pop(node_id, None) is not None:
            self._met.forget(node_id)
        for kept in (self._folded, self._away, self._unsaved, self._read_due):
            kept.pop(node_id, None)
        self._bad.pop(node_id, None)
        self._owing.pop(node_id, None)
        self._swept.pop(node_id, None)
        if self._loaded:
            self._suspended = self._worst()

    def tick(self, seconds: float, online: int, away: int) -> None:
        """So much time passed since the last tick; so many answer, and so many do not and are not given up yet. Costs the
        same however many there are: what passes is counted once, and for a node when it is asked for.
        """
        self._write_down(seconds)
        self._waited += seconds if 0 < seconds <= self.longest_tick else 0.0
        if self._waited < min(TICK, self._setting / 16):
            return
        seconds, self._waited = self._waited, 0.0
        self._time += seconds
        cut_off = bool(away) and 2 * online < online + away
        if cut_off != self.cut_off:
            log.log(
                logging.WARNING if cut_off else logging.INFO,
                "%d of %d nodes answer: %s",
                online,
                online + away,
                "it seems to be this machine that is away" if cut_off else "most are there",
            )
            self.cut_off = cut_off
        counted = 1.0 if not cut_off else CUT_OFF_SPEED if online else 0.0
        ms = round(seconds * 1000)
        self._passed_ms += ms
        self._counted_ms += round(ms * counted)
        self._whole_ms += ms if counted == 1 else 0
        self._since_save += seconds
        if self._since_save >= max(1.0, min(SAVE_EVERY, self._setting / 8)) and self._written >= self._round:
            self._since_save = 0.0
            self._round, self._written = len(self._met), 0
        before = self._said or frozenset()
        if self._save_distrusted():  # a full disk did not take it before: who heard of it looked into the book in vain
            for node_id in sorted(before ^ self._suspended):
                self.on_suspended(node_id)

    def _write_down(self, seconds: float) -> None:
        """Some of the rows that wait for it."""
        most = max(1, min(SAVE_SLICE, int(SAVE_RATE * seconds)))
        wanted = list(islice(self._unsaved, most))
        while self._written < self._round and len(wanted) < most:
            node_id = self._met[self._written]
            self._written += 1
            if node_id in self._rows and node_id not in self._unsaved:
                wanted.append(node_id)
        if wanted:
            self._save(wanted)

    def _fold(self, node_id: NodeId) -> None:
        """Count the time since when it is online. Not with each tick: most nodes are, and there may be many."""
        upto, self._folded[node_id] = self._folded[node_id], self._time
        if self._time > upto:
            self._rows[node_id] = reputation.watched(self._rows[node_id], self._time - upto, True, 1.0)
            self.on_changed(node_id)

    def _fold_away(self, node_id: NodeId, row: Reputation, away: _Away) -> Reputation:
        passed, counted = self._passed_ms - away.passed_ms, self._counted_ms - away.counted_ms
        row = self._rows[node_id] = reputation.absent(row, passed, counted, self._whole_ms - away.whole_ms)
        self._note_away(node_id, away.since_ms)
        return row

    def _save(self, nodes: list[NodeId]) -> None:
        for node_id in nodes:
            if node_id in self._folded:
                self._fold(node_id)
        try:
            self._book.save_reputations({node_id: self.row(node_id) for node_id in nodes})
        except DiskFull:
            self._unsaved |= dict.fromkeys(nodes)
            return
        for node_id in nodes:
            self._unsaved.pop(node_id, None)

    def _save_distrusted(self) -> bool:
        """Whether that was written now."""
        if not self._loaded or self._said == self._suspended:
            return False
        with suppress(DiskFull):  # with a later tick, then
            self._book.save_distrusted(self._suspended)
            self._said = self._suspended
        return self._said == self._suspended
