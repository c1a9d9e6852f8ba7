"""``python -m hivefs.testing.bench``, called by scripts/bench (docs/performance.md)."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hivefs.testing.bench import (
    all_peers,
    hive_figures,
    loop_figures,
    node_figures,
    placement_figures,
    pool_figures,
    sources,
    table,
)
from hivefs.testing.bench.drive import Drive
from hivefs.testing.bench.guard import guarded
from hivefs.testing.bench.rounds import Record, Rounds, say
from hivefs.testing.bench.targets import CannotStart, Ceiling, Disk, Target
from hivefs.testing.bench.wan import figures as wan_figures
from hivefs.testing.bench.wan.link import NoLink
from hivefs.testing.bench.workloads import WORKLOADS

OWN: dict[str, Callable[[Path], Target]] = {
    table.CEILING: lambda root: Ceiling(table.CEILING, root),
    table.DRIVE: lambda root: Drive(table.DRIVE, root),
    "fast-ceiling": lambda root: Ceiling("fast-ceiling", root, "--fast"),
    "disk": lambda root: Disk("disk", root),
}
NODE = "node"
PLACEMENT = "placement"
LOOP = "loop"
POOL = "pool"
_ALONE = {NODE, PLACEMENT, LOOP, POOL}
"""What needs no drive."""
_MEMORY_BACKED = {"tmpfs", "ramfs"}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    names = [*(workload.name for workload in WORKLOADS), *hive_figures.FIGURES, NODE, PLACEMENT, LOOP, POOL]
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the drive. See docs/performance.md.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of everything; medians are printed (3)")
    parser.add_argument("--quick", action="store_true", help="tiny amounts: shows that it works, measures nothing")
    parser.add_argument("--targets", type=_words, default=[table.CEILING, table.DRIVE], help=f"of {', '.join(OWN)}")
    parser.add_argument(
        "--peers", action="store_true", help=f"also those that are installed of {', '.join(all_peers.PEERS)}"
    )
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="also, as 'before', the hivefs of that other checkout"
    )
    parser.add_argument("--only", type=_words, default=[], help=f"of {', '.join(names)}")
    parser.add_argument("--skip", type=_words, default=[], help="the same names")
    parser.add_argument("--files", type=_numbers, default=[], help="numbers of files for the figure of memory (10000)")
    parser.add_argument("--wan", action="store_true", help="instead: a hive behind links of 20 and 100 ms (needs root)")
    parser.add_argument(
        "--first-byte", type=int, default=0, metavar="N", help="with --wan: only the first byte of a cold file, N samples"
    )
    parser.add_argument(
        "--congestion", type=_words, default=[""], metavar="NAMES", help="TCP's controls for --wan (the machine's)"
    )
    parser.add_argument(
        "--shares", type=_numbers, default=[], help="numbers of shares for --only node (10000,100000,1000000)"
    )
    parser.add_argument("--no-settle", action="store_true", help="do not wait for background work between steps")
    parser.add_argument("--budget", type=float, default=7200, metavar="S", help="begin nothing after S seconds (7200)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where to work; on a disk (/var/tmp)")  # noqa: S108
    parser.add_argument("--keep", action="store_true", help="keep the logs and stores below --directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    chosen = parser.parse_args(arguments)
    if wrong := [name for name in [*chosen.only, *chosen.skip] if name not in names]:
        parser.error(f"there is no workload {wrong[0]}; there are {', '.join(names)}")
    if wrong := [name for name in chosen.targets if name not in OWN]:
        parser.error(f"there is no target {wrong[0]}; there are {', '.join(OWN)}")
    if chosen.only and {*chosen.only} <= _ALONE:
        chosen.targets = []
    if chosen.against is not None and not (chosen.against / "hivefs" / "__init__.py").is_file():
        parser.error(f"{chosen.against} is no checkout of HiveFS")
    if chosen.first_byte < 0 or (chosen.first_byte and not chosen.wan):
        parser.error("--first-byte is a number of samples, and goes with --wan")
    if chosen.rounds < 1:
        parser.error("at least one round")
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when everything of ours was measured, 1 when not; what fails on a peer is only shown."""
    chosen = parse(arguments)
    if _filesystem(chosen.directory) in _MEMORY_BACKED:
        say(f"note: {chosen.directory} is in memory, so stores cost less there than on a disk; see --directory")
    root = Path(tempfile.mkdtemp(prefix="hivefs-bench-", dir=chosen.directory))
    return guarded(partial(_run, chosen, root, shlex.join(["scripts/bench", *arguments])), root, keep=chosen.keep)


def _run(chosen: argparse.Namespace, root: Path, command: str) -> int:
    """In a child of its own (guard.py)."""
    result = measure_wan(chosen, root, command) if chosen.wan else measure(chosen, root, command)
    sys.stdout.write(table.text(result) + "\n")
    if chosen.json is not None:
        table.save(result, chosen.json)
    return 1 if _ours_failed(result) else 0


def measure(chosen: argparse.Namespace, root: Path, command: str) -> dict[str, Any]:
    """Start the targets below ``root``, run everything, stop them."""
    sizes = sources.QUICK if chosen.quick else sources.FULL
    record = Record(chosen.rounds)
    deadline = time.monotonic() + chosen.budget
    if chosen.only and {*chosen.only} <= _ALONE:
        return table.report(
            record, _alone(chosen, root, record), {"command": command, "quick": chosen.quick, "targets": []}
        )
    say("making the inputs")
    inputs = sources.make(root / "inputs", sizes)
    targets = [OWN[name](root / name) for name in chosen.targets]
    if chosen.against is not None:
        targets.append(Drive("before", root / "before", chosen.against.resolve()))
    if chosen.peers:
        targets += all_peers.installed(root, say)
    hive: dict[str, Any] = {}
    running: list[Target] = []
    try:
        for target in targets:
            say(f"starting {target.name}")
            try:
                running.append(target)
                target.start()
            except (CannotStart, OSError) as problem:
                record.problem(target.name, f"it does not start: {problem}")
                running.remove(target)
                target.stop()
        rounds = Rounds(running, inputs, sizes, record, settle=not chosen.no_settle, deadline=deadline)
        rounds.run(workload for workload in WORKLOADS if _chosen(chosen, workload.name))
        for target in rounds.targets:
            if isinstance(target, Drive) and target.name == table.DRIVE:
                figures = [name for name in hive_figures.FIGURES if _chosen(chosen, name)]
                files = chosen.files or [200 if chosen.quick else 10_000]
                hive = hive_figures.measure(target, figures, root, sizes, files, record, deadline)
        hive |= _alone(chosen, root, record)
    finally:
        for target in reversed(running):
            say(f"stopping {target.name}")
            target.stop()
    context = {"command": command, "quick": chosen.quick, "targets": [target.name for target in targets]}
    return table.report(record, hive, context)


def measure_wan(chosen: argparse.Namespace, root: Path, command: str) -> dict[str, Any]:
    """The rows of wan/figures.py; where this machine can make no link, the reason and nothing else."""
    record, found = Record(1), wan_figures.Figures()
    context: dict[str, Any] = {"command": command, "quick": chosen.quick, "targets": ["wan"]}
    try:
        deadline = time.monotonic() + chosen.budget
        found = wan_figures.measure(root, chosen.congestion, chosen.quick, record, deadline, chosen.first_byte)
    except NoLink as reason:
        context["skipped"] = str(reason)
        say(f"skipped: {reason}")
    except RuntimeError as problem:
        record.problem("wan", str(problem))
    return table.report(record, found, context)


def _node(chosen: argparse.Namespace, root: Path, record: Record) -> dict[str, Any]:
    """One node that fills; only when it is asked for, since it takes long."""
    say("filling a node")
    return node_figures.measure(root, chosen.shares or ([200, 1000] if chosen.quick else table.MANY_SHARES), record)


def _alone(chosen: argparse.Namespace, root: Path, record: Record) -> dict[str, Any]:
    """What needs no drive and is measured only when it is asked for."""
    found = _node(chosen, root, record) if NODE in chosen.only else {}
    if PLACEMENT in chosen.only:
        say("placing stripes on many nodes")
        found |= placement_figures.figures(quick=chosen.quick)
    if LOOP in chosen.only:
        say("filling an engine's book")
        sizes = (50, 500, 5000) if chosen.quick else (1000, 100_000, 1_000_000)
        found |= loop_figures.rows(*sizes)
    if POOL in chosen.only:
        say("knowing many nodes")
        found |= pool_figures.rows((100, 1000) if chosen.quick else pool_figures.COUNTS)
    return found


def _ours_failed(result: dict[str, Any]) -> bool:
    """Whether something of ours did not work."""
    return any(name in OWN or name in ("wan", NODE) for name in result["failed"])


def _chosen(chosen: argparse.Namespace, name: str) -> bool:
    return name not in chosen.skip and (name in chosen.only or not (chosen.only or name == hive_figures.STAGES))


def _filesystem(directory: Path) -> str:
    """The type of the file system that a directory lies in; "" when that is not known."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, place, found = line.split()[:3]
            if directory.resolve().is_relative_to(place) and len(place) >= len(best):
                best, kind = place, found
    return kind


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
