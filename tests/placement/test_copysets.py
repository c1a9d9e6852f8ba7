"""How many sets of nodes stripes use, what that does to the chance of a loss, and that it is stable and even."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement import copysets
from hivefs.placement.field import Field
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose

SECRET = bytes(range(32))
COUNTRIES = ("DE", "FR", "CH", "IS", "NL", "SE")
POLICY = Policy(2, 4)


def hive(count: int, free: int = 1 << 40) -> list[Candidate]:
    who = random.Random(count)
    return [
        Candidate(NodeId(who.randbytes(32)), {"jurisdiction": frozenset({COUNTRIES[i % 6]})}, free) for i in range(count)
    ]


def placed(field: Field, stripes: int) -> list[frozenset[NodeId]]:
    """The sets of so many stripes."""
    cache: dict[int, list[NodeId]] = {}
    found = []
    for number in range(stripes):
        first, _ = copysets.seeds(SECRET, POLICY, number.to_bytes(16, "big"), len(field))
        if first not in cache:
            cache[first] = choose(POLICY, field, first)
        found.append(frozenset(cache[first]))
    return found


def test_fewer_sets_fewer_losses() -> None:
    """1 % of 1000 nodes fail at once, and 2/4 loses a stripe with three of its four nodes. That some of 20 000 stripes is
    lost is the rule with a set for each, and rare with copysets. Exact: the ways to lose are counted, not tried.
    """
    field = Field(hive(1000))
    with_sets = set(placed(field, 20_000))
    bound = copysets.groups(1000, 4)
    assert len(with_sets) <= bound == 2048
    # The fatal triples in either case; each lies within ten of a thousand nodes with this chance.
    chance = 10 * 9 * 8 / (1000 * 999 * 998)
    fatal = {triple for nodes in with_sets for triple in combinations(sorted(nodes), 3)}
    assert len(fatal) * chance < 0.007, "by the union bound"
    free = {
        frozenset(triple)
        for number in range(2000)
        for triple in combinations(choose(POLICY, field, 10_000_000 + number), 3)
    }
    assert len(free) > 7900, "without, hardly two stripes share three nodes, so 20 000 have 80 000 fatal triples"
    # Bonferroni, from the number of fatal triples alone: without copysets the expected losses are ten times as many.
    assert 10 * len(free) * chance > 9 * len(fatal) * chance


@pytest.mark.slow
def test_what_is_lost_is_tried_out() -> None:
    """The same by drawing failures: 2000 times ten nodes of a thousand."""
    nodes = hive(1000)
    field = Field(nodes)
    grouped = [tuple(s) for s in set(placed(field, 20_000))]
    alone = [tuple(choose(POLICY, field, 50_000_000 + number)) for number in range(20_000)]
    dice = random.Random(5)
    lost = Counter[str]()
    by_node: dict[str, dict[NodeId, list[int]]] = {"grouped": {}, "alone": {}}
    for name, stripes in (("grouped", grouped), ("alone", alone)):
        for number, stripe in enumerate(stripes):
            for node in stripe:
                by_node[name].setdefault(node, []).append(number)
    for _ in range(2000):
        gone = dice.sample(nodes, 10)
        for name, holds in by_node.items():
            hit = Counter(number for node in gone for number in holds.get(node.node_id, ()))
            lost[name] += any(count >= 3 for count in hit.values())
    assert lost["grouped"] * 4 < lost["alone"], lost


def test_a_node_that_leaves_changes_its_own_sets_only() -> None:
    nodes = hive(400)
    all_of = [copysets.seeds(SECRET, POLICY, bytes([i]), 400)[0] for i in range(100)]
    before = [choose(POLICY, nodes, seed) for seed in all_of]
    gone = before[0][0]
    after = [choose(POLICY, [n for n in nodes if n.node_id != gone], seed) for seed in all_of]
    for old, new in zip(before, after, strict=True):
        if gone not in old:
            assert new == old
        else:
            assert len(set(old) & set(new)) >= len(old) - 2


def test_repair_stays_within_the_sets() -> None:
    """Stripes of the same set are repaired with the same node, so the number of sets does not grow."""
    nodes = hive(400)
    by_id = {n.node_id: n for n in nodes}
    both = copysets.seeds(SECRET, POLICY, b"stripe", 400)
    first = copysets.choose_set(POLICY, nodes, both)
    left = [n for n in nodes if n.node_id != first[0]]
    kept = [by_id[n] for n in first[1:]]
    seed = copysets.seed_of(POLICY, left, both, first[1:])
    assert set(choose(POLICY, nodes, seed)) == set(first)
    repaired = choose(POLICY, left, seed, kept=kept)
    assert repaired == choose(POLICY, left, seed, kept=kept) and repaired[0] not in first


def test_the_fuller_set_waits() -> None:
    nodes = hive(400)
    both = copysets.seeds(SECRET, POLICY, b"any", 400)
    sets = [choose(POLICY, nodes, seed) for seed in both]
    small = [Candidate(n.node_id, n.authorities, (1 << 40) - (n.node_id == sets[0][0])) for n in nodes]
    assert set(copysets.choose_set(POLICY, small, both)) == set(sets[1])


def test_others_cannot_tell() -> None:
    """Another secret gives other sets, and small hives have no bound."""
    nodes = hive(400)
    mine = {copysets.seeds(SECRET, POLICY, bytes([i]), 400) for i in range(50)}
    theirs = {copysets.seeds(bytes(32), POLICY, bytes([i]), 400) for i in range(50)}
    assert not {s for pair in mine for s in pair} & {s for pair in theirs for s in pair}
    assert copysets.groups(12, 6) == 0 and copysets.groups(15, 4) == 0
    assert len({copysets.seeds(SECRET, POLICY, i.to_bytes(2, "big"), 12) for i in range(500)}) == 500
    assert nodes


def test_space_is_filled_evenly() -> None:
    """By sets and two choices the fullest node has little more than its part. (One that is in few sets stays emptier, until
    its room beside that of the others brings it into more.)
    """
    field = Field(hive(60, free=1200))
    used = Counter[NodeId]()
    for number in range(3000):
        both = copysets.seeds(SECRET, POLICY, number.to_bytes(4, "big"), 60)
        for node_id in copysets.choose_set(POLICY, field, both):
            used[node_id] += 1
            node = field.get(node_id)
            assert node is not None
            field.put(Candidate(node_id, node.authorities, node.free_bytes - 1))
    mean = 3000 * 4 / 60
    assert max(used.values()) < 1.35 * mean and min(used[n.node_id] for n in field) > 0.1 * mean
