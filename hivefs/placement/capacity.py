"""How much user data a hive can still take under a policy. Pure.

A stripe puts at most one share on a node and, by the limits of the policy, at most u under one authority of a family.
With every share D bytes in total per node at most (D = bytes of one share position summed over all stripes), the hive
can take k*D bytes of data for the largest D with  sum over authorities of min(u*D, sum over its nodes of min(free, D))
>= n*D  in each family. Found by bisection. Exact for one family of disjoint authorities and limits of one authority;
otherwise an upper bound: nodes under several authorities count for one of them, crossing families are looked at one by
one, and of a limit for coalitions of c authorities u is a c-th, rounded up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from hivefs.model.node import Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.effort import spend
from hivefs.placement.limits import modes, over
from hivefs.placement.policy import Policy


def user_capacity(policy: Policy, nodes: Sequence[Candidate]) -> int:
    """Bytes of data (before padding) that fit into the free space of usable nodes that the policy accepts."""
    spend(len(nodes))
    pool = [n for n in nodes if n.usable and n.free_bytes > 0 and not eligible(policy, n.authorities)]
    families: list[tuple[int, list[_Group]]] = [(policy.total, [_Group([n.free_bytes for n in pool])])]
    for limit in next(modes(policy, pool, ())).limits:
        groups: dict[str, list[int]] = {}
        for node in pool:
            names = over(node, limit.family)
            groups.setdefault(min(names) if names else node.node_id.hex(), []).append(node.free_bytes)
        most = max(0, -(-limit.most // limit.size))
        # Of no more nodes than its limit a group cannot have more than that, so such groups are as one without a limit.
        small = [free for group in groups.values() if len(group) <= most for free in group]
        families.append((most, [_Group(small, free=True), *(_Group(g) for g in groups.values() if len(g) > most)]))

    def enough(depth: int) -> bool:
        return all(
            sum(group.takes(depth) if group.free else min(most * depth, group.takes(depth)) for group in groups)
            >= policy.total * depth
            for most, groups in families
        )

    low, high = 0, sum(n.free_bytes for n in pool) // policy.total
    while low < high:
        middle = (low + high + 1) // 2
        if enough(middle):
            low = middle
        else:
            high = middle - 1
    return low * policy.needed


def total_and_free(policy: Policy, nodes: Sequence[Candidate], whole: bytes) -> tuple[int, int]:
    """The same of these nodes as if they were empty, and as they are. ``whole`` are their sizes in 8 bytes each."""
    spend(2 * len(nodes))
    free = user_capacity(policy, nodes)
    sizes = (int.from_bytes(whole[i : i + 8], "big") for i in range(0, len(whole), 8))
    return user_capacity(policy, [replace(n, free_bytes=size) for n, size in zip(nodes, sizes, strict=True)]), free


class _Group:
    """Room of the nodes under one authority; ``free``: that has no limit."""

    def __init__(self, rooms: Sequence[int], free: bool = False) -> None:
        self._rooms = sorted(rooms)
        self._sums = [0, *accumulate(self._rooms)]
        self.free = free

    def takes(self, depth: int) -> int:
        """What fits when no node takes more than ``depth``."""
        fewer = bisect_right(self._rooms, depth)
        return self._sums[fewer] + depth * (len(self._rooms) - fewer)
