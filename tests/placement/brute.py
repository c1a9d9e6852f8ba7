"""What is so by definition, by counting everything: for small instances. Shares nothing with the code that is tested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from hypothesis import strategies as st

from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

COUNTRIES = ("DE", "FR", "CH", "IS", "US")
OPERATORS = ("red", "green", "blue", "grey")


def node(number: int, **families: str | frozenset[str]) -> Candidate:
    """A node under these authorities; of other families nothing is said."""
    sets = {f: frozenset({names}) if isinstance(names, str) else names for f, names in families.items()}
    return Candidate(NodeId(number.to_bytes(32, "big")), sets, 1 << 40)


def under(one: Candidate, family: str) -> frozenset[str]:
    return one.authorities.get(family, frozenset({UNKNOWN}))


def holds(policy: Policy, nodes: Sequence[Candidate]) -> bool:
    """Whether a whole stripe on these nodes keeps the policy, straight from the definitions. An unknown authority is taken
    to be every authority, one that nobody else is under among them.
    """
    for rule in policy.rules:
        sets = _full([under(n, rule.family) for n in nodes])
        names = sorted({name for s in sets for name in s})
        for coalition in combinations(names, min(rule.coalition, len(names))):
            if rule.coalition and sum(1 for s in sets if s & set(coalition)) > policy.needed - 1:
                return False
        for gone in combinations(names, min(rule.lose, len(names))):
            if rule.lose and sum(1 for s in sets if not s & set(gone)) < policy.needed + rule.slack:
                return False
    for family, cap in policy.max_per:
        raw = [under(n, family) for n in nodes]
        quiet = family in ("operator", "hoster", "asn", "subnet") and all(UNKNOWN in s for s in raw)
        if quiet and all(rule.family != family for rule in policy.rules):
            continue
        sets = _full(raw)
        if any(sum(1 for s in sets if name in s) > cap for name in {name for s in sets for name in s}):
            return False
    return True


def _full(sets: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    names = frozenset({name for s in sets for name in s if name != UNKNOWN} | {"nobody else"})
    return [names if UNKNOWN in s else s for s in sets]


def possible(policy: Policy, kept: Sequence[Candidate], pool: Iterable[Candidate], wanted: int) -> bool:
    return any(holds(policy, [*kept, *some]) for some in combinations(list(pool), wanted))


def most_kept(policy: Policy, holders: Sequence[Candidate], pool: Sequence[Candidate]) -> int:
    """The most holders that can stay; -1 when there is no placement at all."""
    for stay in range(len(holders), -1, -1):
        if len(pool) >= policy.total - stay:
            for old in combinations(holders, stay):
                if possible(policy, old, pool, policy.total - stay):
                    return stay
    return -1


# ---- instances ------------------------------------------------------------------------------------------------------

one_country = st.sampled_from([*COUNTRIES, *COUNTRIES, UNKNOWN])
countries = st.frozensets(st.sampled_from([*COUNTRIES, *COUNTRIES, UNKNOWN]), min_size=1, max_size=2)
one_operator = st.sampled_from([*OPERATORS, *OPERATORS, UNKNOWN])


@st.composite
def crossing(draw: st.DrawFn, *, most: int = 9) -> list[Candidate]:
    """Nodes under one jurisdiction and one operator each."""
    pairs = draw(st.lists(st.tuples(one_country, one_operator), min_size=3, max_size=most))
    return [node(i, jurisdiction=c, operator=o) for i, (c, o) in enumerate(pairs)]


@st.composite
def tangled(draw: st.DrawFn, *, most: int = 8) -> list[Candidate]:
    """Nodes under several jurisdictions, an operator and a network."""
    sets = draw(st.lists(st.tuples(countries, one_operator, st.sampled_from("123?")), min_size=3, max_size=most))
    return [node(i, jurisdiction=c, operator=o, asn=a) for i, (c, o, a) in enumerate(sets)]


@st.composite
def policies(draw: st.DrawFn, *, families: int = 2, coalitions: int = 1) -> Policy:
    needed = draw(st.integers(2, 4))
    total = needed + draw(st.integers(1, 3))
    size = st.integers(0, coalitions) if coalitions > 1 else st.just(1)
    rules = [Rules("jurisdiction", draw(size), draw(size), draw(st.integers(0, 1)))]
    caps = []
    if families > 1:
        if draw(st.booleans()):
            rules.append(Rules("operator", draw(st.integers(0, 1)), draw(st.integers(0, 1))))
        else:
            caps.append(("operator", draw(st.integers(1, 3))))
    if families > 2:
        caps.append(("asn", draw(st.integers(1, 3))))
    return Policy(needed, total, tuple(rules), tuple(sorted(caps)))
