"""How much user data a hive can still take under a policy. Pure.

A stripe puts at most one share on a node and, by the limits of the policy, at most u under one authority of a family.
With every share D bytes in total per node at most (D = bytes of one share position summed over all stripes), the hive
can take k*D bytes of data for the largest D with  sum over authorities of min(u*D, sum over its nodes of min(free, D))
>= n*D  in each family. Found by bisection. Exact for one family of disjoint authorities and limits of one authority;
otherwise an upper bound: nodes under several authorities count for one of them, crossing families are looked at one by
one, and of a limit for coalitions of c authorities u is a c-th, rounded up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.effort import spend
from hivefs.placement.limits import limits_of, only_caps, over
from hivefs.placement.policy import Policy

SLICE: Final = 256
"""Nodes in one block of a Rooms."""
_UNKNOWN: Final = 0
_ALL: Final = frozenset({UNKNOWN})


class Block:
    """Some nodes in columns: bytes that are free, sizes, and by limited family a number for what the node is counted under
    (0 when that is not known). Eight bytes for each, no object: of hundreds of thousands of nodes a list of candidates
    would be 200 MiB, and to let go of it a gap of the loop.
    """

    __slots__ = ("free", "size", "under")

    def __init__(self, families: int) -> None:
        self.free, self.size = array("q"), array("q")
        self.under = [array("q") for _ in range(families)]


class Blocks(list[Block]):
    """All of them."""


class Rooms:
    """Nodes that a policy accepts, for ``total_and_free``. ``seen`` counts also those that it does not accept."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._families = _families(policy)
        self.blocks = Blocks()
        self.seen = 0

    def add(self, node_id: NodeId, authorities: Mapping[str, frozenset[str]], free: int, size: int) -> None:
        """One node; bytes that are free, and in all."""
        self.seen += 1
        if eligible(self._policy, authorities):
            return
        if not self.blocks or len(self.blocks[-1].free) >= SLICE:
            self.blocks.append(Block(len(self._families)))
        block, node = self.blocks[-1], Candidate(node_id, dict(authorities))
        block.free.append(free)
        block.size.append(size)
        for family, column in zip(self._families, block.under, strict=True):
            names = over(node, family)
            # A hash of 63 bits stands for a name: numbers for names would be a table of them all.
            column.append(_UNKNOWN if names == _ALL else hash(min(names)) or 1 if names else hash(node_id) or 1)


def _families(policy: Policy) -> list[str]:
    return sorted({limit.family for limit in limits_of(policy)})


def user_capacity(policy: Policy, nodes: Sequence[Candidate]) -> int:
    """Bytes of data (before padding) that fit into the free space of usable nodes that the policy accepts."""
    spend(len(nodes))
    rooms = Rooms(policy)
    for node in nodes:
        if node.usable:
            rooms.add(node.node_id, node.authorities, node.free_bytes, node.free_bytes)
    return _capacity(policy, rooms.blocks, [block.free for block in rooms.blocks])


def _capacity(policy: Policy, blocks: Sequence[Block], rooms: Sequence[array[int]]) -> int:
    """With so much room at the nodes of each block."""
    pool = [room for column in rooms for room in column if room > 0]
    families: list[tuple[int, list[_Group]]] = [(policy.total, [_Group(pool)])]
    for limit in limits_of(policy):
        number = _families(policy).index(limit.family)
        groups: dict[int, list[int]] = {}
        for block, column in zip(blocks, rooms, strict=True):
            for under, room in zip(block.under[number], column, strict=True):
                if room > 0:
                    groups.setdefault(under, []).append(room)
        if limit.family in only_caps(policy) and groups.keys() <= {_UNKNOWN}:
            continue  # nobody states one: the cap says nothing (limits.py)
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

    low, high = 0, sum(pool) // policy.total
    while low < high:
        middle = (low + high + 1) // 2
        if enough(middle):
            low = middle
        else:
            high = middle - 1
    return low * policy.needed


def total_and_free(policy: Policy, blocks: Sequence[Block]) -> tuple[int, int]:
    """The same of the nodes of a Rooms as if they were empty, and as they are."""
    spend(2 * sum(len(block.free) for block in blocks))
    whole = _capacity(policy, blocks, [block.size for block in blocks])
    return whole, _capacity(policy, blocks, [block.free for block in blocks])


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
