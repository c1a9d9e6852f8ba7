"""Starting a process: ready, refused, dead, silent; only our own processes are ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hivefs.daemon import launch
from hivefs.errors import HivefsError, MountFailed, WrongPassword

CHILD = """
import os, signal, sys
from hivefs.daemon.launch import take_frame
from hivefs.errors import WrongPassword
frame, report = take_frame()
what = frame["what"]
if what == "ready":
    about = {"pid": os.getpid(), "cwd": os.getcwd(), "session": os.getsid(0)}
    report.ready({**about, "argv": sys.argv[1:], "echo": frame["secret"]})
elif what == "refuse":
    report.failed(WrongPassword(path="/x/vault.json"))
    sys.exit(12)
elif what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "garbage":
    os.write(report._descriptor, b"\\x00\\x00\\x00\\x02\\xff\\xff")
    sys.exit(3)
signal.pause()
"""


@pytest.fixture
def begin(tmp_path: Path):  # type: ignore[no-untyped-def]
    started: list[launch.Starting] = []

    def call(what: str) -> launch.Starting:
        def failure(reason: str) -> HivefsError:
            return MountFailed(reason=reason, log=tmp_path / "child.log")

        frame = {"what": what, "secret": b"never in argv"}
        starting = launch.begin(["-c", CHILD], frame, tmp_path / "child.log", failure)
        started.append(starting)
        return starting

    yield call
    for starting in started:
        starting.process.kill()
        starting.process.wait()


def test_ready(begin, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    started = begin("ready").wait(time.monotonic() + 60)
    assert started.info["pid"] == started.pid == started.info["session"]
    assert started.info["cwd"] == "/" and started.info["argv"] == [] and started.info["echo"] == b"never in argv"
    assert (tmp_path / "child.log").stat().st_mode & 0o777 == 0o600
    environment = Path(f"/proc/{started.pid}/environ").read_bytes()
    assert b"never in argv" not in environment + Path(f"/proc/{started.pid}/cmdline").read_bytes()


def test_the_childs_error_is_raised_here(begin) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WrongPassword) as caught:
        begin("refuse").wait(time.monotonic() + 60)
    assert caught.value.path == "/x/vault.json"


@pytest.mark.parametrize(("what", "words"), [("die", "SIGKILL"), ("garbage", "exit status 3")])
def test_a_child_that_dies(begin, what: str, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MountFailed, match=words):
        begin(what).wait(time.monotonic() + 60)


def test_a_silent_child_is_ended(begin) -> None:  # type: ignore[no-untyped-def]
    starting = begin("silent")
    with pytest.raises(MountFailed, match="in time"):
        starting.wait(time.monotonic() + 0.3)
    assert starting.process.returncode == -signal.SIGKILL


def test_only_the_same_process_is_stopped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        born = launch.start_time(child.pid)
        assert born is not None
        assert not launch.stop_process(child.pid, born + 1), "another process got this pid"
        assert child.poll() is None
        assert launch.stop_process(child.pid, born)
        assert child.wait(60) == -signal.SIGTERM
        assert not launch.stop_process(child.pid, born)
        assert launch.wait_gone(child.pid, born, 0)
    finally:
        child.kill()


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline()
        born = launch.start_time(child.pid)
        assert born is not None and not launch.wait_gone(child.pid, born, 0.05)
        assert launch.stop_process(child.pid, born, grace=0.2)
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.stdout and child.stdout.close()


def test_errors_cross_processes_whole() -> None:
    frame = launch.error_to_frame(MountFailed(reason="r", log=Path("/l")))
    assert str(launch.error_from_frame(frame)) == str(MountFailed(reason="r", log="/l"))
    assert type(launch.error_from_frame({"error": "os", "data": {}})) is HivefsError
