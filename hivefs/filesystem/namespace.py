"""Changing names: create, link, unlink, rmdir, rename, with the rules of POSIX as ext4 keeps them.

Permissions are the kernel's (default_permissions). Every operation reads all it needs before it changes anything, so
NotLoaded and errors leave the drive as it was.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from hivefs.errors import PosixError
from hivefs.filesystem.acl import DEFAULT
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.names import Names, Place, check_name, check_new_name
from hivefs.filesystem.ports import Caller, Store
from hivefs.filesystem.xattrs import Xattrs
from hivefs.model.ids import ROOT_INO

MAX_LINKS = 65_000
"""As ext4: names of one file. (Directories in one directory: as many as 32 bits count.)"""

MAX_TARGET_BYTES = 4095
DIRECTORY_SIZE = 4096
"""Shown as the size of every directory."""

NOREPLACE, EXCHANGE = 1, 2
_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_FORMAT = 0o170000


class Namespace:
    """See the head of the file. ``gone`` is told of an inode that has no name any more."""

    def __init__(
        self,
        store: Store,
        inodes: Inodes,
        names: Names,
        xattrs: Xattrs,
        clock: Callable[[], int],
        gone: Callable[[Live], None],
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._names = names
        self._xattrs = xattrs
        self._clock = clock
        self._gone = gone

    # ---- making -----------------------------------------------------------------------------------------------------

    def make_root(self, uid: int = 0, gid: int = 0) -> None:
        """The root directory of an empty store."""
        now = self._clock()
        root = Live(
            ROOT_INO,
            stat.S_IFDIR | 0o755,
            nlink=2,
            uid=uid,
            gid=gid,
            size=DIRECTORY_SIZE,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
            parent=ROOT_INO,
            plain=True,
        )
        self._inodes.add(root)
        self._inodes.linked(root)

    def make(self, parent: int, name: bytes, mode: int, caller: Caller, rdev: int = 0, target: bytes = b"") -> Live:
        """A new inode of the type in ``mode``, under a new name."""
        directory = self._inodes.directory(parent)
        check_new_name(name)
        place = self._names.place(parent, name)
        if place.entry is not None:
            raise PosixError(errno.EEXIST)
        if not directory.nlink:
            raise PosixError(errno.ENOENT)
        kind = mode & _FORMAT
        gid = caller.gid
        default = access = None
        if kind != stat.S_IFLNK:
            if not directory.plain:
                default = self._xattrs.acl(directory, DEFAULT)
            if default is None:
                mode &= ~(caller.umask & 0o777)
            else:
                access = default.inherited(mode)
                mode = mode & ~0o777 | access.mode
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if kind == stat.S_IFDIR:
                mode |= stat.S_ISGID
            elif mode & 0o2010 == 0o2010 and not caller.belongs_to(gid):
                mode &= ~stat.S_ISGID
        now = self._clock()
        is_directory = kind == stat.S_IFDIR
        live = Live(
            self._store.next_ino(),
            mode & (_FORMAT | 0o7777),
            2 if is_directory else 1,
            caller.uid,
            gid,
            rdev,
            DIRECTORY_SIZE if is_directory else len(target),
            0,
            now,
            now,
            now,
            now,
            parent,
            0,
            target,
            plain=True,
            tidy=True,
        )
        self._names.enter(place, name, live)
        self._inodes.add(live)
        if default is not None and access is not None:
            self._xattrs.inherit(live, default, access)
        live.link_seq = self._store.seq
        self._changed(directory, now, is_directory)
        return live

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Live:
        """See Filesystem.mknod."""
        kind = mode & _FORMAT or stat.S_IFREG
        if kind not in _TYPES:
            raise PosixError(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        if kind not in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = 0
        return self.make(parent, name, kind | mode & 0o7777, caller, rdev)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Live:
        """See Filesystem.symlink."""
        if not target:
            raise PosixError(errno.ENOENT)
        if len(target) > MAX_TARGET_BYTES:
            raise PosixError(errno.ENAMETOOLONG)
        return self.make(parent, name, stat.S_IFLNK | 0o777, caller, 0, target)

    def link(self, ino: int, parent: int, name: bytes) -> Live:
        """See Filesystem.link."""
        live = self._inodes.get(ino)
        directory = self._inodes.directory(parent)
        check_new_name(name)
        place = self._names.place(parent, name)
        if place.entry is not None:
            raise PosixError(errno.EEXIST)
        if stat.S_ISDIR(live.mode):
            raise PosixError(errno.EPERM)
        if not live.nlink or not directory.nlink:
            raise PosixError(errno.ENOENT)
        if live.nlink >= MAX_LINKS:
            raise PosixError(errno.EMLINK)
        now = self._clock()
        self._names.enter(place, name, live)
        live.nlink += 1
        live.ctime_ns = now
        self._inodes.linked(live)
        self._changed(directory, now)
        return live

    # ---- removing ---------------------------------------------------------------------------------------------------

    def unlink(self, parent: int, name: bytes) -> int:
        """See Filesystem.unlink."""
        directory, place, live = self._existing(parent, name)
        if stat.S_ISDIR(live.mode):
            raise PosixError(errno.EISDIR)
        now = self._clock()
        self._names.leave(place)
        self._changed(directory, now)
        return self._drop_link(live, parent, now)

    def rmdir(self, parent: int, name: bytes) -> None:
        """See Filesystem.rmdir."""
        if name == b".":
            raise PosixError(errno.EINVAL)
        if name == b"..":
            raise PosixError(errno.ENOTEMPTY)
        directory, place, live = self._existing(parent, name)
        if not stat.S_ISDIR(live.mode):
            raise PosixError(errno.ENOTDIR)
        if not self._names.is_empty(live.ino):
            raise PosixError(errno.ENOTEMPTY)
        now = self._clock()
        self._names.leave(place)
        self._changed(directory, now, subdirectories=-1)
        self._drop_link(live, parent, now)

    def _existing(self, parent: int, name: bytes) -> tuple[Live, Place, Live]:
        directory = self._inodes.directory(parent)
        if name in (b".", b".."):
            raise PosixError(errno.EISDIR)
        check_name(name)
        place = self._names.place(parent, name)
        if place.entry is None:
            raise PosixError(errno.ENOENT)
        return directory, place, self._inodes.get(place.entry.ino)

    def _drop_link(self, live: Live, parent: int, now: int) -> int:
        """One name of ``live`` is gone (the only one, when it is a directory); its number if it has others, else 0."""
        live.ctime_ns = now
        if stat.S_ISDIR(live.mode):
            live.nlink = 0
        else:
            live.nlink = max(0, live.nlink - 1)
            if live.parent == parent and live.nlink:
                live.parent = 0
        self._inodes.touch(live)
        if not live.nlink:
            self._gone(live)
            return 0
        return live.ino

    # ---- renaming ---------------------------------------------------------------------------------------------------

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> int:
        """See Filesystem.rename."""
        if flags not in (0, NOREPLACE, EXCHANGE):
            raise PosixError(errno.EINVAL)
        source, target = self._inodes.directory(parent), self._inodes.directory(new_parent)
        for one in (name, new_name):
            if one in (b".", b".."):
                raise PosixError(errno.EBUSY)
            check_name(one)
        old, new = self._names.place(parent, name), self._names.place(new_parent, new_name)
        if old.entry is None:
            raise PosixError(errno.ENOENT)
        if new.entry is not None and flags == NOREPLACE:
            raise PosixError(errno.EEXIST)
        if new.entry is None and (flags == EXCHANGE or not target.nlink):
            raise PosixError(errno.ENOENT)
        moved = self._inodes.get(old.entry.ino)
        other = None if new.entry is None else self._inodes.get(new.entry.ino)
        if source is not target:
            if stat.S_ISDIR(moved.mode) and self._is_below(target, moved):
                raise PosixError(errno.EINVAL)
            if other is not None and stat.S_ISDIR(other.mode) and self._is_below(source, other):
                raise PosixError(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if moved is other:
            return 0
        if flags == EXCHANGE and other is not None:
            self._exchange(source, old, name, moved, target, new, new_name, other)
            return 0
        if other is not None:
            self._check_replace(moved, other)
        now = self._clock()
        directory = stat.S_ISDIR(moved.mode)
        self._names.leave(old)
        self._changed(source, now, -1 if directory else 0)
        self._names.enter(new, new_name, moved)
        self._changed(target, now, 1 if directory else 0)
        if directory or moved.parent == parent:
            moved.parent = new_parent
        moved.ctime_ns = now
        self._inodes.linked(moved)
        if other is None:
            return 0
        if stat.S_ISDIR(other.mode):
            target.nlink -= 1
        return self._drop_link(other, new_parent, now)

    def _check_replace(self, moved: Live, other: Live) -> None:
        if stat.S_ISDIR(other.mode):
            if not stat.S_ISDIR(moved.mode):
                raise PosixError(errno.EISDIR)
            if not self._names.is_empty(other.ino):
                raise PosixError(errno.ENOTEMPTY)
        elif stat.S_ISDIR(moved.mode):
            raise PosixError(errno.ENOTDIR)

    def _exchange(
        self,
        source: Live,
        old: Place,
        name: bytes,
        moved: Live,
        target: Live,
        new: Place,
        new_name: bytes,
        other: Live,
    ) -> None:
        now = self._clock()
        self._names.enter(old, name, other)
        self._names.enter(new, new_name, moved)
        balance = int(stat.S_ISDIR(other.mode)) - int(stat.S_ISDIR(moved.mode))
        self._changed(source, now, balance)
        self._changed(target, now, -balance)
        for live, before, after in ((moved, source, target), (other, target, source)):
            if stat.S_ISDIR(live.mode) or live.parent == before.ino:
                live.parent = after.ino
            live.ctime_ns = now
            self._inodes.linked(live)

    def _is_below(self, directory: Live, top: Live) -> bool:
        """Whether ``directory`` is ``top`` or inside it."""
        seen = 0
        while directory is not top:
            if directory.ino == ROOT_INO or not directory.parent or seen > 1 << 20:
                return False
            directory = self._inodes.get(directory.parent)
            seen += 1
        return True

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _changed(self, directory: Live, now: int, subdirectories: int = 0) -> None:
        directory.mtime_ns = directory.ctime_ns = now
        directory.nlink += subdirectories
        self._inodes.touch(directory)
