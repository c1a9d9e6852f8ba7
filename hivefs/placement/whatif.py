"""What would be left, and what could be put together, if authorities acted or nodes went. Pure.

``lose``: all nodes under any of these authorities go at once, for instance because a state cuts them off. ``seize``: these
authorities put together all shares on nodes under any of them; what they would have is sealed, and without the keys of
the vault nobody can read it. A node of which an authority of the family is unknown counts as under every one of them.

``nodes_gone`` = N: besides, N further nodes go. Which ones is answered twice. *Worst*: for each file by itself the N nodes
that hurt it most; these are other nodes for other files, so not all files that are lost so are lost at once, but what is
readable so is readable whichever N nodes go. *Expected*: N nodes drawn at random from those that are left. The probability
that a stripe is lost is that of a hypergeometric distribution; that of a file with several stripes is at least the greatest
of theirs and at most their sum, and with one stripe exactly that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from hivefs.errors import BadSetting
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN
from hivefs.placement.blocs import BLOCS
from hivefs.placement.conjunction import join, split
from hivefs.placement.countries import COUNTRIES, MEANT
from hivefs.placement.networks import WRONG, written
from hivefs.placement.policy_reader import NAMED

Authorities = Mapping[str, frozenset[str]]


def named(
    words: Sequence[str], option: str, blocs: Mapping[str, frozenset[str]] | None = None
) -> dict[str, frozenset[str]]:
    """What a user says on the command line, by family: countries, blocs (taken apart), "operator:NAME" and the like.

    Raises BadSetting with the option's name.
    """
    known = {**BLOCS, **(blocs or {})}
    found: list[str] = []
    for word in words:
        family, colon, name = word.partition(":")
        if word in known:
            found += known[word]
        elif word.upper() in COUNTRIES:
            found.append(word.upper())
        elif colon and family in WRONG and not written(family, name):
            raise BadSetting(name=option, reason=f"'{word}' is {WRONG[family]}")
        elif colon and name and family in NAMED:
            found.append(join(family, written(family, name)))
        else:
            there = f"a country (two letters), one of {', '.join(known)}, or {', '.join(f'{f}:NAME' for f in NAMED)}"
            meant = f"; say {MEANT[word.upper()]}" if word.upper() in MEANT else ""
            raise BadSetting(name=option, reason=f"'{word}' is not {there}{meant}")
    return split(found)


def under(who: Mapping[str, frozenset[str]], node: Authorities) -> bool:
    """Whether any of those authorities has power over the node, or may have."""
    return any(
        not node.get(family, frozenset({UNKNOWN})).isdisjoint(names | {UNKNOWN}) for family, names in who.items() if names
    )


@dataclass(frozen=True, slots=True)
class Fate:
    """One stripe: shares that remain for sure, of which ``needed`` rebuild; whether those who seize could rebuild it; the
    probability that it is lost with random nodes.
    """

    needed: int
    remaining: int
    seized: bool
    chance: float


@dataclass(slots=True)
class Outcome:
    """Files by what becomes of them. ``endangered`` ones are readable but have a stripe with no share to spare; ``whole``
    could be put together by those who seize, ``partly`` at least a stripe of them. ``least_expected`` and ``most_expected``
    bound the expected number of files lost with random nodes.
    """

    files: int = 0
    readable: int = 0
    endangered: int = 0
    lost: int = 0
    whole: int = 0
    partly: int = 0
    least_expected: float = 0.0
    most_expected: float = 0.0

    def add(self, fates: Iterable[Fate]) -> None:
        """Count one file by its stripes; one without any is readable."""
        stripes = list(fates)
        self.files += 1
        if any(fate.remaining < fate.needed for fate in stripes):
            self.lost += 1
        else:
            self.readable += 1
            self.endangered += any(fate.remaining == fate.needed for fate in stripes)
        self.whole += bool(stripes) and all(fate.seized for fate in stripes)
        self.partly += any(fate.seized for fate in stripes)
        self.least_expected += max((fate.chance for fate in stripes), default=0.0)
        self.most_expected += min(1.0, sum(fate.chance for fate in stripes))


class WhatIf:
    """One question. ``nodes`` are the authorities of all nodes that are not given up; a holder that is not among them has
    no share to give.
    """

    def __init__(
        self,
        nodes: Mapping[NodeId, Authorities],
        lose: Mapping[str, frozenset[str]],
        seize: Mapping[str, frozenset[str]],
        nodes_gone: int = 0,
    ) -> None:
        self._left = {node_id for node_id, over in nodes.items() if not under(lose, over)}
        self._seized = {node_id for node_id, over in nodes.items() if under(seize, over)}
        self._gone = nodes_gone

    @property
    def left(self) -> int:
        """Nodes that are there after ``lose``."""
        return len(self._left)

    def fate(self, needed: int, holders: Sequence[NodeId | None]) -> Fate:
        """Of a stripe. ``holders[i]`` has share i (None: nobody)."""
        held = Counter(node for node in holders if node in self._left)
        counts = tuple(sorted(held.values(), reverse=True))
        worst = sum(counts) - sum(counts[: self._gone])
        mine = sum(1 for node in holders if node in self._seized)
        return Fate(needed, worst, mine >= needed, chance_lost(counts, needed, len(self._left), self._gone))


@lru_cache(maxsize=4096)
def chance_lost(counts: tuple[int, ...], needed: int, nodes: int, gone: int) -> float:
    """The probability that fewer than ``needed`` shares are left when ``gone`` of ``nodes`` nodes go, chosen at random.

    ``counts`` are the shares of each node that has some. Of the subsets of j of these nodes, ways[j][s] lose s shares.
    """
    total = sum(counts)
    if total < needed:
        return 1.0
    if not gone:
        return 0.0
    drawn = min(gone, nodes)
    spare = total - needed
    kept = 0
    if max(counts, default=1) == 1:
        kept = sum(_subsets(len(counts), j, nodes, drawn) * comb(len(counts), j) for j in range(min(spare, drawn) + 1))
    else:
        ways: Counter[tuple[int, int]] = Counter({(0, 0): 1})
        for count in counts:
            more: Counter[tuple[int, int]] = Counter(ways)
            for (j, lost), number in ways.items():
                if lost + count <= spare:
                    more[j + 1, lost + count] += number
            ways = more
        kept = sum(_subsets(len(counts), j, nodes, drawn) * number for (j, _), number in ways.items())
    every = comb(nodes, drawn)
    return (every - kept) / every


def _subsets(holders: int, taken: int, nodes: int, drawn: int) -> int:
    """How many ways to draw the nodes that hold nothing."""
    rest = drawn - taken
    return comb(nodes - holders, rest) if 0 <= rest <= nodes - holders else 0


def simulate(
    files: Iterable[Sequence[tuple[int, Sequence[NodeId | None]]]],
    nodes: Mapping[NodeId, Authorities],
    lose: Mapping[str, frozenset[str]],
    seize: Mapping[str, frozenset[str]],
    nodes_gone: int = 0,
) -> Outcome:
    """All at once. A file is its stripes, each k and the holders of its shares."""
    question = WhatIf(nodes, lose, seize, nodes_gone)
    outcome = Outcome()
    for stripes in files:
        outcome.add(question.fate(needed, holders) for needed, holders in stripes)
    return outcome


# ---- independent authorities ------------------------------------------------------------------------------------------


def independent(sets: Iterable[frozenset[str]]) -> int:
    """A number of nodes no two of which have an authority in common (UNKNOWN is in common with all): greedy, so it may be
    too small by a little and never too large.
    """
    taken: set[str] = set()
    count = 0
    for over in sorted(set(sets), key=lambda names: (len(names), sorted(names))):
        if over and UNKNOWN not in over and taken.isdisjoint(over):
            taken |= over
            count += 1
    return count


def limits_in_words(jurisdictions: int, coalition: int, lose: int) -> str:
    """What so many independent jurisdictions cannot give; "" when the guarantees are possible."""
    there = f"{jurisdictions} jurisdiction{'s' if jurisdictions != 1 else ''}"
    if coalition and lose and jurisdictions < coalition + lose + 1:
        if jurisdictions <= coalition:
            return f"{there}: neither rebuilding nor withholding can be prevented"
        return f"{there}: withholding cannot be prevented where rebuilding is"
    if lose and jurisdictions <= lose:
        return f"{there}: withholding cannot be prevented"
    if coalition and jurisdictions <= coalition:
        return f"{there}: rebuilding cannot be prevented"
    return ""
