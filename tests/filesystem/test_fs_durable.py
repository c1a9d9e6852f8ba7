"""What fsync says is true: after a frame that failed, one whose caller went away, and an extent that could not be moved."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from drive_tools import Drive, run

from hivefs.errors import DiskFull, PosixError, StoreDamaged
from hivefs.metadata.store import MetadataStore


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    made = Drive(tmp_path / "drive")
    ino = made.file("a", b"old bytes")
    made.fs.commits.now()
    assert ino
    return made


def test_after_a_commit_that_failed_fsync_fails_until_one_succeeds(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = drive.at("a").ino
    drive.fs.write(ino, 0, b"new")
    with monkeypatch.context() as broken:
        broken.setattr(drive.store._journal, "write", lambda frame: False)

        def sync() -> None:
            raise StoreDamaged(path=drive.path, reason="EIO")

        broken.setattr(drive.stage, "sync", sync)
        for patient in (True, False):
            with pytest.raises(StoreDamaged):
                run(lambda: drive.fs.commits.all(patient=patient))  # noqa: B023 - called at once
        for _ in range(3):
            with pytest.raises(PosixError) as caught:
                run(drive.fs.fsync, ino)
            assert caught.value.errno == errno.EIO
            assert drive.fs.commits.pending
    run(drive.fs.fsync, ino)
    assert not drive.fs.commits.pending
    assert drive.copy(drive.path.with_name("copy")).read(ino) == b"new bytes"


@pytest.mark.parametrize("took", [0.0, 1.0])
def test_a_frame_is_written_although_its_caller_is_gone(drive: Drive, took: float) -> None:
    ino = drive.at("a").ino
    drive.fs.write(ino, 0, b"new")

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            drive.fs.commits._took = took
            await drive.fs.commits.all(patient=True)
        await drive.fs.fsync(ino)

    run(main)
    assert drive.copy(drive.path.with_name("copy")).read(ino) == b"new bytes"


def test_an_unchanged_file_needs_no_flush(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = drive.at("a").ino
    run(drive.fs.fsync, ino)
    before = drive.store.seq
    other = drive.file("b", b"x")
    run(drive.fs.fsync, ino)
    assert drive.store.seq == before, "nobody asked for the other file"
    run(drive.fs.fsync, other)
    assert drive.store.seq == before + 1


def test_a_move_that_fails_half_way_loses_nothing(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = drive.file("two", b"A" * 4096)
    drive.fs.write(ino, 300_000, b"B" * 4096)
    drive.fs.commits.now()
    segment = drive.stage.segments()[-1].number
    drive.stage._retire()
    real, calls = drive.stage.write, []

    def write(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise DiskFull(path=drive.path, free=0)
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as full:
        full.setattr(drive.stage, "write", write)
        with pytest.raises(DiskFull):
            list(drive.fs.overlay.move_out_of(segment))
    drive.fs.commits.now()
    drive.fs.overlay._slots.clear()
    drive.fs.write(ino, 300_000, b"C" * 4096)
    drive.fs.commits.now()
    drive.fs.commits.now()
    assert drive.read(ino, 0, 4096) == b"A" * 4096
    assert drive.read(ino, 300_000, 4096) == b"C" * 4096
    assert drive.check() == []


def test_a_slot_that_was_damaged_and_written_anew_is_placed(drive: Drive) -> None:
    ino = drive.at("a").ino
    drive.store._put(drive.store._staged, ino.to_bytes(8, "big") + bytes(8), b"garbage")
    drive.fs.commits.now()
    drive.kill()
    drive.mount()
    assert drive.place() == 0
    drive.fs.setattr(ino, size=0)
    drive.fs.write(ino, 0, b"good again")
    drive.fs.commits.now()
    assert drive.place() == 1
    assert len(drive.fs.overlay) == 0
    assert drive.read(ino) == b"good again"


def test_a_disk_that_is_full_at_the_start_leaves_fsync_waiting_for_room(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier process left may be in the page cache only until the commit at the start, which is put off."""
    ino = drive.at("a").ino
    drive.kill()
    with monkeypatch.context() as full:
        full.setattr(MetadataStore, "disk", lambda self: (1 << 40, 0))
        drive.mount()
        with pytest.raises(PosixError) as caught:
            run(drive.fs.fsync, ino)
        assert caught.value.errno == errno.ENOSPC
        assert drive.fs.commits.pending
    run(drive.fs.fsync, ino)
    assert not drive.fs.commits.pending
