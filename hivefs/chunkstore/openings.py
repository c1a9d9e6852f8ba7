"""Files of this machine that will be read soon, opened by threads and brought into memory meanwhile.

The first look at a file after a start costs the disk three answers one after the other: its directory, its inode, its
bytes. A reader that goes through many small files (a cached share has 1 MiB) would wait for all of them, each time. A
thread does that for files ahead of it, several at once, and hands over the open descriptor.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import trio

MOST: Final = 16
"""Files on their way at once; what is asked for beyond is left to whoever reads it."""
_TOUCH_NS: Final = 600 * 10**9

K = TypeVar("K", bound=Hashable)


def open_to_read(path: Path) -> int | None:
    """A descriptor; None when the file is not there, or this disk does not give it. May wait for the disk.

    The modification time says when a file was read last, for whoever has to make room. It is renewed seldom enough to
    cost nothing.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        if os.fstat(fd).st_mtime_ns + _TOUCH_NS < time.time_ns():
            os.utime(fd)
    return fd


def _open_and_bring(path: Path) -> int | None:
    fd = open_to_read(path)
    if fd is not None:
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    return fd


class Openings(Generic[K]):
    """``begin`` and ``take`` are for one thread; the others only open. Nobody waits for them."""

    def __init__(self, start: Callable[..., None] = trio.lowlevel.start_thread_soon) -> None:
        """``start`` runs a function in a thread and tells another one, there, what came of it."""
        self._start = start
        self._begun: set[K] = set()
        self._opened: deque[tuple[K, int | None]] = deque()
        self._closed = False

    def begin(self, key: K, path: Path) -> None:
        """Have the file opened and brought; nothing when that is on its way."""
        if key in self._begun or len(self._begun) >= MOST or self._closed:
            return
        self._begun.add(key)

        def deliver(result: Any) -> None:
            self._opened.append((key, result.unwrap()))
            if self._closed:
                self._close_opened()

        self._start(lambda: _open_and_bring(path), deliver)

    def take(self) -> list[tuple[K, int]]:
        """What was opened since the last time, with its descriptor, which is the caller's now."""
        found = []
        while self._opened:
            key, fd = self._opened.popleft()
            self._begun.discard(key)
            if fd is not None:
                found.append((key, fd))
        return found

    def close(self) -> None:
        """Close what was not taken, and what is still on its way when it comes."""
        self._closed = True
        self._close_opened()

    def _close_opened(self) -> None:
        with suppress(IndexError):
            while True:
                fd = self._opened.popleft()[1]
                if fd is not None:
                    os.close(fd)
