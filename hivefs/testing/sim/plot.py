"""Plot of losses against churn: the formula's curves, and beside them what was measured, with its margins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log10

from hivefs.placement import durability
from hivefs.testing.sim import margins
from hivefs.testing.sim.margins import Rate, Run
from hivefs.testing.sim.report import CODES

LAG = 7.0
PLOTTED = ((2, 3, 3), *CODES)
COLOURS = ("#d02020", "#7a7a7a", "#c06000", "#a02060", "#2060a0", "#000000", "#208040", "#806000")
LOW, HIGH = -20, 2
"""Powers of ten, from bottom to top."""
LEFTMOST, WIDE = -1.0, 2.8
"""Churn from 0.1 percent on, and how many powers of ten."""


@dataclass(frozen=True, slots=True)
class Point:
    """What runs of one code at one churn (percent in 30 days) showed together. ``repair_at`` is the number of shares left
    at which repair began.
    """

    code: tuple[int, int]
    churn: float
    rate: Rate
    repair_at: int


def measured(lines: Iterable[str]) -> list[Point]:
    """From lines as ``--json`` prints them; runs of the same code, threshold and churn count together. Lines without a
    threshold are of repair at once. Raises ValueError, KeyError.
    """
    runs: dict[tuple[int, int, float, int], list[Run]] = {}
    for line in lines:
        found = json.loads(line)
        needed, total = found["code"]
        churn = 100 * (1 - exp(-30 / found["lifetime_days"]))
        run = Run(found["stripes"], found["days"], LAG, tuple(d for d in found["lost_on_day"] if d <= found["days"]))
        at = found.get("repair_at", total - 1)
        runs.setdefault((needed, total, round(churn, 3), at), []).append(run)
    return [
        Point((needed, total), churn, margins.rate(made), at) for (needed, total, churn, at), made in sorted(runs.items())
    ]


def table(points: Iterable[Point]) -> str:
    """Measured rates beside the formula's, for docs/durability.md."""
    rows = [
        "| code, churn in 30 days | stripe-years | lost | losses a stripe and year (95 %) | formula | short formula |",
        "|---|---|---|---|---|---|",
    ]
    for point in points:
        (needed, total), found = point.code, point.rate
        daily = durability.daily_rate(point.churn / 100)
        at = point.repair_at + 1  # the formulas say "fewer than"
        exact, short = durability.losses(needed, total, at, LAG, daily), durability.windows(needed, at, LAG, daily)
        like = f" (like {found.like:.0f})" if found.lost else ""
        seen = f"{found.rate:.3g} ({found.low:.2g} to {found.high:.2g})" if found.lost else f"below {found.high:.2g}"
        name = f"{needed}/{total}, {point.churn:.3g} %" + (f", repair at {at - 1}" if at < total else "")
        rows.append(f"| {name} | {found.stripe_years:.0f} | {found.lost}{like} | {seen} | {exact:.2g} | {short:.2g} |")
    return "\n".join(rows) + "\n"


def plot(points: Iterable[Point] = ()) -> str:
    """An SVG, both axes in powers of ten. A measured point is a circle with its margin, or an arrow down from its upper end
    when nothing was lost.
    """
    width, height, left = 760, 460, 60

    def x(churn: float) -> float:
        return left + (log10(churn) - LEFTMOST) / WIDE * (width - left - 150)

    def y(loss: float) -> float:
        return 20 + (HIGH - log10(max(loss, 10.0**LOW))) / (HIGH - LOW) * (height - 60)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(LOW, HIGH + 1, 2):
        at = y(10.0**power)
        parts.append(f'<path d="M{left} {at:.1f}H{width - 150}" stroke="#ddd"/>')
        parts.append(f'<text x="12" y="{at + 4:.1f}">1e{power}</text>')
    for churn in (0.1, 0.3, 1, 3, 10, 30, 60):
        parts.append(f'<text x="{x(churn) - 8:.1f}" y="{height - 22}">{churn:g}</text>')
    parts.append(
        f'<text x="{left}" y="{height - 6}">percent of the nodes lost in 30 days; up: losses of a stripe in a year;'
        " circles: measured, with 95 % margins</text>"
    )
    for number, (needed, total, at_shares) in enumerate(PLOTTED):
        curve = []
        for step in range(57):
            churn = 10 ** (LEFTMOST + WIDE * step / 56)
            loss = durability.losses(needed, total, at_shares, LAG, durability.daily_rate(churn / 100))
            if loss > 10.0**LOW:
                curve.append(f"{x(churn):.1f},{y(loss):.1f}")
        colour = COLOURS[number]
        parts.append(f'<polyline points="{" ".join(curve)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        name = f"{needed}/{total}, repair at {at_shares}"
        parts.append(f'<text x="{width - 140}" y="{40 + 18 * number}" fill="{colour}">{name}</text>')
    known = {code[:2]: COLOURS[number] for number, code in enumerate(PLOTTED) if code[1] == code[2]}
    for point in points:
        whole = point.repair_at == point.code[1] - 1
        colour, at, found = known.get(point.code, "#000000") if whole else "#000000", x(point.churn), point.rate
        top = y(found.high)
        if found.lost:
            bottom = y(found.low)
            parts.append(f'<path d="M{at:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<circle cx="{at:.1f}" cy="{y(found.rate):.1f}" r="4" fill="{colour}"/>')
        else:
            tip = top + 14
            barbs = f"M{at - 4:.1f} {tip - 5:.1f}L{at:.1f} {tip:.1f}L{at + 4:.1f} {tip - 5:.1f}"
            path = f"M{at:.1f} {top:.1f}V{tip:.1f}{barbs}"
            parts.append(f'<path d="{path}" stroke="{colour}" fill="none" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>\n"])
