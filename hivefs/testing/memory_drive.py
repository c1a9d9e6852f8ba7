"""The ceiling: a pyfuse3 file system that keeps everything in memory, to measure a drive against.

``python -m hivefs.testing.memory_drive MOUNTPOINT`` runs it as pyfuse3's documentation tells one to write a file system
(its own receive loop, its own FUSE_INIT); with ``--fast`` it runs in the session that a drive uses (fuse/session.py).
The first is what a drive's budgets stand against, the second shows what is left for a drive's own work. It ends when it
is unmounted.
"""

from __future__ import annotations

import argparse
import errno
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from hivefs.fuse.mounting import MountOptions
from hivefs.fuse.session import Session

MIB = 1 << 20
_LARGE = 1 << 40


class Bytes:
    """The contents of one file as pieces of 1 MiB, so that growing copies nothing."""

    def __init__(self) -> None:
        self.pieces: dict[int, bytearray] = {}

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` there."""
        view = memoryview(data)
        while view:
            index, start = divmod(offset, MIB)
            length = min(MIB - start, len(view))
            piece = self.pieces.setdefault(index, bytearray())
            if len(piece) < start:
                piece.extend(bytes(start - len(piece)))
            piece[start : start + length] = view[:length]
            view, offset = view[length:], offset + length

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes; what was never written is zeros."""
        parts: list[bytes | memoryview] = []
        while size > 0:
            index, start = divmod(offset, MIB)
            length = min(MIB - start, size)
            part = memoryview(self.pieces.get(index, b""))[start : start + length]
            parts += [part, bytes(length - len(part))]
            offset, size = offset + length, size - length
        return b"".join(parts)

    def cut(self, size: int) -> None:
        """Forget everything from ``size`` on."""
        index, start = divmod(size, MIB)
        for gone in [i for i in self.pieces if i > index or (i == index and not start)]:
            del self.pieces[gone]
        if index in self.pieces:
            del self.pieces[index][start:]


class MemoryDrive(pyfuse3.Operations):
    """Inodes in dictionaries. Handles are inode numbers. No extended attributes: the kernel asks once and never again."""

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        super().__init__()
        self._clock = clock
        self.attributes: dict[int, pyfuse3.EntryAttributes] = {}
        self.names: dict[int, dict[bytes, int]] = {}
        self.contents: dict[int, Bytes] = {}
        self.targets: dict[int, bytes] = {}
        self._next = pyfuse3.ROOT_INODE
        self._new(stat.S_IFDIR | 0o755, 0, 0)

    def _new(self, mode: int, uid: int, gid: int) -> pyfuse3.EntryAttributes:
        ino, self._next = self._next, self._next + 1
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_uid, entry.st_gid = ino, mode, uid, gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._clock()
        entry.entry_timeout = entry.attr_timeout = 300
        if stat.S_ISDIR(mode):
            entry.st_nlink = 2
            self.names[ino] = {}
        self.attributes[ino] = entry
        return entry

    def _add(self, parent: int, name: bytes, mode: int, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name in self.names[parent]:
            raise pyfuse3.FUSEError(errno.EEXIST)
        entry = self._new(mode, context.uid, context.gid)
        self.names[parent][name] = entry.st_ino
        self._touch(parent)
        return entry

    def _touch(self, ino: int) -> None:
        self.attributes[ino].st_mtime_ns = self.attributes[ino].st_ctime_ns = self._clock()

    def _find(self, parent: int, name: bytes) -> int:
        try:
            return self.names[parent][name]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self.attributes[self._find(parent, name)]

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self.attributes[inode]

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        entry = self.attributes[inode]
        if fields.update_size:
            if inode in self.contents:
                self.contents[inode].cut(attr.st_size)
            entry.st_size = attr.st_size
        if fields.update_mode:
            entry.st_mode = stat.S_IFMT(entry.st_mode) | stat.S_IMODE(attr.st_mode)
        for name in ("uid", "gid"):
            if getattr(fields, f"update_{name}"):
                setattr(entry, f"st_{name}", getattr(attr, f"st_{name}"))
        entry.st_ctime_ns = self._clock()
        for name in ("atime", "mtime", "ctime"):
            if getattr(fields, f"update_{name}"):
                setattr(entry, f"st_{name}_ns", getattr(attr, f"st_{name}_ns"))
        return entry

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        entry = self._add(parent_inode, name, mode, ctx)
        self.contents[entry.st_ino] = Bytes()
        return pyfuse3.FileInfo(fh=entry.st_ino), entry

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        entry = self._add(parent_inode, name, mode, ctx)
        entry.st_rdev = rdev
        self.contents[entry.st_ino] = Bytes()
        return entry

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        self.attributes[parent_inode].st_nlink += 1
        return self._add(parent_inode, name, stat.S_IFDIR | mode, ctx)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        entry = self._add(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        entry.st_size = len(target)
        self.targets[entry.st_ino] = target
        return entry

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return self.targets[inode]

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        if new_name in self.names[new_parent_inode]:
            raise pyfuse3.FUSEError(errno.EEXIST)
        self.names[new_parent_inode][new_name] = inode
        self.attributes[inode].st_nlink += 1
        self._touch(new_parent_inode)
        return self.attributes[inode]

    def _drop(self, ino: int) -> None:
        """One name less. What an open handle still reads stays in ``contents`` until the end: this is a measure."""
        self.attributes[ino].st_nlink -= 1

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self._drop(self._find(parent_inode, name))
        del self.names[parent_inode][name]
        self._touch(parent_inode)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        if self.names[self._find(parent_inode, name)]:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        del self.names[parent_inode][name]
        self.attributes[parent_inode].st_nlink -= 1
        self._touch(parent_inode)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        ino = self._find(parent_inode_old, name_old)
        replaced = self.names[parent_inode_new].get(name_new)
        if replaced == ino:
            return
        if replaced is not None:
            if self.names.get(replaced):
                raise pyfuse3.FUSEError(errno.ENOTEMPTY)
            self._drop(replaced)
        del self.names[parent_inode_old][name_old]
        self.names[parent_inode_new][name_new] = ino
        self._touch(parent_inode_old)
        self._touch(parent_inode_new)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for ino, name in sorted((ino, name) for name, ino in self.names[fh].items() if ino > start_id):
            if not pyfuse3.readdir_reply(token, name, self.attributes[ino], ino):
                break

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self.contents[fh].read(off, max(0, min(size, self.attributes[fh].st_size - off)))

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.contents[fh].write(off, buf)
        entry = self.attributes[fh]
        entry.st_size = max(entry.st_size, off + len(buf))
        entry.st_blocks = (entry.st_size + 511) // 512
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def releasedir(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = _LARGE // 4096
        data.f_files = data.f_ffree = data.f_favail = 1 << 30
        data.f_namemax = 255
        return data


def main(arguments: Sequence[str]) -> None:
    """Mount and serve until unmounted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--fast", action="store_true", help="in the session that a drive uses")
    chosen = parser.parse_args(arguments)
    if chosen.fast:
        session = Session(MemoryDrive(), chosen.mountpoint, MountOptions())
        session.open()
        trio.run(session.run)
        return
    pyfuse3.init(MemoryDrive(), str(chosen.mountpoint), {"default_permissions", "fsname=memory"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(sys.argv[1:])
