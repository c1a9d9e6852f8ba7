"""What is truly so in a simulated hive, counted apart from the engine, and what must never be seen in it.

Kept for every share: which disks have it whole (``intact``), and who could still give it away (``exposed``: taken, and
neither deleted on request nor destroyed; a copy that a move left behind counts, so does what a node pretends to have
lost). Nothing here uses the engine's verifier or judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import trio

from hivefs.model.ids import ShareId, StripeId
from hivefs.testing.sim.nodes import SimNode

if TYPE_CHECKING:
    from hivefs.testing.sim.files import SimFile

PURPOSE: ContextVar[str] = ContextVar("PURPOSE", default="repair")
"""What is asked of nodes for: "repair", "user" (reads, first writes) or "audit"."""


class Violation(AssertionError):
    """Something that must never be so, is."""


@dataclass(slots=True)
class Traffic:
    """Bytes of shares over the wire by purpose."""

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)

    def get(self, size: int) -> None:
        """A share was read."""
        self.read[PURPOSE.get()] += size

    def put(self, size: int) -> None:
        """A share was sent."""
        self.written[PURPOSE.get()] += size


@dataclass(eq=False)
class Kept:
    """One stripe. ``due`` says for share numbers of which no disk has a whole copy until when the engine must
    have made them again; ``broken`` for (node, share number) until when it must not count on that node for it. ``rules``
    are (family, coalition) of the G1 that holds for it; not ``settled`` while a new policy may ask for more than it has.
    ``removed`` are share numbers whose last whole copy was deleted because the engine asked for that. Repair has to begin
    when ``repair_at`` shares are left (waiting.py). ``spread``: which nodes fail together was to be known before it was
    written (groups.py). ``lost`` is also what
    never came to be a file's; a ``stray`` one nobody's book ever named, a ``meta`` one
    holds pages of the metadata tree.
    """

    name: int
    needed: int
    share_ids: tuple[ShareId, ...]
    data: tuple[bytes, ...]
    stripe_id: StripeId | None = None
    intact: list[set[int]] = field(default_factory=list)
    exposed: list[set[int]] = field(default_factory=list)
    due: dict[int, float] = field(default_factory=dict)
    broken: dict[tuple[int, int], float] = field(default_factory=dict)
    lost: bool = False
    rules: tuple[tuple[str, int], ...] | None = None
    policy: str = ""
    settled: bool = True
    holds: list[SimFile] = field(default_factory=list)
    was_whole: bool = False
    stray: bool = False
    meta: bool = False
    put_at: float = 0.0
    removed: set[int] = field(default_factory=set)
    repair_at: int = 0
    spread: bool = False

    def __post_init__(self) -> None:
        self.repair_at = self.repair_at or len(self.share_ids) - 1

    @property
    def lazy(self) -> bool:
        """Whether it may wait at all."""
        return self.repair_at < len(self.share_ids) - 1

    @property
    def left(self) -> int:
        """Share numbers of which some disk has a whole copy."""
        return sum(map(bool, self.intact))


def most_seen(kept: Kept, nodes: dict[int, SimNode], family: str, coalition: int) -> tuple[tuple[str, ...], int]:
    """The coalition of authorities that could bring together most distinct shares of a stripe, and how many."""
    over = [
        frozenset().union(*(nodes[n].countries if family == "jurisdiction" else {nodes[n].operator} for n in holders))
        for holders in kept.exposed
    ]
    names = sorted(frozenset().union(*over))
    best: tuple[tuple[str, ...], int] = ((), 0)
    for members in combinations(names, min(coalition, len(names))):
        count = sum(1 for sets in over if not sets.isdisjoint(members))
        if count > best[1]:
            best = (members, count)
    return best


class Truth:
    """``say`` writes the trace; ``rules`` are (family, coalition) of the policy's G1. What a node lost is made again
    within ``lag`` seconds of its going away; within ``detection``  the engine must notice that a node that answers has
    not what it should have, and make it again; within ``blind`` that a node lies.
    """

    def __init__(
        self,
        share_bytes: int,
        rules: tuple[tuple[str, int], ...],
        lag: float,
        detection: float,
        blind: float,
        say: Callable[..., None],
    ) -> None:
        self.lag = lag
        self.detection = detection
        self.blind = blind
        self.share_bytes = share_bytes
        self.nodes: dict[int, SimNode] = {}
        self.stripes: dict[int, Kept] = {}
        self.by_id: dict[StripeId, Kept] = {}
        self.traffic = Traffic()
        self.lost: list[tuple[float, int]] = []
        self.most_exposed = 0
        self.on_stored: Callable[[], None] = lambda: None
        self.on_lost: Callable[[Kept], None] = lambda kept: None
        self.on_deleted: Callable[[SimNode, Kept, ShareId], None] = lambda node, kept, share_id: None
        self.given_up: Callable[[Kept], bool] = lambda kept: False
        """Whether nobody needs a stripe any more."""
        self._by_share: dict[ShareId, tuple[Kept, int]] = {}
        self._rules = rules
        self._say = say

    def know(self, kept: Kept) -> None:
        """A stripe is about to be placed."""
        kept.intact = [set() for _ in kept.share_ids]
        kept.exposed = [set() for _ in kept.share_ids]
        kept.rules = self._rules if kept.rules is None else kept.rules
        self.stripes[kept.name] = kept
        for index, share_id in enumerate(kept.share_ids):
            self._by_share[share_id] = (kept, index)

    def placed(self, kept: Kept, stripe_id: StripeId) -> None:
        """The engine recorded it."""
        kept.stripe_id = stripe_id
        self.by_id[stripe_id] = kept

    def find(self, share_id: ShareId) -> tuple[Kept, int]:
        """Whose share that is."""
        return self._by_share[share_id]

    # ---- what happens to shares -------------------------------------------------------------------------------------

    def stored(self, node: SimNode, share_id: ShareId) -> None:
        """A node's disk has it now."""
        kept, index = self.find(share_id)
        self._say("put", node.number, kept.name, index)
        kept.intact[index].add(node.number)
        kept.due.pop(index, None)
        kept.removed.discard(index)
        kept.put_at = trio.current_time()
        kept.broken.pop((node.number, index), None)
        kept.was_whole = kept.was_whole or kept.left == len(kept.share_ids)
        self._seen(kept, index, node)
        self.on_stored()

    def pretended(self, node: SimNode, share_id: ShareId) -> None:
        """A node took it and will never give it back whole: it can still give it away."""
        kept, index = self.find(share_id)
        self._say("pretend", node.number, kept.name, index)
        kept.broken[(node.number, index)] = due = trio.current_time() + self.blind
        if not kept.intact[index] and not kept.lost:
            kept.due[index] = due
        self._seen(kept, index, node)

    def _seen(self, kept: Kept, index: int, node: SimNode) -> None:
        kept.exposed[index].add(node.number)
        for family, coalition in kept.rules or ():
            members, count = most_seen(kept, self.nodes, family, coalition)
            self.most_exposed = max(self.most_exposed, count)
            if count >= kept.needed:
                raise Violation(
                    f"stripe {kept.name}: {' and '.join(members)} could bring together {count} of {kept.needed}"
                )

    def deleted(self, node: SimNode, share_id: ShareId) -> None:
        """The engine asked for it, and the node did."""
        kept, index = self.find(share_id)
        self._say("delete", node.number, kept.name, index)
        kept.exposed[index].discard(node.number)
        kept.broken.pop((node.number, index), None)
        if node.number in kept.intact[index]:
            self.on_deleted(node, kept, share_id)
            kept.intact[index].discard(node.number)
            if not kept.intact[index] and not kept.lost:
                # What a node gave back damaged or denied is deleted before it is made again; so is a copy that was left
                # behind, while the engine does not know yet that the newer one is destroyed.
                known = [due for (_, i), due in kept.broken.items() if i == index]
                if not known:
                    kept.removed.add(index)
                kept.due.setdefault(index, max([trio.current_time() + self.lag, *known]))
                self._judge(kept)

    def damaged(self, node: SimNode, share_id: ShareId, due: float, *, exposed: bool) -> None:
        """A copy is no copy any more; when it was the last one, it must be made again until ``due``."""
        kept, index = self.find(share_id)
        if not exposed:
            kept.exposed[index].discard(node.number)
        if node.number not in kept.intact[index]:
            return
        kept.intact[index].discard(node.number)
        kept.broken[(node.number, index)] = due
        if not kept.intact[index] and not kept.lost:
            kept.due[index] = max(due, kept.due.get(index, 0.0))
            self._judge(kept)

    def _judge(self, kept: Kept) -> None:
        if kept.left >= kept.needed or self.given_up(kept):
            return
        now = trio.current_time()
        # What the engine had deleted itself is no excuse.
        fresh = sum(1 for index in kept.due if kept.due[index] > now and index not in kept.removed)
        # Before those of one lag more than ``repair_at`` were left, and now it is one less than k.
        if fresh < kept.repair_at - kept.needed + 2:
            raise Violation(f"stripe {kept.name} is lost with {fresh} shares destroyed inside of one repair lag")
        kept.lost = True
        self.lost.append((now, kept.name))
        self._say("lost", kept.name)
        self.on_lost(kept)

    # ---- looking --------------------------------------------------------------------------------------------------------

    def reachable(self, kept: Kept) -> int:
        """Share numbers that some node gives whole now."""
        return sum(
            1 for holders in kept.intact if any(self.nodes[n].reachable and not self.nodes[n].flips for n in holders)
        )

    def overdue(self) -> Iterator[tuple[Kept, list[int]]]:
        """Stripes with their shares that the engine must know to be lost by now; where repair waits, it may leave some."""
        now = trio.current_time()
        for kept in self.stripes.values():
            late = [] if kept.lost else [index for index, due in kept.due.items() if due < now]
            if late and not self.given_up(kept):
                yield kept, late

    def late(self, kept: Kept) -> None:
        """A stripe is recorded: what was destroyed before that is due as if it were destroyed now."""
        for index, holders in enumerate(kept.intact):
            if not holders:
                kept.due.setdefault(index, trio.current_time() + self.lag)

    def postpone(self, seconds: float) -> None:
        """What is not due yet is so much later."""
        now = trio.current_time()
        for kept in self.stripes.values():
            kept.due.update({index: due + seconds for index, due in kept.due.items() if due >= now})
            kept.broken.update({copy: due + seconds for copy, due in kept.broken.items() if due >= now})

    def grant_time(self, until: float) -> None:
        """Repair was impossible meanwhile: nothing is due before ``until``. What a stripe that waits misses already is
        known, and stays so.
        """
        now = trio.current_time()
        for kept in self.stripes.values():
            for index, due in kept.due.items():
                if due >= now or not kept.lazy:
                    kept.due[index] = max(due, until)
            for key in kept.broken:
                kept.broken[key] = max(kept.broken[key], until)
