"""The mount process is killed under the load of outside judges: the drive comes up again and its metadata is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from judges import judge, whole
from mount_tools import LIMIT, mounted

pytestmark = [pytest.mark.slow, pytest.mark.fuse, pytest.mark.timeout(900)]

LOADS = {
    "dbench": ("dbench", "-t", "600", "-D", ".", "4"),
    "dbench with fsync": ("dbench", "-t", "600", "-F", "-S", "-D", ".", "4"),
    "names": (
        "stress-ng",
        "--temp-path",
        ".",
        "--dir",
        "1",
        "--rename",
        "1",
        "--link",
        "1",
        "--mknod",
        "1",
        "--xattr",
        "1",
    ),
    "sizes": ("stress-ng", "--temp-path", ".", "--iomix", "1", "--fsize", "1", "--hdd", "1", "--fpunch", "1"),
}


def end(load: subprocess.Popen[bytes]) -> None:
    """It and its children: they hold files of a drive that is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(load.pid, signal.SIGKILL)
    load.wait(LIMIT)


@pytest.mark.parametrize("name", LOADS)
def test_killed_under_load(tmp_path: Path, name: str) -> None:
    judge(LOADS[name][0])
    with mounted(tmp_path) as drive:
        for round_ in range(6):
            directory = drive.path / str(round_)
            directory.mkdir()
            load = subprocess.Popen(
                LOADS[name], cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            try:
                time.sleep(0.7 + round_ * 0.8)  # how far it gets is of no importance
                assert load.poll() is None, "the load ended by itself"
                assert drive.end(signal.SIGKILL) == -signal.SIGKILL
            finally:
                end(load)
            drive.mount()
            for path, _, files in os.walk(drive.path):
                for file in files:
                    os.stat(Path(path) / file, follow_symlinks=False)
            whole(drive)
            drive.mount()
        subprocess.run(["rm", "-rf", *drive.path.iterdir()], check=True, timeout=LIMIT)
        drive.call("flush")
        whole(drive)
        drive.mount()
