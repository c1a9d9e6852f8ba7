"""A benchmark that is killed leaves no process, no mount and no directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hivefs.testing.bench.processes import descendants

PROGRAM = textwrap.dedent(
    """
    import os, subprocess, sys, time
    from pathlib import Path
    from hivefs.testing.bench.guard import guarded

    root, how = Path(sys.argv[1]), sys.argv[2]
    root.mkdir()
    if how == "wait for a guard that stands still":
        fork = os.fork

        def late():
            pid = fork()
            if pid:
                time.sleep(0.5)
            return pid

        os.fork = late

    def work():
        # A daemon as the command line makes them: a session of its own, its starter gone.
        shell = 'setsid sleep 300 >/dev/null 2>&1 & echo $!'
        daemon = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True).stdout.strip()
        try:
            print(os.getpid(), daemon, flush=True)
            if how.startswith("wait"):
                time.sleep(300)
            if how == "fail":
                raise RuntimeError("no")
            return 7
        finally:
            (root.parent / "stopped").write_text("x")

    sys.exit(guarded(work, root))
    """
)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(what: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], int, int]]]:
    started: list[subprocess.Popen[str]] = []

    def one(how: str) -> tuple[subprocess.Popen[str], int, int]:
        words = [sys.executable, "-c", PROGRAM, str(tmp_path / "root"), how]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        child, daemon = map(int, process.stdout.readline().split())
        return process, child, daemon

    yield one
    for process in started:
        process.kill()
        process.wait(100)


@pytest.mark.parametrize(("how", "status"), [("end", 7), ("fail", 1)])
def test_what_was_not_stopped_is_killed_in_the_end(
    start: Callable[[str], tuple[subprocess.Popen[str], int, int]], tmp_path: Path, how: str, status: int
) -> None:
    process, _, daemon = start(how)
    assert process.wait(60) == status
    assert not alive(daemon) and not (tmp_path / "root").exists()


def test_a_killed_benchmark_is_cleaned_up_after(
    start: Callable[[str], tuple[subprocess.Popen[str], int, int]], tmp_path: Path
) -> None:
    process, child, daemon = start("wait")
    assert alive(daemon)
    os.kill(child, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
    assert not alive(daemon) and not (tmp_path / "root").exists() and not (tmp_path / "stopped").exists()


def test_when_its_guard_is_killed_the_benchmark_stops_what_it_started(
    start: Callable[[str], tuple[subprocess.Popen[str], int, int]], tmp_path: Path
) -> None:
    process, child, daemon = start("wait")
    process.kill()
    process.wait(100)
    assert until(lambda: not alive(child))
    assert (tmp_path / "stopped").exists(), "its own ends were reached"
    assert not (tmp_path / "root").exists()
    os.kill(daemon, signal.SIGKILL)  # this work function stops nothing by itself


@pytest.mark.parametrize("how", ["wait", "wait for a guard that stands still"])
def test_ctrl_c_is_told_to_the_child(
    start: Callable[[str], tuple[subprocess.Popen[str], int, int]], tmp_path: Path, how: str
) -> None:
    process, _, daemon = start(how)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert (tmp_path / "stopped").exists() and not alive(daemon)


@pytest.mark.slow
@pytest.mark.fuse
@pytest.mark.parametrize("victim", ["the benchmark", "its guard"])
def test_a_killed_benchmark_of_a_hive_leaves_nothing(tmp_path: Path, victim: str) -> None:
    words = [sys.executable, "-m", "hivefs.testing.bench", "--quick", "--targets", "hivefs", "--only", "sequential"]
    process = subprocess.Popen([*words, "--rounds", "50", "--directory", str(tmp_path)], stderr=subprocess.DEVNULL)
    try:

        def mounted() -> bool:
            return f"{tmp_path}/hivefs-bench-" in Path("/proc/self/mountinfo").read_text()

        def all_there() -> bool:
            return mounted() and len(descendants(process.pid)) >= 11  # eight nodes, engine, mount, the benchmark

        assert until(all_there, 120)
        time.sleep(1)
        pids = descendants(process.pid)
        os.kill(pids[1] if victim == "the benchmark" else process.pid, signal.SIGKILL)
        process.wait(120)
        assert until(lambda: not any(map(alive, pids)), 120), "a process is left"
        assert not mounted()
        assert until(lambda: not list(tmp_path.iterdir()), 30), "something is left on the disk"
    finally:
        process.kill()
        process.wait(100)
