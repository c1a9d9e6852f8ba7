"""One fake disk and one directory for recovered drives for all crash tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_drive import LIMITS
from judging import Judge, memory_directory
from playing import Base, Player

from hivefs.testing.fake_disk.recorder import Recorder


@pytest.fixture(scope="session")
def fake_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path_factory.mktemp("disk"))
    yield recorder
    recorder.close()


@pytest.fixture(scope="session")
def fast_directory() -> Iterator[Path]:
    with memory_directory() as directory:
        yield directory


@pytest.fixture(scope="session")
def bases(fast_directory: Path) -> dict[str, Base]:
    return {name: Base.make(fast_directory / "base", limits) for name, limits in LIMITS.items()}


@pytest.fixture
def player(fake_disk: Recorder, fast_directory: Path, bases: dict[str, Base]) -> Iterator[Player]:
    """A player with nothing counted yet. What the drive logs about the disk that fails is not shown."""
    logging.disable(logging.CRITICAL)
    yield Player(fake_disk, Judge(fast_directory / "recovered"), bases)
    logging.disable(logging.NOTSET)
