"""The noisy machine of ``pytest --jitter``: it stops processes of the tests, only these, and all run in the end."""

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

from hivefs.testing.stalls import MARK, Stalls

pytestmark = pytest.mark.stops

DAEMON = "setsid sleep 300 >/dev/null 2>&1 & echo $!"
"""As the command line makes them: a session of its own, its starter gone."""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture(name="unmarked")
def _unmarked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "")  # put back in the end


@pytest.fixture(name="daemons")
def _daemons(unmarked: None) -> Iterator[Callable[[], int]]:
    started: list[int] = []

    def start() -> int:
        said = subprocess.run(["sh", "-c", DAEMON], stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
        started.append(int(said))
        return started[-1]

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)


def test_children_and_daemons_are_stopped_and_nobody_else(daemons: Callable[[], int]) -> None:
    stranger = daemons()  # before there is a mark
    stalls = Stalls(0.05)
    pids = [daemons(), daemons()]
    with subprocess.Popen(["sleep", "300"]) as child:
        pids.append(child.pid)
        seen: set[int] = set()

        def all_seen() -> bool:
            assert state(stranger) != "T"
            seen.update(pid for pid in pids if state(pid) == "T")
            return len(seen) == len(pids)

        try:
            until(all_seen)
            with stalls.still():
                assert all(state(pid) != "T" for pid in pids)
                os.kill(child.pid, signal.SIGSTOP)
                until(lambda: state(child.pid) == "T")
            until(lambda: any(state(pid) == "T" for pid in pids[:2]))
            assert state(child.pid) == "T"  # we stopped it: it is not for others to continue it
            assert stalls.end() >= len(pids)
            assert all(state(pid) != "T" for pid in pids[:2])
        finally:
            child.kill()


def test_all_are_continued_when_the_tests_are_killed(unmarked: None) -> None:
    program = f"""
        import subprocess, time
        from hivefs.testing.stalls import Stalls
        stalls = Stalls(1e6)
        with stalls.still():
            subprocess.run(["sh", "-c", {DAEMON!r}])
        time.sleep(300)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        pid = int(tests.stdout.readline())  # its first stop is at once and lasts for days
        try:
            until(lambda: state(pid) == "T")
            tests.kill()
            until(lambda: state(pid) != "T")
        finally:
            tests.kill()
            os.kill(pid, signal.SIGKILL)
