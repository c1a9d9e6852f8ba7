"""The code that is chosen for a number of nodes: every loss it allows is tried with the selector, and each placement is
proved by the verifier, which knows nothing of either.
"""

from __future__ import annotations

from itertools import combinations

import pytest

from hivefs.daemon.embedded import COUNTRIES, MOST_NODES, code_for, labels, spare_nodes
from hivefs.errors import BadSetting, PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.attributes import authorities
from hivefs.placement.code import auto, keeps, placeable
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules, prove


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
    assert auto([4, 4], 0) is None, "two jurisdictions never do"
    assert auto([1, 1, 1], 1) is None
    assert not keeps(4, 6, (2, 2, 2), 1)
