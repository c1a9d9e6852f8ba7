"""A background process has the lowest priority, and so has its group where Linux groups by session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, pathlib
from hivefs.daemon.priority import give_way
give_way(11)
group = pathlib.Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text().split()[-1] if group.exists() else "none")
"""


def test_it_gives_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True, start_new_session=True
    )
    nice, group = done.stdout.split()
    assert nice == "11"
    assert group == ("11" if Path("/proc/self/autogroup").exists() else "none")
