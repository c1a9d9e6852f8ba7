"""The index over all nodes: what is drawn, how often, and that it changes as little as its nodes do."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import UNKNOWN, Attribute, Candidate
from hivefs.placement.attributes import authorities
from hivefs.placement.field import Field
from hivefs.placement.lots import key
from hivefs.placement.policy import Policy
from hivefs.placement.selector import SMALL, choose, settle
from hivefs.placement.verifier import Rules, verify

COUNTRIES = ("DE", "FR", "CH", "IS", "US", "NL")


def said(number: int) -> tuple[Attribute, ...]:
    """Half of all nodes stand in the US."""
    country = "US" if number % 2 else COUNTRIES[number // 2 % 6]
    return (
        Attribute("country", country),
        Attribute("operator_country", country),
        Attribute("operator", f"op {number // 2}"),
        Attribute("asn", str(number % 97)),
        Attribute("subnet", f"net {number // 3}"),
    )


def node(number: int, free: int = 1 << 40) -> Candidate:
    return Candidate(NodeId(random.Random(number).randbytes(32)), authorities(said(number)), free)


POLICY = Policy(16, 30, max_per=(("asn", 2), ("operator", 1), ("subnet", 1)))


@pytest.fixture(scope="module")
def many() -> list[Candidate]:
    return [node(i) for i in range(3000)]


def test_what_is_drawn_is_proved(many: list[Candidate]) -> None:
    field = Field(many)
    known = {n.node_id: said(i) for i, n in enumerate(many)}
    assert len(field) == 3000 > SMALL and len(list(field)) == 3000
    for seed in range(40):
        chosen = choose(POLICY, field, seed)
        assert len(set(chosen)) == 30 and choose(POLICY, field, seed) == chosen
        verdict = verify(POLICY, 16, [known[n] for n in chosen])
        assert verdict.holds, verdict.words


def test_offline_full_taken_and_refused_nodes_are_never_drawn(many: list[Candidate]) -> None:
    odd = [replace(n, usable=i % 5 != 0, free_bytes=10 if i % 5 == 1 else 1 << 30) for i, n in enumerate(many)]
    field = Field(odd)
    policy = replace(POLICY, deny=("IS",))
    good = {n.node_id for i, n in enumerate(odd) if i % 5 > 1 and "IS" not in n.authorities["jurisdiction"]}
    avoid = sorted(good)[::2]
    for seed in range(20):
        assert set(choose(policy, field, seed, share_bytes=4096, avoid=avoid)) <= good - set(avoid)


def test_one_that_leaves_changes_little(many: list[Candidate]) -> None:
    field = Field(many)
    before = [choose(POLICY, field, seed) for seed in range(40)]
    gone = {before[0][0], before[1][5]}
    for node_id in gone:
        field.remove(node_id)
    assert all(field.get(node_id) is None for node_id in gone)
    after = [choose(POLICY, field, seed) for seed in range(40)]
    assert not gone & {n for chosen in after for n in chosen}
    same = sum(len(set(a) & set(b)) for a, b in zip(before, after, strict=True))
    assert same > 0.9 * 40 * 30
    for n in many:
        if n.node_id in gone:
            field.put(n)
    again = [choose(POLICY, field, seed) for seed in range(40)]
    assert sum(a == b for a, b in zip(before, again, strict=True)) > 30, "and nearly all is as it was"


def test_chance_is_as_the_room() -> None:
    """Nodes of one country with one, two and four parts of room: drawn as often, within five sigma."""
    nodes = [
        Candidate(NodeId(i.to_bytes(32, "big")), {"jurisdiction": frozenset({"DE"})}, (1, 2, 4)[i % 3] << 30)
        for i in range(900)
    ]
    drawn: Counter[int] = Counter()
    for seed in range(30):
        for one in islice(Field(nodes).draws(key(seed), 300), 300):
            drawn[one.free_bytes >> 30] += 1
    total = sum(drawn.values())
    assert total == 9000
    for part in (1, 2, 4):
        expected = total * part / 7
        assert abs(drawn[part] - expected) < 5 * expected**0.5, drawn


def test_unvetted_nodes_get_a_small_part(many: list[Candidate]) -> None:
    field = Field([replace(n, vetted=i % 2 == 0) for i, n in enumerate(many)])
    used = Counter(
        field_node.vetted for seed in range(60) for n in choose(POLICY, field, seed) if (field_node := field.get(n))
    )
    assert 0 < used[False] <= 60 * 3, "a tenth of each stripe at most"


def test_a_rare_jurisdiction_is_found() -> None:
    """Twelve nodes of 3000 are outside of two countries: the sample of the exact search has them."""
    nodes = [
        Candidate(
            NodeId(i.to_bytes(32, "big")),
            {"jurisdiction": frozenset({"US" if i % 2 else "DE" if i % 250 else f"rare {i // 750}"})},
            1 << 30,
        )
        for i in range(3000)
    ]
    field = Field(nodes)
    policy = Policy(4, 7)
    for seed in range(20):
        chosen = [field.get(n) for n in choose(policy, field, seed)]
        counts = Counter(name for n in chosen if n is not None for name in n.authorities["jurisdiction"])
        assert max(counts.values()) <= 3 and sum(counts.values()) == 7
    with pytest.raises(PolicyInfeasible) as caught:
        choose(policy, Field([n for n in nodes if not str(n.authorities).count("rare")]), 1)
    assert "under 2 (DE, US)" in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.sampled_from([*COUNTRIES, UNKNOWN])), max_size=200))
def test_changes_are_the_same_as_a_new_index(changes: list[tuple[int, bool, str]]) -> None:
    field, there = Field(), {}
    for number, stays, country in changes:
        one = Candidate(NodeId(number.to_bytes(32, "big")), {"jurisdiction": frozenset({country})}, number, number % 3 > 0)
        if stays:
            field.put(one)
            there[one.node_id] = one
        else:
            field.remove(one.node_id)
            there.pop(one.node_id, None)
    assert len(field) == len(there) and {n.node_id: n for n in field} == there
    assert all(field.get(node_id) == one for node_id, one in there.items())
    drawn = list(field.draws(key(1), 50))
    assert {n.node_id for n in drawn} <= {n.node_id for n in there.values() if n.usable}
    assert drawn or not any(n.usable for n in there.values())


def test_repair_over_a_field(many: list[Candidate]) -> None:
    """Shares of nodes that are gone get new ones, the survivors stay; a seized operator's shares move."""
    field, moved = Field(many), 0
    for seed in range(20):
        holders = [field.get(n) for n in choose(POLICY, field, seed)]
        holders[seed] = None
        plan = settle(POLICY, holders, field, seed)
        assert plan.missing == (seed,) and not plan.move and len(plan.keep) == 29 and plan.fewest
        strict = replace(POLICY, deny=("DE",))
        german = {i for i, h in enumerate(holders) if h is not None and "DE" in h.authorities["jurisdiction"]}
        try:
            plan = settle(strict, holders, field, seed)
        except (PolicyInfeasible, TooFewNodes):
            continue
        assert set(plan.move) >= german and set(plan.nodes) == {*plan.move, *plan.missing}
        moved += 1
    assert moved > 10


def test_rules_on_operators_and_coalitions_over_a_field(many: list[Candidate]) -> None:
    field = Field(many)
    known = {n.node_id: said(i) for i, n in enumerate(many)}
    policy = Policy(16, 30, (Rules("jurisdiction", 2, 1), Rules("operator", 3, 3)), (("asn", 1),))
    for seed in range(10):
        verdict = verify(policy, 16, [known[n] for n in choose(policy, field, seed)])
        assert verdict.holds, verdict.words
