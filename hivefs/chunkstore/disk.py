"""Reading files of this machine without making the event loop wait for the disk.

What the kernel has in memory is read at once; what it has not raises NotInMemory (errors.py), and whoever can wait calls
``warm`` in a worker thread and asks again. A disk that turns takes ten milliseconds for a read, and other programs would
stand still for so long; and while one read waits, the loop can open the next one's seals.

Where a file system does not know the question (RWF_NOWAIT, Linux 4.14; preadv2(2)), everything is read at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from hivefs.errors import NotInMemory

WINDOW: Final = 256 << 10
"""Read around a small piece that is missing: its neighbours are mostly asked for next."""

WIDER: Final = 3
"""After so many misses in one file the window is doubled, and doubled again, DOUBLINGS times."""

DOUBLINGS: Final = 4
"""To 4 MiB. Segments of the stage have 64 MiB: whoever jumps about in one soon has all of it in memory. (Random reads of a
file of 64 MiB went from 7 700 to 10 100 a second when this was 1 MiB after 16 misses and became 4 MiB after 12.)
"""
_FILES: Final = 64
LONG: Final = 128 << 10
AHEAD: Final = 3 << 20
"""Read behind a long piece: that is somebody who reads on. So far the disk is kept ahead of the reader."""
_UNKNOWN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def read_now(fd: int, path: Path, into: memoryview, position: int) -> int:
    """Fill ``into`` from ``position``; the number of bytes, fewer only at the end of the file.

    ``path`` is that of the file, for ``warm``. Raises NotInMemory, OSError.
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
    if wanted >= LONG:
        os.posix_fadvise(fd, position + wanted + AHEAD, wanted, os.POSIX_FADV_WILLNEED)
    return got


class Windows:
    """How much is read around a missing piece of each file: more, the more often something of it was missing."""

    def __init__(self) -> None:
        self._misses: dict[Path, int] = {}

    def next(self, cold: NotInMemory) -> tuple[int, int]:
        """Where to begin and how many bytes to read for this one, which counts as a miss."""
        misses = self._misses.pop(cold.path, 0)
        self._misses[cold.path] = misses + 1
        if len(self._misses) > _FILES:
            del self._misses[next(iter(self._misses))]
        if cold.length >= LONG:
            return cold.position, cold.length + AHEAD
        window = WINDOW << min(misses // WIDER, DOUBLINGS)
        return cold.position - cold.position % window, window


def warm(cold: NotInMemory, window: tuple[int, int], also: Iterable[Path] = ()) -> None:
    """Bring what was missing into memory, begin to bring the ``window`` (position, bytes) around it, and the files of
    ``also``, which are read next.

    Blocks for as long as the disk takes: for a worker thread. Errors are left to whoever reads then.
    """
    with suppress(OSError):
        fd = os.open(cold.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, *window, os.POSIX_FADV_WILLNEED)
            for path in also:
                _begin(path)
            os.pread(fd, cold.length, cold.position)
        finally:
            os.close(fd)


def _begin(path: Path) -> None:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
