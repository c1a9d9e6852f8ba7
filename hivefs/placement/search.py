"""The best set of nodes under limits: as many holders kept as possible, the rest filled from others. Pure.

solve() is exact where it says so. Limits on single authorities of at most two families, each node under one authority:
by a flow (flow.py), also when some authorities are unknown. Everything else (nodes under several authorities,
coalitions, three families and more): branch and bound over kinds of nodes, where a kind is all nodes under the same
authorities, with a budget of steps so that it always ends. Three families are three-dimensional matching, for which no
fast exact way is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.effort import spend
from hivefs.placement.flow import Edge, Flow, cheapest
from hivefs.placement.limits import Limit, Load, binding, over

BUDGET = 2000
"""Steps of branch and bound; one takes some 50 microseconds for sixty kinds of nodes, and counts more for more."""

KINDS = 200
"""The most kinds of nodes that branch and bound looks at."""

_DEAREST = 1 << 40


@dataclass(frozen=True, slots=True)
class Found:
    """``kept`` are numbers of holders, ``new`` of others; complete when together they are as many as was asked for. With
    ``exact`` nothing better exists: when it is not complete, nothing is; else no more holders can be kept. ``cut`` are
    the authorities (family, name) of the minimum cut when a flow decided that it cannot be complete.
    """

    kept: tuple[int, ...]
    new: tuple[int, ...]
    complete: bool
    exact: bool
    cut: tuple[tuple[str, str], ...] = ()


def solve(
    limits: Sequence[Limit],
    fixed: Sequence[Candidate],
    holders: Sequence[Candidate],
    others: Sequence[Candidate],
    wanted: int,
    budget: int = BUDGET,
) -> Found:
    """``wanted`` of holders and others, which with ``fixed`` keep the limits; earlier ones of ``others`` are preferred."""
    nodes = [*holders, *others]
    spend(4 * len(nodes))
    tight = binding(limits, [*fixed, *nodes], wanted + len(fixed))
    load = Load(tight)
    for node in fixed:
        load.add(node)
    if not load.holds():
        return Found((), (), False, True)
    if len(nodes) < wanted:
        return Found((), (), False, True)
    families = list(load.limits)
    single = all(limit.size == 1 for limit in tight) and all(
        len(over(node, family)) <= 1 for node in nodes for family in families
    )
    if len(families) <= 2 and single:
        spend(20 * len(nodes))
        return _by_flow(load, families, holders, others, wanted)
    return _Branching(load, families, holders, others, wanted, budget).run()


# ---- by flow --------------------------------------------------------------------------------------------------------


def _by_flow(
    load: Load, families: list[str], holders: Sequence[Candidate], others: Sequence[Candidate], wanted: int
) -> Found:
    """An unknown authority is one more authority; how many may lie there is tried, and the others lose as many."""
    edges = _edges(families, holders, others, wanted)
    best: Flow | None = None
    cut: tuple[tuple[str, str], ...] = ()
    for silent in product(*(_silent(load, family, [*holders, *others]) for family in families)):
        rooms = [_rooms(load, f, s, edges, side) for side, (f, s) in enumerate(zip(families, silent, strict=True))]
        rooms += [{"": wanted}] * (2 - len(rooms))
        flow = cheapest([edge for _, edge in edges], rooms[0], rooms[1], wanted)
        if best is None or (len(flow.chosen), -flow.cost) > (len(best.chosen), -best.cost):
            best = flow
            cut = tuple((families[0], name) for name in flow.full_left) if families else ()
            cut += tuple((families[1], name) for name in flow.full_right) if len(families) > 1 else ()
            kept = sum(1 for i in flow.chosen if edges[i][0] < len(holders))
            if len(flow.chosen) == wanted and kept == min(len(holders), wanted):
                break
    chosen = [] if best is None else [edges[i][0] for i in best.chosen]
    kept_ones = tuple(i for i in chosen if i < len(holders))
    new = tuple(i - len(holders) for i in chosen if i >= len(holders))
    complete = len(chosen) == wanted
    return Found(kept_ones, new, complete, True, () if complete else cut)


def _edges(
    families: list[str], holders: Sequence[Candidate], others: Sequence[Candidate], wanted: int
) -> list[tuple[int, Edge]]:
    """Nodes as edges, with their number; of those under the same authorities only as many as could be wanted."""
    found: list[tuple[int, Edge]] = []
    seen: dict[tuple[str, ...], int] = {}
    for number, node in enumerate([*holders, *others]):
        names = [min(over(node, family), default=f"={node.node_id.hex()}") for family in families]
        left, right, *_ = [*names, "", ""]
        if number >= len(holders):
            seen[left, right] = seen.get((left, right), 0) + 1
            if seen[left, right] > wanted:
                continue
        found.append((number, Edge(left, right, 0 if number < len(holders) else _DEAREST + number)))
    return found


def _silent(load: Load, family: str, nodes: Sequence[Candidate]) -> range:
    most = min(limit.most for limit in load.limits[family])
    there = sum(1 for node in nodes if UNKNOWN in over(node, family))
    return range(min(there, max(0, most - load.unknown[family])) + 1)


def _rooms(load: Load, family: str, silent: int, edges: list[tuple[int, Edge]], side: int) -> dict[str, int]:
    most = min(limit.most for limit in load.limits[family]) - load.unknown[family] - silent
    counts = load.counts[family]
    names = {(edge.right if side else edge.left) for _, edge in edges}
    rooms = {n: 1 if n.startswith("=") else max(0, most - counts.get(n, 0)) for n in names}
    if UNKNOWN in rooms:
        # Those that were there before have to fit beside them too.
        rooms[UNKNOWN] = silent if most >= max(counts.values(), default=0) else 0
    return rooms


# ---- branch and bound -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kind:
    """Nodes under the same authorities: numbers of holders and of others."""

    node: Candidate
    held: list[int]
    free: list[int]

    @property
    def size(self) -> int:
        return len(self.held) + len(self.free)


class _OverBudget(Exception):
    pass


class _Branching:
    """Depth first over the kinds: how many nodes of each. Of a kind, holders are taken before others. With one more dropped
    holder allowed in each pass, the first set that is found keeps the most.
    """

    def __init__(
        self,
        load: Load,
        families: list[str],
        holders: Sequence[Candidate],
        others: Sequence[Candidate],
        wanted: int,
        budget: int,
    ) -> None:
        self._load, self._families, self._wanted, self._budget = load, families, wanted, budget
        kinds: dict[tuple[frozenset[str], ...], _Kind] = {}
        for number, node in enumerate([*holders, *others]):
            kind = kinds.setdefault(tuple(over(node, f) for f in families), _Kind(node, [], []))
            (kind.held if number < len(holders) else kind.free).append(number)
        # Holders first, since they decide; then the kinds with most authorities, which are the hardest to fit.
        self._kinds = sorted(kinds.values(), key=lambda k: (-len(k.held), sum(len(over(k.node, f)) for f in families)))
        self._hopeless = self._bound(0) < wanted
        self._whole = len(self._kinds) <= KINDS
        del self._kinds[max(KINDS, sum(1 for kind in self._kinds if kind.held)) :]
        self._holders = len(holders)
        self._taken = [0] * len(self._kinds)
        self._dead: set[object] = set()

    def run(self) -> Found:
        if self._hopeless:  # one family alone does not allow as many
            return Found((), (), False, True)
        least = max(0, self._holders - self._wanted)
        try:
            for dropped in range(least, self._holders + 1):
                self._dead.clear()
                if self._step(0, self._wanted, dropped):
                    return self._found(exact=self._whole or dropped == least)
        except _OverBudget:
            return Found((), (), False, False)
        return Found((), (), False, self._whole)

    def _found(self, *, exact: bool) -> Found:
        kept: list[int] = []
        new: list[int] = []
        for kind, taken in zip(self._kinds, self._taken, strict=True):
            kept += kind.held[:taken]
            new += [i - self._holders for i in kind.free[: max(0, taken - len(kind.held))]]
        return Found(tuple(sorted(kept)), tuple(sorted(new)), True, exact)

    def _step(self, at: int, wanted: int, drops: int) -> bool:
        if wanted == 0:
            self._taken[at:] = [0] * (len(self._kinds) - at)
            return sum(len(kind.held) for kind in self._kinds[at:]) <= drops
        if at == len(self._kinds):
            return False
        if self._bound(at) < wanted:
            return False
        state: tuple[object, ...] = (
            at,
            wanted,
            drops,
            *(frozenset((n, c) for n, c in x.items() if c) for x in self._load.counts.values()),
        )
        state += tuple(self._load.unknown.values()) + self._load.unions()
        if state in self._dead:
            return False
        spend(50 + len(self._kinds) - at)
        self._budget -= 1 + (len(self._kinds) - at) // 60
        if self._budget < 0:
            raise _OverBudget
        kind = self._kinds[at]
        for taken in self._amounts(kind, wanted, drops):
            self._load.add(kind.node, taken)
            self._taken[at] = taken
            fits = self._load.holds()
            found = fits and self._step(at + 1, wanted - taken, drops - max(0, len(kind.held) - taken))
            self._load.add(kind.node, -taken)
            if found:
                return True
        self._dead.add(state)
        return False

    @staticmethod
    def _amounts(kind: _Kind, wanted: int, drops: int) -> Iterator[int]:
        least = max(0, len(kind.held) - drops)
        yield from range(min(kind.size, wanted), least - 1, -1)

    def _bound(self, at: int) -> int:
        """No more nodes than this can be added from the kinds from ``at`` on: the least that one family allows alone."""
        best = sum(kind.size for kind in self._kinds[at:])
        for family in self._families:
            load = self._load
            there: dict[str, int] = {}
            free = 0
            for kind in self._kinds[at:]:
                names = over(kind.node, family)
                if not names:
                    free += kind.size
                else:
                    # It counts for each; counting it for one, the fullest, allows no less than is possible.
                    name = max(names, key=lambda n: (load.counts[family].get(n, 0), n))
                    there[name] = there.get(name, 0) + kind.size
            room = min(self._family_bound(limit, family, there) for limit in load.limits[family])
            best = min(best, free + room)
        return best

    def _family_bound(self, limit: Limit, family: str, there: dict[str, int]) -> int:
        counts = self._load.counts[family]
        spare = limit.most - self._load.unknown[family]
        named = {name: size for name, size in there.items() if name != UNKNOWN}
        silent = min(there.get(UNKNOWN, 0), max(0, spare))
        if limit.size == 1:
            return silent + sum(min(size, max(0, spare - counts.get(name, 0))) for name, size in named.items())
        # All but size-1 authorities are at most as full as the size-th (``level``); the fullest share what is left.
        best = 0
        for level in range(spare // limit.size + 1):
            rooms = [min(size, max(0, level - counts.get(name, 0))) for name, size in named.items()]
            more = sorted((size - room for size, room in zip(named.values(), rooms, strict=True)), reverse=True)
            best = max(best, sum(rooms) + min(sum(more[: limit.size - 1]), spare - limit.size * level))
        return silent + best
