"""Background processes give way to the programs that people run: the engine, and the nodes of an embedded hive.

Two things decide what a process gets of a busy machine: its nice value, and where Linux groups processes by session
(autogroup, the rule on desktops without per-user CPU control), the nice value of the whole group; without the second
the first means nothing between two sessions. SCHED_IDLE would disturb others still less, but a machine that is busy for
hours would never place anything, and who has it cannot go back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

NICE: Final = 19
_TRIES: Final = 40
_PAUSE_S: Final = 0.25


def give_way() -> None:
    """Do it for this process and what it starts. Where the system refuses, nothing is changed."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # The kernel takes one change of a group every tenth of a second from all processes together: tried again elsewhere.
    threading.Thread(target=_group_gives_way, name="priority", daemon=True).start()


def _group_gives_way() -> None:
    for _ in range(_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(NICE))
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:
            return
        else:
            return
