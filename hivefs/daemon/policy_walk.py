"""Walking over the committed metadata for questions about policies: paths, files, their chunks. Memory does not grow with
the number of files or of the names in a directory, but for a bit for each file (one with several names counts once).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final, Protocol

from hivefs.errors import Corrupt, PathNotInDrive, UnknownVersion
from hivefs.formats import records
from hivefs.model.ids import ROOT_INO, ChunkId
from hivefs.model.inode import SlotKind

_PAGE_BITS: Final = 15


class Snapshot(Protocol):
    """A committed state (metadata/snapshot.py)."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, start: bytes = ...) -> Iterator[tuple[bytes, bytes | None]]: ...
    def staged(self) -> Iterator[tuple[int, int, bytes | None]]: ...


File = tuple[int, str]
"""An inode and the path that it was found at."""


class Inodes:
    """A set of inode numbers: a bit for each, in pages of 4 KiB. They are counted up (model/ids.py), so pages are full."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, ino: int) -> bool:
        """Whether it was not there before."""
        page = self._pages.get(ino >> _PAGE_BITS)
        if page is None:
            page = self._pages[ino >> _PAGE_BITS] = bytearray(1 << (_PAGE_BITS - 3))
        at, bit = (ino & ((1 << _PAGE_BITS) - 1)) >> 3, 1 << (ino & 7)
        if page[at] & bit:
            return False
        page[at] |= bit
        return True

    def __contains__(self, ino: int) -> bool:
        page = self._pages.get(ino >> _PAGE_BITS)
        return page is not None and bool(page[(ino & ((1 << _PAGE_BITS) - 1)) >> 3] & (1 << (ino & 7)))


def inode_at(snapshot: Snapshot, names_key: bytes, path: str) -> int:
    """The inode of an absolute path. Links are not followed. Raises PathNotInDrive, Corrupt."""
    ino = ROOT_INO
    for part in path.strip("/").split("/") if path.strip("/") else []:
        name = part.encode("utf-8", "surrogateescape")
        value = snapshot.get(records.dirent_key(ino, records.name_hash(names_key, ino, name)))
        if value is None:
            raise PathNotInDrive(path=path)
        ino = records.dirent_from_bytes(value).ino
    return ino


def files_below(snapshot: Snapshot, ino: int, path: str) -> Iterator[File]:
    """All regular files at and below a path, each name of a file with several. A damaged record is left out; 'hivefs check'
    finds it.
    """
    value = snapshot.get(records.inode_key(ino))
    if value is None:
        return
    mode = records.inode_from_bytes(value).mode
    if stat.S_ISREG(mode):
        yield ino, path
    open_ones = [_entries(snapshot, ino, path.rstrip("/"))] if stat.S_ISDIR(mode) else []
    while open_ones:  # the way down to where we are, and nothing of what is still to come
        for number, below, kind in open_ones[-1]:
            if stat.S_ISDIR(kind):
                open_ones.append(_entries(snapshot, number, below))
                break
            if stat.S_ISREG(kind):
                yield number, below
        else:
            open_ones.pop()


def _entries(snapshot: Snapshot, directory: int, at: str) -> Iterator[tuple[int, str, int]]:
    for _, found in snapshot.scan(records.dirent_prefix(directory)):
        try:
            if found is not None:
                name, ino, kind = records.dirent_fields(found)
                yield ino, f"{at}/{name.decode('utf-8', 'surrogateescape')}", kind << 12
        except (Corrupt, UnknownVersion):
            continue  # 'hivefs check' names it


def chunks_of(snapshot: Snapshot, ino: int) -> Iterator[ChunkId | None]:
    """The chunks of a file; None for a part of it that was never placed."""
    for key, value in snapshot.scan(records.map_prefix(ino)):
        try:
            extent = None if value is None else records.extent_from_bytes(int.from_bytes(key[9:], "big"), value)
        except (Corrupt, UnknownVersion):
            extent = None
        if extent is None or extent.kind == SlotKind.PENDING:
            yield None
        elif extent.chunk is not None:
            yield extent.chunk.chunk_id


def files_with_chunks(snapshot: Snapshot, ino: int, path: str) -> Iterator[tuple[str, Iterator[ChunkId | None]]]:
    """Each file at and below a path once: its path and its chunks, None among them when a part is on this machine only."""
    staged, seen = Inodes(), Inodes()
    for number, _, _ in snapshot.staged():
        staged.add(number)
    for number, at in files_below(snapshot, ino, path):
        if seen.add(number):
            yield at, _with_staged(snapshot, number) if number in staged else chunks_of(snapshot, number)


def _with_staged(snapshot: Snapshot, ino: int) -> Iterator[ChunkId | None]:
    yield None
    yield from chunks_of(snapshot, ino)
