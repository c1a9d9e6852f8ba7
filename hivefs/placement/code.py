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
from itertools import combinations_with_replacement, islice, zip_longest
from math import comb

from hivefs.errors import PolicyInfeasible
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.attributes import FAMILIES, eligible
from hivefs.placement.effort import spend
from hivefs.placement.explain import LISTED, Remedy, asked, new_node, silent_families
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

MOST_ADDED = 12
"""So many more nodes are thought of when no code suits."""

MORE_SHARES = 4
"""Of the smallest code that can keep the rules at all, and codes of so many shares more, one must suit then."""

LOOKED_AT = 24
"""Of the nodes there are so many are looked at then, of all kinds."""

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
    Raises PolicyInfeasible with ``remedy`` (explain.Remedy): nodes with which some code suits.
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
    new = _added(policy, nodes)
    raise PolicyInfeasible(reason=_why_none(policy, nodes, spare, new), remedy=Remedy(tuple(new)))


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


def _added(policy: Policy, nodes: Sequence[Candidate]) -> list[Mapping[str, frozenset[str]]]:
    """The fewest new nodes with which some code suits, under as few other authorities as do; [] when none were found."""
    codes = [
        (needed, total)
        for total in range(2, WIDEST + 1)
        for needed in range(1, total)
        if total <= LARGEST_EXPANSION * needed and _sensible(policy, needed, total)
    ]
    codes = [code for code in codes if code[1] <= codes[0][1] + MORE_SHARES]
    families = sorted({limit.family for mode in modes(policy, nodes, ()) for limit in mode.limits})
    alike: dict[tuple[frozenset[str], ...], list[Candidate]] = {}
    for node in nodes:
        alike.setdefault(tuple(over(node, family) for family in families), []).append(node)
    turns = zip_longest(*alike.values())  # one of each kind, again and again
    there = list(islice((node for turn in turns for node in turn if node is not None), LOOKED_AT))
    silent = silent_families(policy, there)
    ruled = {rule.family for rule in policy.rules}

    def suits(new: Sequence[Mapping[str, frozenset[str]]]) -> bool:
        if any(eligible(policy, node) for node in new):
            return False
        more = [Candidate(NodeId(b"new " + i.to_bytes(28, "big")), dict(node)) for i, node in enumerate(new)]
        spare = spare_nodes(len(nodes) + len(new))
        return any(
            total + spare <= len(there) + len(new)
            and can_place(replace(policy, needed=needed, total=total), [*there, *more], spare)
            for needed, total in codes
        )

    def made(count: int, each: int, quiet: Sequence[str]) -> list[dict[str, frozenset[str]]]:
        numbers = [{family: i // each if family in ruled else i for family in FAMILIES} for i in range(count)]
        return [new_node(policy, there, number, quiet) for number in numbers]

    for quiet in (silent, []) if silent else ([],):
        if not suits(made(MOST_ADDED, 1, quiet)):
            continue  # as most often when fewer are not enough, and a search through all would take long
        for count in range(1, MOST_ADDED + 1):
            if suits(made(count, 1, quiet)):
                return list(next(new for each in range(count, 0, -1) if suits(new := made(count, each, quiet))))
    return []


def _why_none(policy: Policy, nodes: Sequence[Candidate], spare: int, new: Sequence[Mapping[str, frozenset[str]]]) -> str:
    words = [f"no code suits the {len(nodes)} nodes that it accepts"]
    if spare:
        words[0] += f" with {spare} of them to spare"
    for family in sorted({rule.family for rule in policy.rules if rule.coalition or rule.lose}):
        names = sorted({name for node in nodes for name in over(node, family)} - {UNKNOWN})
        listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
        words.append(f"they are under {len(names)} of family {family}{f' ({listed})' if names else ''}")
        unknown = sum(1 for node in nodes if UNKNOWN in over(node, family))
        if unknown:
            words[-1] += f", and of {unknown} it is not known, which counts against every one"
    if new:
        words.append(asked(policy, new, nodes))
    return "; ".join(words)


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
