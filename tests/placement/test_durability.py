"""The closed formulas against direct simulation where losses are seen, and the figures that are published."""

from __future__ import annotations

import heapq
import random
from math import inf, isclose, sqrt

import pytest

from hivefs.placement import durability


def died(needed: int, total: int, repair_at: int, lag: float, rate: float, years: float, chance: random.Random) -> int:
    """Losses of one stripe, played out: a lost share is known after ``lag``; below ``repair_at`` known ones all are made again."""
    now, losses = 0.0, 0
    while now < years * 365:
        known, unknown, heap = total, 0, list[float]()
        while now < years * 365:
            alive = known - unknown
            if alive < needed:
                losses += 1
                break
            step = now + chance.expovariate(alive * rate)
            if heap and heap[0] <= step:
                now = heapq.heappop(heap)
                known, unknown = known - 1, unknown - 1
                if known < repair_at:
                    known = total
            else:
                now = step
                unknown += 1
                heapq.heappush(heap, now + lag)
    return losses


@pytest.mark.parametrize(
    ("needed", "total", "repair_at", "rate"),
    [(2, 3, 3, 0.01), (4, 8, 8, 0.03), (4, 8, 7, 0.02), (4, 10, 7, 0.03), (16, 30, 24, 0.05), (5, 7, 7, 0.004)],
)
def test_losses_are_those_of_the_process_itself(needed: int, total: int, repair_at: int, rate: float) -> None:
    chance = random.Random(f"{needed} {total} {repair_at}")
    expected = durability.losses(needed, total, repair_at, 7.0, rate)
    years = 900 / expected
    seen = died(needed, total, repair_at, 7.0, rate, years, chance)
    # After a loss the simulation begins with a whole stripe, which the stationary formula does not know: up to a tenth fewer.
    assert 0.82 * 900 - 4 * sqrt(900) < seen < 900 + 4 * sqrt(900)


def test_the_short_formula_is_no_bound() -> None:
    """A year cut into windows does not see what straddles two of them."""
    assert durability.windows(4, 8, 7, 1 / 30) < 0.5 * durability.losses(4, 8, 8, 7, 1 / 30)


@pytest.mark.parametrize(("monthly", "published"), [(0.00165, 1e-23), (0.015, 5e-15), (0.05, 2e-10), (0.2, 7e-5)])
def test_the_published_table_is_right_to_its_digit(monthly: float, published: float) -> None:
    """16/30, threshold 24, lag of seven days: within a factor of 1.5 by the short formula, of 2 by the exact one."""
    rate = durability.daily_rate(monthly)
    assert published / 1.5 < durability.windows(16, 24, 7, rate) < published * 1.5
    assert published / 2 < durability.losses(16, 30, 24, 7, rate) < published * 2


def test_out_of_reach_is_what_a_draw_of_all_nodes_shows() -> None:
    chance, tries = random.Random(5), 40_000
    there = 0.75 / (1 + 7 * 0.01)
    hits = sum(sum(chance.random() < there for _ in range(8)) < 4 for _ in range(tries))
    expected = durability.unreachable(4, 8, 7, 0.01, 0.25)
    assert abs(hits / tries - expected) < 4 * sqrt(expected / tries)


def test_who_has_a_tenth_of_the_nodes() -> None:
    assert 3e-9 < durability.reassembled(16, 30, 0.1) < 4.5e-9
    assert 3.5e-4 < durability.reassembled(10, 30, 0.1) < 5e-4
    chance, tries = random.Random(6), 20_000
    hits = sum(sum(node < 30 for node in chance.sample(range(100), 10)) >= 4 for _ in range(tries))
    expected = durability.capped(4, 10, 100, 30)
    assert abs(hits / tries - expected) < 4 * sqrt(expected / tries)
    assert isclose(durability.capped(4, 10, 10**6, 3 * 10**5), durability.reassembled(4, 10, 0.3), rel_tol=1e-3)


@pytest.mark.parametrize(
    ("needed", "total", "slack", "least"),
    [
        (29, 80, 0, 3),
        (10, 30, 0, 4),
        (20, 60, 0, 4),
        (3, 10, 0, 5),
        (2, 3, 0, 3),
        (16, 30, 4, 3),
        (20, 32, 4, 4),
        (20, 30, 4, 5),
        (1, 3, 0, inf),
    ],
)
def test_how_many_authorities_a_code_needs(needed: int, total: int, slack: int, least: float) -> None:
    assert durability.least_authorities(needed, total, slack) == least


def test_repair_traffic_is_that_of_the_process() -> None:
    read, written = durability.repair_traffic(4, 8, 8, 0.0, 0.01)
    assert isclose(written, 365 * 8 * 0.01) and isclose(read, 4 * written)
    read, written = durability.repair_traffic(16, 30, 24, 0.0, 0.01)
    assert isclose(read / written, 16 / 7)


def test_probabilities_are_probabilities() -> None:
    assert isclose(durability.at_least(20, 0.3, 0), 1.0)
    assert durability.binomial(5, 0.0, 0) == 1.0 and durability.binomial(5, 1.0, 5) == 1.0
    assert durability.binomial(5, 0.5, 6) == 0.0
    assert durability.daily_rate(0.0) == 0.0
    with pytest.raises(ValueError, match="below 1"):
        durability.daily_rate(1.0)
    with pytest.raises(ValueError, match="threshold"):
        durability.losses(4, 8, 3, 7, 0.1)
