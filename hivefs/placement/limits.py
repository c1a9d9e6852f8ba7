"""What a policy demands, as limits that a set of nodes must keep, and the load of a set against them. Pure.

All demands are of one form: *any ``size`` authorities of a family are over at most ``most`` of the n nodes*. No
reassembly by c is (family, c, k-1); no hostage to a with slack s is (family, a, n-k-s); a cap is (family, 1, cap). Such
limits are kept by every subset of a set that keeps them, so nodes can be added one by one.

A node whose authority is unknown belongs to every coalition. One exception: under a policy that accepts what is merely
claimed, a *cap* on operators, hosters, networks or subnets says nothing about a stripe none of whose nodes states one, so
that a small hive where nobody states its network can be used under the usual caps. As soon as one node of the stripe
states its own, those that do not count against it. Rules (what is proved) never make this exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from hivefs.model.node import UNKNOWN, Candidate, Evidence
from hivefs.placement.attributes import NOBODY_SAID
from hivefs.placement.policy import Policy

_ALL = frozenset({UNKNOWN})
_NONE: frozenset[str] = frozenset()
_UNVETTED = frozenset({"unvetted"})


@dataclass(frozen=True, slots=True)
class Limit:
    """Any ``size`` authorities of ``family`` are over at most ``most`` nodes. A ``soft`` one is a wish."""

    family: str
    size: int
    most: int
    soft: bool = False


def limits_of(policy: Policy) -> tuple[Limit, ...]:
    """The limits of a policy whose code is chosen; of several for the same family and size only the strictest."""
    found: dict[tuple[str, int], int] = {}

    def add(family: str, size: int, most: int) -> None:
        found[family, size] = min(most, found.get((family, size), most))

    for rule in policy.rules:
        if rule.coalition:
            add(rule.family, rule.coalition, policy.needed - 1)
        if rule.lose:
            add(rule.family, rule.lose, policy.total - policy.needed - rule.slack)
    for family, cap in policy.max_per:
        if cap:
            add(family, 1, cap)
    return tuple(Limit(family, size, most) for (family, size), most in sorted(found.items()))


def wishes(policy: Policy) -> tuple[Limit, ...]:
    """Limits that are kept where that is possible: of nodes that fail together at most half as many as may fail, of nodes
    that are not vetted yet a tenth. The last one is given up first.
    """
    spare = policy.total - policy.needed
    return (
        Limit("outage", 1, max(1, spare // 2), soft=True),
        Limit("unvetted", 1, max(1, policy.total // 10), soft=True),
    )


def only_caps(policy: Policy) -> frozenset[str]:
    """Families for which the exception at the head of this file holds."""
    if policy.evidence > Evidence.CLAIMED:
        return _NONE
    ruled = {rule.family for rule in policy.rules}
    return frozenset(family for family, cap in policy.max_per if cap and family in NOBODY_SAID and family not in ruled)


def over(node: Candidate, family: str) -> frozenset[str]:
    """A node's authorities in a family: just UNKNOWN when any is unknown. Nothing said of outages is no domain; that a node
    is not vetted is as if it were under an authority of that name.
    """
    found = node.authorities.get(family)
    if found is None:
        if family == "unvetted":
            return _NONE if node.vetted else _UNVETTED
        return _NONE if family == "outage" else _ALL
    return _ALL if UNKNOWN in found else found


def binding(limits: Iterable[Limit], nodes: Sequence[Candidate], most: int) -> tuple[Limit, ...]:
    """The limits that some ``most`` of these nodes could break; the others need not be looked at."""
    kept = []
    sums: dict[str, list[int]] = {}
    for limit in limits:
        if limit.family not in sums:
            counts: dict[str, int] = {}
            for node in nodes:
                for name in over(node, limit.family):
                    counts[name] = counts.get(name, 0) + 1
            unknown = counts.pop(UNKNOWN, 0)
            sums[limit.family] = [unknown, *sorted(counts.values(), reverse=True)]
        unknown, *full = sums[limit.family]
        if min(most, unknown + sum(full[: limit.size])) > limit.most:
            kept.append(limit)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to read the caps: the limits, and families in which only nodes that state nothing may be taken."""

    limits: tuple[Limit, ...]
    silent: frozenset[str] = _NONE

    def admits(self, node: Candidate) -> bool:
        """Whether a node may be taken in this mode."""
        return all(over(node, family) == _ALL for family in self.silent)


def modes(policy: Policy, pool: Sequence[Candidate], kept: Sequence[Candidate]) -> Iterator[Mode]:
    """All ways to read the caps for these nodes, the strictest first; most often there is but one."""
    limits = limits_of(policy)
    silent, mixed = set(), []
    for family in sorted(only_caps(policy)):
        quiet = sum(1 for node in pool if over(node, family) == _ALL)
        quiet_kept = all(over(node, family) == _ALL for node in kept)
        if quiet == len(pool) and quiet_kept:
            silent.add(family)
        elif quiet and quiet_kept:
            mixed.append(family)
    for size in range(len(mixed) + 1):
        for more in combinations(mixed, size):
            off = silent | set(more)
            yield Mode(tuple(limit for limit in limits if limit.family not in off), frozenset(more))


class Load:
    """The nodes of a set counted against limits."""

    def __init__(self, limits: Iterable[Limit]) -> None:
        self.limits: dict[str, list[Limit]] = {}
        for limit in limits:
            self.limits.setdefault(limit.family, []).append(limit)
        self.counts: dict[str, dict[str, int]] = {family: {} for family in self.limits}
        self.unknown = dict.fromkeys(self.limits, 0)
        self._wide = {f for f, several in self.limits.items() if any(limit.size > 1 for limit in several)}
        self._sets: dict[str, dict[frozenset[str], int]] = {family: {} for family in self._wide}

    def add(self, node: Candidate, sign: int = 1) -> None:
        """Count a node in (or out, with -1)."""
        for family, counts in self.counts.items():
            names = over(node, family)
            if names is _ALL:
                self.unknown[family] += sign
                continue
            for name in names:
                counts[name] = counts.get(name, 0) + sign
            if family in self._wide:
                sets = self._sets[family]
                sets[names] = sets.get(names, 0) + sign

    @property
    def wide(self) -> bool:
        """Whether there is a limit on several authorities together."""
        return bool(self._wide)

    def authorities(self, nodes: Iterable[Candidate]) -> Iterator[frozenset[str]]:
        """What the nodes are under in each limited family."""
        return (over(node, family) for node in nodes for family in self.limits)

    def kind(self, node: Candidate) -> tuple[frozenset[str], ...]:
        """What decides whether a node fits: its authorities in each limited family."""
        return tuple([over(node, family) for family in self.limits])

    def accepts(self, node: Candidate, *families: str) -> bool:
        """Whether the limits (those of ``families`` only, when some are given) still hold with this node."""
        for family, several in self.limits.items():
            if families and family not in families:
                continue
            counts, unknown, names = self.counts[family], self.unknown[family], over(node, family)
            if names is _ALL:
                now = unknown + 1 + max(counts.values(), default=0)
            elif names:
                now = unknown + 1 + max(counts.get(name, 0) for name in names)
            else:
                continue
            if any(now > limit.most for limit in several):
                return False
        if self._wide:
            self.add(node)
            good = all(self.fits(family) for family in self._wide if not families or family in families)
            self.add(node, -1)
            return good
        return True

    def fits(self, family: str) -> bool:
        """Whether all limits of a family hold."""
        full = sorted(self.counts[family].values(), reverse=True)
        return all(
            # The sum counts a node under two of them twice; only when that is too much all coalitions are counted.
            self.unknown[family] + sum(full[: limit.size]) <= limit.most or self.fullest(family, limit.size) <= limit.most
            for limit in self.limits[family]
        )

    def holds(self) -> bool:
        """Whether all limits hold."""
        return all(map(self.fits, self.limits))

    def fullest(self, family: str, size: int) -> int:
        """The most nodes that any ``size`` authorities of a family are over."""
        full = sorted((c for c in self.counts[family].values() if c), reverse=True)
        bound = self.unknown[family] + sum(full[:size])
        if size == 1 or not full:
            return bound
        sets = {names: count for names, count in self._sets[family].items() if count}
        if all(len(names) == 1 for names in sets):
            return bound
        names = [name for name, count in self.counts[family].items() if count]
        return self.unknown[family] + max(
            sum(count for under, count in sets.items() if not under.isdisjoint(coalition))
            for coalition in combinations(names, min(size, len(names)))
        )

    def unions(self) -> tuple[object, ...]:
        """What the counts do not say: of limits on several authorities, how many nodes are under which together."""
        return tuple(frozenset((names, c) for names, c in sets.items() if c) for sets in self._sets.values())

    def weight(self, node: Candidate) -> tuple[int, int]:
        """How full the fullest authority over a node is, and all of them together: less is better."""
        loads = [self.counts[f].get(name, 0) for f in self.counts for name in over(node, f) if name != UNKNOWN]
        unknown = sum(1 for f in self.counts if over(node, f) is _ALL)
        return max(loads, default=0) + 1000 * unknown, sum(loads)
