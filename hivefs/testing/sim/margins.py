"""How exact a measured rate of losses is, when losses come together.

Stripes on the same few nodes are lost by the same few deaths, so the number of losses varies more than that of independent
events would (whose margin is the root of their number). A run is therefore cut into blocks of time much longer than a
repair takes; what happens in one block has little to do with what happens in another, and how much the blocks differ
shows how exact their mean is. The rate is a ratio of two sums over blocks, losses and stripe-days; the variance of such a
ratio is Cochran's (Sampling Techniques, 3rd ed. 1977, 6.4), as of a sample of clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, sqrt

LAGS = 10
"""Length of a block in repair lags."""
WIDER = 1.2
"""Margins are so much wider than the variance says: with few losses that is itself uncertain, and small when they are few.
Of a process of known rate they hold the rate in 92 to 97 of 100 runs then (tests/sim/test_margins.py).
"""
YEAR = 365.0


@dataclass(frozen=True, slots=True)
class Run:
    """``lost`` are the days on which stripes were lost, of ``stripes`` in ``days``; ``lag`` is that of repair in days."""

    stripes: int
    days: float
    lag: float
    lost: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """Losses a stripe and year. ``low`` to ``high`` is where the true rate is with about 95 %. ``like`` is how many
    independent losses would tell as much as those that were seen.
    """

    rate: float
    low: float
    high: float
    lost: int
    like: float
    stripe_years: float


def blocks(run: Run) -> list[tuple[int, float]]:
    """(losses, stripe-days) of each block of time. A lost stripe counts up to its loss."""
    count = max(2, int(run.days / (LAGS * run.lag)))
    length = run.days / count
    made = []
    for number in range(count):
        begin, end = number * length, (number + 1) * length
        here = [day for day in run.lost if begin <= day < end or (number == count - 1 and day == end)]
        before = sum(1 for day in run.lost if day < begin)
        exposed = (run.stripes - before - len(here)) * length + sum(day - begin for day in here)
        made.append((len(here), exposed))
    return made


def rate(runs: Iterable[Run]) -> Rate:
    """Of some runs of the same scenario together. Raises ValueError without any."""
    parts = [block for run in runs for block in blocks(run)]
    if len(parts) < 2:
        raise ValueError("no runs")
    lost, days = sum(count for count, _ in parts), sum(exposed for _, exposed in parts)
    years = days / YEAR
    if not lost:
        return Rate(0.0, 0.0, 3.0 / years if years else inf, 0, 0.0, years)  # 95 %: e^-3 is 5 %
    mean = lost / days
    spread = sum((count - mean * exposed) ** 2 for count, exposed in parts) * len(parts) / (len(parts) - 1)
    spread = max(spread, lost)  # blocks that are alike by chance tell no more than independent losses would
    like = lost * lost / spread
    # The square root of a count varies by a half whatever its mean is, so the margin is even on that scale.
    root, half = sqrt(like), WIDER * student(len(parts) - 1) / 2
    low, high = max(0.0, root - half) ** 2 / like, (root + half) ** 2 / like
    return Rate(lost / years, low * lost / years, high * lost / years, lost, like, years)


def student(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, to 2 %: 1.96 + 2.37/f + 2.82/f^2 (Abramowitz and Stegun 26.7.5)."""
    return 1.96 + 2.37 / freedom + 2.82 / freedom**2
