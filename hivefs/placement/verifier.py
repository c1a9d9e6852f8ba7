"""The verifier: proves G1 and G2 for one placement by counting every coalition. It knows nothing of the selector.

G1(c), no reassembly: for every coalition of c authorities, the shares on nodes under any of them number at most k-1.
G2(a, s), no hostage: after removing every node under any a authorities, at least k+s shares remain.

An unknown authority (UNKNOWN in a node's set) counts against every authority: such a node belongs to every coalition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from hivefs.model.node import UNKNOWN


@dataclass(frozen=True, slots=True)
class Rules:
    """What must hold in one authority family. ``coalition`` (c) and ``lose`` (a) of 0 switch the guarantee off."""

    family: str = "jurisdiction"
    coalition: int = 1
    lose: int = 1
    slack: int = 0


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome: the worst coalition and how many shares it holds, the worst loss and how many remain."""

    holds: bool
    no_reassembly: bool
    no_hostage: bool
    worst_coalition: tuple[str, ...]
    worst_shares: int
    worst_loss: tuple[str, ...]
    remaining: int
    reason: str


def prove(rules: Rules, needed: int, authorities: Sequence[frozenset[str]]) -> Proof:
    """Count. ``authorities[i]`` is the set of authorities over the node of the i-th *placed* share."""
    names = sorted({name for sets in authorities for name in sets if name != UNKNOWN})
    worst_coalition, worst_shares = _worst(rules.coalition, names, authorities)
    worst_loss, lost = _worst(rules.lose, names, authorities)
    remaining = len(authorities) - lost
    secret = rules.coalition == 0 or worst_shares <= needed - 1
    free = rules.lose == 0 or remaining >= needed + rules.slack
    words = []
    if not secret:
        words.append(f"{_join(worst_coalition)} would hold {worst_shares} shares and {needed} can rebuild")
    if not free:
        words.append(f"without {_join(worst_loss)} only {remaining} of the {needed + rules.slack} needed shares remain")
    return Proof(
        secret and free,
        secret,
        free,
        worst_coalition,
        worst_shares,
        worst_loss,
        remaining,
        "; ".join(words) or "proved",
    )


def _join(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "nobody"


def _worst(size: int, names: Sequence[str], authorities: Sequence[frozenset[str]]) -> tuple[tuple[str, ...], int]:
    """The coalition of ``size`` authorities under which most shares lie, and their number."""
    if size == 0:
        return (), 0
    best: tuple[str, ...] = ()
    most = sum(1 for sets in authorities if UNKNOWN in sets)
    for coalition in combinations(names, min(size, len(names))):
        members = set(coalition)
        count = sum(1 for sets in authorities if UNKNOWN in sets or not members.isdisjoint(sets))
        if count > most or not best:
            best, most = coalition, max(most, count)
    return best, most
