"""Every stressor of stress-ng's class "filesystem", one after the other, with its own checks switched on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from judges import bounded, judge
from mount_tools import Mounted

pytestmark = [pytest.mark.slow, pytest.mark.fuse, pytest.mark.timeout(300)]
SECONDS = 3
LIMIT = 120.0


def stressors() -> list[str]:
    """Their names, as this version of stress-ng tells them."""
    if shutil.which("stress-ng") is None:
        return ["stress-ng"]
    told = subprocess.run(["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, timeout=60, check=False)
    return told.stdout.partition("stressors:")[2].split()


def stress(name: str, directory: Path) -> tuple[int, str]:
    """Two workers for some seconds; exit status and output."""
    words = ("--verify", "--timeout", f"{SECONDS}s", "--temp-path", str(directory))
    return bounded([judge("stress-ng"), f"--{name}", "2", *words], LIMIT)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("plain")


@pytest.mark.parametrize("name", stressors())
def test_stressor(drive: Mounted, plain: Path, name: str) -> None:
    """It ends well, or as it ends on a plain directory."""
    judge("stress-ng")
    status, said = stress(name, drive.path)
    if status:
        expected, _ = stress(name, plain)
        assert status == expected, said
        pytest.skip(
            f"what stress-ng's {name} needs of the kernel is missing, it ends with {status} on a plain directory too:"
            f" {said.strip().splitlines()[-1]}"
        )
    assert list(drive.path.iterdir()) == [], "it could not clean up"
