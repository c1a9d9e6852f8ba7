"""``python -m hivefs.testing.sim``: years of a hive, against the closed formulas (docs/durability.md)."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hivefs.placement import durability, lazy
from hivefs.placement.policy import AT_ONCE
from hivefs.testing.sim import plot, report
from hivefs.testing.sim.presets import PRESETS, preset
from hivefs.testing.sim.scenario import Lifetimes, Outages, Scenario
from hivefs.testing.sim.truth import Violation
from hivefs.testing.sim.world import simulate


def _code(text: str) -> tuple[int, int]:
    needed, _, total = text.partition("/")
    return int(needed), int(total)


def _repair_at(word: str, needed: int, total: int) -> tuple[int, int]:
    """(what the policy says, the shares left at which repair has to begin)."""
    if word == "all":
        return AT_ONCE, 0
    return (0, lazy.repair_at(needed, total)) if word == "code" else (int(word), int(word))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hivefs.testing.sim", description="Simulate a hive. See docs/durability.md."
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="one of the scenarios that the tests use")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same run (1)")
    parser.add_argument("--seeds", type=int, default=1, help="run so many seeds from --seed on (1)")
    parser.add_argument("--years", type=float, default=1.0, help="hive time (1)")
    parser.add_argument("--nodes", type=int, default=100, help="nodes at any time (100)")
    parser.add_argument("--stripes", type=int, default=40, help="stripes that are kept (40)")
    parser.add_argument("--code", type=_code, default=(4, 8), metavar="K/N", help="(4/8)")
    parser.add_argument("--churn", type=float, default=5.0, help="percent of the nodes that are lost in 30 days (5)")
    parser.add_argument("--shape", type=float, default=1.0, help="Weibull shape of lifetimes; 1 is exponential (1)")
    parser.add_argument("--lag", type=float, default=7.0, help="days until a node that is away is given up (7)")
    parser.add_argument("--outages", type=float, default=0.0, help="outages of a node in 30 days (0)")
    parser.add_argument("--diurnal", action="store_true", help="outages are mostly at night")
    parser.add_argument(
        "--repair-at",
        default="all",
        metavar="N",
        help=("repair data when N shares are left, 'code' for what the engine takes for the code, 'all' for at once (all)"),
    )
    parser.add_argument("--kills", type=float, default=12.0, help="SIGKILLs of the engine a year (12)")
    parser.add_argument("--formulas", action="store_true", help="only print the tables of formulas; simulate nothing")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="with --formulas: also draw losses against churn there")
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="with --formulas: lines of --json, for a table and in the plot"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write every event there")
    parser.add_argument("--digest", action="store_true", help="print only the digest of the trace")
    parser.add_argument("--json", action="store_true", help="print what came out as JSON")
    return parser.parse_args(arguments)


def scenario_of(chosen: argparse.Namespace, seed: int) -> Scenario:
    """What the options say, with the command that plays it again."""
    if chosen.preset:
        return preset(chosen.preset, seed)
    rate = durability.daily_rate(chosen.churn / 100)
    words = ["--years", f"{chosen.years:g}", "--nodes", str(chosen.nodes), "--stripes", str(chosen.stripes)]
    words += [
        "--code",
        f"{chosen.code[0]}/{chosen.code[1]}",
        "--churn",
        f"{chosen.churn:g}",
        "--shape",
        f"{chosen.shape:g}",
    ]
    words += ["--lag", f"{chosen.lag:g}", "--outages", f"{chosen.outages:g}", *(["--diurnal"] if chosen.diurnal else [])]
    words += ["--kills", f"{chosen.kills:g}", "--seed", str(seed)]
    if chosen.repair_at != "all":
        words += ["--repair-at", chosen.repair_at]
    says, waits = _repair_at(chosen.repair_at, *chosen.code)
    return Scenario(
        seed=seed,
        repair_at=says,
        waits_above=waits,
        days=chosen.years * 365,
        nodes=chosen.nodes,
        stripes=chosen.stripes,
        needed=chosen.code[0],
        total=chosen.code[1],
        max_per_operator=min(2, chosen.code[0] - 1),
        gone_after_days=chosen.lag,
        lifetimes=Lifetimes(1 / rate if rate else 0.0, chosen.shape),
        outages=Outages(chosen.outages, diurnal=chosen.diurnal),
        reads_per_day=0.2,
        kills_per_year=chosen.kills,
        command=shlex.join(["python", "-m", "hivefs.testing.sim", *words]),
    )


def main(arguments: Sequence[str]) -> int:
    """0 when nothing that must never be so was seen, 1 when it was; then the command that shows it again is printed."""
    chosen = parse(arguments)
    logging.disable(logging.ERROR)
    if chosen.formulas:
        sys.stdout.write(report.formulas())
        points = [] if chosen.measured is None else plot.measured(chosen.measured.read_text().splitlines())
        if points:
            sys.stdout.write(plot.table(points))
        if chosen.svg is not None:
            chosen.svg.write_text(plot.plot(points))
        return 0
    failed = 0
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        scenario, began = scenario_of(chosen, seed), time.monotonic()
        with ExitStack() as stack:
            trace = stack.enter_context(chosen.trace.open("w")) if chosen.trace is not None else None
            try:
                result = simulate(scenario, trace=trace)
            except Violation as violation:
                sys.stdout.write(f"seed {seed}: {violation}\n")
                failed = 1
                continue
        if chosen.digest:
            sys.stdout.write(result.digest + "\n")
        elif chosen.json:
            sys.stdout.write(json.dumps(report.figures(scenario, result)) + "\n")
        else:
            sys.stdout.write(report.text(scenario, result, time.monotonic() - began))
        sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
