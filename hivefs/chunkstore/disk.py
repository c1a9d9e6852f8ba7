"""Reading files of this machine without making the event loop wait for the disk.

What the kernel has in memory is read at once; what it has not raises NotInMemory (errors.py), and whoever can wait calls
``warm`` in a worker thread and asks again. A disk that turns takes ten milliseconds for a read, and other programs would
stand still for so long; and while one read waits, the loop can open the next one's seals.

Where a file system does not know the question (RWF_NOWAIT, Linux 4.14; preadv2(2)), everything is read at once.

Who reads on is kept ahead of in one of two ways. Where the disk's own read-ahead is long, the kernel does it better than we
can ask for it: it fills large folios, which cost a third of the processor time of the single pages that
POSIX_FADV_WILLNEED fills (mm/readahead.c), and a read that finds them asks for more without waiting. Else we ask.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import trio

from hivefs.errors import NotInMemory

WINDOW: Final = 256 << 10
"""Read around a small piece that is missing: its neighbours are mostly asked for next."""

WIDER: Final = 3
"""After so many misses in one file the window is doubled, and doubled again, DOUBLINGS times."""

DOUBLINGS: Final = 4
"""To 4 MiB."""

FILL_AFTER: Final = 6
"""After so many misses in one file, and again after twice as many, a thread brings all of it: whoever jumps about in a
segment of the stage, which has 64 MiB, soon has all of it in memory, and need not wait for the disk at each jump. Where
memory is so short that it does not stay, that is not done again and again.
"""
FILL_BYTES: Final = 64 << 20
_FILLS: Final = 2
_FILES: Final = 64
LONG: Final = 128 << 10
AHEAD: Final = 3 << 20
"""Asked for behind a long piece: that is somebody who reads on. So far the disk is kept ahead of the reader."""

KERNEL_AHEAD: Final = 2 << 20
"""A disk with at least so much read-ahead of its own is left to it."""
_FILL: Final = 256 << 10
_AT_ONCE: Final = 64
"""Pieces of _FILL in one call: between two calls the thread wants the interpreter, which the event loop then waits for."""
_UNKNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@lru_cache(maxsize=16)
def kernel_reads_ahead(directory: Path) -> bool:
    """Whether the disk under ``directory`` has KERNEL_AHEAD of read-ahead or more; False where nothing tells."""
    try:
        device = directory.stat().st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
        return int(setting) << 10 >= KERNEL_AHEAD
    except (OSError, ValueError):
        return False


def read_now(fd: int, path: Path, into: memoryview, position: int, whole: bool = False) -> int:
    """Fill ``into`` from ``position``; the number of bytes, fewer only at the end of the file.

    ``path`` is that of the file, for ``warm``; ``whole``: nothing behind this piece is worth reading ahead. Raises
    NotInMemory, OSError.
    """
    wanted = len(into)
    try:
        got = os.preadv(fd, [into], position, os.RWF_NOWAIT)
    except BlockingIOError:
        got = 0
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return os.preadv(fd, [into], position)
    if got < wanted and os.fstat(fd).st_size > position + got:
        raise NotInMemory(path, position, wanted)
    if wanted >= LONG and not whole and not kernel_reads_ahead(path.parent):
        os.posix_fadvise(fd, position + wanted + AHEAD, wanted, os.POSIX_FADV_WILLNEED)
    return got


class Windows:
    """How much is read around a missing piece of each file: more, the more often something of it was missing. For one
    thread.
    """

    def __init__(self, start: Callable[..., None] = trio.lowlevel.start_thread_soon) -> None:
        """``start`` runs a function in a thread and tells another one, there, what came of it."""
        self._start = start
        self._misses: dict[Path, int] = {}
        self._filling: set[Path] = set()

    def next(self, cold: NotInMemory) -> tuple[int, int]:
        """Where to begin and how many bytes to read for this one, which counts as a miss. A thread may bring all."""
        path = cold.path
        misses = self._misses.pop(path, 0)
        self._misses[path] = misses + 1
        if len(self._misses) > _FILES:
            del self._misses[next(iter(self._misses))]
        if cold.length >= LONG:
            return cold.position, cold.length if kernel_reads_ahead(cold.path.parent) else cold.length + AHEAD
        times, more = divmod(misses, FILL_AFTER)
        if times and not more and times & (times - 1) == 0:
            self._fill(path)
        if path in self._filling:
            return cold.position, cold.length
        window = WINDOW << min(misses // WIDER, DOUBLINGS)
        return cold.position - cold.position % window, window

    def _fill(self, path: Path) -> None:
        if path in self._filling or len(self._filling) == _FILLS:
            return
        self._filling.add(path)
        try:
            self._start(lambda: _read_through(path), lambda result: self._filling.discard(path))
        except RuntimeError:  # no thread can be started now: the reader waits for each piece, as before
            self._filling.discard(path)


def _read_through(path: Path) -> None:
    """Read a file through, at most FILL_BYTES of it. Errors are left to whoever needs the bytes."""
    buffers = [bytearray(_FILL)] * _AT_ONCE  # what is read is not looked at, so it may all go to one place
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for position in range(0, FILL_BYTES, _FILL * _AT_ONCE):
                if os.preadv(fd, buffers, position) < _FILL * _AT_ONCE:
                    return
        finally:
            os.close(fd)


def warm(cold: NotInMemory, window: tuple[int, int]) -> None:
    """Bring what was missing into memory, and begin to bring the ``window`` (position, bytes) around it.

    Blocks for as long as the disk takes: for a worker thread. Errors are left to whoever reads then.
    """
    with suppress(OSError):
        fd = os.open(cold.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if window != (cold.position, cold.length):
                os.posix_fadvise(fd, *window, os.POSIX_FADV_WILLNEED)
            os.pread(fd, cold.length, cold.position)
        finally:
            os.close(fd)
