"""From what the filesystem room says to what pyfuse3 wants: attributes, errors, and asking again after a page came.

A handler is written as a plain function that calls the (synchronous) filesystem. ``answering`` makes the coroutine of
it that pyfuse3 awaits; it runs through without giving up its turn unless a page of the metadata must be loaded first.

Making an EntryAttributes costs 0.4 microseconds, a request some 30: nothing is kept between requests.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import pyfuse3

from hivefs.errors import HivefsError, NotLoaded, PosixError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Caller
from hivefs.model.inode import Inode

log = logging.getLogger(__name__)

T = TypeVar("T")

KERNEL_CACHE_SECONDS: Final = 86400.0
"""How long the kernel may believe names and attributes. All changes go through it, so this could be for ever."""

LOAD_TRIES: Final = 64
"""A call may need several pages (a rename: both directories), each of which may lead to another one."""


FEWER_SECONDS: Final = 10.0
"""So long after a file lost one of its names nothing that is said of it is kept."""


class FewerNames:
    """Files that lost one of several names a moment ago, whose attributes the kernel is not to keep for now.

    The kernel counts a name down by itself when it takes the answer to UNLINK (fuse_entry_unlinked). Attributes that it was
    given after the name went, and took before that answer (another thread looked), have the new count: that is counted down
    once more. A file with a name then shows none, and takes no other (ENOENT), for as long as its attributes are believed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def lost(self, ino: int) -> None:
        """The file has a name less, and still one; nothing for 0."""
        if ino:
            self._since.pop(ino, None)
            self._since[ino] = self._clock()

    def kept(self, entry: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
        """The answer, as it may be kept."""
        if self._since:
            before = self._clock() - FEWER_SECONDS
            while self._since and next(iter(self._since.values())) < before:
                del self._since[next(iter(self._since))]
            if entry.st_ino in self._since:
                entry.attr_timeout = 0.0
        return entry


Loader = Callable[[bytes], Coroutine[Any, Any, None]]
"""Brings the page of the metadata tree that holds a key to this machine. Raises HivefsError when it cannot."""


class Answerer(Protocol):
    """What ``answering`` needs of the object whose methods it makes."""

    fs: Filesystem
    load: Loader


def new_entry() -> pyfuse3.EntryAttributes:
    """Name and attributes to be believed for KERNEL_CACHE_SECONDS, of nothing yet."""
    entry = pyfuse3.EntryAttributes()
    entry.entry_timeout = entry.attr_timeout = KERNEL_CACHE_SECONDS
    return entry


def entry_of(inode: Inode) -> pyfuse3.EntryAttributes:
    """The attributes of an inode."""
    entry = new_entry()
    describe(entry, inode)
    return entry


def describe(entry: pyfuse3.EntryAttributes, inode: Inode) -> None:
    """Make ``entry`` that of an inode, whatever it was before (readdir_reply copies it, FewerNames changes a time-out)."""
    entry.attr_timeout = KERNEL_CACHE_SECONDS
    entry.st_ino = inode.ino
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blocks = (inode.stored + 511) >> 9
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns


def _groups(pid: int) -> Sequence[int]:
    try:
        return sorted(pyfuse3.get_sup_groups(pid))
    except (OSError, RuntimeError, ValueError):  # the caller is gone, or of another pid namespace
        return ()


def caller_of(context: pyfuse3.RequestContext) -> Caller:
    """Who asks."""
    return Caller(context.uid, context.gid, context.umask, context.pid, partial(_groups, context.pid))


def _no_such_name() -> pyfuse3.EntryAttributes:
    entry = new_entry()
    entry.st_ino = pyfuse3.InodeT(0)
    return entry


NO_SUCH_NAME: Final = _no_such_name()
"""The answer to lookup that makes the kernel remember that there is nothing."""


async def settle(answerer: Answerer, call: Callable[[], T | Awaitable[T]], problem: Exception) -> T:
    """The slow way out of a call that raised: load and try again, or turn ``problem`` into the kernel's errno."""
    for _ in range(LOAD_TRIES):
        if not isinstance(problem, NotLoaded):
            break
        try:
            await answerer.load(problem.key)
            result = call()
            return await result if isinstance(result, Awaitable) else result
        except Exception as error:  # noqa: BLE001 - judged below, like the first one
            problem = error
    raise fuse_error(problem) from None


def fuse_error(problem: Exception) -> pyfuse3.FUSEError:
    """What the kernel is told. Whatever was not foreseen becomes EIO and one log entry, never the end of the mount."""
    if isinstance(problem, pyfuse3.FUSEError):
        return problem
    if isinstance(problem, PosixError):
        return pyfuse3.FUSEError(problem.errno)
    if isinstance(problem, HivefsError):
        log.error("a request failed: %s", problem)
    elif isinstance(problem, NotLoaded):
        log.error("a request failed: the metadata pages it needs do not settle")
    else:
        log.error("a request failed unexpectedly", exc_info=problem)
    return pyfuse3.FUSEError(errno.EIO)


def answering(handler: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Make a pyfuse3 handler of a plain method."""

    async def answer(self: Answerer, *request: Any) -> T:
        try:
            return handler(self, *request)
        except PosixError as problem:
            raise pyfuse3.FUSEError(problem.errno) from None
        except Exception as problem:  # noqa: BLE001 - see fuse_error
            return await settle(self, lambda: handler(self, *request), problem)

    answer.__name__ = handler.__name__
    answer.__doc__ = handler.__doc__
    return answer


def answering_slowly(handler: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    """The same for a method that waits by itself (fsync, a read of what is not here)."""

    async def answer(self: Answerer, *request: Any) -> T:
        try:
            return await handler(self, *request)
        except Exception as problem:  # noqa: BLE001 - see fuse_error
            return await settle(self, lambda: handler(self, *request), problem)

    answer.__name__ = handler.__name__
    answer.__doc__ = handler.__doc__
    return answer
