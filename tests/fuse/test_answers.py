"""What the kernel is told when the file system raises."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from hivefs.errors import Corrupt, NotLoaded, PosixError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.fuse.answers import FEWER_SECONDS, KERNEL_CACHE_SECONDS, FewerNames, entry_of
from hivefs.fuse.operations import DriveOperations, nothing_to_load
from hivefs.model.inode import Inode


class Fragile:
    """A file system whose answers are given by a function of the number of the call."""

    def __init__(self, behaviour: Callable[[int], Any]) -> None:
        self.calls = 0
        self.behaviour = behaviour

    def _next(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.behaviour(self.calls)

    getattr = lookup = readlink = write = _next

    async def fsync(self, ino: int) -> Any:
        return self._next()

    def read_now(self, ino: int, offset: int, size: int) -> None:
        return None

    async def read(self, ino: int, offset: int, size: int) -> Any:
        return self._next()


def ask(fs: Fragile, name: str, *arguments: Any, load: Any = nothing_to_load) -> Any:
    operations = DriveOperations(cast(Filesystem, fs), load)
    return trio.run(getattr(operations, name), *arguments)


def error_of(fs: Fragile, name: str, *arguments: Any, load: Any = nothing_to_load) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        ask(fs, name, *arguments, load=load)
    return int(caught.value.errno)


def failing(problem: Exception) -> Fragile:
    def behaviour(call: int) -> Any:
        raise problem

    return Fragile(behaviour)


CALLS = [("getattr", 1, None), ("readlink", 1, None), ("write", 1, 0, b"x"), ("read", 1, 0, 1), ("fsync", 1, False)]


@pytest.mark.parametrize("call", CALLS)
def test_an_errno_is_passed_on_without_a_word(call: tuple[Any, ...], caplog: pytest.LogCaptureFixture) -> None:
    assert error_of(failing(PosixError(errno.ENOSPC)), *call) == errno.ENOSPC
    assert not caplog.records


@pytest.mark.parametrize("call", CALLS)
def test_the_unforeseen_becomes_an_input_output_error_and_one_log_entry(
    call: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert error_of(failing(ZeroDivisionError("boom")), *call) == errno.EIO
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].levelno == logging.ERROR


@pytest.mark.parametrize("call", CALLS)
def test_damage_becomes_an_input_output_error_with_its_reason(
    call: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert error_of(failing(Corrupt(what="a chunk", reason="torn")), *call) == errno.EIO
    assert [r.getMessage() for r in caplog.records] == ["a request failed: a chunk is damaged: torn."]


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_page_is_loaded_and_the_call_made_again(call: tuple[Any, ...]) -> None:
    answers: dict[str, Any] = {"getattr": Inode(1, 0o100644, size=7), "readlink": b"to", "write": 1, "read": b"d"}

    def behaviour(number: int) -> Any:
        if number <= 3:
            raise NotLoaded(b"key %d" % number)
        return answers.get(call[0])

    loaded: list[bytes] = []

    async def load(key: bytes) -> None:
        await trio.lowlevel.checkpoint()
        loaded.append(key)

    result = ask(Fragile(behaviour), *call, load=load)
    assert loaded == [b"key 1", b"key 2", b"key 3"]
    if call[0] == "getattr":
        assert result.st_size == 7
    else:
        assert result == answers.get(call[0])


def test_a_page_that_cannot_be_loaded_is_an_input_output_error(caplog: pytest.LogCaptureFixture) -> None:
    async def load(key: bytes) -> None:
        raise Corrupt(what="a page", reason="gone")

    assert error_of(failing(NotLoaded(b"k")), "getattr", 1, None, load=load) == errno.EIO
    assert "a page is damaged" in caplog.text


def test_pages_that_never_suffice_end_in_an_error() -> None:
    loaded: list[bytes] = []

    async def load(key: bytes) -> None:
        loaded.append(key)

    assert error_of(failing(NotLoaded(b"k")), "getattr", 1, None, load=load) == errno.EIO
    assert 1 < len(loaded) < 1000


def test_a_name_that_is_not_there_may_be_remembered_by_the_kernel() -> None:
    entry = ask(failing(PosixError(errno.ENOENT)), "lookup", 1, b"nothing", None)
    assert entry.st_ino == 0
    assert entry.entry_timeout > 3600


def test_close_is_not_asked_about_again() -> None:
    assert error_of(Fragile(lambda call: None), "flush", 1) == errno.ENOSYS


def test_acls_are_refused_where_the_kernel_does_not_enforce_them() -> None:
    set_there: list[bytes] = []

    class Attributes:
        def setxattr(self, ino: int, name: bytes, *arguments: Any) -> None:
            set_there.append(name)

    drive = DriveOperations(cast(Filesystem, Attributes()))
    context = cast(pyfuse3.RequestContext, SimpleNamespace(uid=0, gid=0, umask=0, pid=0))
    trio.run(drive.setxattr, 1, b"system.posix_acl_access", b"", context)
    drive.enable_acl = False
    trio.run(drive.setxattr, 1, b"user.a", b"", context)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        trio.run(drive.setxattr, 1, b"system.posix_acl_access", b"", context)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert set_there == [b"system.posix_acl_access", b"user.a"]


def test_attributes_of_a_file_with_a_name_less_are_not_kept_for_a_while() -> None:
    """What the kernel takes before it has counted that name down is counted down too."""
    now = [100.0]
    fewer = FewerNames(lambda: now[0])

    def seconds(ino: int) -> float:
        entry = fewer.kept(entry_of(Inode(ino, 0o100644)))
        assert entry.entry_timeout == KERNEL_CACHE_SECONDS
        return float(entry.attr_timeout)

    fewer.lost(0)
    assert seconds(7) == KERNEL_CACHE_SECONDS
    fewer.lost(7)
    now[0] += FEWER_SECONDS / 2
    fewer.lost(8)
    assert (seconds(7), seconds(8), seconds(9)) == (0.0, 0.0, KERNEL_CACHE_SECONDS)
    now[0] += 2
    fewer.lost(7)
    now[0] += FEWER_SECONDS - 1
    assert (seconds(7), seconds(8)) == (0.0, KERNEL_CACHE_SECONDS)
    now[0] += FEWER_SECONDS
    assert seconds(7) == KERNEL_CACHE_SECONDS and not fewer._since


def test_entries_of_a_listing_are_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object is filled for all of them, and pyfuse3 copies it: nothing of one entry is in the next, and what did not
    fit was not given to the kernel.
    """
    inodes = [Inode(ino, 0o100600 + ino, size=ino, nlink=ino) for ino in (5, 6, 7, 8)]
    listing = [(number, b"name%d" % inode.ino, inode) for number, inode in enumerate(inodes, 3)]
    given: list[int] = []
    fs = SimpleNamespace(
        readdir=lambda ino, cookie: iter([(1, b".", Inode(1, 0o40755)), *listing]),
        remembered_all=given.extend,
        listed=lambda ino: None,
    )
    drive = DriveOperations(cast(Filesystem, fs))
    drive.fewer.lost(6)
    seen = []

    def reply(token: object, name: bytes, entry: pyfuse3.EntryAttributes, cookie: int) -> bool:
        seen.append((name, entry.st_ino, entry.st_mode, entry.st_size, entry.st_nlink, entry.attr_timeout, cookie))
        return len(seen) < 5

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    trio.run(drive.readdir, 1, 0, None)
    kept = {5: KERNEL_CACHE_SECONDS, 6: 0.0, 7: KERNEL_CACHE_SECONDS, 8: KERNEL_CACHE_SECONDS}
    assert seen[1:] == [(name, i.ino, i.mode, i.size, i.nlink, kept[i.ino], cookie) for cookie, name, i in listing]
    assert given == [5, 6, 7]
