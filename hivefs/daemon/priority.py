"""Background processes give way to the programs that people run: the engine, and the nodes of an embedded hive.

Two things decide what a process gets of a busy machine: its nice value, and where Linux groups processes by session
(autogroup, the rule on desktops without per-user CPU control), the nice value of the whole group; without the second
the first means nothing between two sessions. SCHED_IDLE would disturb others still less, but a machine that is busy for
hours would never place anything, and who has it cannot go back.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

ENGINE: Final = 10
NODE: Final = 15
"""Of each node of an embedded hive; there are many."""

_TRIES: Final = 30
_PAUSE_S: Final = 0.1


def give_way(nice: int) -> None:
    """Do it for this process and what it starts. ``nice`` is 1 to 19: at 10 a program that computes all the time gets ten
    times as much, at 19 seventy times. Where the system refuses, nothing is changed. Call it before
    launch.harden, after which only root may change a process's group.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    for _ in range(_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(nice))
        except BlockingIOError:  # one change in a tenth of a second is taken from all processes together
            time.sleep(_PAUSE_S)
        except OSError:
            return
        else:
            return
