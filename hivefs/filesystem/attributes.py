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
from hivefs.filesystem.ports import Caller, Statfs, Store
from hivefs.filesystem.xattrs import Xattrs

BLOCK = 4096
_FILES = 1 << 32
_SET_ID = stat.S_ISUID | stat.S_ISGID
_FIRST_NS, _LAST_NS = -(1 << 63), (1 << 63) - 1
"""What an inode record can hold: 1677 to 2262."""


def _held(time_ns: int) -> int:
    """The nearest time that a record can hold, as every file system does with times beyond its range. Without this one
    ``touch -d 2300-01-01`` makes an inode that no commit can put away, and the drive ends.
    """
    return min(max(time_ns, _FIRST_NS), _LAST_NS)


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
        caller: Caller,
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
        chowned = uid is not None or gid is not None
        if mode is None and live.mode & _SET_ID:
            nothing = size is atime_ns is mtime_ns is None and not chowned
            changes_hands = chowned or (nothing and ctime_ns is not None)
            if changes_hands or (caller.uid and (nothing or size is not None)):
                left = self._without_privileges(live, caller)
                if changes_hands and nothing and left != live.mode and caller.uid not in (0, live.uid):
                    self._xattrs.give_back_capability(live, caller)
                    raise PosixError(errno.EPERM)  # the kernel thinks that nothing changes, and lets everybody pass
                live.mode = left
        if chowned:
            if not live.plain and not stat.S_ISDIR(live.mode):
                self._xattrs.drop_capability(live)
            live.uid = live.uid if uid is None else uid
            live.gid = live.gid if gid is None else gid
        if mode is not None:
            live.mode = live.mode & ~0o7777 | mode & 0o7777
            if acl is not None:
                self._xattrs.follow(live, acl)
        if atime_ns is not None:
            live.atime_ns = _held(atime_ns)
        if mtime_ns is not None:
            live.mtime_ns = _held(mtime_ns)
        before, live.ctime_ns = live.ctime_ns, now if ctime_ns is None else _held(ctime_ns)
        self._inodes.touch(live)
        if ctime_ns is not None and not chowned and size is mode is None:
            self._xattrs.times_handed_in(live, before)
        return live

    @staticmethod
    def _without_privileges(live: Live, caller: Caller) -> int:
        """As Linux: set-uid goes; set-gid goes from what its group may run, and from what is of another group."""
        mode = live.mode
        if not stat.S_ISDIR(mode):
            mode &= ~stat.S_ISUID
            if mode & stat.S_IXGRP or not caller.belongs_to(live.gid):
                mode &= ~stat.S_ISGID
        return mode

    def statfs(self) -> Statfs:
        """See Filesystem.statfs."""
        capacity = self._data.capacity
        if capacity is None:
            total, free = self._store.disk()
        else:
            total, free = capacity.total, max(0, capacity.free - self._overlay.bytes)
        return Statfs(BLOCK, total // BLOCK, free // BLOCK, free // BLOCK, _FILES, _FILES - self._store.inodes)
