"""Where the processor time of placing and of cold reading goes: by process, and by step (stages.py).

Placing and reading are done by a whole hive, once a round; the time of each process, user and system, is divided by the MiB
of user data. It counts until everything is idle again (the last checkpoint belongs to what was placed). What the same
processes use when nobody does anything, seen before, is taken off. Then the steps are measured by themselves, in one
process, in the same run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hivefs.testing.bench import ssl_loopback, stages
from hivefs.testing.bench.bounded import Failed, run_bounded
from hivefs.testing.bench.processes import cpu_times
from hivefs.testing.bench.tools import MIB, digest

if TYPE_CHECKING:
    from hivefs.testing.bench.hive_figures import Measure

IDLE_S: Final = 4.0
_PARTS: Final = ("mount", "engine", "nodes")
_LIMIT_S: Final = 300.0


def measure(measure: Measure) -> None:
    """The rows; raises Failed when a process is gone."""
    drive, size = measure.drive, measure.sizes.sequential_bytes
    mib, (needed, total) = size / MIB, drive.code
    found: dict[str, list[float]] = {}
    split: dict[str, list[tuple[float, float]]] = {}

    def note(key: str, value: float) -> None:
        found.setdefault(key, []).append(value)

    for number in range(measure.rounds):
        data = os.urandom(size)
        path = drive.directory / f"stages-{number}"
        for kind, bytes_on_line in ((stages.PUT, size * total // needed), (stages.GET, size)):
            measure.quiet()
            if kind == stages.GET:
                drive.wait(path, "guaranteed", _LIMIT_S)
                measure.quiet()
                drive.drop_cache()
                measure.quiet()
            alone = ssl_loopback.measured(bytes_on_line)
            note(f"{kind}_ssl", alone["processor"] * 1000 / mib)
            note(f"{kind}_ssl_wall", alone["seconds"] * 1000 / mib)
            idle = _spent(measure, partial(time.sleep, IDLE_S))
            work = partial(_place, measure, path, data) if kind == stages.PUT else partial(_read, measure, path, data)
            spent = _spent(measure, work)
            for part in _PARTS:
                times = tuple(
                    max(0.0, spent[part][i] - idle[part][i] * spent["clock"][0] / idle["clock"][0]) * 1000 / mib
                    for i in range(2)
                )
                note(f"{kind}_{part}", sum(times))
                split.setdefault(f"{kind}_{part}", []).append((times[0], times[1]))
            note(f"{kind}_wall", spent["work"][0] * 1000 / mib)
        measure.remove(path)
    steps = run_bounded(partial(_steps, measure.root / "stages", drive.code, measure.sizes.stripes), _LIMIT_S)
    for kind in (stages.PUT, stages.GET):
        _tell(measure, kind, found, split, steps)


def _tell(
    measure: Measure,
    kind: str,
    found: dict[str, list[float]],
    split: dict[str, list[tuple[float, float]]],
    steps: dict[str, float],
) -> None:
    whole = sum(statistics.median(found[f"{kind}_{part}"]) for part in _PARTS)
    cores = len(os.sched_getaffinity(0))
    for part in _PARTS:
        key = f"{kind}_{part}"
        user, system = (statistics.median(times[i] for times in split[key]) for i in range(2))
        against = f"user {user:.2f}, system {system:.2f}; {statistics.median(found[key]) / whole:.0%} of all"
        measure.add(f"stages_{key}", f"{kind}: {part}", "ms/MiB", found[key], against)
    ssl = statistics.median(found[f"{kind}_ssl"])
    measure.add(f"stages_{kind}_all", f"{kind}: all processes", "ms/MiB", [whole], _bound(whole, ssl, cores))
    against = f"both ends; by the clock {statistics.median(found[f'{kind}_ssl_wall']):.2f}"
    measure.add(f"stages_{kind}_ssl", f"{kind}: trio.SSLStream for the same bytes", "ms/MiB", found[f"{kind}_ssl"], against)
    measure.add(f"stages_{kind}_wall", f"{kind}: by the clock", "ms/MiB", found[f"{kind}_wall"])
    sum_of = sum(steps[key] for key, of, _, _ in stages.ROWS if of == kind)
    for key, of, where, title in stages.ROWS:
        if of == kind:
            measure.add(f"stage_{key}", f"{kind}, by itself: {title}", "ms/MiB", [steps[key]], where)
    measure.add(f"stage_{kind}_sum", f"{kind}, by itself: all of these", "ms/MiB", [sum_of], _bound(sum_of, ssl, cores))
    against = "tasks, threads, control calls, FUSE, cold caches"
    measure.add(f"stage_{kind}_rest", f"{kind}: not in these", "ms/MiB", [whole - sum_of], against)


def _bound(spent: float, ssl: float, cores: int) -> str:
    """What so much processor time allows when no core is ever idle, on either side."""
    return (
        f"{spent / ssl:.1f} times SSLStream's; at best {ssl / spent:.2f} of its rate, {MIB / 1e3 * cores / spent:.0f} MB/s"
    )


def _place(measure: Measure, path: Path, data: bytes) -> float:
    began = time.perf_counter()
    measure.write(path, data)
    measure.drive.wait(path, "remote", _LIMIT_S)
    return time.perf_counter() - began


def _read(measure: Measure, path: Path, data: bytes) -> float:
    from hivefs.testing.bench.hive_figures import read_cold

    return float(run_bounded(partial(read_cold, path, digest(data), len(data)), measure.sizes.step_limit_s))


def _spent(measure: Measure, work: Callable[[], float | None]) -> dict[str, tuple[float, float]]:
    """User and system seconds of each part until it is idle again; under ``work`` what that returned, under ``clock`` the
    seconds of all of it.
    """
    parts = measure.drive.processes()
    if not all(parts.values()):
        raise Failed("a process of the hive is gone")
    before, began = {part: cpu_times(pids) for part, pids in parts.items()}, time.perf_counter()
    value = work()
    if value is not None:
        measure.quiet()
    spent: dict[str, tuple[float, float]] = {}
    for part, pids in parts.items():
        after = cpu_times(pids)
        spent[part] = (after[0] - before[part][0], after[1] - before[part][1])
    return {**spent, "work": (value or 0.0, 0.0), "clock": (time.perf_counter() - began, 0.0)}


def _steps(directory: Path, code: tuple[int, int], stripes: int) -> Any:
    """In a child of its own."""
    from hivefs.daemon.engine import KEPT_BYTES
    from hivefs.daemon.memory import keep_buffers

    keep_buffers(KEPT_BYTES)
    return stages.measure(directory, code, stripes)
