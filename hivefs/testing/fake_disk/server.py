"""The recording file system: ``python -m hivefs.testing.fake_disk.server MOUNTPOINT SOCKET`` (a connected descriptor).

It keeps everything in memory and answers a change only after the event is in the record, so a test that asks for the
record after a call knows that all of the call is in it. No write-back cache: every write(2) comes here at once, as a
disk would be told of it, and what is mapped into memory (LMDB) stays the same as what was written.

Files named in ``SILENT`` are locks and what LMDB's readers share; they mean nothing after a power cut, and the kernel
writes them when it likes. They are not recorded and never fail.

A request is one JSON line {"fail": errno or 0, "after": n, "lasting": bool, "only": kinds or null, "free": bytes or null,
"dead": bool};
the answer is {"changes": n, "failures": n, "bytes": n} as a line and the record since the last request, ``bytes`` long.
``changes`` counts what could have failed since the last request that armed something.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from hivefs.fuse import mounting
from hivefs.testing.fake_disk.events import Event, Kind
from hivefs.testing.memory_drive import MemoryDrive

SILENT = (b"lock.mdb", b"lock")


@dataclass
class Failures:
    """From the ``after``-th change on (the first is 0), one or all fail with ``code``; only those of kinds ``only``."""

    code: int = 0
    after: int = 0
    lasting: bool = False
    only: frozenset[int] | None = None
    dead: bool = False
    """A sync that fails is not recorded."""
    changes: int = 0
    failures: int = 0

    def check(self, kind: Kind) -> None:
        """Count one change; raises FUSEError when it is to fail."""
        if self.only is not None and kind not in self.only:
            return
        number, self.changes = self.changes, self.changes + 1
        if self.code and (number == self.after or (self.lasting and number > self.after)):
            self.failures += 1
            raise pyfuse3.FUSEError(self.code)


class FakeDisk(MemoryDrive):
    """See the head of the file."""

    enable_writeback_cache = False

    def __init__(self) -> None:
        super().__init__()
        self.record: list[bytes] = []
        self.failures = Failures()
        self.free: int | None = None
        self._silent: set[int] = set()

    def _did(self, event: Event) -> None:
        if event.ino not in self._silent and event.name not in SILENT:
            self.record.append(event.to_bytes())

    def _may(self, kind: Kind, ino: int, name: bytes = b"") -> None:
        if ino not in self._silent and name not in SILENT:
            self.failures.check(kind)

    # ---- names ------------------------------------------------------------------------------------------------------

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._may(Kind.CREATE, parent_inode, name)
        info, entry = await super().create(parent_inode, name, mode, flags, ctx)
        if name in SILENT:
            self._silent.add(entry.st_ino)
        self._did(Event(Kind.CREATE, parent_inode, entry.st_ino, name=name))
        return info, entry

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        self._may(Kind.MKDIR, parent_inode, name)
        entry = await super().mkdir(parent_inode, name, mode, ctx)
        self._did(Event(Kind.MKDIR, parent_inode, entry.st_ino, name=name))
        return entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self._may(Kind.UNLINK, parent_inode, name)
        await super().unlink(parent_inode, name, ctx)
        self._did(Event(Kind.UNLINK, parent_inode, name=name))

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        self._may(Kind.UNLINK, parent_inode, name)
        await super().rmdir(parent_inode, name, ctx)
        self._did(Event(Kind.UNLINK, parent_inode, name=name))

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        self._may(Kind.RENAME, parent_inode_old, name_old)
        await super().rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)
        self._did(Event(Kind.RENAME, parent_inode_old, parent_inode_new, name=name_old, data=name_new))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, _ in inode_list:
            entry = self.attributes.get(ino)
            if entry is not None and entry.st_nlink <= 0:
                self.contents.pop(ino, None)
                del self.attributes[ino]

    # ---- contents ---------------------------------------------------------------------------------------------------

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            self._may(Kind.TRUNCATE, inode)
        entry = await super().setattr(inode, attr, fields, fh, ctx)
        if fields.update_size:
            self._did(Event(Kind.TRUNCATE, inode, offset=attr.st_size))
        return entry

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._may(Kind.WRITE, fh)
        await super().write(fh, off, buf)
        self._did(Event(Kind.WRITE, fh, offset=off, data=bytes(buf)))
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        try:
            self._may(Kind.SYNC, fh)
        except pyfuse3.FUSEError:
            if not self.failures.dead:
                self._did(Event(Kind.FAILED_SYNC, fh))
            raise
        self._did(Event(Kind.SYNC, fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.fsync(fh, datasync)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = await super().statfs(ctx)
        if self.free is not None:
            data.f_bfree = data.f_bavail = self.free // 4096
        return data

    # ---- the other side ---------------------------------------------------------------------------------------------

    def answer(self, request: dict[str, Any]) -> bytes:
        """See the head of the file."""
        failures = self.failures
        head = {"changes": failures.changes, "failures": failures.failures}
        if "fail" in request:
            only = request.get("only")
            kinds = None if only is None else frozenset(only)
            self.failures = Failures(request["fail"], request["after"], request["lasting"], kinds, request["dead"])
            self.free = request["free"]
        record = b"".join(self.record)
        self.record.clear()
        return json.dumps({**head, "bytes": len(record)}).encode() + b"\n" + record

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer requests until the other side is gone."""
        left = b""
        async for data in stream:
            *lines, left = (left + data).split(b"\n")
            for line in lines:
                await stream.send_all(self.answer(json.loads(line)))


async def _run(disk: FakeDisk, connection: socket.socket) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await disk.serve(stream)
            pyfuse3.terminate()

        nursery.start_soon(serve)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main(arguments: Sequence[str]) -> None:
    """Mount and serve until the socket is closed or the disk is unmounted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("socket", type=int)
    chosen = parser.parse_args(arguments)
    connection = socket.socket(fileno=os.dup(chosen.socket))
    connection.setblocking(False)
    disk = FakeDisk()
    pyfuse3.init(disk, str(chosen.mountpoint), {"default_permissions", "fsname=fakedisk"})
    try:
        os.write(chosen.socket, b"mounted\n")
        trio.run(_run, disk, connection)
    finally:
        pyfuse3.close(unmount=False)
        command = mounting.unmount_command(chosen.mountpoint, lazy=True)  # whoever still uses it
        subprocess.run(command, capture_output=True, check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
