"""Margins of measured rates are honest: on a process whose true rate is known they hold it as often as they say."""

from __future__ import annotations

import heapq
import random
from math import sqrt

import pytest

from hivefs.placement import durability
from hivefs.testing.sim.margins import Rate, Run, blocks, rate


def _played(needed: int, total: int, lag: float, mean: float, nodes: int, stripes: int, days: float, seed: int) -> Run:
    """Stripes that share nodes, without any engine: a node dies after an exponential time and a new one takes its place;
    its shares are made again elsewhere a lag later.
    """
    chance = random.Random(f"margins {seed}")
    holding: list[set[tuple[int, int]]] = [set() for _ in range(nodes)]
    where: dict[tuple[int, int], int] = {}
    for stripe in range(stripes):
        for index, node in enumerate(chance.sample(range(nodes), total)):
            holding[node].add((stripe, index))
            where[stripe, index] = node
    events: list[tuple[float, int, int, tuple[int, int]]] = []
    for node in range(nodes):
        heapq.heappush(events, (chance.expovariate(1 / mean), 0, node, (0, 0)))
    lost: dict[int, float] = {}
    while events and events[0][0] < days:
        when, again, node, share = heapq.heappop(events)
        stripe = share[0]
        if again:
            if stripe not in lost:
                taken = {where.get((stripe, i)) for i in range(total)}
                home = chance.choice([n for n in range(nodes) if n not in taken])
                holding[home].add(share)
                where[share] = home
            continue
        for dead in sorted(holding[node]):
            del where[dead]
            heapq.heappush(events, (when + lag, 1, 0, dead))
            if dead[0] not in lost and sum((dead[0], i) in where for i in range(total)) < needed:
                lost[dead[0]] = when
        holding[node] = set()
        heapq.heappush(events, (when + chance.expovariate(1 / mean), 0, node, (0, 0)))
    return Run(stripes, days, lag, tuple(sorted(lost.values())))


def _naive(found: Rate, true: float) -> bool:
    return abs(found.rate - true) <= 2 * sqrt(max(1, found.lost)) / found.stripe_years


@pytest.mark.parametrize(
    ("needed", "total", "mean", "nodes", "stripes"),
    [
        (2, 3, 120.0, 12, 60),
        pytest.param(2, 3, 60.0, 40, 40, marks=pytest.mark.slow),
        pytest.param(4, 8, 60.0, 40, 60, marks=pytest.mark.slow),
        pytest.param(4, 8, 80.0, 200, 200, marks=pytest.mark.slow),
    ],
)
def test_the_margin_holds_the_true_rate_as_often_as_it_says(
    needed: int, total: int, mean: float, nodes: int, stripes: int
) -> None:
    true, tries = durability.losses(needed, total, total, 7.0, 1 / mean), 200
    found = [rate([_played(needed, total, 7.0, mean, nodes, stripes, 730.0, seed)]) for seed in range(tries)]
    inside = sum(one.low <= true <= one.high for one in found)
    naive = sum(_naive(one, true) for one in found)
    assert inside >= 0.9 * tries, (inside, naive)
    assert inside > naive or naive > 0.94 * tries, "the root of the number is too narrow where losses come together"


def test_losses_of_their_own_have_the_margin_of_their_number() -> None:
    chance = random.Random(1)
    lost = tuple(sorted(chance.uniform(0, 3650) for _ in range(100)))
    found = rate([Run(10_000, 3650.0, 7.0, lost)])
    assert found.lost == 100 and 60 < found.like <= 100
    assert found.low < found.rate < found.high and 1.1 < found.high / found.rate < 1.5


def test_losses_that_come_all_at_once_tell_as_much_as_one() -> None:
    found = rate([Run(1000, 3650.0, 7.0, (500.0,) * 40)])
    assert found.like < 1.1 and found.low < found.rate / 1000 and found.high > 4 * found.rate


def test_no_losses_have_an_upper_end() -> None:
    found = rate([Run(100, 365.0, 7.0, ())])
    assert (found.rate, found.low) == (0.0, 0.0) and found.high == pytest.approx(0.03)


def test_all_of_a_run_is_in_its_blocks() -> None:
    run = Run(20, 365.0, 7.0, (0.0, 100.0, 365.0))
    parts = blocks(run)
    assert sum(count for count, _ in parts) == 3
    assert sum(days for _, days in parts) == pytest.approx(17 * 365.0 + 0.0 + 100.0 + 365.0)
    with pytest.raises(ValueError):
        rate([])
