"""Which share goes to which node, where old copies make the shares different from each other (exposure.py). Pure.

Depth first over the shares, those with the fewest places first; for each the kinds of nodes, where a kind is all nodes
under the same authorities, the one first that gives fewest authorities a share that they do not have. What was tried in
vain is not tried again. The search has a budget, so that it always ends; within it, it is exact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.effort import spend
from hivefs.placement.exposure import Exposure
from hivefs.placement.limits import Limit, Load

BUDGET = 400
"""Steps of the search. One looks at some thirty kinds of nodes, which takes a third of a millisecond."""

KINDS_A_STEP = 32


@dataclass(frozen=True, slots=True)
class Assigned:
    """A node for each share that has one; ``complete`` when all have. ``exact``: when it is not complete, nothing is."""

    nodes: Mapping[int, Candidate]
    complete: bool
    exact: bool
    steps: int = 0


@dataclass(slots=True)
class _Kind:
    """Nodes under the same authorities, with their places in the order of preference; the first ``used`` are taken."""

    nodes: list[tuple[int, Candidate]]
    refuses: frozenset[int]
    used: int = 0

    @property
    def node(self) -> Candidate:
        return self.nodes[0][1]


class _OverBudget(Exception):
    pass


@dataclass
class _Search:
    load: Load
    exposure: Exposure
    kinds: list[_Kind]
    budget: int
    shares: list[int] = field(default_factory=list)
    steps: int = 0
    trail: list[tuple[int, _Kind, Candidate, list[frozenset[str]]]] = field(default_factory=list)
    """What is placed: share, kind, node, and how to take it back."""
    dead: set[object] = field(default_factory=set)

    def fitting(self, number: int) -> list[_Kind]:
        """Kinds that may take this share now, the best first."""
        self.steps += 1 + len(self.kinds) // KINDS_A_STEP
        spend(10 * len(self.kinds))
        found = []
        for at, kind in enumerate(self.kinds):
            if kind.used == len(kind.nodes) or number in kind.refuses:
                continue
            if self.load.accepts(kind.node) and self.exposure.accepts(number, kind.node):
                found.append((*self.exposure.cost(number, kind.node), kind.nodes[kind.used][0], at))
        return [self.kinds[at] for *_, at in sorted(found)]

    def step(self, at: int) -> bool:
        """Whether all shares from ``at`` on find a node; then they are placed."""
        if at == len(self.shares):
            return True
        if self.steps > self.budget:
            raise _OverBudget
        state: object = (at, tuple([kind.used for kind in self.kinds]), self.exposure.state())
        if state in self.dead:
            return False
        for kind in self.fitting(self.shares[at]):
            self.take(self.shares[at], kind)
            if self.step(at + 1):
                return True
            self.back()
        self.dead.add(state)
        return False

    def take(self, number: int, kind: _Kind) -> None:
        """Place a share at the next node of a kind."""
        node = kind.nodes[kind.used][1]
        kind.used += 1
        self.load.add(node)
        self.trail.append((number, kind, node, self.exposure.add(number, node)))

    def back(self) -> None:
        """Take the last placed share back."""
        number, kind, node, before = self.trail.pop()
        self.exposure.take_out(number, before)
        self.load.add(node, -1)
        kind.used -= 1

    def taken_back(self) -> dict[int, Candidate]:
        """All that is placed, which is taken back."""
        found = {number: node for number, _, node, _ in self.trail}
        while self.trail:
            self.back()
        return found

    def greedy(self) -> dict[int, Candidate]:
        """Each share where it fits best; what fits nowhere is left out."""
        for number in self.shares:
            for kind in self.fitting(number)[:1]:
                self.take(number, kind)
        return self.taken_back()

    def could(self) -> bool:
        """Whether each share has a node of its own when it is not counted what others there do: a matching of shares with
        kinds (Kuhn 1955).
        """
        fits = [self.fitting(number) for number in self.shares]
        there: dict[int, list[int]] = {id(kind): [] for kind in self.kinds}

        def place(share: int, seen: set[int]) -> bool:
            for kind in fits[share]:
                if id(kind) in seen:
                    continue
                seen.add(id(kind))
                mine = there[id(kind)]
                if len(mine) < len(kind.nodes):
                    mine.append(share)
                    return True
                for place_of, other in enumerate(mine):
                    if place(other, seen):
                        mine[place_of] = share
                        return True
            return False

        return all(place(share, set()) for share in range(len(fits)))


def assign(
    limits: Sequence[Limit],
    fixed: Sequence[Candidate],
    exposure: Exposure,
    wanted: Collection[int],
    pool: Sequence[Candidate],
    refused: Collection[tuple[int, NodeId]] = (),
    budget: int = BUDGET,
) -> Assigned:
    """Different nodes of ``pool`` for the shares ``wanted``, which with ``fixed`` keep the limits, and by which nobody
    comes to k shares; earlier ones of ``pool`` are preferred among equals. No pair (share, node) of ``refused`` is made.
    What could be placed of an assignment that is not complete keeps the limits too. The exposure is left as it was.
    """
    load = Load(limits)
    for node in fixed:
        load.add(node)
    if not load.holds():
        return Assigned({}, False, True)
    search = _Search(load, exposure, _kinds(load, exposure, pool, refused), budget)
    alone = {n: sum(len(kind.nodes) for kind in search.fitting(n)) for n in wanted}
    search.shares = sorted(wanted, key=lambda n: (alone[n], n))
    best = search.greedy()
    if len(best) == len(search.shares):
        return Assigned(best, True, True, search.steps)
    if not search.could():
        return Assigned(best, False, True, search.steps)
    try:
        complete = search.step(0)
    except _OverBudget:
        search.taken_back()
        return Assigned(best, False, False, search.steps)
    placed = search.taken_back()
    return Assigned(placed if complete else best, complete, True, search.steps)


def _kinds(
    load: Load, exposure: Exposure, pool: Sequence[Candidate], refused: Collection[tuple[int, NodeId]]
) -> list[_Kind]:
    never: dict[NodeId, set[int]] = {}
    for number, node_id in refused:
        never.setdefault(node_id, set()).add(number)
    kinds: dict[object, _Kind] = {}
    for place, node in enumerate(pool):
        refuses = frozenset(never.get(node.node_id, ()))
        key = (load.kind(node), exposure.kind(node), refuses)
        kinds.setdefault(key, _Kind([], refuses)).nodes.append((place, node))
    return list(kinds.values())
