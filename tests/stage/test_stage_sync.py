"""sync() in a worker thread beside writes, rotation and reclaiming; and a disk that fails in fdatasync."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from stage_tools import StagedFile, file_of, make_log, open_files, pattern

from hivefs.errors import Corrupt, StoreDamaged
from hivefs.formats.staged import run_bytes

INO = 7
WAIT = 90
"""Seconds after which a test that hangs fails."""


class SlowDisk:
    """An fdatasync that stands still until the test lets it go; keeps the order of what was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.calls: list[str] = []
        self._fdatasync, self._fsync = os.fdatasync, os.fsync
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fdatasync(self, fd: int) -> None:
        self.calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        self.entered.release()
        assert self.go.acquire(timeout=WAIT)
        self._fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self.calls.append("directory " + os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        self._fsync(fd)


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def test_sync_covers_what_was_written_before_and_not_what_comes_during(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: ThreadPoolExecutor
) -> None:
    log = make_log(tmp_path / "stage")
    disk = SlowDisk(monkeypatch)
    assert log.unsynced_bytes == 0
    log.write(INO, 0, pattern(1000))
    assert log.unsynced_bytes == run_bytes(1000)
    running: Future[None] = worker.submit(log.sync)
    assert disk.entered.acquire(timeout=WAIT)
    ((_, during),) = log.write(INO, 1000, pattern(2000))
    assert log.read(INO, 0, during, 1000, 2000) == pattern(2000)
    assert log.unsynced_bytes == run_bytes(1000) + run_bytes(2000)
    disk.go.release()
    running.result(WAIT)
    assert log.unsynced_bytes == run_bytes(2000), "it cannot be known whether the disk has the rest"
    disk.go.release()
    log.sync()
    assert log.unsynced_bytes == 0
    name = file_of(tmp_path / "stage", during).name
    assert disk.calls == [name, "directory stage", name], "the name of a new segment is synced once"
    log.sync()
    assert len(disk.calls) == 3, "nothing to do"
    log.close()


def test_rotation_and_reclaiming_while_a_sync_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: ThreadPoolExecutor
) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory, segment_limit=1)
    log.loaded()
    disk = SlowDisk(monkeypatch)
    ((_, first),) = log.write(INO, 0, pattern(1000))
    ((_, second),) = log.write(INO, 1000, pattern(1000))
    running: Future[None] = worker.submit(log.sync)
    assert disk.entered.acquire(timeout=WAIT)

    # sync stands inside the first segment; it and the second, which it will come to, are deleted under it
    ((_, third),) = log.write(INO, 2000, pattern(1000))
    log.release(first)
    log.release(second)
    assert log.reclaim() > 2000
    assert log.unsynced_bytes == run_bytes(1000)
    before = {os.path.basename(name) for name in open_files(directory)}
    assert file_of(directory, first).name + " (deleted)" in before, "its descriptor must not be given to another file"
    disk.go.release(2)
    running.result(WAIT)
    assert [os.path.basename(name) for name in open_files(directory)] == [file_of(directory, third).name]

    disk.go.release()
    log.sync()
    assert log.unsynced_bytes == 0
    assert log.read(INO, 0, third, 2000, 1000) == pattern(1000)
    log.close()
    assert open_files(directory) == []


def test_deleted_segments_are_closed_at_once_when_no_sync_runs(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory, segment_limit=1)
    log.loaded()
    extents = [log.write(INO, n, b"x")[0][1] for n in range(3)]
    for extent in extents[:2]:
        log.read(INO, 0, extent, extent.start, 1)
        log.release(extent)
    log.reclaim()
    assert [os.path.basename(name) for name in open_files(directory)] == [file_of(directory, extents[2]).name]
    log.close()


def test_two_syncs_at_once_both_mean_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: ThreadPoolExecutor
) -> None:
    log = make_log(tmp_path)
    disk = SlowDisk(monkeypatch)
    log.write(INO, 0, pattern(1000))
    one = worker.submit(log.sync)
    assert disk.entered.acquire(timeout=WAIT)
    log.write(INO, 0, pattern(1000))
    two = worker.submit(log.sync)
    disk.go.release()
    one.result(WAIT)
    assert disk.entered.acquire(timeout=WAIT), "the second sync goes to the disk itself"
    assert not two.done()
    disk.go.release()
    two.result(WAIT)
    assert log.unsynced_bytes == 0
    log.close()


def test_many_writes_beside_many_syncs(tmp_path: Path, worker: ThreadPoolExecutor) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory, segment_limit=100_000)
    log.loaded()
    stop = threading.Event()

    def sync_until_stopped() -> int:
        rounds = 0
        while True:
            last = stop.is_set()
            log.sync()
            rounds += 1
            if last:
                return rounds

    syncing = worker.submit(sync_until_stopped)
    file, model = StagedFile(log, INO), bytearray(300_000)
    try:
        for n in range(400):
            offset, length = n * 7919 % 280_000, 1 + n * 31 % 20_000
            data = pattern(length, n)
            file.write(offset, data)
            model[offset : offset + length] = data
            if n % 10 == 0:
                log.reclaim()
                assert not syncing.done()
    finally:
        stop.set()
    assert syncing.result(WAIT) >= 1
    log.sync()
    log.reclaim()
    assert log.unsynced_bytes == 0
    assert file.read(0, len(model)) == model
    assert log.usage == sum(entry.stat().st_size for entry in directory.iterdir())
    log.close()
    assert open_files(directory) == []


def failing_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = getattr(os, name)
    state = {"left": 1}

    def call(fd: int) -> None:
        if state["left"]:
            state["left"] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, name, call)


def test_after_a_failed_fdatasync_nobody_is_told_that_the_bytes_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel answers the second fdatasync with success although the pages are lost."""
    directory = tmp_path / "stage"
    log = make_log(directory)
    log.loaded()
    ((_, lost),) = log.write(INO, 0, pattern(1000))
    failing_once(monkeypatch, "fdatasync")
    for _ in range(3):
        with pytest.raises(StoreDamaged):
            log.sync()
        assert log.unsynced_bytes >= run_bytes(1000)
    ((_, new),) = log.write(INO, 1000, pattern(1000))
    assert new.segment != lost.segment, "new bytes go to another segment"
    with pytest.raises(StoreDamaged):
        log.sync()

    ((_, again),) = log.write(INO, 0, pattern(1000))  # the application writes them again
    log.release(lost)
    log.sync()
    log.reclaim()
    assert log.unsynced_bytes == 0
    assert not file_of(directory, lost).exists()
    assert log.read(INO, 0, again, 0, 1000) == pattern(1000)
    log.close()
    assert open_files(directory) == []


def test_a_failed_segment_is_healed_by_moving_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory)
    log.loaded()
    file = StagedFile(log, INO)
    file.write(0, pattern(300_000))
    lost = next(iter(file.slots[0])).segment
    assert log.movable(1) is None
    failing_once(monkeypatch, "fdatasync")
    with pytest.raises(StoreDamaged):
        log.sync()
    assert log.movable(1) == lost, "whatever the limit, and though it is the current one"
    for extent in list(file.slots[0]):
        file.write(extent.start, log.read(INO, 0, extent, extent.start, extent.length))
    log.sync()
    assert log.movable(1) is None
    assert log.reclaim() > 300_000
    assert file.read(0, 300_000) == pattern(300_000)
    assert log.unsynced_bytes == 0
    log.close()


def test_a_loss_that_is_accepted_fails_no_later_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory)
    log.loaded()
    ((_, lost),) = log.write(INO, 0, pattern(1000))
    failing_once(monkeypatch, "fdatasync")
    with pytest.raises(StoreDamaged):
        log.sync()
    log.accept_loss(lost.segment + 1)
    with pytest.raises(StoreDamaged):
        log.sync()
    file_of(directory, lost).write_bytes(bytes(2000))
    with pytest.raises(Corrupt):
        log.read(INO, 0, lost, 0, 1000)
    log.accept_loss(lost.segment)
    log.sync()
    assert log.unsynced_bytes == 0 and log.movable(1) is None
    ((_, new),) = log.write(INO, 0, pattern(1000))
    assert new.segment != lost.segment
    log.sync()
    log.release(lost)
    log.reclaim()
    assert not file_of(directory, lost).exists()
    log.close()
    assert open_files(directory) == []


def test_a_failed_sync_of_the_directory_is_not_believed_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the segment may be lost although the next sync of the directory succeeds: it must be emptied."""
    log = make_log(tmp_path)
    log.loaded()
    file = StagedFile(log, INO)
    file.write(0, pattern(1000))
    lost = next(iter(file.slots[0])).segment
    failing_once(monkeypatch, "fsync")
    with pytest.raises(StoreDamaged):
        log.sync()
    with pytest.raises(StoreDamaged):
        log.sync()
    assert log.loose_pieces(1 << 20) is None
    assert log.movable(1) == lost
    file.write(0, pattern(1000))
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    log.sync()
    assert len(calls) == 1, "the new segment has a name of its own"
    log.reclaim()
    assert [use.number for use in log.segments()] == [next(iter(file.slots[0])).segment]
    log.close()
