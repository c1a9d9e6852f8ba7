"""Reading names: directory entries, lookup, listing.

The cookie of an entry is the first 63 bits of the keyed hash of its name, which is also the order of the keys: a listing
goes on behind a cookie whatever was added or removed meanwhile, and meets every entry that stays exactly once.

A new file is looked up before it is made, and a name before it is renamed over: the kernel asks although it has just been
told. So the last REMEMBERED names are kept with what they lead to, and nobody but ``enter`` and ``leave`` changes a name's
record.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from hivefs.errors import Corrupt, PosixError, UnknownVersion
from hivefs.filesystem.inodes import Inodes, Live, log
from hivefs.filesystem.ports import Store
from hivefs.formats.records import dirent_fields, dirent_from_bytes, dirent_key, dirent_prefix, dirent_to_bytes
from hivefs.model.ids import MAX_NAME_BYTES
from hivefs.model.inode import Dirent, Inode

_KEY_HEAD, _KEY_END = 9, 17
_DOT, _DOTDOT, _FIRST = 1, 2, 3
_LAST_COOKIE = (1 << 63) - 1

REMEMBERED = 256
"""Names whose records are kept decoded (0.3 KB each, with a long name 0.6). When there are as many, all are forgotten."""


def check_name(name: bytes) -> None:
    """ENAMETOOLONG, EINVAL."""
    if len(name) > MAX_NAME_BYTES:
        raise PosixError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise PosixError(errno.EINVAL)


def check_new_name(name: bytes) -> None:
    """The same, and EEXIST for the two names that every directory has."""
    check_name(name)
    if name in (b".", b".."):
        raise PosixError(errno.EEXIST)


@dataclass(slots=True, eq=False)
class Place:
    """Where a name's record lies, and what it says, also after ``enter`` and ``leave`` (None: there is no such name)."""

    key: bytes
    entry: Dirent | None


class Names:
    """See the head of the file."""

    def __init__(self, store: Store, inodes: Inodes) -> None:
        self._store = store
        self._inodes = inodes
        self._places: dict[tuple[int, bytes], Place] = {}

    def place(self, directory: int, name: bytes) -> Place:
        """The record of a name. EIO; raises NotLoaded."""
        place = self._places.get((directory, name))
        if place is None or self._store.failed:  # then nothing is answered any more, see metadata/transaction.py
            place = self._read(directory, name)
            if len(self._places) >= REMEMBERED:
                self._places.clear()
            self._places[directory, name] = place
        return place

    def enter(self, place: Place, name: bytes, live: Live) -> None:
        """Let the name at this place lead to that inode."""
        entry = Dirent(name, live.ino, live.mode >> 12)
        self._store.put(place.key, dirent_to_bytes(entry))
        place.entry = entry

    def leave(self, place: Place) -> None:
        """Remove the name at this place."""
        self._store.delete(place.key)
        place.entry = None

    def _read(self, directory: int, name: bytes) -> Place:
        store = self._store
        key = dirent_key(directory, store.name_hash(directory, name))
        try:
            value = store.get(key)
            if value is None:
                return Place(key, None)
            entry = dirent_from_bytes(value)
        except (Corrupt, UnknownVersion) as error:
            self._inodes.damage("a name", directory, error)
        if entry.name != name:
            self._inodes.damage("a name (it is another)", directory)
        return Place(key, entry)

    def lookup(self, parent: int, name: bytes) -> Live:
        """See Filesystem.lookup."""
        self._inodes.trim()
        directory = self._inodes.directory(parent)
        if name == b".":
            return directory
        if name == b"..":
            return self._inodes.get(directory.parent)
        check_name(name)
        entry = self.place(parent, name).entry
        if entry is None:
            raise PosixError(errno.ENOENT)
        live = self._inodes.get(entry.ino)
        if not live.parent and live.nlink:
            live.parent = parent
            self._inodes.touch(live)
        return live

    def is_empty(self, ino: int) -> bool:
        """Whether a directory has no names. Raises NotLoaded."""
        return not self._store.keys(dirent_prefix(ino), limit=1)

    def listing(self, ino: int, cookie: int) -> Iterator[tuple[int, bytes, Inode]]:
        """See Filesystem.readdir."""
        self._inodes.trim()
        directory = self._inodes.directory(ino)
        if cookie < _DOT:
            yield _DOT, b".", directory
        if cookie < _DOTDOT:
            yield _DOTDOT, b"..", self._inodes.get(directory.parent)
        prefix = dirent_prefix(ino)
        start = b""
        if cookie >= _FIRST:
            if cookie >= _LAST_COOKIE:
                return
            start = prefix + (cookie + 1 << 1).to_bytes(8, "big")
        cached = self._inodes.cached
        for slice_ in self._store.scan_slices(prefix, start):
            self._inodes.trim()
            for key, value in slice_:
                try:
                    fields = None if value is None else dirent_fields(value)
                except (Corrupt, UnknownVersion):
                    fields = None
                if fields is None:
                    log.error("a name in directory %d cannot be used", ino)
                    continue
                name, child, kind = fields
                at = int.from_bytes(key[_KEY_HEAD:_KEY_END], "big") >> 1
                yield at if at > _FIRST else _FIRST, name, cached(child) or self._shown(child, kind)

    def _shown(self, ino: int, kind: int) -> Inode:
        """The inode, or one without any permission in the place of one that is damaged."""
        try:
            return self._inodes.get(ino)
        except PosixError:
            return Inode(ino, kind << 12)
