"""Some of very many nodes: all when they are few, and never many more than are needed, whatever order they come in."""

from __future__ import annotations

import random
from collections import Counter

from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.field import SAMPLE, Part
from hivefs.placement.gathering import LEAST, Gathering
from hivefs.placement.limits import over
from hivefs.placement.policy import Policy

POLICY = Policy(4, 6, deny=("US",))


def node(number: int, country: str) -> Candidate:
    return Candidate(NodeId(number.to_bytes(32, "big")), {"jurisdiction": frozenset({country})}, 1 << 30)


def gathered(nodes: list[Candidate]) -> Gathering:
    found = Gathering(POLICY)
    for one in nodes:
        found.add(one)
    return found


def test_of_few_nodes_all_are_found() -> None:
    nodes = [node(i, "US" if i % 2 else "DE") for i in range(SAMPLE)]
    found = gathered(nodes)
    assert found.found() == nodes and not isinstance(found.found(), Part) and found.count == SAMPLE


def test_of_many_each_class_has_its_part_and_none_that_is_refused() -> None:
    for seed in range(5):
        dice = random.Random(seed)
        countries = [f"{chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(dice.choice([1, 3, 12, 60]))] + ["US"]
        nodes = [node(i, dice.choice(countries) if dice.random() < 0.3 else countries[0]) for i in range(5000)]
        found = gathered(nodes)
        some = found.found()
        assert isinstance(some, Part) and found.count == 5000
        there = Counter(over(one, "jurisdiction") for one in nodes)
        mine = Counter(over(one, "jurisdiction") for one in some)
        del there[frozenset({"US"})]
        assert frozenset({"US"}) not in mine and mine.keys() == there.keys()
        each = max(LEAST, SAMPLE // len(there))
        assert all(mine[name] == min(each, count) for name, count in there.items())
        dice.shuffle(nodes)
        again = gathered(nodes)
        assert {c.node_id for c in again.found()} == {c.node_id for c in some}


def test_no_more_is_kept_than_is_found() -> None:
    found = Gathering(POLICY)
    for i in range(4000):
        found.add(node(i, f"{chr(65 + i % 20)}X"))
        kept = len(found._all) + sum(len(best) for best in found._classes.values())
        assert kept <= 2 * SAMPLE + 20 * LEAST
