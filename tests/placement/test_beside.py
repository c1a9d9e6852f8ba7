"""Placing beside old copies: the verifier, the selector and a plain enumeration of coalitions say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Attribute, Candidate
from hivefs.placement.attributes import authorities
from hivefs.placement.beside import exposure_of, place, settle
from hivefs.placement.exposure import Exposure
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules, reassembly
from tests.placement import brute

few = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
fewer = settings(few, max_examples=40)
many = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 1000)
Shares = Mapping[int, Collection[Candidate]]


# ---- by definition --------------------------------------------------------------------------------------------------


def able(policy: Policy, shares: Shares, names: Collection[str]) -> set[tuple[str, frozenset[str]]]:
    """All coalitions that can bring together k distinct shares, by counting sets of share numbers. ``names`` are all
    authorities there are; an unknown one is each of them.
    """
    found = set()
    for rule in policy.rules:
        for size in range(1, rule.coalition + 1):
            for coalition in combinations(sorted(names), size):
                have = {
                    number
                    for number, nodes in shares.items()
                    if any(brute.under(n, rule.family) & {*coalition, UNKNOWN} for n in nodes)
                }
                if len(have) >= policy.needed:
                    found.add((rule.family, frozenset(coalition)))
    return found


def everybody(nodes: Sequence[Candidate]) -> set[str]:
    """All authorities that are named, and some that are over nothing."""
    return {name for n in nodes for names in n.authorities.values() for name in names if name != UNKNOWN} | {"x", "y", "z"}


def together(*some: Shares) -> dict[int, list[Candidate]]:
    found: dict[int, list[Candidate]] = {}
    for shares in some:
        for number, nodes in shares.items():
            found.setdefault(number, []).extend(nodes)
    return found


def gains(policy: Policy, before: Shares, after: Shares, names: Collection[str]) -> bool:
    """Whether somebody can bring k shares together who could not, or one who could gets one more."""
    if able(policy, after, names) - able(policy, before, names):
        return True
    for rule in policy.rules:
        for name in names if rule.coalition else ():
            counts = [
                sum(any(brute.under(n, rule.family) & {name, UNKNOWN} for n in nodes) for nodes in shares.values())
                for shares in (before, after)
            ]
            if policy.needed <= counts[0] < counts[1]:
                return True
    return False


def possible(policy: Policy, kept: Shares, copies: Shares, wanted: Sequence[int], pool: Sequence[Candidate]) -> bool:
    """Whether there is any assignment: all are tried."""
    before = together(kept, copies)
    names = everybody([*pool, *(n for nodes in before.values() for n in nodes)])
    stay = [node for nodes in kept.values() for node in nodes]
    for chosen in combinations(pool, len(wanted)):
        if brute.holds(policy, [*stay, *chosen]):
            for order in permutations(chosen):
                after = together(before, {i: [n] for i, n in zip(wanted, order, strict=True)})
                if not gains(policy, before, after, names):
                    return True
    return False


# ---- instances ------------------------------------------------------------------------------------------------------

copies_of = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=6)


def instance(
    policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]]
) -> tuple[dict[int, Candidate], list[tuple[int, Candidate]], list[Candidate]]:
    """Holders by share number (one share a node), old copies, and the nodes that are free."""
    holders: dict[int, Candidate] = {}
    for number, where in enumerate(at[: policy.total]):
        if where < len(nodes) and nodes[where] not in holders.values():
            holders[number] = nodes[where]
    copies = [(number % policy.total, nodes[where % len(nodes)]) for number, where in old]
    return holders, copies, [n for n in nodes if n not in holders.values()]


def check_place(policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]], seed: int) -> bool:
    """A placement when there is one, that gives nobody k shares; else none is. Whether there was."""
    holders, copies, pool = instance(policy, nodes, at, old)
    wanted = [i for i in range(policy.total) if i not in holders]
    if not wanted:
        return False
    there = {i: [n] for i, n in holders.items()}
    left = together({}, *({i: [n]} for i, n in copies))
    before = together(there, left)
    names = everybody(nodes)
    by_id = {n.node_id: n for n in nodes}
    try:
        found = place(policy, nodes, seed, holders, wanted, copies)
    except (TooFewNodes, PolicyInfeasible) as error:
        assert error.data.get("proved", True)
        assert not possible(policy, there, left, wanted, pool)
        some = {i: by_id[n] for i, n in error.data.get("placed", {}).items()}
        assert len({n.node_id for n in (*holders.values(), *some.values())}) == len(holders) + len(some)
        assert not gains(policy, before, together(before, {i: [n] for i, n in some.items()}), names)
        if isinstance(error, PolicyInfeasible) and "old copies" in str(error):
            assert brute.possible(policy, list(holders.values()), pool, len(wanted)), "only the copies forbid it"
        return False
    assert set(found) == set(wanted)
    assert len({*found.values(), *(n.node_id for n in holders.values())}) == policy.total
    assert brute.holds(policy, [*holders.values(), *(by_id[n] for n in found.values())])
    if copies:
        assert not gains(policy, before, together(before, {i: [by_id[n]] for i, n in found.items()}), names)
    return True


def check_settle(policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]], seed: int) -> bool:
    """The fewest moves, with what moves counted where it was too. Whether there was any."""
    holders, copies, pool = instance(policy, nodes, at, old)
    there = {i: [n] for i, n in holders.items()}
    left = together(there, *({i: [n]} for i, n in copies))

    def most_kept() -> int:
        for stay in range(len(holders), -1, -1):
            for some in combinations(holders, stay):
                wanted = [i for i in range(policy.total) if i not in some]
                if possible(policy, {i: there[i] for i in some}, left, wanted, pool):
                    return stay
        return -1

    by_id = {n.node_id: n for n in nodes}
    try:
        found = settle(policy, [holders.get(i) for i in range(policy.total)], nodes, seed, copies)
    except (TooFewNodes, PolicyInfeasible) as error:
        assert most_kept() == -1 or not error.data.get("proved", True)
        part = error.data["partial"]
        moved = together(left, {i: [by_id[n]] for i, n in part.nodes.items()})
        assert not gains(policy, left, moved, everybody(nodes))
        return False
    assert set(found.nodes) == {*found.move, *found.missing}
    after = [holders[i] if i in found.keep else by_id[found.nodes[i]] for i in range(policy.total)]
    assert len({n.node_id for n in after}) == policy.total
    assert brute.holds(policy, after)
    assert not gains(policy, left, together(left, {i: [by_id[n]] for i, n in found.nodes.items()}), everybody(nodes))
    if found.fewest:
        assert len(found.keep) == most_kept()
    return True


places = st.lists(st.integers(0, 10), min_size=7, max_size=7)


Instance = tuple[Policy, list[Candidate], list[int], list[tuple[int, int]]]


@st.composite
def likely(draw: st.DrawFn) -> Instance:
    """Policies that can often be kept, a stripe of which one to three shares are missing, and some old copies."""
    needed = draw(st.integers(2, 4))
    coalition = draw(st.sampled_from([1, 1, 2]))
    rule = Rules("jurisdiction", coalition, draw(st.integers(0, 1)) if coalition == 1 else 0)
    policy = Policy(needed, needed + draw(st.integers(1, 3)), (rule,), draw(st.sampled_from([(), (("operator", 2),)])))
    country = st.frozensets(st.sampled_from(("DE", "FR", "CH", "IS", "US", "NO")), min_size=1, max_size=1)
    two = st.frozensets(st.sampled_from(("DE", "FR", "CH", "IS", "US", "NO", UNKNOWN)), min_size=1, max_size=2)
    operators = st.sampled_from(["red", "green", "blue", "grey", "white"])
    sets = draw(st.lists(st.tuples(st.one_of(country, country, country, two), operators), min_size=7, max_size=9))
    nodes = [brute.node(i, jurisdiction=c, operator=o) for i, (c, o) in enumerate(sets)]
    order = draw(st.permutations(range(len(nodes))))
    missing = draw(st.integers(1, 3))
    at = [*order[: max(0, policy.total - missing)], *[99] * policy.total]
    pair = st.tuples(st.integers(0, policy.total - 1), st.integers(0, len(nodes) - 1))
    old = draw(st.lists(pair, min_size=1, max_size=5))
    return policy, nodes, at, old


@few
@given(likely(), seeds)
def test_places_beside_copies(instance: Instance, seed: int) -> None:
    check_place(*instance, seed)


@fewer
@given(likely(), seeds)
def test_fewest_moves_of_likely_stripes(instance: Instance, seed: int) -> None:
    check_settle(*instance, seed)


def test_the_instances_are_both_possible_and_not() -> None:
    """Else the tests above would show little."""
    seen: Counter[bool] = Counter()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(likely(), seeds)
    def look(instance: Instance, seed: int) -> None:
        seen[check_place(*instance, seed)] += 1

    look()
    assert min(seen[True], seen[False]) >= 10, seen


@few
@given(brute.policies(families=3, coalitions=2), brute.tangled(most=7), places, copies_of, seeds)
def test_places_beside_copies_in_a_tangle(
    policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]], seed: int
) -> None:
    check_place(policy, nodes, at, old, seed)


@few
@given(brute.policies(), brute.crossing(most=7), places, copies_of, seeds)
def test_fewest_moves_beside_copies(
    policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]], seed: int
) -> None:
    check_settle(policy, nodes, at, old, seed)


@pytest.mark.slow
@many
@given(brute.policies(families=3, coalitions=2), brute.tangled(most=7), places, copies_of, seeds)
def test_beside_copies_at_length(
    policy: Policy, nodes: list[Candidate], at: list[int], old: list[tuple[int, int]], seed: int
) -> None:
    check_place(policy, nodes, at, old, seed)
    check_settle(policy, nodes, at, old, seed)


@pytest.mark.slow
@many
@given(likely(), seeds)
def test_likely_stripes_at_length(instance: Instance, seed: int) -> None:
    check_place(*instance, seed)
    check_settle(*instance, seed)


# ---- the verifier -----------------------------------------------------------------------------------------------------

values = st.sampled_from(["DE", "FR", "CH", ""])
said = st.builds(
    lambda c, o, p: (Attribute("country", c), Attribute("operator_country", o), Attribute("operator", p)),
    values,
    values,
    st.sampled_from(["red", "blue", ""]),
)


@few
@given(
    st.lists(st.lists(said, max_size=3), min_size=1, max_size=6), st.integers(1, 2), st.integers(0, 1), st.integers(2, 4)
)
def test_the_verifier_counts_the_same(
    copies: list[list[tuple[Attribute, ...]]], wide: int, other: int, needed: int
) -> None:
    """verifier.reassembly() from attributes, the exposure from authorities, and the definition."""
    policy = Policy(needed, 7, (Rules("jurisdiction", wide, 0), Rules("operator", other, 0)))
    shares = {
        i: [Candidate(NodeId(bytes([i, j]) * 16), authorities(one, policy.evidence)) for j, one in enumerate(nodes)]
        for i, nodes in enumerate(copies)
    }
    names = everybody([n for nodes in shares.values() for n in nodes])
    bad = {family for family, _ in able(policy, shares, names)}
    proofs = reassembly(policy, needed, copies)
    assert [p.no_reassembly for p in proofs] == [rule.family not in bad for rule in policy.rules if rule.coalition]


# ---- by hand ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_same_share_costs_nothing() -> None:
    """DE has three of the four shares that make it, one as an old copy: that one may go there again, another not."""
    policy = Policy(4, 6, (Rules(lose=0),))
    de = [brute.node(i, jurisdiction="DE") for i in range(4)]
    fr, ch, iceland = (brute.node(10 + i, jurisdiction=name) for i, name in enumerate(("FR", "CH", "IS")))
    kept, copies = {0: de[0], 1: de[1], 4: fr, 5: ch}, [(2, de[2])]
    for seed in range(20):
        assert place(policy, [de[3], iceland], seed, kept, [2, 3], copies) == {2: de[3].node_id, 3: iceland.node_id}
    with pytest.raises(PolicyInfeasible, match="old copies") as caught:
        place(policy, [de[3], iceland], 1, kept, [2, 3], copies, refused=[(2, de[3].node_id)])
    assert caught.value.data["old_copies"]
    assert list(caught.value.data["placed"].values()) == [iceland.node_id]


def test_who_has_too_many_already_gets_no_more_and_holds_nobody_up() -> None:
    policy = Policy(2, 3, (Rules(lose=0),))
    de = [brute.node(i, jurisdiction="DE") for i in range(3)]
    fr, ch = brute.node(10, jurisdiction="FR"), brute.node(11, jurisdiction="CH")
    exposure: Exposure = exposure_of(policy, {0: de[0]}, [(1, de[1])])
    assert not exposure.accepts(2, de[2])
    assert exposure.accepts(2, fr)
    found = settle(policy, [de[0], de[1], None], [*de, fr, ch], 1, [])
    assert len(found.keep) == 1 and set(found.nodes.values()) == {fr.node_id, ch.node_id}
