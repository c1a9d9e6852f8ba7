"""The disk under the engine's store fills up, with real processes: reads go on, and all is placed when there is room."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hivefs.testing.small_disk import NoSmallDisk, fill, small_disk

from .live import Live, kill, live, until

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
SMALL = 6 << 20


def write(top: Path, dice: random.Random, count: int) -> dict[Path, bytes]:
    top.mkdir()
    made = {top / f"f{number}": dice.randbytes(dice.choice([100, 3000, 70_000])) for number in range(count)}
    for path, data in made.items():
        path.write_bytes(data)
    fd = os.open(top, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    return made


def whole(hive: Live, made: dict[Path, bytes]) -> None:
    hive.drop_caches()
    for path, data in made.items():
        assert path.read_bytes() == data


def disk(hive: Live) -> dict[str, Any]:
    engine = hive.status()["engine"]
    return {"waiting_for": "no engine", "duties": []} if engine is None else dict(engine["disk"])


def engine_log(hive: Live) -> str:
    return (hive.home / "run" / "engine.log").read_text()


def test_a_full_disk_under_the_engine_and_room_again(tmp_path: Path) -> None:
    dice = random.Random(6)
    with live(tmp_path, mount=False) as hive, ExitStack() as stack:
        store = hive.home / "engine"
        store.mkdir(exist_ok=True)
        try:
            stack.enter_context(small_disk(store, SMALL))
        except NoSmallDisk as missing:
            pytest.skip(str(missing))
        try:
            hive.run("mount", str(hive.drive))
            until(lambda: hive.online() == 8, what="all nodes online")
            made = write(hive.drive / "before", dice, 60)
            hive.wait(hive.drive, timeout=200)
            filler = fill(store / "filler")
            first = hive.engine_pid()
            later = write(hive.drive / "while it is full", dice, 3000)
            until(lambda: "is full" in disk(hive)["waiting_for"], 120, "the engine noticing it")
            assert "is full" in hive.run("status").stdout
            whole(hive, made)
            whole(hive, dict(list(later.items())[:50]))
            end = time.monotonic() + 20
            while time.monotonic() < end:
                assert hive.engine_pid() == first
                assert hive.online() == 8, "a full disk costs no conversation"
                time.sleep(0.5)
            lines = re.findall(r"cannot write to its disk", engine_log(hive))
            assert len(lines) == 1, engine_log(hive)[-4000:]
            # Killed now, it starts on the full disk, and serves reads as before.
            kill(first)
            until(lambda: hive.status()["engine"] is not None and hive.online() == 8, 120, "the engine starting again")
            second = hive.engine_pid()
            assert second != first
            whole(hive, made)
            time.sleep(5)
            assert hive.engine_pid() == second
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=200m", str(store)], check=True, capture_output=True)
            hive.wait(hive.drive, timeout=400)
            until(lambda: not disk(hive)["waiting_for"], 120, "the engine noticing that there is room")
            assert hive.engine_pid() == second
            assert "again" in engine_log(hive)
            whole(hive, made | later)
            done = hive.run("check", "--json", timeout=300, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            hive.run("umount", timeout=90)
        finally:
            hive.run("umount", check=False, timeout=90)
            hive.stop_engine()
