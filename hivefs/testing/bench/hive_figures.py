"""What only a hive has: placing, cold reads from nodes, latency while the engine places, memory of its processes.

Rates stand against trio.SSLStream moving the same number of bytes over loopback (all n shares for placing, the user's
bytes for a cold read), measured right before each of ours, because the machine is seldom equally busy for long.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from hivefs.testing.bench import ssl_loopback, stage_figures
from hivefs.testing.bench.bounded import Failed, Overrun, run_bounded
from hivefs.testing.bench.drive import Drive
from hivefs.testing.bench.processes import memory
from hivefs.testing.bench.rounds import SETTLE_SECONDS, Record, say
from hivefs.testing.bench.sources import Sizes
from hivefs.testing.bench.tools import Differs, digest, drop_caches, forget_pages, read_file, write_all

MB: Final = 1e6
BLOCK: Final = 4096
PAUSE_S: Final = 0.002
"""Between two files of the latency measure: somebody who looks through a directory, not a loop as fast as it can."""
FILE_BYTES: Final = 1024
FILES_IN_A_DIRECTORY: Final = 1000
LIMIT_S: Final = 300.0
SLOWEST_FILES: Final = 100
"""Files a second; what is slower counts as hanging."""
WALKS: Final = (("ls", "-R"), ("find",), ("du", "-s"))

STAGES: Final = "stages"
"""Only when it is asked for."""

Figure = dict[str, Any]


class Measure:
    """One drive and what its figures need."""

    def __init__(
        self, drive: Drive, root: Path, sizes: Sizes, files: Sequence[int], rounds: int, put: dict[str, Figure]
    ) -> None:
        self.drive = drive
        self.root = root
        self.sizes = sizes
        self.files = files
        self.rounds = rounds
        self._put = put

    def add(self, key: str, title: str, unit: str, values: Sequence[float], against: str = "", **more: Any) -> None:
        """A line of the table: the median of ``values``."""
        value = statistics.median(values)
        self._put[key] = {"title": title, "unit": unit, "value": value, "values": list(values), "against": against, **more}
        say(f"  {title}: {value:.4g} {unit} {against}")

    def quiet(self) -> None:
        """Nothing in the background."""
        self.drive.settle(SETTLE_SECONDS)

    def write(self, path: Path, data: bytes) -> None:
        """Copy onto the drive in calls of 1 MiB, without fsync, as cp does."""
        run_bounded(partial(_write, path, data), self.sizes.step_limit_s)

    def remove(self, path: Path) -> None:
        """A file or a tree."""
        run_bounded(partial(shutil.rmtree, path) if path.is_dir() else path.unlink, self.sizes.step_limit_s)


def placing(measure: Measure) -> None:
    """User data per second from the start of a copy until ``hivefs wait --level remote`` returns."""
    rates, ratios = [], []
    drive, size = measure.drive, measure.sizes.sequential_bytes
    needed, total = drive.code
    for number in range(measure.rounds):
        measure.quiet()
        data = os.urandom(size)
        alone = ssl_loopback.seconds_for(size * total // needed)
        path = drive.directory / f"placing-{number}"
        began = time.perf_counter()
        measure.write(path, data)
        drive.wait(path, "remote", LIMIT_S)
        took = time.perf_counter() - began
        rates.append(size / MB / took)
        ratios.append(alone / took)
        measure.remove(path)
    ratio = statistics.median(ratios)
    against = f"{ratio:.2f} of trio.SSLStream for all {total} shares (goal 0.5)"
    measure.add("placing", "placing, from copying to remote", "MB/s", rates, against, ratio=ratio, ratios=ratios)


def cold(measure: Measure) -> None:
    """Sequential read when nothing of the file is on this machine."""
    rates, ratios = [], []
    drive, size = measure.drive, measure.sizes.sequential_bytes
    for number in range(measure.rounds):
        data = os.urandom(size)
        path = drive.directory / f"cold-{number}"
        measure.write(path, data)
        drive.wait(path, "guaranteed", LIMIT_S)
        measure.quiet()
        drive.drop_cache()
        measure.quiet()
        alone = ssl_loopback.seconds_for(size)
        took = run_bounded(partial(read_cold, path, digest(data), size), measure.sizes.step_limit_s)
        rates.append(size / MB / took)
        ratios.append(alone / took)
        measure.remove(path)
    ratio = statistics.median(ratios)
    against = f"{ratio:.2f} of trio.SSLStream (goal 0.5)"
    measure.add("cold", "cold read from the nodes", "MB/s", rates, against, ratio=ratio, ratios=ratios)


def latency(measure: Measure) -> None:
    """stat, open and a 4 KiB read of files that the kernel does not know yet, idle and while the engine places."""
    drive, count = measure.drive, measure.sizes.latency_files
    found: dict[str, dict[str, list[float]]] = {"idle": {}, "busy": {}}
    rates = []
    for number in range(measure.rounds):
        top = drive.directory / f"latency-{number}"
        run_bounded(partial(_make_files, top, ["idle", "busy"], count), measure.sizes.step_limit_s)
        drive.wait(top, "remote", LIMIT_S)
        drive.umount()  # the kernel forgets all names and pages of the drive, also where we may not drop caches
        drive.up()
        measure.quiet()
        _collect(found["idle"], run_bounded(partial(_look, top / "idle", count), measure.sizes.step_limit_s))
        backlog = drive.directory / f"backlog-{number}"
        measure.write(backlog, os.urandom(measure.sizes.busy_bytes))
        drive.hurry()
        before, began = _placed(drive), time.perf_counter()
        _collect(found["busy"], run_bounded(partial(_look, top / "busy", count), measure.sizes.step_limit_s))
        took = time.perf_counter() - began
        rates.append((_placed(drive) - before) / MB / took)
        if not drive.backlog():
            raise Failed("the engine had placed everything before the latency was measured; more --rounds do not help")
        measure.remove(backlog)
        measure.remove(top)
        measure.quiet()
    for name, values in found["busy"].items():
        idle = statistics.median(found["idle"][name])
        times = statistics.median(values) / idle
        against = f"{times:.1f} times the idle {idle:.3g} ms (goal 2)"
        measure.add(
            f"latency_{name}",
            f"latency while placing, {name.replace('_', ' ')}",
            "ms",
            values,
            against,
            idle=idle,
            times=times,
        )
    measure.add("latency_placing", "placing meanwhile", "MB/s", rates)


def memory_figure(measure: Measure) -> None:
    """Resident memory of processes that began empty, after files of 1 KiB were made and placed, for each number of files;
    then the time of programs that look at all of them, with empty caches.
    """
    drive = measure.drive
    drive.umount()
    drive.hivefs("down")
    drive.up()
    top = drive.directory / "many"
    made = 0
    for files in sorted(measure.files):
        limit = max(LIMIT_S, files / SLOWEST_FILES)
        began = time.perf_counter()
        run_bounded(partial(_make_many, top, made, files), limit)
        rate = (files - made) / (time.perf_counter() - began)
        measure.add(f"create_{files}", f"creating up to {files} files", "files/s", [rate])
        drive.wait(top, "remote", limit)
        made = files
        measure.quiet()
        _memory_lines(measure, files)
        for words in WALKS:
            name = " ".join(words)
            took = run_bounded(partial(_walk, [*words, str(top)]), limit)
            measure.add(f"walk_{words[0]}_{files}", f"{name}, {files} files, cold", "s", [took])
        _memory_lines(measure, files, " and walking")
    run_bounded(partial(_read_many, top, made), LIMIT_S)
    run_bounded(partial(shutil.rmtree, top), max(LIMIT_S, made / SLOWEST_FILES))


def _memory_lines(measure: Measure, files: int, then: str = "") -> None:
    for part, pids in measure.drive.processes().items():
        seen = [m for m in map(memory, pids) if m]
        if not seen:
            raise Failed(f"there is no {part} process")
        resident = max(m["resident"] for m in seen)
        against = (
            f"of it {max(m['anonymous'] for m in seen):.0f} not mapped from files, peak {max(m['peak'] for m in seen):.0f}"
        )
        which = "largest node" if part == "nodes" else part
        title = f"memory of the {which} after {files} files{then}"
        key = f"memory_{part}_{files}{then.replace(' ', '_')}"
        measure.add(key, title, "MiB", [resident], against, seen=seen, files=files)


FIGURES: Final[dict[str, Callable[[Measure], None]]] = {
    "placing": placing,
    "cold": cold,
    "latency": latency,
    "memory": memory_figure,
    STAGES: stage_figures.measure,
}


def measure(
    drive: Drive,
    names: Sequence[str],
    root: Path,
    sizes: Sizes,
    files: Sequence[int],
    record: Record,
    deadline: float,
) -> dict[str, Figure]:
    """The figures of ``names``; what does not work is recorded and the rest goes on."""
    found: dict[str, Figure] = {}
    for name in names:
        if time.monotonic() > deadline:
            record.problem(drive.name, f"{name} is left out, the time is over")
            continue
        say(f"measuring {name}")
        try:
            FIGURES[name](Measure(drive, root, sizes, files, record.rounds, found))
        except (Overrun, Failed, Differs, RuntimeError, OSError) as problem:
            record.problem(drive.name, f"{name}: {problem}")
    return found


# ---- in children ----------------------------------------------------------------------------------------------------


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    write_all(fd, data)
    os.close(fd)


def read_cold(path: Path, wanted: str, size: int) -> float:
    """Seconds of a sequential read with empty page caches. Raises Differs."""
    forget_pages(path)
    drop_caches()
    began = time.perf_counter()
    data = read_file(path, size)
    took = time.perf_counter() - began
    if digest(data) != wanted:
        raise Differs("what came from the nodes is not what was written")
    return took


def _content(folder: str, number: int, size: int) -> bytes:
    return f"{folder} {number} ".encode().ljust(16, b".") * (size // 16)


def _make_files(top: Path, folders: Sequence[str], count: int) -> None:
    for folder in folders:
        (top / folder).mkdir(parents=True)
        for number in range(count):
            (top / folder / f"{number:05}").write_bytes(_content(folder, number, BLOCK))


def _look(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds: the median and the 95th of a hundred of each call, every file looked at once."""
    times: dict[str, list[float]] = {"stat": [], "open": [], "read": []}
    folder.stat()
    for number in range(count):
        path = folder / f"{number:05}"
        start = time.perf_counter()
        path.stat()
        looked = time.perf_counter()
        fd = os.open(path, os.O_RDONLY)
        opened = time.perf_counter()
        data = os.read(fd, BLOCK)
        done = time.perf_counter()
        os.close(fd)
        if data != _content(folder.name, number, BLOCK):
            raise Differs("a small file is not what was written")
        for name, seconds in (("stat", looked - start), ("open", opened - looked), ("read", done - opened)):
            times[name].append(seconds * 1000)
        time.sleep(PAUSE_S)
    found = {}
    for name, values in times.items():
        values.sort()
        found[f"{name}_p50"] = values[len(values) // 2]
        found[f"{name}_p95"] = values[int(len(values) * 0.95)]
    return found


def _collect(into: dict[str, list[float]], values: dict[str, float]) -> None:
    for name, value in values.items():
        into.setdefault(name, []).append(value)


def _placed(drive: Drive) -> int:
    status = drive.status("engine")
    return int(status["placing"]["bytes"]) if status else 0


def _make_many(top: Path, first: int, end: int) -> None:
    for number in range(first, end):
        folder = f"{number // FILES_IN_A_DIRECTORY:04}"
        if number == first or not number % FILES_IN_A_DIRECTORY:
            (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / f"file-{number}").write_bytes(_content(folder, number, FILE_BYTES))


def _walk(words: Sequence[str]) -> float:
    drop_caches()
    began = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _read_many(top: Path, files: int) -> None:
    """Every hundredth is what was written."""
    for number in range(0, files, 100):
        folder = f"{number // FILES_IN_A_DIRECTORY:04}"
        if (top / folder / f"file-{number}").read_bytes() != _content(folder, number, FILE_BYTES):
            raise Differs("one of many files is not what was written")
