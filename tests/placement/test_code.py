"""The code that is chosen for a number of nodes: every loss it allows is tried with the selector, and each placement is
proved by the verifier, which knows nothing of either.
"""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.daemon.embedded import COUNTRIES, MOST_NODES, code_for, labels
from hivefs.errors import BadSetting, PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.attributes import authorities
from hivefs.placement.code import auto, can_place, for_counts, keeps, placeable, spare_nodes, unreadable
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules, prove
from tests.placement import brute


def candidates(count: int) -> list[Candidate]:
    return [
        Candidate(NodeId(bytes([n]) * 32), authorities(labels(n, count).attributes()), free_bytes=1 << 30)
        for n in range(count)
    ]


def fits(needed: int, total: int, nodes: list[Candidate]) -> bool:
    try:
        chosen = choose(Policy(needed, total), nodes, 7)
    except (PolicyInfeasible, TooFewNodes):
        return False
    by_id = {n.node_id: n for n in nodes}
    return prove(Rules(), needed, [by_id[c].authorities["jurisdiction"] for c in chosen]).holds


def test_eight_nodes() -> None:
    assert code_for(8) == (4, 6) and spare_nodes(8) == 2
    assert [labels(n, 8).country for n in range(8)] == [*COUNTRIES, *COUNTRIES]
    assert len({labels(n, 8).operator for n in range(8)}) == 8
    assert code_for(3) == (2, 3)


@pytest.mark.parametrize("count", range(3, 13))
def test_every_allowed_loss_can_be_repaired(count: int) -> None:
    needed, total = code_for(count)
    nodes = candidates(count)
    for lost in combinations(nodes, spare_nodes(count)):
        assert fits(needed, total, [n for n in nodes if n not in lost]), (count, [n.authorities for n in lost])


@pytest.mark.parametrize("count", [-1, 0, 1, 2])
def test_too_few(count: int) -> None:
    with pytest.raises(BadSetting, match="3 are the least"):
        code_for(count)


def test_too_many() -> None:
    assert code_for(MOST_NODES)
    with pytest.raises(BadSetting, match="at most"):
        code_for(MOST_NODES + 1)


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 1), (2, 2, 1, 1), (3, 1, 1, 1), (2, 2, 2, 2), (4, 2, 1)])
def test_the_formula_says_what_the_verifier_proves(counts: tuple[int, ...]) -> None:
    """``placeable`` is exact: where it says no, not one set of nodes can be proved."""
    nodes = [frozenset({COUNTRIES[j]}) for j, count in enumerate(counts) for _ in range(count)]
    for total in range(2, len(nodes) + 1):
        for needed in range(1, total + 1):
            proved = any(prove(Rules(), needed, chosen).holds for chosen in combinations(nodes, total))
            assert placeable(needed, total, counts) == proved, (needed, total)


def test_no_code() -> None:
    assert for_counts([4, 4], 0) is None, "two jurisdictions never do"
    assert for_counts([1, 1, 1], 1) is None
    assert not keeps(4, 6, (2, 2, 2), 1)


# ---- a policy and all that is known ---------------------------------------------------------------------------------


def brute_auto(policy: Policy, nodes: list[Candidate], likely: float) -> tuple[int, int] | None:
    """Every code, every loss, every set of nodes."""
    spare = spare_nodes(len(nodes))
    best = None
    for total in range(2, len(nodes) - spare + 1):
        for needed in range(1, total):
            coded = policy.resolved(needed, total)
            if total > 3 * needed:
                continue
            if not all(
                brute.possible(coded, [], [n for n in nodes if n not in lost], total) for lost in combinations(nodes, spare)
            ):
                continue
            lost_part = sum(
                likely ** sum(up) * (1 - likely) ** (total - sum(up))
                for up in product((0, 1), repeat=total)
                if sum(up) < needed
            )
            good = lost_part <= 1e-9
            rank = (0, 0.0, total / needed, total) if good else (1 + (total > 2 * needed), lost_part, total / needed, total)
            if best is None or rank < best[0]:
                best = rank, (needed, total)
    return None if best is None else best[1]


automatic = st.builds(
    lambda c, a, s, caps: Policy(0, 0, (Rules("jurisdiction", c, a, s),), caps, auto=True),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(0, 1),
    st.sampled_from([(), (("operator", 2),), (("operator", 1),)]),
)


@settings(max_examples=100, deadline=None)
@given(automatic, brute.crossing(most=8), st.sampled_from([0.5, 0.9, 0.99, 0.999999]))
def test_auto_equals_brute_force(policy: Policy, nodes: list[Candidate], likely: float) -> None:
    check_auto(policy, nodes, likely)


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(automatic, brute.crossing(most=9), st.sampled_from([0.5, 0.9, 0.99, 0.999999]))
def test_auto_equals_brute_force_at_length(policy: Policy, nodes: list[Candidate], likely: float) -> None:
    check_auto(policy, nodes, likely)


def check_auto(policy: Policy, nodes: list[Candidate], likely: float) -> None:
    expected = brute_auto(policy, nodes, likely)
    if expected is None:
        with pytest.raises(PolicyInfeasible, match="no code suits"):
            auto(policy, nodes, likely)
    else:
        assert auto(policy, nodes, likely) == expected


def test_auto_for_nodes_as_they_are() -> None:
    """Better nodes need less; what was measured counts, of the nodes that were measured."""
    nodes = candidates(24)
    policy = Policy(0, 0, auto=True)
    good, poor = auto(policy, nodes, 0.999), auto(policy, nodes, 0.9)
    assert good[1] / good[0] < poor[1] / poor[0]
    assert unreadable(*good, 0.999) <= 1e-9 and can_place(policy.resolved(*good), nodes, 2)
    assert auto(policy, nodes, {nodes[0].node_id: 0.999}) == good
    with pytest.raises(PolicyInfeasible, match="4 more nodes are needed, under 4 other jurisdictions"):
        auto(policy, [n for n in nodes if "DE" in n.authorities["jurisdiction"]], 0.99)
