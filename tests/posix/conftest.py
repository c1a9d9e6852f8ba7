"""One drive for the tests of a file, which others than root may use too, and a plain directory beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for _room in (Path(__file__).parent, Path(__file__).parents[1] / "daemon"):
    sys.path.append(str(_room))

from mount_tools import Mounted, mounted, open_to_others  # noqa: E402 - found by the line above


@pytest.fixture(scope="module")
def mount() -> Iterator[Mounted]:
    with open_to_others() as top, mounted(top, allow_other=True) as drive:
        drive.path.chmod(0o777)
        yield drive
        drive.unmount()
        assert "ERROR" not in drive.log() and "Traceback" not in drive.log()


@pytest.fixture
def here(mount: Mounted, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on the drive, named by the test."""
    path = mount.path / request.node.name[:200].replace("/", "_")
    path.mkdir()
    path.chmod(0o777)
    return path
