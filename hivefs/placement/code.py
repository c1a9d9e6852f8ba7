"""``code = "auto"``: which code needed/total (k/n) suits the nodes that exist. Pure; docs/embedded-hive.md has the table of
the embedded hive.

for_counts() is for nodes under one jurisdiction each and nothing else known: at most u = min(k-1, n-k) shares may lie under
a jurisdiction: more could rebuild (k) or withhold (n-k+1). So a code can be placed when the sum over jurisdictions of
min(u, nodes there) is at least n. It has a spare when that still holds after any ``spare`` nodes were lost.

auto() is for a policy and the nodes with all that is known of them. With availability p of the nodes (the mean of what was
measured) a stripe is readable at a moment with probability P[Bin(n, p) >= k]. Of the codes that the policy can place on
these nodes, and still on what is left after any loss of ``spare`` nodes, it takes the one with the least expansion n/k that
is readable with nine nines, of equals the one with fewest shares; when none reaches nine nines, the most readable one with
n/k of at most 2. That treats nodes as independent; nodes that fail together are what caps and the guarantees are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from math import comb

from hivefs.errors import PolicyInfeasible
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.attributes import eligible
from hivefs.placement.effort import spend
from hivefs.placement.field import Field
from hivefs.placement.limits import binding, modes, over
from hivefs.placement.policy import Policy
from hivefs.placement.search import solve

MOST_EXPANSION = (5, 3)
"""n/k at most 5/3: more redundancy costs more than it gives on nodes that are repaired."""


NINES = 1e-9
"""Target: the part of the time in which a stripe may be unreadable."""

WIDEST = 40
"""The most shares of a stripe: more cost conversations and seeks, and gain little."""

LARGEST_EXPANSION = 3.0
"""n/k at most, for nodes of poor availability."""

DEAR_EXPANSION = 2.0
"""More than this is taken only when it reaches the target, or when nothing else can be placed: repair, not ever more
shares, is what keeps data on a few poor nodes.
"""

LIKELY = 0.95
"""Availability that is assumed of a node of which none was measured."""

MOST_LOSSES = 200
"""So many losses of spare nodes are tried one by one; of more kinds of nodes, one more node for each loss is asked."""

ENOUGH = 600
"""Of more nodes a sample is looked at, as many of each jurisdiction."""

BUDGET = 100
LONG = 100_000
"""What choosing costs, in units of effort.py."""


def unreadable(needed: int, total: int, availability: float) -> float:
    """The probability that fewer than ``needed`` of ``total`` nodes answer: P[Bin(n, p) < k]."""
    return sum(
        comb(total, up) * availability**up * (1 - availability) ** (total - up) for up in range(min(needed, total + 1))
    )


def spare_nodes(count: int) -> int:
    """How many nodes may be lost with room for every stripe left: two from eight nodes on, one from four, none of three."""
    return 2 if count >= 8 else 1 if count >= 4 else 0


def auto(
    policy: Policy, candidates: Sequence[Candidate], availability: Mapping[NodeId, float] | float = LIKELY
) -> tuple[int, int]:
    """(needed, total) for a policy with an automatic code; see the head of this file. ``availability`` is the part of the
    time in which a node answers, for each node that was measured or for all. Takes up to a second when no code suits.
    Raises PolicyInfeasible.
    """
    spend(LONG)
    nodes = [c for c in candidates if c.usable and not eligible(policy, c.authorities)]
    if len(nodes) > ENOUGH:
        nodes = Field(nodes).sample(policy, bytes(32), 0, (), ENOUGH)
    spare = spare_nodes(len(nodes))
    likely = _mean(nodes, availability)
    codes = [
        (needed, total)
        for total in range(2, min(len(nodes) - spare, WIDEST) + 1)
        for needed in range(1, total)
        if total <= LARGEST_EXPANSION * needed and _sensible(policy, needed, total)
    ]
    lost = {code: unreadable(*code, likely) for code in codes}
    good = sorted((c for c in codes if lost[c] <= NINES), key=lambda c: (c[1] / c[0], c[1]))
    poor = sorted(
        (c for c in codes if lost[c] > NINES), key=lambda c: (c[1] > DEAR_EXPANSION * c[0], lost[c], c[1] / c[0], c[1])
    )
    for code in (*good, *poor):
        if can_place(replace(policy, needed=code[0], total=code[1]), nodes, spare):
            return code
    raise PolicyInfeasible(reason=_why_none(policy, nodes, spare))


def _sensible(policy: Policy, needed: int, total: int) -> bool:
    """Whether any nodes at all could keep the rules with this code."""
    return all(
        (not rule.coalition or needed - 1 >= rule.coalition) and (not rule.lose or total - needed - rule.slack >= rule.lose)
        for rule in policy.rules
    )


def _mean(nodes: Sequence[Candidate], availability: Mapping[NodeId, float] | float) -> float:
    if not isinstance(availability, Mapping):
        return availability
    known = [availability[node.node_id] for node in nodes if node.node_id in availability]
    return sum(known) / len(known) if known else LIKELY


def can_place(policy: Policy, nodes: Sequence[Candidate], spare: int) -> bool:
    """Whether a stripe of this policy fits on the nodes, and on what is left after any loss of ``spare`` of them."""
    if not fits(policy, nodes, policy.total):
        return False
    if spare == 0 or fits(policy, nodes, policy.total + spare):
        return True  # of total + spare nodes that keep the limits, those that are left after the loss keep them too
    families = sorted({limit.family for mode in modes(policy, nodes, ()) for limit in mode.limits})
    kinds: dict[tuple[frozenset[str], ...], list[Candidate]] = {}
    for node in nodes:
        kinds.setdefault(tuple(over(node, family) for family in families), []).append(node)
    losses = list(combinations_with_replacement(sorted(kinds, key=lambda k: [sorted(s) for s in k]), spare))
    if len(losses) > MOST_LOSSES:
        return False
    for loss in losses:
        left = [node for kind, mine in kinds.items() for node in mine[loss.count(kind) :]]
        if any(loss.count(kind) > len(kinds[kind]) for kind in loss):
            continue
        if not fits(policy, left, policy.total):
            return False
    return True


def fits(policy: Policy, nodes: Sequence[Candidate], count: int) -> bool:
    """Whether a set of ``count`` of the nodes that keeps the limits of the policy is found."""
    for mode in modes(policy, nodes, ()):
        some = [node for node in nodes if mode.admits(node)]
        limits = binding(mode.limits, some, count)
        if len(some) >= count and solve(limits, (), (), some, count, BUDGET).complete:
            return True
    return False


def _why_none(policy: Policy, nodes: Sequence[Candidate], spare: int) -> str:
    families = sorted({rule.family for rule in policy.rules if rule.coalition or rule.lose})
    there = {f: len({name for node in nodes for name in over(node, f)}) for f in families}
    said = ", ".join(f"{count} of family {family}" for family, count in there.items()) or "no family"
    least = max((rule.coalition + rule.lose + 1 for rule in policy.rules), default=1)
    return (
        f"no code suits the {len(nodes)} nodes that it accepts (authorities: {said}) with {spare} of them to spare; "
        f"its rules need at least {least} authorities, better one more"
    )


# ---- only jurisdictions are known -----------------------------------------------------------------------------------


def placeable(needed: int, total: int, counts: Sequence[int]) -> bool:
    """Whether a stripe fits on jurisdictions with so many nodes each, with no authority able to rebuild or withhold."""
    bound = min(needed - 1, total - needed)
    return sum(min(bound, count) for count in counts) >= total


def keeps(needed: int, total: int, counts: Sequence[int], spare: int) -> bool:
    """Whether it still fits after the loss of any ``spare`` nodes."""
    return all(placeable(needed, total, left) for left in _losses(tuple(counts), spare))


def _losses(counts: tuple[int, ...], lost: int) -> Iterator[tuple[int, ...]]:
    if lost == 0:
        yield counts
        return
    for i, count in enumerate(counts):
        if count:
            yield from _losses((*counts[:i], count - 1, *counts[i + 1 :]), lost - 1)


def for_counts(counts: Sequence[int], spare: int) -> tuple[int, int] | None:
    """(needed, total): survives most lost shares with n/k <= 5/3, then the least expansion, then the fewest shares.

    None when no code keeps the guarantees with that many spare nodes.
    """
    most = sum(counts) - spare
    codes = [
        (needed, total)
        for total in range(3, most + 1)
        for needed in range(2, total)
        if total * MOST_EXPANSION[1] <= needed * MOST_EXPANSION[0] and keeps(needed, total, counts, spare)
    ]
    return max(codes, key=lambda c: (c[1] - c[0], c[0] / c[1], -c[1]), default=None)
