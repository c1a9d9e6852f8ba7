"""Extended attributes, and the virtual ones that show a file's durability (user.hivefs.*, read-only, not listed).

POSIX ACLs (filesystem/acl.py) are attributes too: here they are judged, and kept in step with permission bits. An access
ACL that says no more than the bits do is not stored, so a file without a real ACL stays ``plain`` and costs nothing.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from hivefs.errors import Corrupt, PosixError, UnknownVersion
from hivefs.filesystem import acl
from hivefs.filesystem.acl import Acl
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.ports import Caller, Store
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
        self._listed: tuple[Live, int] | None = None
        self._taken: tuple[int, int, bytes, int, int] | None = None
        """The capability that the kernel took last: inode, who it was taken for, value, ctime before and after."""

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

    def set(self, ino: int, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
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
            if self._list_bytes(live) + len(name) + 1 > MAX_LIST_BYTES:
                raise PosixError(errno.ENOSPC)
        elif flags == CREATE:
            raise PosixError(errno.EEXIST)
        elif before == value and name not in acl.NAMES:
            return  # as ext4: nothing changed, so ctime stays (of files the kernel moves it all the same)
        if name in acl.NAMES:
            self._set_acl(live, name, value, before is not None, caller)
        else:
            self._put(live, name, value, new=before is None)
        self._changed(live)

    def _put(self, live: Live, name: bytes, value: bytes, *, new: bool = True) -> None:
        self._store.put(self._key(live.ino, name), xattr_to_bytes(name, value))
        live.plain = False
        if new and self._listed is not None and self._listed[0] is live:
            self._listed = live, self._listed[1] + len(name) + 1

    def _list_bytes(self, live: Live) -> int:
        """How long the list of its names is. Kept for one inode: who sets an attribute sets more of them, and reading
        all records each time made the three-thousandth cost 35 ms.
        """
        if self._listed is None or self._listed[0] is not live:
            self._listed = live, sum(len(name) + 1 for name in self.names(live.ino))
        return self._listed[1]

    def _delete(self, live: Live, name: bytes) -> None:
        self._store.delete(self._key(live.ino, name))
        self._listed = None

    # ---- ACLs -------------------------------------------------------------------------------------------------------

    def _set_acl(self, live: Live, name: bytes, value: bytes, stored: bool, caller: Caller) -> None:
        """As posix_acl_update_mode of the kernel: the bits follow, and who is not of the group takes set-gid away."""
        if name == acl.DEFAULT and value != acl.NOTHING and not stat.S_ISDIR(live.mode):
            raise PosixError(errno.EACCES)
        wanted = acl.parse(value)
        if name == acl.ACCESS and wanted is not None:
            live.mode = live.mode & ~0o777 | wanted.mode
            if live.mode & stat.S_ISGID and not caller.belongs_to(live.gid):
                live.mode &= ~stat.S_ISGID
            if wanted.minimal:
                wanted = None
        if wanted is not None:
            self._put(live, name, wanted.to_bytes(), new=not stored)
        elif stored:
            self._delete(live, name)

    def acl(self, live: Live, name: bytes) -> Acl | None:
        """A stored ACL. EIO when it is damaged; raises NotLoaded."""
        value = self._value(live, name)
        if value is None:
            return None
        try:
            return acl.parse(value)
        except PosixError:
            self._inodes.damage("an ACL", live.ino)

    def follow(self, live: Live, before: Acl) -> None:
        """The permission bits were changed: the access ACL says the same again."""
        after = before.after_chmod(live.mode)
        if after != before:
            self._put(live, acl.ACCESS, after.to_bytes(), new=False)

    def inherit(self, live: Live, default: Acl, access: Acl) -> None:
        """ACLs of a new inode in a directory with a default ACL."""
        if not access.minimal:
            self._put(live, acl.ACCESS, access.to_bytes())
        if stat.S_ISDIR(live.mode):
            self._put(live, acl.DEFAULT, default.to_bytes())

    def remove(self, ino: int, name: bytes, caller: Caller) -> None:
        """See Filesystem.removexattr."""
        live = self._inodes.get(ino)
        self._check_change(live, name)
        before = self._value(live, name)
        if before is None:
            if name in acl.NAMES:
                return  # to have no ACL is not to lack an attribute: as ext4
            raise PosixError(errno.ENODATA)
        ctime = live.ctime_ns
        self._delete(live, name)
        self._changed(live)
        if name == _CAPABILITY:
            self._taken = ino, caller.uid, before, ctime, live.ctime_ns

    def give_back_capability(self, live: Live, caller: Caller) -> None:
        """A chown of nothing is refused, and the kernel took the capability for it right before (fs/attr.c,
        setattr_prepare): it asks us whether the owner is another only after that. Who is not root can have taken one
        in no other way than by a write or a chown.
        """
        taken, self._taken = self._taken, None
        if taken is not None and caller.uid and (taken[0], taken[1], taken[4]) == (live.ino, caller.uid, live.ctime_ns):
            self._put(live, _CAPABILITY, taken[2])
            live.ctime_ns = taken[3]
            self._inodes.touch(live)

    def times_handed_in(self, live: Live, ctime_before: int) -> None:
        """The write-back cache has handed in its times, as it does between the two steps of such a chown."""
        taken = self._taken
        if taken is not None and (taken[0], taken[4]) == (live.ino, ctime_before):
            self._taken = *taken[:4], live.ctime_ns

    def drop_capability(self, live: Live) -> None:
        """A written or chowned file loses its capabilities."""
        if not live.plain and self._value(live, _CAPABILITY) is not None:
            self._delete(live, _CAPABILITY)
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
        if name in acl.NAMES:
            if stat.S_ISLNK(live.mode):
                raise PosixError(errno.EOPNOTSUPP)
        elif not name.startswith(_NAMESPACES):
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
