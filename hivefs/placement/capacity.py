"""How much user data a hive can still take under a policy. Pure.

A stripe puts at most one share on a node and, by the limits of the policy, at most u under one authority of a family.
With every share D bytes in total per node at most (D = bytes of one share position summed over all stripes), the hive
can take k*D bytes of data for the largest D with  sum over authorities of min(u*D, sum over its nodes of min(free, D))
>= n*D  in each family. Found by bisection. Exact for one family of disjoint authorities and limits of one authority;
otherwise an upper bound: nodes under several authorities count for one of them, crossing families are looked at one by
one, and of a limit for coalitions of c authorities u is a c-th, rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence

from hivefs.model.node import Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.limits import modes, over
from hivefs.placement.policy import Policy


def user_capacity(policy: Policy, nodes: Sequence[Candidate]) -> int:
    """Bytes of data (before padding) that fit into the free space of usable nodes that the policy accepts."""
    pool = [n for n in nodes if n.usable and n.free_bytes > 0 and not eligible(policy, n.authorities)]
    families: list[tuple[int, list[list[int]]]] = [(policy.total, [[n.free_bytes for n in pool]])]
    for limit in next(modes(policy, pool, ())).limits:
        groups: dict[str, list[int]] = {}
        for node in pool:
            names = over(node, limit.family)
            groups.setdefault(min(names) if names else node.node_id.hex(), []).append(node.free_bytes)
        families.append((max(0, -(-limit.most // limit.size)), list(groups.values())))

    def enough(depth: int) -> bool:
        return all(
            sum(min(most * depth, sum(min(free, depth) for free in group)) for group in groups) >= policy.total * depth
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
