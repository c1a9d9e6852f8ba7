"""Wishes, hard instances, and three families beside plain greedy."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Candidate
from hivefs.placement import search
from hivefs.placement.capacity import user_capacity
from hivefs.placement.explain import Remedy
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose, settle
from hivefs.placement.verifier import Rules
from tests.placement import brute

COUNTRIES = ("DE", "FR", "CH", "IS", "NL", "SE")


def hive(count: int) -> list[Candidate]:
    return [brute.node(i, jurisdiction=COUNTRIES[i % 6], operator=f"op{i}") for i in range(count)]


def test_nodes_that_fail_together_are_kept_apart_where_that_is_possible() -> None:
    policy = Policy(8, 14)  # six may fail; three of an outage domain at most
    nodes = [
        replace(n, authorities={**n.authorities, "outage": frozenset({f"d{i // 6 % 2}"} if i < 30 else ())})
        for i, n in enumerate(hive(60))
    ]
    by_id = {n.node_id: n for n in nodes}
    for seed in range(30):
        domains = Counter(d for n in choose(policy, nodes, seed) for d in by_id[n].authorities["outage"])
        assert max(domains.values(), default=0) <= 3
    together = [replace(n, authorities={**n.authorities, "outage": frozenset({"all"})}) for n in nodes[:14]]
    assert len(choose(policy, together, 1)) == 14, "a wish, no rule"


def test_unvetted_nodes_get_a_tenth_of_a_stripe_at_most() -> None:
    policy = Policy(8, 14)
    nodes = [replace(n, vetted=i >= 30) for i, n in enumerate(hive(60))]
    new = {n.node_id for n in nodes if not n.vetted}
    counts = [len(new & set(choose(policy, nodes, seed))) for seed in range(60)]
    assert max(counts) <= 1 and sum(counts) > 5, "few, but some: how else would they be vetted"
    assert len(choose(policy, [replace(n, vetted=False) for n in nodes], 1)) == 14


def test_room_and_weight_decide_who_is_chosen_more() -> None:
    policy = Policy(2, 4)
    nodes = [replace(n, free_bytes=(1 + 3 * (i % 2)) << 30, weight=4.0 if i >= 30 else 1.0) for i, n in enumerate(hive(60))]
    used = Counter(int.from_bytes(n, "big") for seed in range(600) for n in choose(policy, nodes, seed))
    large, small = (sum(used[i] for i in range(60) if i % 2 == odd) for odd in (1, 0))
    good, plain = (sum(used[i] for i in range(60) if (i >= 30) == half) for half in (True, False))
    assert large > 1.8 * small and good > 1.8 * plain


def hard(seed: int, count: int = 60) -> list[Candidate]:
    """Three families of a third as many authorities as nodes, at random: three-dimensional matching."""
    dice = random.Random(seed)
    third = count // 3
    return [
        brute.node(
            i,
            jurisdiction=f"j{dice.randrange(third)}",
            operator=f"o{dice.randrange(third)}",
            asn=f"a{dice.randrange(third)}",
        )
        for i in range(count)
    ]


MATCHING = Policy(2, 17, (Rules("jurisdiction", 1, 0),), (("asn", 1), ("operator", 1)))


def test_the_search_ends_and_says_when_it_did_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are counted, not seconds: no instance takes more than the budget of each of its searches."""
    steps = 0
    bound = search._Branching._bound

    def counted(self: search._Branching, at: int) -> int:
        nonlocal steps
        steps += 1
        return bound(self, at)

    monkeypatch.setattr(search._Branching, "_bound", counted)
    outcomes = Counter[str]()
    for seed in range(6):
        nodes = hard(seed)
        steps = 0
        found = search.solve(search_limits(), (), (), nodes, 17, budget=400)
        assert steps < 400 * 4
        outcomes["complete" if found.complete else "impossible" if found.exact else "not decided"] += 1
    assert sum(outcomes.values()) == 6
    gave_up = search.solve(search_limits(), (), (), hard(1), 17, budget=3)
    if not gave_up.complete:
        assert not gave_up.exact


def search_limits() -> tuple[search.Limit, ...]:
    return tuple(search.Limit(family, 1, 1) for family in ("jurisdiction", "operator", "asn"))


def test_not_decided_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no steps at all nothing is proved, so the words must not say that nothing exists."""
    monkeypatch.setattr(search.solve, "__defaults__", (0,))
    said = []
    for seed in range(20):
        nodes = hard(seed, 12)
        policy = Policy(2, 4, (Rules("jurisdiction", 1, 0),), (("asn", 1), ("operator", 1)))
        try:
            choose(policy, nodes, seed)
        except PolicyInfeasible as error:
            said.append((error.proved, "no placement was found" in str(error)))
    assert said and all(proved != words for proved, words in said) and not all(proved for proved, _ in said)


def greedy(policy: Policy, nodes: list[Candidate]) -> int:
    """Plain greedy: whatever still keeps the policy's numbers, in order; how many that are."""
    taken: list[Candidate] = []
    for one in nodes:
        if fits(policy, [*taken, one]):
            taken.append(one)
    return min(len(taken), policy.total)


def fits(policy: Policy, nodes: list[Candidate]) -> bool:
    """Counts only: with rules of single authorities."""
    caps = {family: cap for family, cap in policy.max_per}
    for rule in policy.rules:
        most = [policy.needed - 1] * (rule.coalition > 0) + [policy.total - policy.needed - rule.slack] * (rule.lose > 0)
        caps[rule.family] = min([*most, caps.get(rule.family, 99)])
    for family, cap in caps.items():
        sets = [brute.under(n, family) for n in nodes]
        unknown = sum(1 for s in sets if UNKNOWN in s)
        counts = Counter(name for s in sets if UNKNOWN not in s for name in s)
        if unknown + max(counts.values(), default=0) > cap:
            return False
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(8, 30))
def test_three_families_are_never_worse_than_greedy(seed: int, total: int, count: int) -> None:
    nodes = hard(seed, count)
    policy = Policy(2, total, (Rules("jurisdiction", 1, 0),), (("asn", 2), ("operator", 1)))
    simple = greedy(policy, nodes)
    try:
        assert len(choose(policy, nodes, seed)) == total
    except (PolicyInfeasible, TooFewNodes) as error:
        assert simple < total
        assert error.most >= 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(brute.policies(), brute.crossing(), st.integers(0, 99))
def test_what_can_be_placed_now_can_be(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    """``most`` of a failure is a number that works, and the partial settlement is part of a good one."""
    try:
        choose(policy, nodes, seed)
    except (PolicyInfeasible, TooFewNodes) as error:
        assert len(choose(policy, nodes, seed, count=error.most)) == error.most < policy.total
    try:
        settle(policy, [None] * policy.total, nodes, seed)
    except (PolicyInfeasible, TooFewNodes) as error:
        partial = error.partial
        assert not partial.keep and len(partial.nodes) == error.most
        assert len(set(partial.nodes.values())) == len(partial.nodes)


def test_a_crowd_in_a_tangle_has_an_answer_too() -> None:
    """Two thousand nodes in a list, each of a kind of its own, and no placement: neither endless nor too deep."""
    nodes = [
        brute.node(i, jurisdiction=frozenset({"DE", f"j{i}"}), operator=f"op{i}", asn=f"a{i}", subnet=f"s{i}")
        for i in range(2000)
    ]
    with pytest.raises(PolicyInfeasible, match="at most 1 of the 4") as caught:
        choose(Policy(2, 4, max_per=(("asn", 1), ("operator", 1), ("subnet", 1))), nodes, 1)
    assert caught.value.most == 1 and len(caught.value.remedy.nodes) == 3
    tight = [replace(n, authorities={**n.authorities, "operator": frozenset({f"op{i % 3}"})}) for i, n in enumerate(nodes)]
    with pytest.raises(PolicyInfeasible):
        choose(Policy(2, 4, (Rules("jurisdiction", 2, 1),), (("asn", 1), ("operator", 1))), tight, 1)


def test_words() -> None:
    nodes = [brute.node(i, jurisdiction=c, operator=f"op{i}") for i, c in enumerate(("DE", "FR") * 4)]
    with pytest.raises(PolicyInfeasible) as caught:
        choose(Policy(4, 6), nodes, 1)
    words = str(caught.value)
    assert "at most 2 of the 6 shares may lie under one jurisdiction" in words and "under 2 (DE, FR)" in words
    assert words.rstrip(".").endswith("; 2 more nodes are needed, under 1 other jurisdiction; or set no_hostage = false")
    assert "operator" not in words, "a family of which the policy says nothing"
    assert isinstance(caught.value.remedy, Remedy) and caught.value.most == 4 and caught.value.proved
    with pytest.raises(PolicyInfeasible, match="no nodes whatever"):
        choose(Policy(2, 3, (Rules("jurisdiction", 2, 1),)), nodes, 1)
    with pytest.raises(TooFewNodes, match="the policy refuses"):
        choose(Policy(4, 6, deny=("FR",)), nodes, 1)


def test_allowed_jurisdictions_are_what_is_asked_for() -> None:
    nodes = [brute.node(i, jurisdiction=c, operator=f"op{i}") for i, c in enumerate(("DE", "FR") * 4)]
    policy = Policy(4, 6, allow=("CH", "DE", "FR"))
    with pytest.raises(PolicyInfeasible, match="jurisdiction CH") as caught:
        choose(policy, nodes, 1)
    more = [Candidate(NodeId(bytes([9, *[i] * 31])), dict(n), 1 << 30) for i, n in enumerate(caught.value.remedy.nodes)]
    assert len(choose(policy, [*nodes, *more], 1)) == 6


def test_capacity_knows_caps_and_refusals() -> None:
    nodes = [
        replace(brute.node(i, jurisdiction=COUNTRIES[i % 4], operator=f"op{i // 4 % 2}"), free_bytes=600) for i in range(8)
    ]
    plain = user_capacity(Policy(4, 6), nodes)
    assert plain == 8 * 600 // 6 * 4
    assert user_capacity(Policy(4, 6, max_per=(("operator", 2),)), nodes) == 0
    assert user_capacity(Policy(4, 6, deny=("DE",)), nodes) == 6 * 600 // 6 * 4
