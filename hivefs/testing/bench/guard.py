"""Nothing of a benchmark stays, however it ends: not by SIGKILL either.

The benchmark runs in a child. Its parent does nothing but wait: it is the subreaper of all that the benchmark starts
(prctl(2), PR_SET_CHILD_SUBREAPER), so daemons that the command line left behind become its children instead of init's. When
the child has ended, whatever ended it, the mounts below its directory are taken away and what still runs is killed. When
the parent is killed, the child gets SIGTERM (PR_SET_PDEATHSIG), which it takes like Ctrl-C, and stops what it started.

The child leads a session of its own, so that no signal for the group reaches both.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from hivefs.testing.bench.processes import descendants
from hivefs.testing.bench.targets import unmount

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_KILL_SECONDS: Final = 20.0
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED: Final = 130


def guarded(work: Callable[[], int], root: Path, *, keep: bool = False) -> int:
    """The exit status of ``work``, done in a child; 128 and the signal's number when it was killed. ``root`` is removed in
    the end unless ``keep``.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    guard = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until both know what to do with them
    pid = os.fork()
    if not pid:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        _child(work, guard, None if keep else root)

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in _ENDING:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    try:
        status = _wait_for(pid)
    finally:
        _end_rest(root)
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    return status


def _child(work: Callable[[], int], guard: int, remove: Path | None) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        for number in _ENDING:
            signal.signal(number, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if os.getppid() != guard:
            raise KeyboardInterrupt
        status = work()
    except KeyboardInterrupt:
        os.write(2, b"interrupted\n")
        status = INTERRUPTED
    except BaseException:  # noqa: BLE001 - shown as Python does, in a child that must not return to its caller
        sys.excepthook(*sys.exc_info())
    finally:
        if os.getppid() != guard and remove is not None:
            shutil.rmtree(remove, ignore_errors=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once: what is stopped now must not be stopped half-way.
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _wait_for(pid: int) -> int:
    """Reap whatever ends (a daemon that is a zombie looks as if it still ran) until the child has."""
    while True:
        done, status = os.waitpid(-1, 0)
        if done == pid:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_rest(root: Path) -> None:
    """Unmount what is mounted below ``root``, kill every process that the benchmark left."""
    for place, device in _mounts(root):
        unmount(place, device)
    end = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = descendants(os.getpid())[1:]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _mounts(root: Path) -> list[tuple[Path, int]]:
    """Places and device numbers of what is mounted below, the deepest first. From the kernel's table: no file system that
    hangs is asked.
    """
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        place = fields[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        if place.startswith(f"{root.absolute()}/"):
            major, _, minor = fields[2].partition(":")
            found.append((Path(place), os.makedev(int(major), int(minor))))
    return sorted(found, reverse=True)
