"""What a simulation says beside the closed formulas, as text, and the formulas' own tables and plot."""

from __future__ import annotations

from typing import Any

from hivefs.placement import durability, lazy
from hivefs.testing.sim import margins
from hivefs.testing.sim.nodes import DAY
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.world import Result

CHURNS = (0.165, 0.5, 1.5, 5.0, 10.0, 20.0)
CODES = ((4, 8, 8), (10, 30, 20), (12, 30, 22), (16, 30, 24), (16, 30, 30), (16, 40, 30), (29, 80, 52))


def run_of(scenario: Scenario, result: Result) -> margins.Run:
    """What margins are worked out from."""
    lost = tuple(when / DAY for when, _ in result.lost if when <= scenario.days * DAY)
    return margins.Run(scenario.stripes, scenario.days, scenario.gone_after_days, lost)


def struck(result: Result, since: bool) -> tuple[int, int]:
    """(stripes, those with k shares at most in reach) whenever a group was away, of stripes written ``since`` the groups
    were to be known or before; from the first such stripe on.
    """
    first = min((day for day, known, stripes, _ in result.blows if known and stripes), default=float("inf"))
    rows = [(stripes, few) for day, known, stripes, few in result.blows if day >= first and known == since]
    return sum(stripes for stripes, _ in rows), sum(few for _, few in rows)


def figures(scenario: Scenario, result: Result) -> dict[str, Any]:
    """Measured and expected, per stripe and year."""
    years = result.stripe_days / 365
    mean = scenario.lifetimes.mean_days
    rate = 1 / mean if mean else 0.0
    needed, total, lag = scenario.needed, scenario.total, scenario.gone_after_days
    outages = scenario.outages
    away = outages.per_month * outages.hours / (30 * 24)
    away = away / (1 + away)
    # The formulas say "fewer than" where the engine says "when so many are left".
    at = scenario.repaired_at(needed, total) + 1
    read, written = durability.repair_traffic(needed, total, at, lag, rate)
    weights = {m: 1.0 / m for m in range(at, total + 1)}
    known = sum(m * w for m, w in weights.items()) / sum(weights.values()) / total
    looks = max(1, result.looks)
    margin = margins.rate([run_of(scenario, result)])
    return {
        "seed": scenario.seed,
        "digest": result.digest,
        "events": result.events,
        "stripe_years": years,
        "lost": len(result.lost),
        "lost_on_day": [round(when / DAY, 3) for when, _ in result.lost],
        "command": scenario.command,
        "stripes": scenario.stripes,
        "lag": lag,
        "days": scenario.days,
        "code": [needed, total],
        "lifetime_days": mean,
        "losses_a_year": len(result.lost) / years,
        "losses_low": margin.low,
        "losses_high": margin.high,
        "losses_a_year_expected": durability.losses(needed, total, at, lag, rate) if rate else 0.0,
        "losses_a_year_by_windows": durability.windows(needed, at, lag, rate) if rate else 0.0,
        "missing": result.missing / looks / total,
        "missing_expected": 1 - known / (1 + rate * lag),
        "repair_at": at - 1,
        "waiting": result.waiting / looks,
        "unreachable": result.unreachable / looks,
        "unreachable_expected": durability.unreachable(needed, total, lag, rate, away),
        "repair_read": result.repair_read / scenario.share_bytes / years,
        "repair_read_expected": read,
        "repair_written": result.repair_written / scenario.share_bytes / years,
        "repair_written_expected": written,
        "struck_unspread": struck(result, False),
        "struck_spread": struck(result, True),
        "most_exposed": result.most_exposed,
        "reads": result.reads,
        "reads_failed": result.late_reads,
        "lives_of_the_engine": result.lives,
    }


def text(scenario: Scenario, result: Result, seconds: float) -> str:
    """The same for people."""
    found = figures(scenario, result)
    rows = [
        (
            "losses a stripe and year",
            f"{found['losses_a_year']:.3g} ({found['losses_low']:.2g} to {found['losses_high']:.2g})",
            f"{found['losses_a_year_expected']:.3g}",
        ),
        ("  by (365/T) P[Bin(n, p_T) >= n-k+1]", "", f"{found['losses_a_year_by_windows']:.3g}"),
        ("part of the looks at stripes that wait", f"{found['waiting']:.3g}", ""),
        ("part of the shares missing", f"{found['missing']:.3g}", f"{found['missing_expected']:.3g}"),
        ("part of the time below k in reach", f"{found['unreachable']:.3g}", f"{found['unreachable_expected']:.3g}"),
        (
            "shares read for repair, a stripe and year",
            f"{found['repair_read']:.4g}",
            f"{found['repair_read_expected']:.4g}",
        ),
        ("shares written for it", f"{found['repair_written']:.4g}", f"{found['repair_written_expected']:.4g}"),
    ]
    if result.blows:
        for kind, words in (("struck_unspread", "before a group was known"), ("struck_spread", "since then")):
            stripes, few = found[kind]
            rows.append((f"at most k in reach, written {words}", f"{few} of {stripes}", ""))
    head = (
        f"{scenario.command}\n  {scenario.needed}/{scenario.total}, repaired at {found['repair_at']},"
        f" {scenario.nodes} nodes,"
        f" {found['stripe_years']:.4g} stripe-years,"
        f" {result.lives} lives of the engine, {result.reads} reads ({result.late_reads} without k shares in reach),"
        f" {result.events} events in {seconds:.0f} s; digest {result.digest[:16]}\n"
        f"  most shares of a stripe that one coalition ever could bring together: {result.most_exposed};"
        f" {scenario.needed} make it\n"
        f"  {'':44}{'measured':>26}{'formula':>12}\n"
    )
    return head + "".join(f"  {name:44}{seen:>26}{expected:>12}\n" for name, seen, expected in rows)


def formulas() -> str:
    """The tables of docs/durability.md."""
    lines = ["losses a stripe and year, 7 days lag", f"  {'code, repair at':18}" + "".join(f"{c:>10g} %" for c in CHURNS)]
    for needed, total, at in CODES:
        values = (durability.losses(needed, total, at, 7.0, durability.daily_rate(c / 100)) for c in CHURNS)
        lines.append(f"  {f'{needed}/{total}, {at}':18}" + "".join(f"{v:>12.1e}" for v in values))
    lines.append("the same by (365/T) P[Bin(r, p_T) >= r-k+1]")
    for needed, total, at in CODES:
        values = (durability.windows(needed, at, 7.0, durability.daily_rate(c / 100)) for c in CHURNS)
        lines.append(f"  {f'{needed}/{total}, {at}':18}" + "".join(f"{v:>12.1e}" for v in values))
    lines.append("bytes that repair moves in a year for each byte of data (read and written)")
    for needed, total, at in CODES:
        both = [durability.repair_traffic(needed, total, at, 7.0, durability.daily_rate(c / 100)) for c in CHURNS]
        lines.append(
            f"  {f'{needed}/{total}, {at}':18}" + "".join(f"{(read + sent) / needed:>12.2g}" for read, sent in both)
        )
    lines.append("when repair of data begins if the policy does not say, and what that means at 5 % a month")
    lines.append(f"  {'code':18}{'shares left':>12}{'losses':>12}{'at once':>12}{'bytes moved':>12}{'at once':>12}")
    rate = durability.daily_rate(0.05)
    for needed, total in DEFAULTS:
        at = lazy.repair_at(needed, total)
        lost = [durability.losses(needed, total, r, 7.0, rate) for r in (at or total, total)]
        moved = [sum(durability.repair_traffic(needed, total, r, 7.0, rate)) / needed for r in (at or total, total)]
        figures = "".join(f"{v:>12.1e}" for v in lost) + "".join(f"{v:>12.2g}" for v in moved)
        lines.append(f"  {f'{needed}/{total}':18}{at or 'at once':>12}{figures}")
    lines.append("who runs a part of all eligible nodes reassembles a given stripe with")
    parts = (0.05, 0.1, 0.2, 0.3)
    lines.append(f"  {'code':28}" + "".join(f"{p:>10.0%}" for p in parts) + "   authorities for c = a = 1")
    for name, needed, total in SYSTEMS:
        values = (durability.reassembled(needed, total, p) for p in parts)
        label = f"{needed}/{total} ({name})" if name else f"{needed}/{total}"
        authorities = durability.least_authorities(needed, total)
        lines.append(f"  {label:28}" + "".join(f"{v:>10.1e}" for v in values) + f"{authorities:>10g}")
    return "\n".join(lines) + "\n"


DEFAULTS = ((2, 3), (4, 6), (4, 8), (4, 12), (8, 16), (10, 20), (12, 30), (16, 30), (20, 32), (16, 40), (29, 80))

SYSTEMS = (
    ("", 16, 30),
    ("", 12, 30),
    ("", 16, 40),
    ("", 4, 8),
    ("", 2, 3),
    ("Storj", 29, 80),
    ("Sia", 10, 30),
    ("Cubbit", 20, 60),
    ("Tahoe-LAFS", 3, 10),
    ("three copies", 1, 3),
)
"""Codes by their k/n, as the systems' own pages give them."""
