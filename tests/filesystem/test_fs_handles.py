"""Files without a name: kept while open, removed after, also after a crash, and in slices when they are huge."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import trio
from drive_tools import MIB, Drive, pattern, run

from hivefs.errors import PosixError
from hivefs.formats.records import extent_to_bytes, map_key, map_prefix
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef, MapExtent, SlotKind


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def gone(drive: Drive, ino: int) -> bool:
    try:
        drive.fs.getattr(ino)
    except PosixError as error:
        assert error.errno == errno.ENOENT
        return True
    return False


def chunks_of(drive: Drive, count: int) -> int:
    """A file of ``count`` placed chunks, made by hand (nobody reads it)."""
    f = drive.file("huge")
    live = drive.fs.inodes.get(f)
    for slot in range(count):
        ref = ChunkRef(ChunkId(slot.to_bytes(16, "big")), bytes(32), MIB, 0)
        drive.store.put(map_key(f, slot), extent_to_bytes(MapExtent(slot, 1, SlotKind.CHUNK, ref)))
    live.size = live.allocated = count * MIB
    drive.fs.commits.now()
    drive.remount()
    return f


def test_an_open_file_lives_on_without_a_name(drive: Drive) -> None:
    f = drive.file("f", b"data")
    drive.fs.open(f)
    drive.fs.open(f)
    drive.fs.unlink(1, b"f")
    assert drive.read(f) == b"data"
    drive.fs.write(f, 4, b"more")
    drive.fs.commits.now()
    assert drive.check() == []
    drive.fs.release(f)
    assert drive.read(f) == b"datamore"
    drive.fs.release(f)
    assert gone(drive, f)
    assert drive.fs.overlay.bytes == 0


def test_what_the_kernel_remembers_lives_on(drive: Drive) -> None:
    f = drive.file("f", b"data")
    drive.fs.remembered(f)
    drive.fs.remembered(f, 2)
    drive.fs.unlink(1, b"f")
    drive.fs.forget(f, 2)
    assert drive.fs.getattr(f).nlink == 0
    drive.reap()
    assert not gone(drive, f)
    drive.fs.forget(f, 1)
    assert gone(drive, f)
    drive.fs.forget(f, 1)
    drive.fs.forget(12345, 1)


def test_a_crash_only_delays_the_removal(drive: Drive) -> None:
    f = drive.file("f", pattern(2 * MIB))
    drive.fs.setxattr(f, b"user.a", b"x")
    drive.place(only=lambda work: work.slot == 0)
    drive.fs.open(f)
    drive.fs.unlink(1, b"f")
    drive.fs.commits.now()
    drive.kill()
    drive.mount()
    assert drive.check() == []
    drive.reap()
    assert gone(drive, f)
    drive.fs.commits.now()
    assert drive.check() == []
    assert list(drive.store.scan(b"m")) == list(drive.store.scan(b"x")) == []
    assert drive.store.orphans() == []
    assert drive.forget_released() == 1
    assert drive.fs.overlay.bytes == 0


def test_a_file_made_and_removed_between_two_commits_leaves_nothing(drive: Drive) -> None:
    drive.fs.commits.now()
    f = drive.file("f", b"data")
    drive.fs.unlink(1, b"f")
    assert gone(drive, f)
    drive.fs.commits.now()
    assert drive.store.counts()["tree"] == 1
    assert (drive.store.inodes, drive.store.orphans()) == (1, [])


def test_removing_a_huge_file_is_done_in_slices(drive: Drive) -> None:
    count = 5000
    f = chunks_of(drive, count)
    drive.fs.unlink(1, b"huge")
    assert count - 200 < len(drive.store.keys(map_prefix(f))) < count
    drive.fs.commits.now()
    drive.kill()
    drive.mount()
    assert drive.check() == []
    slowest = 0.0

    async def reap() -> None:
        async def watch() -> None:
            nonlocal slowest
            while True:
                before = time.thread_time()  # what the machine does meanwhile is not counted
                await trio.lowlevel.checkpoint()
                slowest = max(slowest, time.thread_time() - before)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await drive.fs._handles.reap()
            nursery.cancel_scope.cancel()

    run(reap)
    assert gone(drive, f)
    drive.fs.commits.now()
    assert len(run(drive.service.released, 0, count * 2)) == count
    assert drive.store.counts()["tree"] == 1
    assert slowest < 1, "the loop was held for long"


@pytest.mark.parametrize("kept", [0, 700])
@pytest.mark.parametrize("then", ["reap", "grow", "write", "crash"])
def test_cutting_a_huge_file_hides_the_rest_at_once(drive: Drive, kept: int, then: str) -> None:
    count = 2000
    f = chunks_of(drive, count)
    drive.fs.setattr(f, size=kept * MIB)
    drive.fs.commits.now()
    assert len(drive.store.keys(map_prefix(f))) > kept
    assert drive.check() == []
    size = kept * MIB
    if then == "crash":
        drive.kill()
        drive.mount()
    if then in ("grow", "crash"):
        size = (kept + 1000) * MIB
        drive.fs.setattr(f, size=size)
        assert drive.read(f, kept * MIB, 2 * MIB) == bytes(2 * MIB)
        assert drive.read(f, size - 5, 100) == bytes(5)
    elif then == "write":
        size = (kept + 500) * MIB + 3
        drive.fs.write(f, size - 3, b"end")
        assert drive.read(f, kept * MIB + 7, 5) == bytes(5)
        assert drive.read(f, size - 5, 100) == bytes(2) + b"end"
    drive.fs.commits.now()
    assert drive.check() == []
    drive.reap()
    drive.fs.commits.now()
    assert drive.check() == []
    assert drive.fs.getattr(f).allocated == (kept + (then == "write")) * MIB
    released = {chunk_id for _, chunk_id in run(drive.service.released, 0, 5000)}
    assert released == {slot.to_bytes(16, "big") for slot in range(kept, count)}
    assert drive.store.orphans() == []


def test_cutting_a_huge_staged_file(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "drive", slice_records=8)
    f = drive.file("f")
    for slot in range(50):
        drive.fs.write(f, slot * MIB, b"data")
    drive.fs.commits.now()
    drive.fs.open(f, os.O_RDWR | os.O_TRUNC)
    assert 0 < drive.fs.overlay.bytes < 200
    drive.fs.commits.now()
    assert drive.check() == []
    assert run(drive.service.dirty, 100, 0, []) == []
    drive.fs.write(f, 30 * MIB, b"new")
    assert drive.read(f) == bytes(30 * MIB) + b"new"
    drive.remount()
    drive.reap()
    assert drive.read(f) == bytes(30 * MIB) + b"new"
    assert drive.fs.overlay.bytes == 3
    drive.fs.commits.now()
    assert drive.check() == []
