"""A small LMDB file that was met cold is read by a thread, as a whole, before the loop waits for it page by page.

LMDB reads through a mapping, so each page that is not in memory is a wait for the disk in the event loop. The kernel is
told to bring no others with it (MDB_NORDAHEAD): that would be up to the disk's read-ahead at once, during which the loop
stands still (5.5 ms and more for the 8 MiB that some systems have). But after a start, or when the page cache was emptied,
whoever lists one directory mostly goes on to the next: a walk through 2000 names met 66 such pages.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

SMALL_BYTES: Final = 64 << 20
"""A larger file (of more than some 90 000 small files) is left alone."""

AGAIN_SECONDS: Final = 10.0
"""So long nothing is read again: where memory is so short that pages go at once, reading all of them helps nobody."""

PIECE_BYTES: Final = 1 << 20


class Warming:
    """For one file. ``met`` is called in the thread of ``run``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._met = trio.Event()

    def met(self) -> None:
        """A page was not in memory."""
        self._met.set()

    async def run(self) -> None:
        """Read the file whenever it was met cold, until cancelled."""
        while True:
            await self._met.wait()
            try:
                await trio.to_thread.run_sync(read_through, self._path, abandon_on_cancel=True)
            except OSError as error:
                log.warning("the metadata file could not be read ahead (%s)", error.strerror)
            await trio.sleep(AGAIN_SECONDS)
            self._met = trio.Event()


def read_through(path: Path) -> int:
    """Bring a small file into the page cache; the bytes read, 0 for one that is not small. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size > SMALL_BYTES:
            return 0
        read = 0
        for position in range(0, size, PIECE_BYTES):
            read += len(os.pread(descriptor, PIECE_BYTES, position))
        return read
    finally:
        os.close(descriptor)
