"""G3 for the head: which nodes may keep a replica of it, and what a set of replicas is worth. Pure.

A replica is a plain copy, so G1 cannot be kept by numbers; it is sealed, and only nodes that the policy of metadata accepts
get one. That no coalition of f authorities (``lose``) can withhold it takes one replica that lies beyond every such
coalition. How fresh what is read is takes more: who remembers the last head it saw needs a replica beyond every 2f (any f
may withhold, and f more may give an old one), who comes with nothing needs one beyond every 3f (guarantees, "Arithmetic").
A node may be under several authorities, so counting authorities, or nodes, would not do: with {DE, US} and {FR, US} there
are three, and the US alone takes both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from hivefs.model.node import UNKNOWN
from hivefs.placement.attributes import eligible
from hivefs.placement.policy import Policy

KEPT, REMEMBERED, FRESH = 1, 2, 3
"""How many times f authorities may be taken away with a replica left: it cannot be withheld; who remembers a head cannot
be given an older one; neither can who comes with nothing.
"""

STEPS = 20_000
"""What a proof may cost; without one in so many steps the replicas count as too few."""


def survives(policy: Policy, holders: Iterable[Mapping[str, frozenset[str]]], times: int = KEPT) -> bool:
    """Whether a replica is left whichever ``times`` as many authorities as the policy may lose are taken away, by each of
    its rules. ``holders`` are the authorities of the nodes by family, for the policy's evidence; nodes that the policy
    refuses do not count. Without a rule any replica does.
    """
    kept = [over for over in holders if not eligible(policy, over)]
    if not kept:
        return False
    return all(
        beyond([over.get(rule.family, frozenset({UNKNOWN})) for over in kept], times * rule.lose)
        for rule in policy.rules
        if rule.lose
    )


def freshness(policy: Policy, holders: Collection[Mapping[str, frozenset[str]]]) -> dict[str, str]:
    """Whether a device that remembers its last head, and a fresh one, can know that a head is the newest: "known", or
    "unknown" with the reason.
    """

    def word(times: int) -> str:
        if not any(rule.lose for rule in policy.rules):
            return "unknown: the policy lets every authority withhold"
        if survives(policy, holders, times):
            return "known"
        most = " and ".join(f"{times * rule.lose} of family {rule.family}" for rule in policy.rules if rule.lose)
        return f"unknown: it needs a node that is not under {most}, whichever they are"

    return {"remembering": word(REMEMBERED), "fresh": word(FRESH)}


def beyond(sets: Iterable[frozenset[str]], most: int) -> bool:
    """Whether no ``most`` authorities are together over all nodes; ``sets`` are the authorities of each. A node of which
    one is not known is under every coalition. (The hitting set problem: a bounded search tree over the smallest sets,
    where sets that share nothing need an authority each.)
    """
    known = {names for names in sets if UNKNOWN not in names}
    least: list[frozenset[str]] = []
    for names in sorted(known, key=lambda n: (len(n), sorted(n))):
        if not any(smaller <= names for smaller in least):  # whoever is over the smaller one is over this one
            least.append(names)
    steps = STEPS

    def apart(left: Iterable[frozenset[str]]) -> int:
        taken: set[str] = set()
        count = 0
        for names in left:
            if taken.isdisjoint(names):
                taken |= names
                count += 1
        return count

    def taken_by(left: list[frozenset[str]], budget: int) -> bool:
        nonlocal steps
        steps -= 1
        if not left or steps < 0:
            return True
        if apart(left) > budget:
            return False
        return any(taken_by([other for other in left if name not in other], budget - 1) for name in sorted(left[0]))

    return not taken_by(least, most)
