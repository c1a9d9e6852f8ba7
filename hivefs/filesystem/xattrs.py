"""Extended attributes, and the virtual ones that show a file's durability (user.hivefs.*, read-only, not listed)."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from hivefs.errors import Corrupt, PosixError, UnknownVersion
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.ports import Store
from hivefs.formats.records import xattr_from_bytes, xattr_key, xattr_prefix, xattr_to_bytes

MAX_VALUE_BYTES = 65_536
MAX_LIST_BYTES = 65_536
"""All names of one inode with a zero byte each: what listxattr(2) can hand out."""

CREATE, REPLACE = 1, 2
VIRTUAL = b"user.hivefs."
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_CAPABILITY = b"security.capability"


class Xattrs:
    """See the head of the file. ``virtual`` gives the value of a name that begins with user.hivefs., or None."""

    def __init__(
        self, store: Store, inodes: Inodes, clock: Callable[[], int], virtual: Callable[[int, bytes], bytes | None]
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._clock = clock
        self._virtual = virtual

    def get(self, ino: int, name: bytes) -> bytes:
        """See Filesystem.getxattr."""
        live = self._inodes.get(ino)
        value = self._virtual(ino, name) if name.startswith(VIRTUAL) else self._value(live, name)
        if value is None:
            self._check_name(name)
            raise PosixError(errno.ENODATA)
        return value

    def _value(self, live: Live, name: bytes) -> bytes | None:
        if live.plain:
            return None
        try:
            stored = self._store.get(self._key(live.ino, name))
            if stored is None:
                self._look_whether_plain(live)
                return None
            found, value = xattr_from_bytes(stored)
        except (Corrupt, UnknownVersion) as error:
            self._inodes.damage("an extended attribute", live.ino, error)
        if found != name:
            self._inodes.damage("an extended attribute (it is another)", live.ino)
        return value

    def _look_whether_plain(self, live: Live) -> None:
        """The kernel asks for security.capability again and again: once is enough where nothing is set."""
        if not self._store.keys(xattr_prefix(live.ino), limit=1):
            live.plain = True

    def set(self, ino: int, name: bytes, value: bytes, flags: int) -> None:
        """See Filesystem.setxattr."""
        live = self._inodes.get(ino)
        self._check_change(live, name)
        if len(value) > MAX_VALUE_BYTES:
            raise PosixError(errno.E2BIG)
        if flags not in (0, CREATE, REPLACE):
            raise PosixError(errno.EINVAL)
        before = self._value(live, name)
        if before is None:
            if flags == REPLACE:
                raise PosixError(errno.ENODATA)
            if sum(len(n) + 1 for n in self.names(ino)) + len(name) + 1 > MAX_LIST_BYTES:
                raise PosixError(errno.ENOSPC)
        elif flags == CREATE:
            raise PosixError(errno.EEXIST)
        elif before == value:
            return  # as ext4: nothing changed, so ctime stays (of files the kernel moves it all the same)
        self._store.put(self._key(ino, name), xattr_to_bytes(name, value))
        live.plain = False
        self._changed(live)

    def remove(self, ino: int, name: bytes) -> None:
        """See Filesystem.removexattr."""
        live = self._inodes.get(ino)
        self._check_change(live, name)
        if self._value(live, name) is None:
            raise PosixError(errno.ENODATA)
        self._store.delete(self._key(ino, name))
        self._changed(live)

    def drop_capability(self, live: Live) -> None:
        """A written or chowned file loses its capabilities."""
        if not live.plain and self._value(live, _CAPABILITY) is not None:
            self._store.delete(self._key(live.ino, _CAPABILITY))
            self._inodes.touch(live)

    def names(self, ino: int) -> list[bytes]:
        """See Filesystem.listxattr. A damaged one is left out."""
        live = self._inodes.get(ino)
        if live.plain:
            return []
        found = []
        records = 0
        for _, value in self._store.scan(xattr_prefix(ino)):
            records += 1
            try:
                if value is not None:
                    found.append(xattr_from_bytes(value)[0])
            except (Corrupt, UnknownVersion):
                continue
        live.plain = records == 0
        return found

    def _key(self, ino: int, name: bytes) -> bytes:
        return xattr_key(ino, self._store.name_hash(ino, name))

    def _changed(self, live: Live) -> None:
        live.ctime_ns = self._clock()
        self._inodes.touch(live)

    @staticmethod
    def _check_change(live: Live, name: bytes) -> None:
        if len(name) > 255:
            raise PosixError(errno.ERANGE)
        if name.startswith(VIRTUAL):
            raise PosixError(errno.EPERM)
        Xattrs._check_name(name)
        if not name.startswith(_NAMESPACES):
            raise PosixError(errno.EOPNOTSUPP)
        if name.startswith(b"user.") and not (stat.S_ISREG(live.mode) or stat.S_ISDIR(live.mode)):
            raise PosixError(errno.EPERM)

    @staticmethod
    def _check_name(name: bytes) -> None:
        """As the kernel judges elsewhere: no such namespace, nothing but a namespace."""
        if name in _NAMESPACES:
            raise PosixError(errno.EINVAL)
        if not name.startswith((*_NAMESPACES, b"system.posix_acl_")):
            raise PosixError(errno.EOPNOTSUPP)
