"""Selector and settlement against brute force on small instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.explain import Remedy
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose, settle
from tests.placement import brute

few = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=4000, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 1000)


def check_choice(policy: Policy, nodes: list[Candidate], seed: int, *, always_decides: bool) -> None:
    """A placement when there is one, and one that keeps the policy; none when there is none."""
    try:
        chosen = choose(policy, nodes, seed)
    except TooFewNodes as error:
        assert len(nodes) < policy.total
        check_remedy(policy, nodes, seed, error.remedy)
        return
    except PolicyInfeasible as error:
        assert error.proved or not always_decides
        if error.proved:
            assert not brute.possible(policy, [], nodes, policy.total)
        check_remedy(policy, nodes, seed, error.remedy)
        return
    by_id = {n.node_id: n for n in nodes}
    assert len(set(chosen)) == policy.total
    assert brute.holds(policy, [by_id[c] for c in chosen])


def check_remedy(policy: Policy, nodes: Sequence[Candidate], seed: int, remedy: Remedy) -> None:
    """Adding exactly what is asked for makes it possible, and so does the weaker policy."""
    if remedy.nodes:
        more = [Candidate(NodeId((1000 + i).to_bytes(32, "big")), dict(n), 1 << 40) for i, n in enumerate(remedy.nodes)]
        assert len(choose(policy, [*nodes, *more], seed)) == policy.total
        if len(nodes) >= policy.total and len(more) > 1 and all(n["jurisdiction"] for n in remedy.nodes):
            with pytest.raises((PolicyInfeasible, TooFewNodes)):
                choose(policy, [*nodes, *more[:-1]], seed)
    if remedy.policy is not None:
        assert len(choose(remedy.policy, nodes, seed)) == policy.total


def check_settlement(policy: Policy, nodes: list[Candidate], at: list[int], seed: int, *, always_decides: bool) -> None:
    """``at[i]`` is the number of the node that has share i; beyond the last one nobody has it."""
    holders = [nodes[i] if i < len(nodes) else None for i in (*at, *[99] * policy.total)][: policy.total]
    distinct = list({h.node_id: h for h in holders if h is not None}.values())
    pool = [n for n in nodes if n not in distinct]
    try:
        found = settle(policy, holders, nodes, seed)
    except (TooFewNodes, PolicyInfeasible) as error:
        if error.data.get("proved", True):
            assert brute.most_kept(policy, distinct, pool) == -1
        else:
            assert not always_decides
        return
    assert sorted((*found.keep, *found.move, *found.missing)) == list(range(policy.total))
    assert set(found.nodes) == {*found.move, *found.missing}
    by_id = {n.node_id: n for n in nodes}
    after = [holders[i] if i in found.keep else by_id[found.nodes[i]] for i in range(policy.total)]
    assert len({n.node_id for n in after if n is not None}) == policy.total
    assert brute.holds(policy, [n for n in after if n is not None])
    assert found.fewest or not always_decides
    if found.fewest:
        assert len(found.keep) == brute.most_kept(policy, distinct, pool)


places = st.lists(st.integers(0, 10), min_size=7, max_size=7)


@few
@given(brute.policies(), brute.crossing(), seeds)
def test_two_families(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    check_choice(policy, nodes, seed, always_decides=True)


@few
@given(brute.policies(families=3, coalitions=2), brute.tangled(), seeds)
def test_three_families_sets_and_coalitions(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    check_choice(policy, nodes, seed, always_decides=True)


@few
@given(brute.policies(), brute.crossing(), places, seeds)
def test_fewest_moves(policy: Policy, nodes: list[Candidate], at: list[int], seed: int) -> None:
    check_settlement(policy, nodes, at, seed, always_decides=True)


@few
@given(brute.policies(families=3, coalitions=2), brute.tangled(), places, seeds)
def test_fewest_moves_in_a_tangle(policy: Policy, nodes: list[Candidate], at: list[int], seed: int) -> None:
    check_settlement(policy, nodes, at, seed, always_decides=True)


@pytest.mark.slow
@many
@given(brute.policies(), brute.crossing(most=11), places, seeds)
def test_two_families_at_length(policy: Policy, nodes: list[Candidate], at: list[int], seed: int) -> None:
    check_choice(policy, nodes, seed, always_decides=True)
    check_settlement(policy, nodes, at, seed, always_decides=True)


@pytest.mark.slow
@many
@given(brute.policies(families=3, coalitions=3), brute.tangled(most=10), places, seeds)
def test_tangles_at_length(policy: Policy, nodes: list[Candidate], at: list[int], seed: int) -> None:
    check_choice(policy, nodes, seed, always_decides=True)
    check_settlement(policy, nodes, at, seed, always_decides=True)


@few
@given(brute.policies(families=3), brute.tangled(most=14), seeds)
def test_wishes_never_stand_in_the_way(policy: Policy, nodes: list[Candidate], seed: int) -> None:
    """All nodes fail together and none is vetted: what was possible still is."""
    wished = [replace(n, authorities={**n.authorities, "outage": frozenset({"o"})}, vetted=False) for n in nodes]

    def works(some: list[Candidate]) -> bool:
        try:
            return bool(choose(policy, some, seed))
        except (PolicyInfeasible, TooFewNodes):
            return False

    assert works(wished) == works(nodes)
