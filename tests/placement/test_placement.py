"""Selector, verifier, health and capacity against brute force."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import UNKNOWN, Attribute, Candidate, Evidence
from hivefs.model.stripe import Level, Purpose, Share, Stripe
from hivefs.placement.attributes import authorities
from hivefs.placement.capacity import user_capacity
from hivefs.placement.health import NodeState, NodeView, State, judge
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules, prove

COUNTRIES = ["DE", "FR", "CH", "IS", "US"]


def node(number: int, *countries: str, operator: str = "", free: int = 1 << 40, usable: bool = True) -> Candidate:
    sets = {"jurisdiction": frozenset(countries), "operator": frozenset({operator or f"op{number}"})}
    return Candidate(NodeId(number.to_bytes(32, "big")), sets, free, usable)


def naive_holds(rules: Rules, needed: int, sets: list[frozenset[str]]) -> bool:
    """G1 and G2 straight from their definitions, with UNKNOWN replaced by every possible authority."""
    names = sorted({n for s in sets for n in s if n != UNKNOWN} | {"nobody else"})
    full = [frozenset(names) if UNKNOWN in s else s for s in sets]
    for coalition in combinations(names, min(rules.coalition, len(names))):
        if rules.coalition and sum(1 for s in full if s & set(coalition)) > needed - 1:
            return False
    for gone in combinations(names, min(rules.lose, len(names))):
        if rules.lose and sum(1 for s in full if not s & set(gone)) < needed + rules.slack:
            return False
    return True


sets = st.frozensets(st.sampled_from([*COUNTRIES, UNKNOWN]), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(sets, min_size=1, max_size=9), st.integers(1, 6), st.integers(0, 2), st.integers(0, 2), st.integers(0, 1))
def test_verifier_equals_the_definition(over: list[frozenset[str]], needed: int, c: int, a: int, slack: int) -> None:
    rules = Rules("jurisdiction", c, a, slack)
    assert prove(rules, needed, over).holds == naive_holds(rules, needed, over)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(COUNTRIES), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 1),
    st.integers(0, 10),
)
def test_selector_finds_a_set_exactly_when_there_is_one(
    where: list[str], needed: int, extra: int, slack: int, seed: int
) -> None:
    total = needed + extra
    rules = Rules(slack=slack)
    policy = Policy(needed, total, (rules,))
    nodes = [node(i, country) for i, country in enumerate(where)]
    assume(len(nodes) >= total)
    possible = any(
        prove(rules, needed, [n.authorities["jurisdiction"] for n in some]).holds for some in combinations(nodes, total)
    )
    try:
        chosen = choose(policy, nodes, seed)
    except PolicyInfeasible:
        assert not possible
        return
    assert possible and len(set(chosen)) == total
    by_id = {n.node_id: n for n in nodes}
    assert prove(rules, needed, [by_id[c].authorities["jurisdiction"] for c in chosen]).holds


@settings(max_examples=200, deadline=None)
@given(st.lists(sets, min_size=4, max_size=10), st.integers(0, 1000))
def test_what_the_selector_gives_the_verifier_proves(over: list[frozenset[str]], seed: int) -> None:
    nodes = [
        Candidate(NodeId(i.to_bytes(32, "big")), {"jurisdiction": s, "operator": frozenset({str(i)})}, 1 << 30)
        for i, s in enumerate(over)
    ]
    try:
        chosen = choose(Policy(2, 4), nodes, seed)
    except (PolicyInfeasible, TooFewNodes):
        return
    by_id = {n.node_id: n for n in nodes}
    assert prove(Rules(), 2, [by_id[c].authorities["jurisdiction"] for c in chosen]).holds


def test_same_seed_same_answer_and_order_of_nodes_does_not_matter() -> None:
    nodes = [node(i, COUNTRIES[i % 4]) for i in range(12)]
    first = choose(Policy(4, 6), nodes, 7)
    assert choose(Policy(4, 6), nodes[::-1], 7) == first
    assert any(choose(Policy(4, 6), nodes, s) != first for s in range(8, 20))


def test_kept_nodes_count_and_full_or_offline_nodes_are_left_out() -> None:
    nodes = [node(i, COUNTRIES[i // 2]) for i in range(8)]
    chosen = choose(Policy(4, 6), nodes, 1, kept=nodes[:4])
    assert len(chosen) == 2 and not set(chosen) & {n.node_id for n in nodes[:4]}
    small = [node(i, COUNTRIES[i // 2], free=10) for i in range(8)]
    with pytest.raises(TooFewNodes):
        choose(Policy(4, 6), small, 1, share_bytes=11)
    away = [node(i, COUNTRIES[i // 2], usable=i > 2) for i in range(8)]
    with pytest.raises(TooFewNodes):
        choose(Policy(4, 6), away, 1)


def test_infeasible_says_what_is_missing_and_adding_it_helps() -> None:
    nodes = [node(i, COUNTRIES[i % 2]) for i in range(8)]
    with pytest.raises(PolicyInfeasible) as caught:
        choose(Policy(4, 6), nodes, 1)
    assert "under 2 (DE, FR)" in str(caught.value)
    assert len(choose(Policy(4, 6), [*nodes, node(8, "CH"), node(9, "CH")], 1)) == 6


def test_operator_cap() -> None:
    nodes = [node(i, COUNTRIES[i % 4], operator="same" if i < 6 else f"o{i}") for i in range(12)]
    chosen = choose(Policy(4, 6, max_per=(("operator", 2),)), nodes, 3)
    assert sum(1 for c in chosen if int.from_bytes(c, "big") < 6) <= 2


def test_ownership_counts_as_much_as_the_machine() -> None:
    said = [Attribute("country", "DE"), Attribute("operator_country", "us"), Attribute("operator", "Cloud")]
    assert authorities(said)["jurisdiction"] == {"DE", "US"}
    assert authorities([Attribute("country", "DE")])["jurisdiction"] == {"DE", UNKNOWN}
    weak = authorities(said, Evidence.ATTESTED)
    assert weak["jurisdiction"] == {UNKNOWN} and weak["operator"] == {UNKNOWN}
    parent = authorities([*said, Attribute("parent", "Holding")])
    assert UNKNOWN in parent["jurisdiction"] and parent["operator"] == {"Cloud", "Holding"}


def stripe(holders: list[int | None], needed: int = 2) -> Stripe:
    shares = tuple(
        Share(ShareId(bytes(32)), bytes(32), None if h is None else NodeId(h.to_bytes(32, "big"))) for h in holders
    )
    return Stripe(StripeId(bytes(16)), Purpose.DATA, needed, 4096, shares)


def stated(country: str) -> tuple[Attribute, ...]:
    return Attribute("country", country), Attribute("operator_country", country)


def test_health_words_and_levels() -> None:
    def look(states: str):  # type: ignore[no-untyped-def]
        kinds = {"+": NodeState.ONLINE, "-": NodeState.OFFLINE, "x": NodeState.GONE}
        made = {i.to_bytes(32, "big"): NodeView(kinds[s], stated(COUNTRIES[i])) for i, s in enumerate(states)}
        return made.get

    rules = Policy(2, 3)
    one = stripe([0, 1, 2])
    assert judge(one, rules, look("+++")).level == Level.GUARANTEED
    assert judge(one, rules, look("+--")).level == Level.GUARANTEED, "offline is not gone"
    health = judge(one, rules, look("++x"))
    assert (health.state, health.level, health.counted) == (State.ENDANGERED, Level.REMOTE, 2)
    health = judge(one, rules, look("+xx"))
    assert (health.state, health.level) == (State.LOST, Level.LOCAL)
    assert judge(stripe([0, 1, None]), rules, look("+++")).level == Level.REMOTE
    assert judge(stripe([0, 1, 1]), rules, look("+++")).level == Level.REMOTE, "two shares on one node"
    assert judge(stripe([0, 1, 9]), rules, look("+++")).counted == 2, "an unknown node is gone"
    views = {i.to_bytes(32, "big"): NodeView(NodeState.ONLINE, stated(COUNTRIES[i]), trusted=i != 1) for i in range(3)}
    health = judge(one, rules, views.get)
    assert (health.state, health.level, health.distrusted) == (State.HEALTHY, Level.REMOTE, (1,))
    assert health.verdict.holds and health.words == "share 1: its node is out of trust"


def test_capacity_counts_what_rules_allow() -> None:
    even = [node(i, COUNTRIES[i // 2], free=600) for i in range(8)]
    assert user_capacity(Policy(4, 6), even) == 8 * 600 // 6 * 4
    lopsided = [node(0, "DE", free=10**9), *(node(i, COUNTRIES[i % 4], free=600) for i in range(1, 8))]
    assert user_capacity(Policy(4, 6), lopsided) < 8 * 600 // 6 * 4 + 600 * 4
    assert user_capacity(Policy(4, 6), even[:4]) == 0, "two jurisdictions cannot hold 4/6 under the rules"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(COUNTRIES[:4]), st.integers(0, 30)), min_size=3, max_size=9))
def test_capacity_is_reached_by_placing_greedily(spaces: list[tuple[str, int]]) -> None:
    """Unit stripes of 2/3 placed on the nodes with most room never exceed the formula."""
    policy, free = Policy(2, 3), [f for _, f in spaces]
    bound = user_capacity(policy, [node(i, c, free=f) for i, (c, f) in enumerate(spaces)])
    placed = 0
    while True:
        # The largest first, by country; within it by node: for one node a stripe in each country that is optimal.
        rooms = {c: [i for i, (d, _) in enumerate(spaces) if d == c and free[i]] for c in COUNTRIES}
        fullest = sorted((c for c in COUNTRIES if rooms[c]), key=lambda c: -sum(free[i] for i in rooms[c]))[:3]
        if len(fullest) < 3:
            break
        for country in fullest:
            free[max(rooms[country], key=lambda i: free[i])] -= 1
        placed += 2
    assert placed <= bound <= placed + 2
