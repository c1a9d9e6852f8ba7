"""The verifier: proves G1 and G2 for one placement by counting every coalition. It shares no code with the selector: what
authorities a node is under it derives from the attributes itself (a test proves what this file imports: tables, no code).

G1(c), no reassembly: for every coalition of c authorities, the shares on nodes under any of them number at most k-1.
G2(a, s), no hostage: after removing every node under any a authorities, at least k+s shares remain.

An unknown authority (UNKNOWN in a node's set) counts against every authority: such a node belongs to every coalition. A cap
(max_per) is broken by a node whose authority is unknown in the same way, with the one exception that verify() states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from hivefs.model.node import UNKNOWN, Attribute, Evidence
from hivefs.placement.blocs import BLOCS
from hivefs.placement.countries import COUNTRIES

if TYPE_CHECKING:
    from hivefs.placement.policy import Policy


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


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for a policy: a Proof for each of its rules, the shares that are ``out`` of it (by number, with the
    reason), and all that is wrong in words ("proved" when nothing is).
    """

    holds: bool
    proofs: tuple[Proof, ...]
    out: dict[int, str] = field(hash=False)
    words: str


def verify(policy: Policy, needed: int, holders: Sequence[Sequence[Attribute] | None]) -> Verdict:
    """Prove a placement from what is known of the nodes. ``holders[i]`` are the attributes of the node that has share i;
    None: nobody has it. Shares that nobody has are not counted, and are no reason for a verdict to fail.

    A cap on operators, hosters, networks or subnets says nothing when the policy accepts claims, has no rule for that
    family, and none of the nodes states an authority of it.
    """
    placed = [i for i, said in enumerate(holders) if said is not None]
    known = {i: _Known(holders[i] or (), policy.evidence) for i in placed}
    proofs = tuple(prove(rule, needed, [known[i].under(rule.family) for i in placed]) for rule in policy.rules)
    out: dict[int, str] = {}
    for i in placed:
        reason = _refused(policy, known[i])
        if reason:
            out[i] = reason
    for family, cap in policy.max_per:
        if cap:
            ruled = any(rule.family == family for rule in policy.rules)
            quiet = family in ("operator", "hoster", "asn", "subnet") and policy.evidence <= Evidence.CLAIMED and not ruled
            sets = {i: known[i].under(family) for i in placed}
            if quiet and all(UNKNOWN in names for names in sets.values()):
                continue
            for i, reason in _over_cap(family, cap, sets).items():
                out.setdefault(i, reason)
    words = [p.reason for p in proofs if not p.holds]
    words += [f"share {i}: {reason}" for i, reason in sorted(out.items())]
    return Verdict(not words, proofs, out, "; ".join(words) or "proved")


def reassembly(policy: Policy, needed: int, copies: Sequence[Sequence[Sequence[Attribute]]]) -> tuple[Proof, ...]:
    """G1 with old copies counted. ``copies[i]`` are the attributes of each node that may have share i: its holder, and
    where a copy was left. All copies of a share are one share to a coalition. A proof for each rule that has a coalition,
    whose ``no_hostage`` says nothing.
    """
    proofs = []
    for rule in policy.rules:
        if rule.coalition:
            sets = [
                frozenset().union(*(_Known(said, policy.evidence).under(rule.family) for said in nodes))
                for nodes in copies
                if nodes
            ]
            proofs.append(prove(Rules(rule.family, rule.coalition, 0, 0), needed, sets))
    return tuple(proofs)


class _Known:
    """What is known of a node by evidence that is strong enough."""

    def __init__(self, attributes: Iterable[Attribute], weakest: Evidence) -> None:
        self.named: set[str] = set()
        self.values: dict[str, str] = {}
        self.subnets: set[str] = set()
        for attribute in attributes:
            self.named.add(attribute.name)
            if attribute.value and attribute.evidence >= weakest:
                self.values[attribute.name] = attribute.value
                if attribute.name == "subnet":  # one for each of its addresses
                    self.subnets.add(attribute.value)

    def _value(self, name: str) -> str:
        return self.values.get(name, UNKNOWN)

    @staticmethod
    def _country(said: str) -> str:
        """A country that there is: what says anything else says nothing, and counts against every one."""
        code = said.upper()
        return code if said.isascii() and code in COUNTRIES else UNKNOWN

    def under(self, family: str) -> frozenset[str]:
        """The authorities of a family over the node."""
        if family == "jurisdiction":
            countries = [self._value("country"), self._value("operator_country")]
            if self.named & {"parent", "parent_country"}:
                countries.append(self._value("parent_country"))
            return frozenset(self._country(said) for said in countries)
        if family == "operator":
            mine = {self._value("operator")}
            return frozenset(mine | {self._value("parent")} if "parent" in self.named else mine)
        if family == "bloc":
            found = set()
            for country in self.under("jurisdiction"):
                found |= {name for name, members in BLOCS.items() if country in members} or {country}
            return frozenset(found)
        if family == "outage":
            return frozenset()
        if family == "subnet" and self.subnets:
            return frozenset(self.subnets)
        return frozenset({self._value(family)})


def _refused(policy: Policy, node: _Known) -> str:
    """Why a node may hold nothing under the policy; empty when it may."""
    for entry in policy.deny:
        family, _, name = entry.rpartition(":")
        mine = node.under(family or "jurisdiction")
        if (name if family else name.upper()) in mine:
            return f"{entry} is denied"
        if UNKNOWN in mine:
            return f"its {family or 'jurisdiction'} is not known and {entry} is denied"
    families = {entry.rpartition(":")[0] for entry in policy.allow}
    for family in sorted(families):
        allowed = {
            name if family else name.upper() for of, _, name in (e.rpartition(":") for e in policy.allow) if of == family
        }
        beyond = sorted(node.under(family or "jurisdiction") - allowed)
        if beyond:
            return f"{' and '.join(beyond)} is not allowed".replace(UNKNOWN, f"an unknown {family or 'jurisdiction'}")
    return ""


def _over_cap(family: str, cap: int, sets: dict[int, frozenset[str]]) -> dict[int, str]:
    """The shares beyond a cap: of each authority the last ones. Unknown ones count under each authority, and first."""
    found: dict[int, str] = {}
    unknown = [i for i, names in sets.items() if UNKNOWN in names]
    for i in unknown[cap:]:
        found[i] = f"more than {cap} shares lie on nodes whose {family} is not known"
    for name in sorted({name for names in sets.values() for name in names if name != UNKNOWN}):
        mine = [*unknown, *(i for i, names in sets.items() if name in names and i not in unknown)]
        for i in mine[cap:]:
            found.setdefault(i, f"{family} {name} would hold {len(mine)} shares and may hold {cap}")
    return found


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
