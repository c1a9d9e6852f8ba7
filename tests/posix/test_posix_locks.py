"""flock(2), fcntl(2) locks, and running programs, between two processes on a real mount."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

LIMIT = 100.0
OTHER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    kind, mode, start, length = line.split()
    mode = int(mode)
    try:
        if kind == "flock":
            fcntl.flock(file, mode)
        elif kind == "lockf":
            fcntl.lockf(file, mode, int(length), int(start))
        elif kind == "reopen":
            os.close(os.open(sys.argv[1], os.O_RDONLY))
        elif kind == "close":
            os.close(file)
        print("done", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


class Process:
    """Another process with the file open, which locks as it is told."""

    def __init__(self, path: Path) -> None:
        words = [sys.executable, "-c", OTHER, str(path)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, kind: str, mode: int = 0, start: int = 0, length: int = 0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {mode} {start} {length}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, kind: str, mode: int = 0, start: int = 0, length: int = 0) -> str:
        self.begin(kind, mode, start, length)
        return self.answer()

    def end(self, sign: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(sign)
        self.process.wait(LIMIT)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def file(here: Path) -> Iterator[int]:
    number = os.open(here / "f", os.O_CREAT | os.O_RDWR, 0o644)
    yield number
    os.close(number)


@pytest.fixture
def other(here: Path, file: int) -> Iterator[Process]:
    process = Process(here / "f")
    yield process
    if process.process.poll() is None:
        process.end()


def refused(call: object, *args: object) -> bool:
    try:
        call(*args)  # type: ignore[operator]
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EACCES)
        return True
    return False


def test_flock_excludes_and_ends_with_the_process(file: int, other: Process) -> None:
    assert other.do("flock", fcntl.LOCK_EX) == "done"
    assert refused(fcntl.flock, file, TRY)
    assert refused(fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert other.do("flock", fcntl.LOCK_SH) == "done"
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert refused(fcntl.flock, file, TRY)
    other.end()
    fcntl.flock(file, TRY)


def test_flock_ends_with_close(file: int, other: Process) -> None:
    assert other.do("flock", fcntl.LOCK_EX) == "done"
    assert other.do("close") == "done"
    fcntl.flock(file, TRY)


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_that_waits_gets_it(file: int, other: Process, kind: str) -> None:
    lock = getattr(fcntl, kind)
    lock(file, fcntl.LOCK_EX)
    assert other.do(kind, TRY) in (str(errno.EAGAIN), str(errno.EACCES))
    other.begin(kind, fcntl.LOCK_EX)
    answers: list[str] = []
    waiting = threading.Thread(target=lambda: answers.append(other.answer()))
    waiting.start()
    waiting.join(0.2)
    assert not answers, "it must wait"
    lock(file, fcntl.LOCK_UN)
    waiting.join(LIMIT)
    assert answers == ["done"]
    assert refused(lock, file, TRY)


def test_ranges_of_fcntl_locks(file: int, other: Process) -> None:
    assert other.do("lockf", fcntl.LOCK_EX, 10, 10) == "done"
    fcntl.lockf(file, TRY, 10, 0)
    fcntl.lockf(file, TRY, 0, 20)
    assert refused(fcntl.lockf, file, TRY, 1, 19)
    asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", asked)
    assert (kind, start, length, pid) == (fcntl.F_WRLCK, 10, 10, other.process.pid)
    assert other.do("lockf", fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 5) in (str(errno.EAGAIN), str(errno.EACCES))
    assert other.do("lockf", fcntl.LOCK_UN, 15, 1) == "done"
    fcntl.lockf(file, TRY, 1, 15)


def test_an_fcntl_lock_ends_when_its_process_closes_any_handle(file: int, other: Process) -> None:
    assert other.do("lockf", fcntl.LOCK_EX) == "done"
    assert refused(fcntl.lockf, file, TRY)
    assert other.do("reopen") == "done"
    fcntl.lockf(file, TRY)


def test_a_deadlock_of_two_processes_is_refused(file: int, other: Process) -> None:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
    assert other.do("lockf", fcntl.LOCK_EX, 1, 1) == "done"
    other.begin("lockf", fcntl.LOCK_EX, 0, 1)
    waits = Path("/proc/locks")
    while f"-> POSIX  ADVISORY  WRITE {other.process.pid}" not in waits.read_text():
        assert other.process.poll() is None
    with pytest.raises(OSError) as caught:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)
    assert caught.value.errno == errno.EDEADLK
    fcntl.lockf(file, fcntl.LOCK_UN, 1, 0)
    assert other.answer() == "done"


def test_locks_of_open_file_descriptions(here: Path, file: int) -> None:
    second = os.open(here / "f", os.O_RDWR)
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
    fcntl.fcntl(file, 37, wanted)  # F_OFD_SETLK
    assert refused(fcntl.fcntl, second, 37, wanted)
    os.close(second)


def test_a_lease_is_broken_by_another_open(here: Path) -> None:
    (here / "g").write_bytes(b"x")
    told: list[int] = []
    before = signal.signal(signal.SIGIO, lambda number, frame: told.append(number))
    file = os.open(here / "g", os.O_RDONLY)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        with pytest.raises(BlockingIOError):
            os.open(here / "g", os.O_WRONLY | os.O_NONBLOCK)
        assert told == [signal.SIGIO]
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, before)


def test_a_program_that_is_written_does_not_run_and_a_running_one_is_not_written(here: Path) -> None:
    program = here / "sleep"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    program.chmod(0o755)
    with program.open("r+b"), pytest.raises(OSError, match="busy"):
        subprocess.run([program, "0"], check=False, timeout=LIMIT)
    assert subprocess.run([program, "0"], check=False, timeout=LIMIT).returncode == 0
    running = subprocess.Popen([program, str(LIMIT)])
    try:
        for call in (lambda: os.open(program, os.O_WRONLY), lambda: os.truncate(program, 0)):
            with pytest.raises(OSError, match="busy"):
                call()
        os.unlink(program)
    finally:
        running.kill()
        assert running.wait(LIMIT) == -signal.SIGKILL
