"""Domains of nodes that fail together: found when they are there, not found in chance."""

from __future__ import annotations

import random
from math import exp, factorial

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.model.ids import NodeId
from hivefs.placement.outages import DOUBT, History, at_least, domains

DAY = 86_400
SPAN = 90 * DAY
START = 1_800_000_000


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(4, "big") + bytes(28))


def alone(dice: random.Random, count: int) -> list[tuple[int, int]]:
    """Outages of some hours at any time."""
    return sorted((START + dice.randrange(SPAN), int(dice.expovariate(1 / 14_400)) + 60) for _ in range(count))


def kept(outages: list[tuple[int, int]]) -> History:
    last = sorted(outages)[-32:]
    return History(last, START + SPAN - last[0][0] if len(outages) >= 32 else SPAN)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(0, 40))
def test_chance_teaches_nothing(seed: int, nodes: int, outages: int) -> None:
    dice = random.Random(seed)
    assert domains({node(n): kept(alone(dice, outages)) if outages else History((), SPAN) for n in range(nodes)}) == {}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(3, 8), st.integers(0, 3))
def test_a_rack_with_a_bad_power_line_is_found(seed: int, size: int, times: int, own: int) -> None:
    """Nodes notice the same failure up to a minute and a half apart, and have outages of their own besides."""
    dice = random.Random(seed)
    shared = alone(dice, times)
    rack = {}
    for number in range(size):
        mine = [(begin + dice.randrange(90), length + dice.randrange(80)) for begin, length in shared]
        rack[node(number)] = kept(mine + alone(dice, min(own, times - 1)))
    others = {node(100 + n): kept(alone(dice, 6)) for n in range(20)}
    found = domains(rack | others)
    assert set(found) == set(rack) and set(found.values()) == {"outage-" + node(0).hex()[:12]}


def test_two_racks_are_two_domains_and_twice_is_not_enough() -> None:
    dice = random.Random(1)
    first, second, twice = alone(dice, 5), alone(dice, 5), alone(dice, 2)
    hive = {node(n): kept(list(first)) for n in range(4)}
    hive |= {node(n): kept(list(second)) for n in range(4, 7)}
    hive |= {node(n): kept(list(twice)) for n in range(7, 10)}
    found = domains(hive)
    assert set(found) == {node(n) for n in range(7)} and len(set(found.values())) == 2


def test_going_together_is_not_enough_they_must_come_back_together_too() -> None:
    dice = random.Random(2)
    begins = [begin for begin, _ in alone(dice, 6)]
    hive = {node(n): kept([(b, 3600 * (n + 1) * 10) for b in begins]) for n in range(3)}
    assert domains(hive) == {}


def test_a_large_hive_is_done_in_work_that_grows_with_its_outages() -> None:
    """A thousand nodes of one provider go ten times: one domain, though no outage is compared with all others."""
    dice = random.Random(3)
    shared = alone(dice, 10)
    hive = {node(n): kept([(b + dice.randrange(60), length) for b, length in shared]) for n in range(1000)}
    hive |= {node(5000 + n): kept(alone(dice, 10)) for n in range(500)}
    found = domains(hive)
    assert set(found) == {node(n) for n in range(1000)} and len(set(found.values())) == 1


@given(st.integers(0, 30), st.floats(1e-6, 20))
def test_the_poisson_tail_is_its_definition(count: int, expected: float) -> None:
    plain = sum(exp(-expected) * expected**n / factorial(n) for n in range(count, 120))
    assert abs(at_least(count, expected) - plain) <= 1e-9 + 1e-6 * plain
    assert DOUBT < 1
