"""A full or failing disk: nothing is accepted by half, and the log goes on."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stage_tools import KEY, PLENTY, file_of, make_log, open_files, pattern

from hivefs.errors import DiskFull, HivefsError, StoreDamaged
from hivefs.formats.staged import HEADER_BYTES, run_bytes
from hivefs.stage.reader import StageReader

INO = 7
MIB = 1 << 20


class Disk:
    """A disk whose free space the test sets; counts how often it was asked."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = 0

    def __call__(self, _directory: Path) -> int:
        self.asked += 1
        return self.free


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel takes part of a write that crosses ``size`` and refuses the rest (EFBIG): a real short write."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_disk_full_before_anything_is_accepted(tmp_path: Path) -> None:
    disk = Disk(PLENTY)
    log = make_log(tmp_path, reserve_bytes=100 * MIB, free_bytes=disk)
    ((_, kept),) = log.write(INO, 0, pattern(MIB))
    usage, segments = log.usage, log.segments()
    disk.free = 100 * MIB + 50_000
    with pytest.raises(DiskFull) as caught:
        for n in range(16):  # what was granted before the disk filled up is used first, at most 8 MiB of it
            before = log.usage
            log.write(INO, (1 + n) * MIB, pattern(MIB))
    assert caught.value.free == disk.free
    assert log.usage == before <= usage + 8 * MIB
    assert len(log.segments()) == len(segments)
    assert os.stat(file_of(tmp_path, kept)).st_size == before

    assert log.write(INO, 0, pattern(10_000)), "a smaller write still fits above the reserve"
    disk.free = PLENTY
    ((_, more),) = log.write(INO, MIB, pattern(MIB, 2))
    assert log.read(INO, 1, more, 0, MIB) == pattern(MIB, 2)
    assert log.read(INO, 0, kept, 0, MIB) == pattern(MIB)
    log.close()


def test_a_full_disk_refuses_the_first_byte_and_makes_no_segment(tmp_path: Path) -> None:
    log = make_log(tmp_path, reserve_bytes=100, free_bytes=Disk(100))
    with pytest.raises(DiskFull):
        log.write(INO, 0, b"x")
    assert os.listdir(tmp_path) == []
    log.close()


def test_free_space_is_asked_seldom_far_from_the_limit_and_often_near_it(tmp_path: Path) -> None:
    disk = Disk(PLENTY)
    log = make_log(tmp_path, reserve_bytes=MIB, free_bytes=disk)
    for n in range(1024):
        log.write(INO, n * 32768, pattern(32768))
    assert 4 <= disk.asked <= 8, "32 MiB, asked every 8"
    for n in range(256):  # use up what is still granted
        log.write(INO, n * 32768, pattern(32768))
    disk.free, disk.asked = MIB + 70_000, 0
    with pytest.raises(DiskFull):
        for n in range(1024):
            log.write(INO, n * 32768, pattern(32768))
            if disk.asked:
                disk.free -= run_bytes(32768)
    assert disk.free >= MIB, "the reserve was kept"
    log.close()


def test_the_reserve_is_kept_to_the_byte_when_near(tmp_path: Path) -> None:
    disk = Disk(0)
    log = make_log(tmp_path, reserve_bytes=1000, free_bytes=disk)
    disk.free = 1000 + 40 * (100 + 32) + HEADER_BYTES + 32
    accepted = 0
    with pytest.raises(DiskFull):
        while True:
            before = log.usage
            log.write(INO, accepted * 100, pattern(100))
            disk.free -= log.usage - before
            accepted += 1
    assert accepted >= 38
    assert disk.free >= 1000
    log.close()


def test_near_the_limit_only_half_of_what_is_left_is_used_before_asking_again(tmp_path: Path) -> None:
    """Others fill the disk as well."""
    disk = Disk(5 * MIB)
    log = make_log(tmp_path, reserve_bytes=MIB, free_bytes=disk)
    log.write(INO, 0, pattern(65536))
    disk.free = MIB
    with pytest.raises(DiskFull):
        for n in range(1, 100):
            log.write(INO, n * 65536, pattern(65536))
    assert log.usage <= 2 * MIB
    log.close()


@pytest.mark.parametrize("extra", [0, 1, 40_000, 100_000])
def test_a_write_that_the_disk_takes_in_part_leaves_the_log_usable(tmp_path: Path, extra: int) -> None:
    log = make_log(tmp_path)
    log.loaded()
    ((_, kept),) = log.write(INO, 0, pattern(50_000))
    end = log.usage
    with file_size_limit(end + extra), pytest.raises(DiskFull):
        log.write(INO, 50_000, pattern(200_000, 2))
    assert os.stat(file_of(tmp_path, kept)).st_size == log.usage == end, "the torn tail was given back"

    ((_, again),) = log.write(INO, 50_000, pattern(200_000, 3))
    assert again.segment != kept.segment, "positions that may have been written are not used again"
    assert log.read(INO, 0, again, 50_000, 200_000) == pattern(200_000, 3)
    assert log.read(INO, 0, kept, 0, 50_000) == pattern(50_000)
    log.sync()
    assert log.unsynced_bytes == 0
    assert log.reclaim() == 0
    log.close()


def test_repeated_failures_leave_no_litter(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory)
    log.loaded()
    for limit in (0, 40, HEADER_BYTES, HEADER_BYTES + 500):
        with file_size_limit(limit), pytest.raises(DiskFull):
            log.write(INO, 0, pattern(5000))
        log.reclaim()
        assert os.listdir(directory) == []
        assert open_files(directory) == []
        assert log.usage == 0 and log.unsynced_bytes == 0
    ((_, extent),) = log.write(INO, 0, pattern(5000))
    assert log.read(INO, 0, extent, 0, 5000) == pattern(5000)
    log.close()


def test_of_a_large_write_that_fails_late_nothing_is_live(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.loaded()
    with file_size_limit(2 * MIB), pytest.raises(DiskFull):
        log.write(INO, 0, pattern(3 * MIB))
    assert [use.live for use in log.segments()] == [0]
    assert log.reclaim() > MIB
    assert log.usage == 0
    log.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_what_the_operating_system_says_is_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    log = make_log(tmp_path)
    log.loaded()
    ((_, kept),) = log.write(INO, 0, pattern(5000))

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", refuse)
    expected = DiskFull if code in (errno.ENOSPC, errno.EDQUOT) else StoreDamaged
    for _ in range(3):
        with pytest.raises(expected):
            log.write(INO, 5000, b"y")
    monkeypatch.undo()
    log.write(INO, 5000, b"y")
    assert log.read(INO, 0, kept, 0, 5000) == pattern(5000)

    monkeypatch.setattr(os, "pread", refuse)
    for reader in (log, StageReader(tmp_path, KEY)):
        with pytest.raises(HivefsError) as caught:
            reader.read(INO, 0, kept, 100, 5)
        assert str(tmp_path) in str(caught.value)
    log.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreDamaged):
        make_log(tmp_path / "file" / "stage")
