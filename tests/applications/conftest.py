"""Ordinary programs on a real mount; the mount tools are those of the daemon's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "daemon"))

from mount_tools import Mounted, mounted


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Mounted]:
    """A drive of one's own, which may be killed."""
    with mounted(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A drive for all tests of a file."""
    with mounted(tmp_path_factory.mktemp("shared")) as found:
        yield found
