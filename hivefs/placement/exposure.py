"""Who could bring which shares of a stripe together, old copies counted: by share number, for each authority. Pure.

A share may lie at several nodes: where the stripe says, and where a crash, a move or a node that is away left a copy. An
authority has a share when it is over any of these nodes, and the copies of one share are one share. So a new copy costs an
authority nothing that has one already. No reassembly (Rules.coalition) is about these sets; all other limits are about the
nodes that the stripe names (limits.py).

What is so already cannot be undone by placing: an authority over k shares and more is not to get another one, and a
coalition of several that has k shares is not limited, since it gains nothing. No other may come to k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import combinations

from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.limits import over
from hivefs.placement.policy import Policy

Names = frozenset[str]
_EVERYBODY: Names = frozenset({UNKNOWN})
_NOBODY: Names = frozenset()


def _union(one: Names, other: Names) -> Names:
    return _EVERYBODY if UNKNOWN in one or UNKNOWN in other else one | other


class _Family:
    """One rule: any ``size`` authorities are over at most ``most`` distinct shares. A share at a node whose authority is
    unknown is everybody's.
    """

    def __init__(self, family: str, size: int, most: int, shares: Mapping[int, Collection[Candidate]]) -> None:
        self.family, self.size, self.most = family, size, most
        self.sets: dict[int, Names] = {}
        self.counts: dict[str, int] = {}
        self.unknown = 0
        for number, nodes in shares.items():
            found = _NOBODY
            for node in nodes:
                found = _union(found, over(node, family))
            self.change(number, found)
        self.before = dict(self.sets)
        self.had = {name: count + self.unknown for name, count in self.counts.items()}
        self.everybody_had = self.unknown

    def change(self, number: int, now: Names) -> None:
        """From now on this share is under these."""
        was = self.sets.get(number, _NOBODY)
        for names, sign in ((was, -1), (now, 1)):
            if names is _EVERYBODY or UNKNOWN in names:
                self.unknown += sign
                continue
            for name in names:
                self.counts[name] = self.counts.get(name, 0) + sign
        self.sets[number] = now

    def gained(self, number: int, node: Candidate) -> Names:
        """Authorities that do not have that share and would get it with a copy at this node."""
        was, new = self.sets.get(number, _NOBODY), over(node, self.family)
        if UNKNOWN in was:
            return _NOBODY
        return _EVERYBODY if UNKNOWN in new else new - was

    def holds(self, new: Names) -> bool:
        """Whether the rule holds, when those in ``new`` have just got a share."""
        if not new:
            return True
        everybody = UNKNOWN in new
        if everybody and self.unknown > max(self.most, self.everybody_had):
            return False
        names = [name for name, count in self.counts.items() if count] if everybody else sorted(new)
        for name in names:
            if self.unknown + self.counts.get(name, 0) > max(self.most, self.had.get(name, self.everybody_had)):
                return False
        return self.size == 1 or self._wide(None if everybody else new)

    def _wide(self, new: Names | None) -> bool:
        full = sorted(self.counts.values(), reverse=True)
        if self.unknown + sum(full[: self.size]) <= self.most:
            return True
        names = sorted(name for name, count in self.counts.items() if count)
        # Also of fewer than ``size``: beside authorities that have nothing they are coalitions too.
        for size in range(2, min(self.size, len(names)) + 1):
            for some in map(frozenset, combinations(names, size)):
                if (new is None or new & some) and _over(self.sets, some) > self.most >= _over(self.before, some):
                    return False
        return True

    def state(self) -> object:
        """What decides what may come next, beside the shares that have no place yet."""
        if self.size == 1:
            return self.unknown, frozenset((n, c) for n, c in self.counts.items() if c)
        return frozenset(Counter(self.sets.values()).items())


def _over(sets: Mapping[int, Names], coalition: Names) -> int:
    return sum(1 for names in sets.values() if UNKNOWN in names or names & coalition)


class Exposure:
    """See the head of the file. ``shares[i]`` are all nodes that may have share i, its holder among them."""

    def __init__(self, policy: Policy, shares: Mapping[int, Collection[Candidate]]) -> None:
        self._families = [
            _Family(rule.family, rule.coalition, policy.needed - 1, shares) for rule in policy.rules if rule.coalition
        ]

    def add(self, number: int, node: Candidate) -> list[Names]:
        """A copy more; returns what take_out() needs."""
        before = []
        for family in self._families:
            was = family.sets.get(number, _NOBODY)
            before.append(was)
            family.change(number, _union(was, over(node, family.family)))
        return before

    def take_out(self, number: int, before: Iterable[Names]) -> None:
        """As if it had not been added."""
        for family, was in zip(self._families, before, strict=True):
            family.change(number, was)

    def accepts(self, number: int, node: Candidate) -> bool:
        """Whether nobody comes to k shares, who had fewer, by a copy of this share at this node."""
        gained = [family.gained(number, node) for family in self._families]
        if not any(gained):
            return True
        before = self.add(number, node)
        good = all(family.holds(new) for family, new in zip(self._families, gained, strict=True))
        self.take_out(number, before)
        return good

    def cost(self, number: int, node: Candidate) -> tuple[int, int]:
        """How many authorities get one share more by it, and how many the fullest of them has then; less is better."""
        new = [(family, name) for family in self._families for name in family.gained(number, node)]
        fullest = max((f.unknown + f.counts.get(name, 0) + 1 for f, name in new), default=0)
        return sum(1000 if name == UNKNOWN else 1 for _, name in new), fullest

    def kind(self, node: Candidate) -> tuple[Names, ...]:
        """What of a node matters here."""
        return tuple([over(node, family.family) for family in self._families])

    def type(self, number: int) -> tuple[Names, ...]:
        """What of a share matters here: shares of a type are interchangeable."""
        return tuple([family.sets.get(number, _NOBODY) for family in self._families])

    def state(self) -> tuple[object, ...]:
        """For remembering what was tried."""
        return tuple([family.state() for family in self._families])
