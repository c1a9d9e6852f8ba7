"""How much user data a hive can still take under a policy. Pure.

A stripe puts at most one share on a node and at most u = min(k-1, n-k-s) under one authority. With every share D bytes
in total per node at most (D = bytes of one share position summed over all stripes), the hive can take k*D bytes of data
for the largest D with  sum over authorities of min(u*D, sum over its nodes of min(free, D)) >= n*D. Found by bisection.
Exact for disjoint authorities; nodes under several count for the first, which errs to the small side by little.
"""

from __future__ import annotations

from collections.abc import Sequence

from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.selector import Need


def user_capacity(need: Need, nodes: Sequence[Candidate]) -> int:
    """Bytes of data (before padding) that fit into the free space of usable nodes under the rules."""
    bound = min(
        need.needed - 1 if need.coalition else need.total,
        need.total - need.needed - need.slack if need.lose else need.total,
    )
    groups: dict[str, list[int]] = {}
    for node in nodes:
        if node.usable and node.free_bytes > 0:
            names = sorted(node.authorities.get(need.family, frozenset({UNKNOWN})))
            groups.setdefault(names[0] if names else UNKNOWN, []).append(node.free_bytes)

    def enough(depth: int) -> bool:
        room = sum(min(bound * depth, sum(min(free, depth) for free in group)) for group in groups.values())
        return room >= need.total * depth

    low, high = 0, sum(map(sum, groups.values())) // need.total
    while low < high:
        middle = (low + high + 1) // 2
        if enough(middle):
            low = middle
        else:
            high = middle - 1
    return low * need.needed
