"""Running outside judges (they are found or the test is skipped, and they end), and judging what they leave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mount_tools import Mounted

from hivefs.filesystem.check import check
from hivefs.metadata.snapshot import MetadataSnapshot


def judge(program: str) -> str:
    """The path of an outside judge; the test is skipped where it is missing."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"the program {program} is missing (./scripts/test --slow installs its package)")
    return found


def bounded(command: list[str], limit: float, cwd: Path | None = None) -> tuple[int, str]:
    """Exit status and output of a program; with all its children it is ended after ``limit`` s, which is a failure."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate(timeout=limit)
        pytest.fail(f"{command} did not end within {limit} s: {said}")
    return process.returncode, said


def whole(drive: Mounted) -> None:
    """Unmount the drive and check its metadata."""
    drive.unmount()
    snapshot = MetadataSnapshot(drive.home.metadata, drive.secrets.keys())
    try:
        assert list(check(snapshot)) == []
    finally:
        snapshot.close()
    assert "ERROR" not in drive.log()
