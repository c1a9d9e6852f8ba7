"""Processes of other programs, seen through /proc: time used, memory, and waiting until they are idle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
QUIET_SHARE = 0.06
"""Below this share of one core, all together, processes count as idle."""


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that the processes have used so far; those that are gone count nothing."""
    return sum(cpu_times(pids))


def cpu_times(pids: Sequence[int]) -> tuple[float, float]:
    """The same, user and system."""
    user = system = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11])
            system += int(fields[12])
    return user / _TICKS, system / _TICKS


def memory(pid: int) -> dict[str, float]:
    """MiB: ``resident``, ``anonymous`` (without mapped files such as LMDB's), ``peak`` (resident). Empty when gone."""
    names = {"VmRSS": "resident", "RssAnon": "anonymous", "VmHWM": "peak"}
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in names:
                found[names[name]] = round(int(value.split()[0]) / 1024, 1)
    return found


def wait_idle(pids: Sequence[int], limit: float) -> bool:
    """Wait until the processes together use next to no processor for half a second; False after ``limit`` seconds."""
    end = time.monotonic() + limit
    before, at = cpu_seconds(pids), time.monotonic()
    while time.monotonic() < end:
        time.sleep(0.5)
        now, used = time.monotonic(), cpu_seconds(pids)
        if (used - before) / (now - at) < QUIET_SHARE:
            return True
        before, at = used, now
    return False


def end(process: subprocess.Popen[Any], seconds: float = 10.0) -> None:
    """End a child that leads a session of its own, with all that it started: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            found += [int(p) for p in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
    return found
