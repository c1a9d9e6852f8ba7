"""Background processes give way to the programs that people run: the engine, and the nodes of an embedded hive.

Two things decide what a process gets of a busy machine: its nice value, and where Linux groups processes by session
(autogroup, the rule on desktops without per-user CPU control), the nice value of the whole group; without the second
the first means nothing between two sessions. SCHED_IDLE would disturb others still less, but a machine that is busy for
hours would never place anything, and who has it cannot go back.

A third thing decides how long one waits for the other: a turn of some milliseconds that has begun is mostly finished,
whoever wakes meanwhile. Short turns (sched_setattr(2), Linux 6.12 and later; before it nothing is changed) give the
processor back sooner, and let the mount, which asks for short turns too, go before others with longer ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import time
from pathlib import Path
from typing import Final

ENGINE: Final = 10
NODE: Final = 15
"""Of each node of an embedded hive; there are many."""

SHORT_TURN_NS: Final = 100_000
"""The least that Linux allows."""

_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, two clamps."""

_TRIES: Final = 30
_PAUSE_S: Final = 0.1


def give_way(nice: int) -> None:
    """Do it for this process and what it starts. ``nice`` is 1 to 19: at 10 a program that computes all the time gets ten
    times as much, at 19 seventy times. Where the system refuses, nothing is changed. Call it before
    launch.harden, after which only root may change a process's group. Turns become short, see short_turns.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    short_turns()
    for _ in range(_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(nice))
        except BlockingIOError:  # one change in a tenth of a second is taken from all processes together
            time.sleep(_PAUSE_S)
        except OSError:
            return
        else:
            return


def short_turns() -> bool:
    """Make the turns of this thread and of all that it starts as short as can be; False where that is not possible."""
    number = _SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, SHORT_TURN_NS, 0, 0, 0, 0)
    return ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0  # type: ignore[no-any-return]  # an int
