"""The cache of inodes: decoded once, changed in place, saved when the transaction is committed.

A ``Live`` inode is unique while anybody may hold it: it leaves the cache only in ``trim``, which the public calls make
at their start, and only when it is clean and not open. So an operation may keep several of them, but nothing may be kept
over an await.

Everything changed here is put into the open transaction by ``flush`` right before each commit; a commit therefore holds
a state of the drive as it was at one moment, names and inodes together.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

from hivefs.errors import Corrupt, HivefsError, PosixError, UnknownVersion
from hivefs.filesystem.ports import Store
from hivefs.formats.local import local_inode_fields, local_inode_to_bytes
from hivefs.formats.records import inode_key
from hivefs.model.inode import Inode

log = logging.getLogger(__name__)

CACHED = 20_000
"""Clean inodes kept decoded (about 0.6 KB each)."""

TRIMMED = 256
"""So many more are let go than have to be: a fifth of a millisecond."""

_DAY_NS = 86_400_000_000_000

MAX_TOLD = 1000
"""So many complaints are remembered, to make each once."""


@dataclass(slots=True, eq=False, repr=False)
class Live(Inode):
    """An inode in the cache.

    ``changed_seq`` and ``link_seq`` are the commits of the last change of anything, and of the last change of its name.
    ``plain`` says that it is known to have no extended attributes, ``tidy`` that no record lies beyond its size, ``saved``
    that the store has a record of it.
    """

    changed_seq: int = 0
    link_seq: int = 0
    opens: int = 0
    saved: bool = False
    dirty: bool = False
    quiet: bool = True
    plain: bool = False
    tidy: bool = False


class Inodes:
    """See the head of the file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[int, Live] = {}
        self._dirty: dict[int, Live] = {}
        self._told: set[tuple[str, int]] = set()
        self.orphans: dict[int, bool] = {}
        """Inodes to be reaped or trimmed -> whether the store has a row for them."""
        for ino in store.orphans():
            self.orphans[ino] = True

    def damage(self, what: str, ino: int, error: HivefsError | None = None) -> NoReturn:
        """EIO to the caller; one line in the log, which names no name, for the same thing of the same inode."""
        if (what, ino) not in self._told:
            if len(self._told) >= MAX_TOLD:
                self._told.clear()
            self._told.add((what, ino))
            log.error("%s of inode %d cannot be used%s", what, ino, "" if error is None else f" ({error})")
        raise PosixError(errno.EIO) from None

    def get(self, ino: int) -> Live:
        """The inode; ENOENT, EIO. Raises NotLoaded."""
        live = self._cache.get(ino)
        return self._load(ino) if live is None else live

    @property
    def cached(self) -> Callable[[int], Live | None]:
        """The inode if it is decoded already."""
        return self._cache.get

    def _load(self, ino: int) -> Live:
        try:
            value = self._store.get(inode_key(ino))
            if value is None:
                raise PosixError(errno.ENOENT)
            fields, changed_seq, link_seq = local_inode_fields(value)
            if fields[0] != ino:
                raise Corrupt(what="an inode record", reason="it is another's")
        except (Corrupt, UnknownVersion) as error:
            self.damage("the record", ino, error)
        live = Live(*fields)
        live.changed_seq, live.link_seq, live.saved = changed_seq, link_seq, True
        self._cache[ino] = live
        return live

    def directory(self, ino: int) -> Live:
        """The same for a directory; ENOTDIR otherwise."""
        live = self._cache.get(ino)
        if live is None:
            live = self._load(ino)
        if live.mode & 0o170000 != stat.S_IFDIR:
            raise PosixError(errno.ENOTDIR)
        return live

    def file(self, ino: int) -> Live:
        """The same for a regular file; EISDIR or EINVAL otherwise."""
        live = self._cache.get(ino)
        if live is None:
            live = self._load(ino)
        if live.mode & 0o170000 != stat.S_IFREG:
            raise PosixError(errno.EISDIR if stat.S_ISDIR(live.mode) else errno.EINVAL)
        return live

    def add(self, live: Live) -> None:
        """A new inode."""
        self._cache[live.ino] = live
        self.touch(live)

    def touch(self, live: Live) -> None:
        """It was changed: save it with the next commit."""
        live.quiet = False
        if not live.dirty:
            live.dirty = True
            self._dirty[live.ino] = live

    def touch_quietly(self, live: Live) -> None:
        """Only its access time was changed: save it, but let no checkpoint begin because of that."""
        if not live.dirty:
            live.dirty = True
            self._dirty[live.ino] = live

    def accessed(self, live: Live, now: int) -> None:
        """It was read. relatime: the access time follows when it is not after the last change, or older than a day."""
        atime = live.atime_ns
        if atime <= live.mtime_ns or atime <= live.ctime_ns or now - atime > _DAY_NS:
            live.atime_ns = now
            self.touch_quietly(live)

    def linked(self, live: Live) -> None:
        """Its own name was changed."""
        live.link_seq = self._store.seq
        self.touch(live)

    def discard(self, live: Live) -> None:
        """It is gone: remove the record and forget it."""
        self._dirty.pop(live.ino, None)
        self._cache.pop(live.ino, None)
        live.dirty = False
        if live.saved:
            self._store.delete(inode_key(live.ino))
            self._store.inodes -= 1

    @property
    def pending(self) -> bool:
        """Whether flush would put something."""
        return bool(self._dirty)

    @property
    def unflushed(self) -> int:
        """How many inodes flush would put."""
        return len(self._dirty)

    def flush(self, most: int | None = None) -> None:
        """Put every changed inode, and the rows of new orphans, into the open transaction; or ``most`` changed inodes."""
        store, seq, dirty = self._store, self._store.seq, self._dirty
        for _ in range(len(dirty) if most is None else min(most, len(dirty))):
            ino, live = dirty.popitem()
            try:
                if not live.quiet:
                    live.changed_seq = seq
                value = local_inode_to_bytes(live, live.changed_seq, live.link_seq)
                store.put(inode_key(ino), value, quiet=live.quiet)
            except BaseException:  # whatever it is, it is not put; raised again
                dirty[ino] = live
                raise
            if not live.saved:
                live.saved = True
                store.inodes += 1
            live.dirty, live.quiet = False, True
        if dirty:
            return
        for ino, has_row in self.orphans.items():
            if not has_row:
                self._store.put_orphan(ino)
                self.orphans[ino] = True

    def orphaned(self, ino: int) -> None:
        """To be reaped, or trimmed to its size."""
        self.orphans.setdefault(ino, False)

    def reaped(self, ino: int) -> None:
        """That is done."""
        if self.orphans.pop(ino, False):
            self._store.delete_orphan(ino)

    def trim(self) -> None:
        """Keep the cache bounded. Only at the start of a public call: see the head of the file."""
        if len(self._cache) <= CACHED:
            return
        surplus = len(self._cache) - CACHED + TRIMMED
        idle = (i for i, live in self._cache.items() if not live.dirty and not live.opens and live.nlink)
        for ino in list(islice(idle, surplus)):
            del self._cache[ino]
