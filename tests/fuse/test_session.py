"""A real mount inside this process, to count the requests that ordinary work costs. Files are used from a thread."""

from __future__ import annotations

import errno
import inspect
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from hivefs.daemon.launch import problem_of
from hivefs.errors import MountBusy, MountpointProblem
from hivefs.fuse import handshake
from hivefs.fuse.mounting import MountOptions
from hivefs.fuse.session import Session
from hivefs.testing.memory_drive import MemoryDrive

pytestmark = pytest.mark.fuse
LIMIT = 150.0


class Counted(MemoryDrive):
    """Counts what the kernel asks; closes are answered as a drive answers them."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        super().__init__(clock)
        self.asked: Counter[str] = Counter()
        for name, method in inspect.getmembers(self, inspect.iscoroutinefunction):
            setattr(self, name, self._counting(name, method))

    def _counting(self, name: str, method: Any) -> Any:
        async def counted(*arguments: Any) -> Any:
            self.asked[name] += 1
            return await method(*arguments)

        return counted

    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        raise pyfuse3.FUSEError(errno.ENODATA)


def with_session(path: Path, drive: MemoryDrive, use: Callable[[Session], None]) -> Session:
    """Mount, run ``use`` in a thread, unmount."""
    session = Session(drive, path, MountOptions())
    session.open()

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(session.run)
                try:
                    await trio.to_thread.run_sync(use, session)
                finally:
                    await session.unmount(lazy=True)

    trio.run(main)
    assert not os.path.ismount(path)
    return session


def test_small_files_need_few_requests(tmp_path: Path) -> None:
    drive = Counted()
    files = 20

    writing: Counter[str] = Counter()
    offered: list[int] = []

    def use(session: Session) -> None:
        assert session._handshake is not None
        assert session._handshake.offer is not None
        offered.append(session._handshake.offer.flags)
        for i in range(files):
            with (tmp_path / str(i)).open("wb", buffering=0) as file:
                for _ in range(10):
                    file.write(b"x" * 400)
        writing.update(drive.asked)
        for i in range(files):
            assert (tmp_path / str(i)).read_bytes() == b"x" * 4000

    with_session(tmp_path, drive, use)
    assert writing["create"] == files
    assert writing["flush"] <= 1
    assert writing["write"] <= 2 * files
    if offered[0] & handshake.HANDLE_KILLPRIV_V2:
        assert writing["getxattr"] <= files + 1, "the kernel asks for security.capability at each write(2)"
    assert writing["getattr"] <= files + 4, "more than the directory's attributes were asked for after each CREATE"
    assert drive.asked["flush"] <= 1


def test_acls_cost_the_owner_of_the_files_no_request(tmp_path: Path) -> None:
    """The kernel asks for an ACL only to judge somebody else (and then for the root directory each time: it makes that
    inode before it knows that we have ACLs, and does not cache them there).
    """
    drive, named = Counted(), []
    drive.enable_acl = True

    async def getxattr(inode: int, name: bytes, ctx: Any) -> bytes:
        named.append(name)
        raise pyfuse3.FUSEError(errno.ENODATA)

    drive.getxattr = getxattr  # type: ignore[method-assign]

    def use(session: Session) -> None:
        os.mkdir(tmp_path / "d", 0o750)
        for i in range(5):
            path = tmp_path / "d" / str(i)
            path.write_bytes(b"x" * 4000)
            path.chmod(0o640)
            assert path.read_bytes() == b"x" * 4000
        for path in (tmp_path / "d").iterdir():
            path.stat()
            path.unlink()

    with_session(tmp_path, drive, use)
    assert not [name for name in named if name.startswith(b"system.")]


def test_an_existing_file_is_cut_by_setattr(tmp_path: Path) -> None:
    drive = Counted()

    def use(session: Session) -> None:
        (tmp_path / "file").write_bytes(b"long content")
        (tmp_path / "file").write_bytes(b"short")
        assert (tmp_path / "file").read_bytes() == b"short"

    with_session(tmp_path, drive, use)
    assert drive.asked["create"] == 1


def test_a_busy_drive_is_not_unmounted(tmp_path: Path) -> None:
    seen: list[BaseException] = []

    def use(session: Session) -> None:
        with (tmp_path / "file").open("wb"):
            try:
                trio.from_thread.run(session.unmount)
            except MountBusy as error:
                seen.append(error)
        assert os.path.ismount(tmp_path)

    with_session(tmp_path, Counted(), use)
    assert len(seen) == 1


def test_abort_ends_the_session_and_the_place_can_be_used_again(tmp_path: Path) -> None:
    def use(session: Session) -> None:
        (tmp_path / "file").write_bytes(b"x")

    session = Session(Counted(), tmp_path, MountOptions())
    session.open()

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(session.run)
                await trio.to_thread.run_sync(use, session)
                session.abort()

    trio.run(main)
    with_session(tmp_path, Counted(), use)


def test_a_top_directory_that_cannot_be_read_is_said_in_a_sentence_and_nothing_stays_mounted(tmp_path: Path) -> None:
    """As after a recovery with no node in reach."""

    class Unreadable(Counted):
        async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
            raise pyfuse3.FUSEError(errno.EIO)

    session = Session(Unreadable(), tmp_path, MountOptions())
    session.open()

    async def main() -> None:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(session.run)

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(main)
    problem = problem_of(caught.value)
    assert isinstance(problem, MountpointProblem) and "cannot be read now" in str(problem)
    with_session(tmp_path, Counted(), lambda session: (tmp_path / "file").write_bytes(b"x") and None)


def test_two_mounts_one_after_the_other_in_one_process(tmp_path: Path) -> None:
    for _ in range(3):
        with_session(tmp_path, Counted(), lambda session: (tmp_path / "file").write_bytes(b"x") and None)
    assert list(tmp_path.iterdir()) == []


def test_a_request_that_was_taken_back_does_not_stop_the_process(tmp_path: Path) -> None:
    """The kernel takes a request back when its program is killed between our poll and our receive. Here the poll says that
    there is one: the loop must be there for others all the same, and go on with what comes.
    """
    drive = Counted()
    false: list[int] = []

    def use(session: Session) -> None:
        loop = session._loop
        assert loop is not None and loop._poll is not None
        poll = loop._poll

        def lies(milliseconds: int) -> list[tuple[int, int]]:
            found = poll(milliseconds)
            if not found and len(false) < 5:
                false.append(milliseconds)
                return [(0, 1)]
            return found

        loop._poll = lies
        (tmp_path / "one").write_bytes(b"1")
        while len(false) < 5:
            trio.from_thread.run_sync(bool)  # waits for ever if the loop does
            (tmp_path / "one").stat()
            os.listdir(tmp_path)
        trio.from_thread.run_sync(bool)
        (tmp_path / "two").write_bytes(b"2")
        assert (tmp_path / "two").read_bytes() == b"2"

    with_session(tmp_path, drive, use)
    assert len(false) == 5
