"""When things become durable: shared commits, the order of sync and commit, the loop, crashes at any moment."""

from __future__ import annotations

import errno
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import lmdb
import pytest
import trio
from drive_tools import MIB, ROOT, Drive, pattern, run
from trio.testing import MockClock

from hivefs.errors import PosixError, StoreDamaged
from hivefs.filesystem.check import check
from hivefs.filesystem.commits import LONELY
from hivefs.model.staged import SegmentPiece


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def count_calls(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Log of what reaches the disk, in order."""
    log: list[str] = []
    sync, commit, journal = drive.stage.sync, drive.store.commit, drive.store.journal

    def logged_sync() -> None:
        sync()
        log.append("sync")

    def logged_commit(*, last: bool = False) -> None:
        if drive.store.pending:
            log.append("commit")
        assert not drive.stage.unsynced_bytes, "a commit may name bytes that are not on disk"
        commit(last=last)

    def logged_journal(pieces: Sequence[SegmentPiece]) -> bool:
        pending = drive.store.pending
        held = sum(len(piece.data) for piece in pieces)
        assert held == drive.stage.loose_bytes, "a frame may name bytes that are neither on disk nor in it"
        done = journal(pieces)
        if done and pending:
            log.append("journal")
        return done

    monkeypatch.setattr(drive.store, "journal", logged_journal)
    monkeypatch.setattr(drive.stage, "sync", logged_sync)
    monkeypatch.setattr(drive.store, "commit", logged_commit)
    return log


def test_fsync_survives_a_crash_and_the_rest_may_not(drive: Drive, tmp_path: Path) -> None:
    f = drive.file("f", b"kept")
    run(drive.fs.fsync, f)
    drive.file("g", b"lost")
    copied = drive.copy(tmp_path / "copy")
    assert copied.names() == [b"f"]
    assert copied.read(copied.at("f").ino) == b"kept"
    assert copied.check() == []
    copied.unmount()


def test_many_who_wait_share_one_commit(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [drive.file(f"f{n}", b"data") for n in range(50)]
    log = count_calls(drive, monkeypatch)

    async def all_at_once() -> None:
        async with trio.open_nursery() as nursery:
            for f in files:
                nursery.start_soon(drive.fs.fsync, f)

    run(all_at_once)
    assert log == ["journal"]


@pytest.mark.parametrize("count", [2, 3, LONELY - 1, LONELY, 2 * LONELY - 1])
def test_a_slow_disk_gives_others_time_to_come_while_some_do(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    passes = 0
    log = count_calls(drive, monkeypatch)
    checkpoint = trio.lowlevel.checkpoint

    async def counted() -> None:
        nonlocal passes
        passes += 1
        await checkpoint()

    async def write_and_sync(f: int, times: int) -> None:
        for _ in range(times):
            drive.fs.write(f, 0, b"new")
            drive.fs.commits._took = 1.0
            await drive.fs.fsync(f)

    async def together() -> None:
        async with trio.open_nursery() as nursery:
            for f in files:
                nursery.start_soon(write_and_sync, f, 1)

    files = [drive.file(f"f{n}", b"data") for n in range(count)]
    with monkeypatch.context() as patched:
        patched.setattr(trio.lowlevel, "checkpoint", counted)
        run(write_and_sync, files[0], 10 * LONELY)
    assert LONELY < passes < 3 * LONELY, "who is alone does not wait for others each time"
    for _ in range(3 * LONELY):
        run(together)
    log.clear()
    run(together)
    assert log == ["journal"], "they share again"


def test_who_comes_while_a_sync_runs_is_served_by_the_commit_after_it(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    f = drive.file("f", bytes(8 * MIB))
    log = count_calls(drive, monkeypatch)

    async def overlapping() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive.fs.fsync, f)
            while drive.fs.commits._leading is None:
                await trio.lowlevel.checkpoint()
            g = drive.file("g", bytes(4 * MIB))
            h = drive.file("h", b"late")
            nursery.start_soon(drive.fs.fsync, g)
            nursery.start_soon(drive.fs.fsync, h)

    run(overlapping)
    assert log.count("journal") <= 2
    assert log[-1] == "journal"
    assert "commit" not in log
    copied = drive.copy(tmp_path / "copy")
    assert copied.read(copied.at("g").ino) == bytes(4 * MIB)
    assert copied.read(copied.at("h").ino) == b"late"
    copied.unmount()


def test_fsync_of_what_is_on_disk_does_nothing(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    f = drive.file("f", b"data")
    run(drive.fs.fsync, f)
    drive.file("g", b"something else")
    log = count_calls(drive, monkeypatch)
    run(drive.fs.fsync, f)
    assert log == []
    drive.read(f)
    run(drive.fs.fsync, f)
    assert log == []
    drive.fs.link(f, 1, b"h")
    run(drive.fs.fsync, f)
    assert log == ["journal"]
    run(drive.fs.syncfs)
    assert log == ["journal"]


def test_fsync_of_a_directory_keeps_its_names(drive: Drive, tmp_path: Path) -> None:
    d = drive.dir("d")
    run(drive.fs.fsync, 1)
    drive.file("f", parent=d)
    run(drive.fs.fsync, d)
    drive.fs.rename(d, b"f", 1, b"g")
    run(drive.fs.fsync, d)
    copied = drive.copy(tmp_path / "copy")
    assert copied.names() == [b"d", b"g"]
    copied.unmount()


def test_a_disk_that_cannot_sync_is_an_error_to_everybody_who_waits(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    f, g = drive.file("f", b"data"), drive.file("g", bytes(4 * MIB))
    errors: list[int] = []

    def broken() -> None:
        raise StoreDamaged(path=tmp_path, reason="the disk does not store")

    async def both() -> None:
        async def one(ino: int) -> None:
            try:
                await drive.fs.fsync(ino)
            except PosixError as error:
                errors.append(error.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, f)
            nursery.start_soon(one, g)

    with monkeypatch.context() as patch:
        patch.setattr(drive.stage, "sync", broken)
        run(both)
    assert errors == [errno.EIO, errno.EIO]
    run(both)
    assert len(errors) == 2
    drive.kill()
    drive.mount()
    assert drive.read(drive.at("g").ino) == bytes(4 * MIB)


def test_the_loop_commits_and_reaps(drive: Drive, tmp_path: Path) -> None:
    f = drive.file("f", b"data")
    drive.file("g", bytes(20 * MIB))
    drive.fs.open(f)
    drive.fs.unlink(1, b"f")

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: drive.fs.maintain(task_status=task_status))
            while drive.fs.commits.pending:
                await trio.sleep(0.5)
            drive.fs.release(f)
            while f in drive.fs.inodes.orphans or drive.fs.commits.pending:
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()

    trio.run(use, clock=MockClock(autojump_threshold=0.05))
    assert drive.stage.unsynced_bytes == 0
    copied = drive.copy(tmp_path / "copy")
    assert copied.names() == [b"g"]
    assert copied.check() == []
    copied.unmount()


def test_the_loop_survives_a_full_disk(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drive.file("f", b"data")
    full = True
    monkeypatch.setattr(drive.store, "disk", lambda: (1 << 40, 0 if full else 1 << 39))

    async def use() -> None:
        nonlocal full
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: drive.fs.maintain(task_status=task_status))
            await trio.sleep(20)
            assert drive.fs.commits.pending
            full = False
            while drive.fs.commits.pending:  # the clock jumps while a thread works
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()

    trio.run(use, clock=MockClock(autojump_threshold=0.01))
    assert not drive.fs.commits.pending
    assert caplog.text.count("is full") == 1


def test_a_stage_segment_with_little_left_is_emptied(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "drive")
    drive.stage._segment_limit = 4 * MIB
    keep = drive.file("keep", b"a few bytes that stay")
    drive.fs.write(keep, MIB, b"and more")
    gone = drive.file("gone", pattern(12 * MIB))
    drive.file("now", b"a later segment")
    drive.fs.commits.now()
    generation = run(drive.service.dirty, 1, 0, [])[0].generation
    drive.fs.unlink(1, b"gone")
    drive.fs.commits.now()
    before = drive.stage.usage

    async def use() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: drive.fs.maintain(task_status=task_status))
            while drive.stage.usage >= before - 2 * MIB:  # the clock jumps while a thread works
                await trio.sleep(10)
            nursery.cancel_scope.cancel()

    trio.run(use, clock=MockClock(autojump_threshold=0.01))
    assert drive.read(keep) == b"a few bytes that stay" + bytes(MIB - 21) + b"and more"
    assert run(drive.service.dirty, 1, 0, [])[0].generation == generation
    with pytest.raises(PosixError):
        drive.fs.getattr(gone)
    drive.remount()
    assert drive.read(keep, 0, 21) == b"a few bytes that stay"
    assert drive.check() == []


def test_a_store_that_failed_answers_with_errors_and_what_was_committed_is_there(drive: Drive) -> None:
    f = drive.file("f", b"data")
    run(drive.fs.fsync, f)
    drive.file("g")
    with pytest.raises(StoreDamaged):
        drive.store._fail(lmdb.CorruptedError("for the test"))
    for call in (lambda: drive.fs.lookup(1, b"f"), lambda: drive.fs.mkdir(1, b"d", 0o755, ROOT)):
        with pytest.raises(StoreDamaged):
            call()
    for call in (lambda: run(drive.fs.syncfs), lambda: drive.fs.write(f, 0, b"x")):
        with pytest.raises(PosixError) as caught:
            call()
        assert caught.value.errno == errno.EIO
    drive.kill()
    drive.mount()
    assert drive.names() == [b"f"]
    assert drive.read(f) == b"data"


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_at_any_moment_keeps_what_was_fsynced(tmp_path: Path, seed: int) -> None:
    """Random work; copies of the directories without closing anything are mounted and compared with a model."""
    rng = random.Random(seed)
    drive = Drive(tmp_path / "drive", slice_records=4)
    durable: dict[str, bytes] = {}
    now: dict[str, bytearray] = {}
    for step in range(120):
        name = f"f{rng.randrange(8)}"
        action = rng.randrange(8)
        if action == 0 and name in now:
            drive.fs.unlink(1, name.encode())
            del now[name]
        elif action == 1 and name in now:
            size = rng.choice([0, 5, MIB, 2 * MIB + 7])
            drive.fs.setattr(drive.at(name).ino, size=size)
            now[name] = now[name][:size].ljust(size, b"\0")
        elif action == 2:
            drive.place(limit=3)
        elif action == 3 and name in now:
            other = f"f{rng.randrange(8)}"
            drive.fs.rename(1, name.encode(), 1, other.encode())
            now[other] = now.pop(name)
        elif action == 4:
            run(drive.fs.syncfs)
        else:
            if name not in now:
                drive.file(name)
                now[name] = bytearray()
            offset, data = rng.choice([0, 3, MIB - 2, 2 * MIB]), pattern(rng.choice([1, 500, MIB + 5]), step)
            drive.fs.write(drive.at(name).ino, offset, data)
            content = now[name]
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
        if not drive.fs.commits.pending:
            durable = {n: bytes(c) for n, c in now.items()}
        if rng.random() < 0.2:
            copied = drive.copy(tmp_path / "copy")
            assert {n.decode(): copied.read(copied.at(n.decode()).ino) for n in copied.names()} == durable
            assert copied.check() == []
            copied.reap()
            copied.unmount()
            shutil.rmtree(tmp_path / "copy")


def test_check_reports_its_progress(drive: Drive) -> None:
    for n in range(1500):
        drive.file(f"f{n}")
    drive.fs.commits.now()
    told: list[int] = []
    assert list(check(drive.snapshot(), told.append)) == []
    assert told == [1000, 2000, 3000, 3001]
