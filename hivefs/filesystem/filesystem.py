"""The drive as POSIX sees it: one class whose methods are the file system calls, without FUSE.

Everything is synchronous (it touches only this machine) but ``read`` of a chunk that is not here, ``fsync``/``syncfs``
(one shared sync and commit for all who wait) and ``maintain``. Answers that are an errno are raised as PosixError;
NotLoaded (after a recovery) passes through and is always raised before anything was changed: load the page, call again.
A HivefsError (StoreDamaged) means that the store is broken: EIO.

An ``Inode`` that comes out of here is the live object of the cache: read its fields, do not keep or change it.

This file wires the parts and says what each call does; the thinking is in names, namespace, attributes, data, xattrs,
handles, commits and durability, on top of three that hold state: inodes, filemap and overlay.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Iterable, Iterator

import trio

from hivefs.errors import PosixError
from hivefs.filesystem.assigned import Assigned
from hivefs.filesystem.attributes import Attributes
from hivefs.filesystem.commits import Commits
from hivefs.filesystem.data import Data
from hivefs.filesystem.durability import Durability
from hivefs.filesystem.filemap import SLICE, FileMaps
from hivefs.filesystem.handles import Handles
from hivefs.filesystem.inodes import Inodes
from hivefs.filesystem.names import Names
from hivefs.filesystem.namespace import Namespace
from hivefs.filesystem.overlay import Overlay
from hivefs.filesystem.ports import ROOT, Caller, Capacity, ChunkSource, Placements, StagePort, Statfs, Store
from hivefs.filesystem.xattrs import Xattrs
from hivefs.formats.records import inode_key
from hivefs.model.ids import ROOT_INO
from hivefs.model.inode import Inode

_CAPACITY = struct.Struct(">QQ")


class Filesystem:
    """See the head of the file. One per store; use it from one trio thread only."""

    def __init__(
        self,
        store: Store,
        stage: StagePort,
        chunks: ChunkSource,
        *,
        clock: Callable[[], int],
        placements: Placements | None = None,
        owner: tuple[int, int] = (0, 0),
        slice_records: int = SLICE,
    ) -> None:
        """``clock`` gives nanoseconds since 1970; ``owner`` is uid and gid of the root directory, which is made (and
        committed) in an empty store; ``slice_records`` bounds how much of a huge file is removed in one step.
        """
        self.clock = clock
        self.store = store
        self.stage = stage
        self.inodes = Inodes(store)
        self._maps = FileMaps(store, self.inodes, slice_records)
        self.overlay = Overlay(store, stage, self._maps, self.inodes)
        self._names = Names(store, self.inodes)
        self.assigned = Assigned(self.inodes, self._names, placements, clock)
        self.durability = Durability(store, self.inodes, self._names, self._maps, self.overlay, placements, self.assigned)
        self._xattrs = Xattrs(store, self.inodes, clock, self.durability.virtual)
        self._data = Data(self.inodes, self._maps, self.overlay, stage, chunks, clock, self._xattrs.drop_capability)
        self._handles = Handles(store, self.inodes, self._data, clock)
        self._namespace = Namespace(store, self.inodes, self._names, self._xattrs, clock, self._handles.gone)
        self._attributes = Attributes(store, self.inodes, self._data, self.overlay, self._xattrs, clock)
        self.commits = Commits(store, stage, self.inodes, self.overlay, self._data, self._handles)
        saved = store.get_info(b"capacity")
        if saved is not None and len(saved) == _CAPACITY.size:
            self._data.capacity = Capacity(*_CAPACITY.unpack(saved))
        if not store.hydrating and store.get(inode_key(ROOT_INO)) is None:
            self._namespace.make_root(*owner)
            self.commits.now()
        self.commits.begin()

    # ---- names ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode under a name ('.' and '..' too). ENOENT, ENOTDIR, ENAMETOOLONG."""
        return self._names.lookup(parent, name)

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new regular file; ``mode`` as of open(2). The umask of the caller is applied, or the default ACL. EEXIST."""
        return self._namespace.make(parent, name, stat.S_IFREG | mode & 0o7777, caller)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new directory."""
        return self._namespace.make(parent, name, stat.S_IFDIR | mode & 0o7777, caller)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        """A new fifo, socket, device or regular file, by the type bits of ``mode``."""
        return self._namespace.mknod(parent, name, mode, rdev, caller)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        """A new symbolic link; ENAMETOOLONG when the target is longer than 4095 bytes."""
        return self._namespace.symlink(parent, name, target, caller)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for a file. EPERM for directories, EMLINK."""
        return self._namespace.link(ino, parent, name)

    def unlink(self, parent: int, name: bytes) -> int:
        """Remove a name; the file goes with its last name, last open handle and last kernel reference. Returns its inode
        number when it has other names, else 0.
        """
        return self._namespace.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. ENOTEMPTY."""
        self._namespace.rmdir(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> int:
        """rename(2) and renameat2(2): ``flags`` 0, 1 (NOREPLACE) or 2 (EXCHANGE). Returns the inode number of a file that
        lost its name to this one and has others, else 0.
        """
        fewer = self._namespace.rename(parent, name, new_parent, new_name, flags)
        self.assigned.renamed(parent, name, new_parent, new_name)
        return fewer

    def readlink(self, ino: int) -> bytes:
        """Where a symbolic link points. EINVAL when it is none."""
        live = self.inodes.get(ino)
        if not stat.S_ISLNK(live.mode):
            raise PosixError(errno.EINVAL)
        self.inodes.accessed(live, self.clock())
        return live.target

    def readdir(self, ino: int, cookie: int = 0) -> Iterator[tuple[int, bytes, Inode]]:
        """(cookie, name, inode) of what comes after ``cookie`` (0: the start), b"." and b".." first.

        A cookie stays right while the directory changes. The kernel counts no lookup for '.' and '..': remember others
        only. An entry whose inode is damaged comes with mode bits 0.
        """
        return self._names.listing(ino, cookie)

    def listed(self, ino: int) -> None:
        """Names of this directory were handed out: its access time follows as relatime."""
        self.inodes.accessed(self.inodes.directory(ino), self.clock())

    # ---- attributes -------------------------------------------------------------------------------------------------

    def getattr(self, ino: int) -> Inode:
        """ESTALE-free: ENOENT when there is no such inode."""
        return self.inodes.get(ino)

    def setattr(
        self,
        ino: int,
        *,
        caller: Caller = ROOT,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Inode:
        """Change what is given (permission bits only of ``mode``); ctime becomes now unless given.

        ``caller`` decides about set-uid and set-gid. Nothing given at all: what a write by the caller does to them; only
        ``ctime_ns``: chown(-1, -1).
        """
        return self._attributes.setattr(ino, caller, mode, uid, gid, size, atime_ns, mtime_ns, ctime_ns)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """ENODATA when it is not set."""
        return self._xattrs.get(ino, name)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, caller: Caller = ROOT) -> None:
        """``flags`` 0, 1 (XATTR_CREATE: EEXIST) or 2 (XATTR_REPLACE: ENODATA).

        An access ACL (system.posix_acl_access) changes the mode too; ``caller`` may lose the file its set-gid bit then.
        """
        self._xattrs.set(ino, name, value, flags, caller)

    def listxattr(self, ino: int) -> list[bytes]:
        """Names that were set (the virtual user.hivefs.* are not listed, so that copying tools leave them alone)."""
        return self._xattrs.names(ino)

    def removexattr(self, ino: int, name: bytes, caller: Caller = ROOT) -> None:
        """ENODATA when it is not set (and is no ACL). ``caller`` counts for a capability that the kernel takes."""
        self._xattrs.remove(ino, name, caller)

    def statfs(self) -> Statfs:
        """Free space of the hive as last reported; of the local disk before any report."""
        return self._attributes.statfs()

    # ---- handles and data -------------------------------------------------------------------------------------------

    def open(self, ino: int, flags: int = 0) -> Inode:
        """Count one open handle of a file or directory. O_TRUNC is obeyed."""
        return self._handles.open(ino, flags)

    def release(self, ino: int) -> None:
        """Count one handle less."""
        self._handles.release(ino)

    def remembered(self, ino: int, count: int = 1) -> None:
        """The kernel was given this inode (lookup, create, mkdir, ..., readdirplus): one more reference."""
        self._handles.remembered(ino, count)

    def remembered_all(self, inos: Iterable[int]) -> None:
        """Each of these once more."""
        self._handles.remembered_all(inos)

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops references. Never raises."""
        self._handles.forget(ino, count)

    def read_now(self, ino: int, offset: int, size: int) -> bytes | None:
        """Bytes of a file, short at its end; None when a chunk is not on this machine. EIO for damage."""
        return self._data.read_now(ino, offset, size)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        """The same, fetching what is missing. EIO (and a log line) when it cannot be had."""
        return await self._data.read(ino, offset, size)

    def write(self, ino: int, offset: int, data: bytes | memoryview, accepted: bool = False) -> int:
        """Stage bytes; all of them or ENOSPC, EFBIG, EIO.

        ``accepted`` says that write(2) has succeeded already (the kernel's write-back cache): such bytes are taken up to
        OVERDRAFT beyond the hive's room, and wait on this machine until there is some. Times and capabilities were
        judged by the kernel at that moment too (it sends them when they differ from ours), so they stay: these bytes may
        come seconds later, after a utimes or a setxattr that was meant to be the last word.
        """
        return self._data.write(ino, offset, data, accepted)

    @property
    def tight(self) -> bool:
        """Whether the hive may have no room for what is written next: then the kernel must not accept it for us."""
        return self._data.tight

    async def fsync(self, ino: int) -> None:
        """What was done to this inode (and everything before it) is on this machine's disk on return."""
        await self.commits.fsync(ino)

    async def syncfs(self) -> None:
        """Everything done before is on this machine's disk on return."""
        await self.commits.syncfs()

    async def maintain(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit every 2 s when something changed, reap deleted files in slices. Runs until cancelled."""
        await self.commits.maintain(task_status)

    def set_capacity(self, capacity: Capacity) -> None:
        """What the hive has room for; kept over restarts."""
        self._data.capacity = capacity
        self.store.put_info(b"capacity", _CAPACITY.pack(capacity.total, capacity.free))

    @property
    def capacity(self) -> Capacity | None:
        """What the hive reported last."""
        return self._data.capacity

    def close(self) -> None:
        """Commit what is open (blocking). The store and the stage are closed by their owner afterwards."""
        if not self.commits.settled:
            self.commits.now(last=True)
