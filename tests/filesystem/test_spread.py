"""What was changed is put into the open transaction in slices, and none of it is lost or put in half when a put fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from drive_tools import ROOT, Drive

from hivefs.errors import DiskFull
from hivefs.filesystem import inodes
from hivefs.filesystem.commits import SPREAD
from hivefs.model.ids import ROOT_INO

FILES = 300


class Passes(trio.abc.Instrument):
    """The most that is put in one pass of the loop."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0

    def one(self) -> None:
        self.now += 1
        self.total += 1

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.most, self.now = max(self.most, self.now), 0


def made(drive: Drive) -> None:
    for number in range(FILES):
        inode = drive.fs.create(ROOT_INO, b"file %d" % number, 0o100644, ROOT)
        drive.fs.open(inode.ino, 0)
        drive.fs.write(inode.ino, 0, b"%d" % number)
        drive.fs.release(inode.ino)


def holds(drive: Drive) -> None:
    for number in range(FILES):
        inode = drive.fs.lookup(ROOT_INO, b"file %d" % number)
        drive.fs.open(inode.ino, 0)
        assert drive.fs.read_now(inode.ino, 0, 100) == b"%d" % number
        drive.fs.release(inode.ino)


def test_changes_are_put_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive, passes = Drive(tmp_path), Passes()
    commits, put, staged = drive.fs.commits, inodes.local_inode_to_bytes, drive.store.put_staged

    def put_one(*given: Any) -> bytes:
        passes.one()
        return put(*given)

    def stage_one(*given: Any) -> None:
        passes.one()
        staged(*given)

    async def go() -> None:
        made(drive)
        with monkeypatch.context() as patched:
            patched.setattr(inodes, "local_inode_to_bytes", put_one)
            patched.setattr(drive.store, "put_staged", stage_one)
            await commits._spread(0)
            await trio.lowlevel.checkpoint()

    trio.run(go, instruments=[passes])
    assert passes.most <= 2 * SPREAD and passes.total >= 2 * FILES
    assert not commits._overlay.unflushed and not commits._inodes.unflushed
    drive.unmount()
    drive.mount()
    holds(drive)
    drive.unmount()


@pytest.mark.parametrize("fails_at", [0, 7, SPREAD, 2 * SPREAD + 1])
def test_a_put_that_fails_is_put_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    drive = Drive(tmp_path)
    commits = drive.fs.commits
    for where, name in ((drive.store, "put_staged"), (inodes, "local_inode_to_bytes")):
        real, left = getattr(where, name), [fails_at]

        def failing(*given: Any, real: Any = real, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise DiskFull(path=tmp_path, free=0)
            return real(*given)

        async def go(where: Any = where, name: str = name, failing: Any = failing) -> None:
            with monkeypatch.context() as patched:
                patched.setattr(where, name, failing)
                with pytest.raises(DiskFull):
                    await commits._spread(0)

        if name == "put_staged":
            made(drive)
        else:
            commits._overlay.flush()
        trio.run(go)
        assert commits._overlay.unflushed + commits._inodes.unflushed >= FILES - fails_at
    drive.unmount()
    drive.mount()
    holds(drive)
    drive.unmount()


def test_trimming_the_cache_looks_at_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "CACHED", 100)
    monkeypatch.setattr(inodes, "TRIMMED", 10)
    drive = Drive(tmp_path)
    made(drive)
    drive.fs.commits.now()
    cache = drive.fs.commits._inodes
    assert len(cache._cache) == 100 - 10
    for number in range(FILES):
        drive.fs.lookup(ROOT_INO, b"file %d" % number)
        assert len(cache._cache) <= 101
    holds(drive)
    drive.unmount()
