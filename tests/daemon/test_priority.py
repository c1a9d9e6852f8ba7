"""A background process has the lowest priority, and so has its group where Linux groups by session; its turns are short."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

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


TURNS = """
import ctypes, os, platform, threading
from hivefs.daemon.priority import short_turns
os.setpriority(os.PRIO_PROCESS, 0, 3)
done = short_turns()
def look():
    seen = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall({"x86_64": 315}.get(platform.machine(), 275), 0, seen, 56, 0) == 0
    print(int.from_bytes(seen[24:32], "little"), os.getpriority(os.PRIO_PROCESS, 0))
print(done)
look()
thread = threading.Thread(target=look)
thread.start()
thread.join()
"""


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 12) or platform.machine() not in ("x86_64", "aarch64"),
    reason="Linux 6.12 or later on x86_64 or aarch64 is missing: sched_setattr takes no length of a turn",
)
def test_turns_are_short_and_nice_stays() -> None:
    done = subprocess.run([sys.executable, "-c", TURNS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:3] == ["True", "100000 3", "100000 3"]
