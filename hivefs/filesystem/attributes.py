"""Attributes of inodes: chmod, chown, truncate, times; and what df shows."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from hivefs.errors import PosixError
from hivefs.filesystem.acl import ACCESS
from hivefs.filesystem.data import Data
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.overlay import Overlay
from hivefs.filesystem.ports import Statfs, Store
from hivefs.filesystem.xattrs import Xattrs

BLOCK = 4096
_FILES = 1 << 32


class Attributes:
    """See the head of the file."""

    def __init__(
        self,
        store: Store,
        inodes: Inodes,
        data: Data,
        overlay: Overlay,
        xattrs: Xattrs,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._data = data
        self._overlay = overlay
        self._xattrs = xattrs
        self._clock = clock

    def setattr(
        self,
        ino: int,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        size: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
        ctime_ns: int | None,
    ) -> Live:
        """See Filesystem.setattr."""
        live = self._inodes.get(ino)
        acl = None if mode is None or live.plain else self._xattrs.acl(live, ACCESS)
        now = self._clock()
        if size is not None:
            if not stat.S_ISREG(live.mode):
                raise PosixError(errno.EISDIR if stat.S_ISDIR(live.mode) else errno.EINVAL)
            if size != live.size:
                self._data.set_size(live, size, now)
            live.mtime_ns = now
        if uid is not None or gid is not None:
            if not live.plain:
                self._xattrs.drop_capability(live)
            live.uid = live.uid if uid is None else uid
            live.gid = live.gid if gid is None else gid
            if mode is None and not stat.S_ISDIR(live.mode):
                # As chown(2): a file that changes hands is not set-uid any more.
                live.mode &= ~stat.S_ISUID
                if live.mode & stat.S_IXGRP:
                    live.mode &= ~stat.S_ISGID
        if mode is not None:
            live.mode = live.mode & ~0o7777 | mode & 0o7777
            if acl is not None:
                self._xattrs.follow(live, acl)
        if atime_ns is not None:
            live.atime_ns = atime_ns
        if mtime_ns is not None:
            live.mtime_ns = mtime_ns
        live.ctime_ns = now if ctime_ns is None else ctime_ns
        self._inodes.touch(live)
        return live

    def statfs(self) -> Statfs:
        """See Filesystem.statfs."""
        capacity = self._data.capacity
        if capacity is None:
            total, free = self._store.disk()
        else:
            total, free = capacity.total, max(0, capacity.free - self._overlay.bytes)
        return Statfs(BLOCK, total // BLOCK, free // BLOCK, free // BLOCK, _FILES, _FILES - self._store.inodes)
