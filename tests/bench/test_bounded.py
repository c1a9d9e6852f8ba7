"""What hangs or fails in a step ends there, and what it started with it."""

from __future__ import annotations

import os
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from hivefs.testing.bench import processes
from hivefs.testing.bench.bounded import Failed, Overrun, run_bounded


def test_a_result_comes_back() -> None:
    large = ["x" * 100_000] * 10
    assert run_bounded(lambda: large, 30) == large
    assert run_bounded(os.getpid, 30) != os.getpid()


def test_an_error_is_told() -> None:
    with pytest.raises(Failed, match=r"FileNotFoundError.*/no/such/file"):
        run_bounded(Path("/no/such/file").read_bytes, 30)
    with pytest.raises(Failed, match="without a result"):
        run_bounded(partial(os._exit, 0), 30)


def test_what_overruns_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def hang() -> None:
        child = subprocess.Popen(["sleep", "600"])
        made = note.with_suffix(".new")
        made.write_text(str(child.pid))
        made.rename(note)
        child.wait()

    seconds = 1.0
    while not note.exists():  # on a busy machine the step has not come so far in the first of them
        with pytest.raises(Overrun):
            run_bounded(hang, seconds)
        seconds *= 2
    pid = int(note.read_text())
    end = time.monotonic() + 60
    while _lives(pid):
        assert time.monotonic() < end, "the child of the step still runs"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_are_seen() -> None:
    # Several at work: on a machine that has many others one alone would get too little of it to count as busy.
    child = subprocess.Popen(["sh", "-c", "for i in 1 2 3 4; do while :; do :; done & done; wait"], start_new_session=True)
    try:
        assert child.pid in processes.descendants(os.getpid())
        while len(busy := processes.descendants(child.pid)) < 5:
            time.sleep(0.01)
        end = time.monotonic() + 60
        while processes.wait_idle(busy, 1.5):  # all of them got nothing of the processors for half a second
            assert time.monotonic() < end
        assert processes.cpu_seconds(busy) > 0
        assert processes.memory(child.pid)["resident"] > 0
    finally:
        processes.end(child)
    assert child.returncode is not None
    assert processes.memory(child.pid) == {} and processes.wait_idle([child.pid], 5)
