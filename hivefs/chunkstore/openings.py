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
from typing import Final, Generic, TypeVar

import trio

MOST: Final = 32
"""Files on their way at once; what is asked for beyond is left to whoever reads it."""
THREADS: Final = 4
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
    """``begin`` and ``take`` are for one thread; up to THREADS others only open. Nobody waits for them."""

    def __init__(self, start: Callable[..., None] = trio.lowlevel.start_thread_soon) -> None:
        """``start`` runs a function in a thread and tells another one, there, what came of it."""
        self._start = start
        self._begun: set[K] = set()
        self._unwanted: set[K] = set()
        """Of those: what is opened is not the file that is there now."""
        self._waiting: deque[tuple[K, Path]] = deque()
        self._opened: deque[tuple[K, int | None]] = deque()
        self._working: set[object] = set()
        self._closed = False

    def begin(self, key: K, path: Path) -> None:
        """Have the file opened and brought; nothing when that is on its way."""
        if key in self._begun or len(self._begun) >= MOST or self._closed:
            return
        self._begun.add(key)
        self._waiting.append((key, path))
        self._one_more()

    def _one_more(self) -> None:
        if len(self._working) >= THREADS:
            return
        worker = object()
        self._working.add(worker)
        try:
            self._start(self._open_waiting, lambda result: self._working.discard(worker))
        except RuntimeError:  # no thread can be started now: whoever reads the files opens them
            self._working.discard(worker)
            if not self._working:
                while self._waiting:
                    key = self._waiting.popleft()[0]
                    self._begun.discard(key)
                    self._unwanted.discard(key)

    def _open_waiting(self) -> None:
        """In a thread. Nothing here is done under a lock: what two threads touch are single calls of deques."""
        with suppress(IndexError):
            while True:
                key, path = self._waiting.popleft()
                self._opened.append((key, _open_and_bring(path)))
                if self._closed:
                    self._close_opened()

    def take(self) -> list[tuple[K, int]]:
        """What was opened since the last time, with its descriptor, which is the caller's now."""
        found = []
        while self._opened:
            key, fd = self._opened.popleft()
            self._begun.discard(key)
            if fd is not None and key not in self._unwanted:
                found.append((key, fd))
            elif fd is not None:
                os.close(fd)
            self._unwanted.discard(key)
        if self._waiting:  # the last thread may have ended right before they came
            self._one_more()
        return found

    def forget(self, key: K) -> None:
        """The file was damaged, or is another one now: what is on its way is closed when it comes."""
        if key in self._begun:
            self._unwanted.add(key)

    def close(self) -> None:
        """Close what was not taken, and what is still on its way when it comes."""
        self._closed = True
        self._waiting.clear()
        self._close_opened()

    def _close_opened(self) -> None:
        with suppress(IndexError):
            while True:
                fd = self._opened.popleft()[1]
                if fd is not None:
                    os.close(fd)
