"""Exact placement where limits are on single authorities of at most two families: a flow of least cost. Pure.

The network: source -> authority of the first family -> (each node is an edge of capacity 1) -> authority of the second ->
sink; an authority's capacity is what its limit leaves. Successive shortest paths (Jewell 1958; Ahuja, Magnanti and Orlin,
"Network Flows", chapter 9.7) find for each number of nodes the set of least cost. Paths run over authorities only, so a
round costs the number of nodes times a few. When no path is left, what can still be reached is one side of the minimum cut
(Ford and Fulkerson 1956): the authorities that cross it are what binds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Edge:
    """A node: its authority in the first family, in the second, and what choosing it costs (0 or more)."""

    left: str
    right: str
    cost: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Numbers of the chosen edges, their cost, and the minimum cut: the full authorities of either family that stop more
    (both empty when ``wanted`` was reached).
    """

    chosen: tuple[int, ...]
    cost: int
    full_left: tuple[str, ...] = ()
    full_right: tuple[str, ...] = ()


def cheapest(edges: Sequence[Edge], left: Mapping[str, int], right: Mapping[str, int], wanted: int) -> Flow:
    """At most ``wanted`` edges, as many as the capacities allow, and of all such sets one of least cost."""
    used = [False] * len(edges)
    room_left, room_right = dict(left), dict(right)
    total = 0
    for _ in range(wanted):
        reached, way = _shortest(edges, used, room_left)
        ends = [(cost, name) for (side, name), cost in reached.items() if side and room_right[name] > 0]
        if not ends:
            return Flow(
                tuple(i for i, taken in enumerate(used) if taken),
                total,
                tuple(sorted(name for name in left if (0, name) not in reached)),
                tuple(sorted(name for side, name in reached if side)),
            )
        cost, name = min(ends)
        total += cost
        room_right[name] -= 1
        at = (1, name)
        while at in way:
            i = way[at]
            used[i] = not used[i]
            at = (0, edges[i].left) if at[0] else (1, edges[i].right)
        room_left[at[1]] -= 1
    return Flow(tuple(i for i, taken in enumerate(used) if taken), total)


def _shortest(
    edges: Sequence[Edge], used: Sequence[bool], room: Mapping[str, int]
) -> tuple[dict[tuple[int, str], int], dict[tuple[int, str], int]]:
    """The least cost from the source to each authority (0, left) or (1, right) with the edge by which it is reached."""
    reached = {(0, name): 0 for name, free in room.items() if free > 0}
    way: dict[tuple[int, str], int] = {}
    changed = True
    while changed:
        changed = False
        for i, edge in enumerate(edges):
            if used[i]:
                here, there, cost = (1, edge.right), (0, edge.left), -edge.cost
            else:
                here, there, cost = (0, edge.left), (1, edge.right), edge.cost
            if here in reached and (there not in reached or reached[here] + cost < reached[there]):
                reached[there] = reached[here] + cost
                way[there] = i
                changed = True
    return reached, way
