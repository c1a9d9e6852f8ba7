"""Open handles and kernel references, and what they keep alive: a file without a name goes with the last of both.

Removing is done in slices of some 64 records. A small file goes at once; a huge one (a million chunks) is left to
``maintain``, and its inode stays in the table ``orphans``, so that a crash only delays it. The same table holds files
that were cut to a smaller size and still have records beyond it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable

import trio

from hivefs.errors import HivefsError, NotLoaded, PosixError
from hivefs.filesystem.data import Data
from hivefs.filesystem.filemap import SLICE
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.ports import Store
from hivefs.filesystem.references import References
from hivefs.formats.records import xattr_prefix

log = logging.getLogger(__name__)


class Handles:
    """See the head of the file."""

    def __init__(self, store: Store, inodes: Inodes, data: Data, clock: Callable[[], int]) -> None:
        self._store = store
        self._inodes = inodes
        self._data = data
        self._clock = clock
        self._known = References()
        self._stuck: set[int] = set()

    def open(self, ino: int, flags: int) -> Live:
        """See Filesystem.open."""
        live = self._inodes.get(ino)
        if flags & os.O_TRUNC and stat.S_ISREG(live.mode):
            now = self._clock()
            self._data.set_size(live, 0, now)
            live.mtime_ns = live.ctime_ns = now
            self._inodes.touch(live)
        live.opens += 1
        return live

    def release(self, ino: int) -> None:
        """See Filesystem.release."""
        live = self._inodes.get(ino)
        live.opens = max(0, live.opens - 1)
        if not live.nlink:
            self._try_reap(live)

    def remembered(self, ino: int, count: int) -> None:
        """See Filesystem.remembered."""
        self._known.add(ino, count)

    def remembered_all(self, inos: Iterable[int]) -> None:
        """See Filesystem.remembered_all."""
        add = self._known.add
        for ino in inos:
            add(ino, 1)

    def forget(self, ino: int, count: int) -> None:
        """See Filesystem.forget."""
        if self._known.drop(ino, count):
            return
        if ino in self._inodes.orphans:
            try:
                live = self._inodes.get(ino)
            except (PosixError, NotLoaded, HivefsError):
                return
            if not live.nlink:
                self._try_reap(live)

    def gone(self, live: Live) -> None:
        """It has no name any more."""
        self._inodes.orphaned(live.ino)
        self._try_reap(live)

    # ---- reaping ----------------------------------------------------------------------------------------------------

    def _try_reap(self, live: Live) -> None:
        """Remove a small one at once. What cannot be done now is left to maintain."""
        if live.opens or live.ino in self._known:
            return
        try:
            self._step(live)
        except (PosixError, NotLoaded, HivefsError) as error:
            log.info("inode %d is removed later (%s)", live.ino, type(error).__name__)

    def _step(self, live: Live) -> bool:
        """One slice; whether the inode is done with."""
        if live.nlink:
            if self._data.sweep(live):
                self._inodes.reaped(live.ino)
                return True
            return False
        if stat.S_ISREG(live.mode):
            if not self._data.empty_small(live):
                live.size, live.tidy = 0, False
            if not live.tidy:
                if not self._data.sweep(live):
                    return False
                live.tidy = True
        if not live.plain:
            keys = self._store.keys(xattr_prefix(live.ino), limit=SLICE)
            for key in keys:
                self._store.delete(key)
            if len(keys) == SLICE:
                return False
        self._inodes.discard(live)
        self._inodes.reaped(live.ino)
        return True

    async def reap(self) -> None:
        """Do what is to be done now, giving up the turn after every slice (under a millisecond)."""
        for ino in list(self._inodes.orphans):
            if ino in self._known or ino in self._stuck:
                continue
            try:
                while ino in self._inodes.orphans:
                    live = self._inodes.get(ino)
                    if not live.nlink and (live.opens or ino in self._known):
                        break
                    if self._step(live):
                        break
                    await trio.lowlevel.checkpoint()
            except NotLoaded:
                continue
            except PosixError as error:
                if error.errno == errno.ENOENT:
                    self._inodes.reaped(ino)
                else:
                    self._stuck.add(ino)
            await trio.lowlevel.checkpoint()
