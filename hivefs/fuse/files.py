"""Requests about the bytes and attributes of one inode: open, read, write, fsync, getattr, setattr, xattrs, statfs.

When set-uid, set-gid and capabilities go (fuse/handshake.py has the reason that it is ours to do):

* A write(2) that takes them is announced by the kernel with a SETATTR that changes nothing (its ``file_remove_privs``),
  and only when it must: not for root, not for what a mapping writes back. So WRITE itself, which does not say who wrote,
  leaves the mode alone.
* A file opened past the cache (DIRECT) is written to without that announcement: there the opener counts.
* chown(-1, -1) comes as a SETATTR with nothing but the ctime; truncation and other chown as themselves.
"""

from __future__ import annotations

import errno
import stat
from typing import Any, Final

import pyfuse3

from hivefs.errors import PosixError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Caller
from hivefs.fuse.answers import FewerNames, Loader, answering, answering_slowly, caller_of, entry_of, settle

DIRECT: Final = 1 << 60
"""Set in the handle of a file that was opened past the kernel's write-back cache."""
STRANGER: Final = 1 << 61
"""Set beside DIRECT when it was not root who opened the file."""
INO: Final = DIRECT - 1
SET_ID: Final = stat.S_ISUID | stat.S_ISGID
NOBODY: Final = Caller(65534, 65534)


def file_info(fs: Filesystem, ino: int, uid: int) -> pyfuse3.FileInfo:
    """How the kernel treats a newly opened file. Its write-back cache accepts bytes long before we see them, so where
    there may be no room for them the file is opened past it: then ENOSPC is the answer to write(2) itself.
    """
    if fs.tight:
        handle = ino | DIRECT | (STRANGER if uid else 0)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), direct_io=True, keep_cache=False)
    return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(ino))


class Files:
    """See the head of the file. The handle of an open file is its inode number, perhaps with DIRECT and STRANGER."""

    fs: Filesystem
    load: Loader
    fewer: FewerNames
    enable_acl: bool

    @answering
    def open(self, ino: int, flags: int, context: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Count a handle. The kernel keeps what it has cached of the file: nobody else writes to it.

        O_TRUNC does not arrive here, the kernel makes a setattr of it (fuse/handshake.py).
        """
        self.fs.open(ino, flags)
        return file_info(self.fs, ino, context.uid)

    @answering
    def release(self, handle: int) -> None:
        """The handle is closed."""
        self.fs.release(handle & INO)

    async def flush(self, ino: int) -> None:
        """Nothing is buffered per handle: ENOSYS tells the kernel not to ask at each close(2) again."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """At most ``size`` bytes; waits only when a chunk is not on this machine."""
        ino = handle & INO
        try:
            data = self.fs.read_now(ino, offset, size)
            return await self.fs.read(ino, offset, size) if data is None else data
        except Exception as problem:  # noqa: BLE001 - see fuse_error
            return await settle(self, lambda: self.fs.read(ino, offset, size), problem)

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """All of ``data`` or an error."""
        try:
            return self._write(handle, offset, data)
        except Exception as problem:  # noqa: BLE001 - see fuse_error
            return await settle(self, lambda: self._write(handle, offset, data), problem)

    def _write(self, handle: int, offset: int, data: bytes) -> int:
        ino = handle & INO
        if handle & STRANGER and self.fs.getattr(ino).mode & SET_ID:
            self.fs.setattr(ino, caller=NOBODY)
        return self.fs.write(ino, offset, data, not handle & DIRECT)

    @answering_slowly
    async def fsync(self, handle: int, data_only: bool) -> None:
        """On this machine's disk on return."""
        await self.fs.fsync(handle & INO)

    @answering_slowly
    async def fsyncdir(self, ino: int, data_only: bool) -> None:
        """The same for the names in a directory."""
        await self.fs.fsync(ino)

    # ---- attributes -------------------------------------------------------------------------------------------------

    @answering
    def getattr(self, ino: int, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """What stat(2) shows."""
        return self.fewer.kept(entry_of(self.fs.getattr(ino)))

    @answering
    def setattr(
        self,
        ino: int,
        wanted: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        handle: int | None,
        context: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """chmod, chown, truncate, utimens, and the times that the write-back cache hands in."""
        changes: dict[str, Any] = {}
        if fields.update_mode:
            changes["mode"] = wanted.st_mode
        if fields.update_uid:
            changes["uid"] = wanted.st_uid
        if fields.update_gid:
            changes["gid"] = wanted.st_gid
        if fields.update_size:
            changes["size"] = wanted.st_size
        if fields.update_atime:
            changes["atime_ns"] = wanted.st_atime_ns
        if fields.update_mtime:
            changes["mtime_ns"] = wanted.st_mtime_ns
        if fields.update_ctime:
            changes["ctime_ns"] = wanted.st_ctime_ns
        return self.fewer.kept(entry_of(self.fs.setattr(ino, caller=caller_of(context), **changes)))

    @answering
    def getxattr(self, ino: int, name: bytes, context: pyfuse3.RequestContext) -> bytes:
        """The value of an extended attribute."""
        return self.fs.getxattr(ino, name)

    @answering
    def listxattr(self, ino: int, context: pyfuse3.RequestContext) -> list[bytes]:
        """Names of the extended attributes; trusted ones are shown to root only, as the kernel does elsewhere."""
        names = self.fs.listxattr(ino)
        return names if context.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @answering
    def setxattr(self, ino: int, name: bytes, value: bytes, context: pyfuse3.RequestContext) -> None:
        """Set one. pyfuse3 has judged XATTR_CREATE and XATTR_REPLACE by asking getxattr before.

        POSIX ACLs are refused where the kernel does not enforce them: a stored one would be a promise not kept.
        """
        if name.startswith(b"system.") and not self.enable_acl:
            raise PosixError(errno.EOPNOTSUPP)
        self.fs.setxattr(ino, name, value, 0, caller_of(context))

    @answering
    def removexattr(self, ino: int, name: bytes, context: pyfuse3.RequestContext) -> None:
        """Remove one."""
        if name.startswith(b"system.") and not self.enable_acl:
            raise PosixError(errno.EOPNOTSUPP)
        self.fs.removexattr(ino, name, caller_of(context))

    @answering
    def statfs(self, context: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """What df(1) shows."""
        given = self.fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = given.block_size
        data.f_blocks, data.f_bfree, data.f_bavail = given.blocks, given.free, given.available
        data.f_files = given.files
        data.f_ffree = data.f_favail = given.files_free
        data.f_namemax = given.name_max
        return data
