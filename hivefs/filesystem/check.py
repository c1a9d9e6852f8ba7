"""Is the metadata whole? Every name leads to an inode, link counts and parents are right, maps have no gaps,
ACLs say what modes say.

Works on a committed snapshot, from any process, in two passes over the records in key order; memory is a few hundred
bytes for each inode. What it finds names inodes by number, never by name.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from hivefs.errors import Corrupt, PosixError, UnknownVersion
from hivefs.filesystem import acl
from hivefs.filesystem.filemap import slots_of
from hivefs.formats import records
from hivefs.formats.staged import extents_from_bytes
from hivefs.model.ids import CHUNK_BYTES, ROOT_INO
from hivefs.model.inode import SlotKind

PROGRESS_EVERY = 1000
MANY_PARENTS = 64
"""So many directories of one file are remembered; the parent of a file with more is not judged."""


class CheckedMetadata(Protocol):
    """A committed state of the metadata (metadata/snapshot.py)."""

    @property
    def hydrating(self) -> bool: ...
    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]: ...
    def staged(self) -> Iterator[tuple[int, int, bytes | None]]: ...
    def orphans(self) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: ``kind`` is a short word, ``ino`` the inode it is about, ``text`` a sentence for people."""

    kind: str
    ino: int
    text: str


@dataclass(slots=True)
class _Seen:
    mode: int
    nlink: int
    size: int
    allocated: int
    parent: int
    names: int = 0
    subdirectories: int = 0
    parents: set[int] = field(default_factory=set)
    filled: int = 0
    covered: int = 0
    staged: int = 0


class Check:
    """See the head of the file. ``progress`` is told how many records were looked at."""

    def __init__(self, metadata: CheckedMetadata, progress: Callable[[int], None] = lambda count: None) -> None:
        self._metadata = metadata
        self._progress = progress
        self._count = 0
        self._inodes: dict[int, _Seen] = {}
        self._orphans = set(metadata.orphans())

    def _tick(self) -> None:
        self._count += 1
        if not self._count % PROGRESS_EVERY:
            self._progress(self._count)

    def run(self) -> Iterator[Finding]:
        """Everything that is wrong."""
        if self._metadata.hydrating:
            yield Finding("hydrating", 0, "A part of the metadata is still in the hive only; check again later.")
            return
        yield from self._read_inodes()
        if ROOT_INO not in self._inodes:
            yield Finding("root", ROOT_INO, "There is no root directory.")
        yield from self._read_names()
        yield from self._read_maps()
        yield from self._read_xattrs()
        yield from self._read_staged()
        for ino, seen in self._inodes.items():
            yield from self._judge(ino, seen)
        yield from self._judge_loops()
        for ino in self._orphans - self._inodes.keys():
            yield Finding("orphan", ino, f"Inode {ino} is to be removed but is not there.")
        self._progress(self._count)

    def _read_inodes(self) -> Iterator[Finding]:
        for key, value in self._metadata.scan(b"i"):
            self._tick()
            ino = int.from_bytes(key[1:9], "big")
            try:
                inode = None if value is None else records.inode_from_bytes(value)
            except (Corrupt, UnknownVersion):
                inode = None
            if inode is None or inode.ino != ino:
                yield Finding("damaged", ino, f"The record of inode {ino} is damaged.")
                continue
            self._inodes[ino] = _Seen(inode.mode, inode.nlink, inode.size, inode.allocated, inode.parent)

    def _read_names(self) -> Iterator[Finding]:
        for key, value in self._metadata.scan(b"d"):
            self._tick()
            directory = int.from_bytes(key[1:9], "big")
            try:
                entry = None if value is None else records.dirent_from_bytes(value)
            except (Corrupt, UnknownVersion):
                entry = None
            if entry is None:
                yield Finding("damaged", directory, f"A name in directory {directory} is damaged.")
                continue
            parent = self._inodes.get(directory)
            if parent is None or not stat.S_ISDIR(parent.mode) or not parent.nlink:
                yield Finding("name", directory, f"A name lies in directory {directory}, which is not there.")
            seen = self._inodes.get(entry.ino)
            if seen is None:
                yield Finding("name", directory, f"A name in directory {directory} leads to no inode ({entry.ino}).")
                continue
            seen.names += 1
            if len(seen.parents) < MANY_PARENTS:
                seen.parents.add(directory)
            if entry.kind != seen.mode >> 12:
                yield Finding("name", entry.ino, f"A name says another type than inode {entry.ino}.")
            if parent is not None and stat.S_ISDIR(seen.mode):
                parent.subdirectories += 1

    def _read_maps(self) -> Iterator[Finding]:
        broken: set[int] = set()
        for key, value in self._metadata.scan(b"m"):
            self._tick()
            ino, slot = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:17], "big")
            seen = self._inodes.get(ino)
            if seen is None or not stat.S_ISREG(seen.mode):
                if ino not in broken:
                    broken.add(ino)
                    yield Finding("map", ino, f"There is a map of inode {ino}, but no such file.")
                continue
            try:
                extent = None if value is None else records.extent_from_bytes(slot, value)
            except (Corrupt, UnknownVersion):
                extent = None
            if extent is None or extent.count < 1:
                yield Finding("damaged", ino, f"A record of the map of file {ino} is damaged.")
                seen.covered, seen.filled = max(seen.covered, slot + 1), seen.filled + 1
                continue
            end = slots_of(seen.size)
            if slot >= end:
                if ino in self._orphans and extent.kind != SlotKind.HOLE:
                    seen.filled += extent.count
                continue
            if slot != seen.covered and ino not in broken:
                broken.add(ino)
                how = "a gap" if slot > seen.covered else "records that overlap"
                yield Finding("map", ino, f"The map of file {ino} has {how} at slot {min(slot, seen.covered)}.")
            seen.covered = slot + extent.count
            if extent.kind != SlotKind.HOLE:
                seen.filled += extent.count

    def _read_xattrs(self) -> Iterator[Finding]:
        for key, value in self._metadata.scan(b"x"):
            self._tick()
            ino = int.from_bytes(key[1:9], "big")
            if ino not in self._inodes:
                yield Finding("xattr", ino, f"There is an extended attribute of inode {ino}, which is not there.")
            try:
                if value is None:
                    raise Corrupt(what="an extended attribute", reason="it does not open")
                name, content = records.xattr_from_bytes(value)
            except (Corrupt, UnknownVersion):
                yield Finding("damaged", ino, f"An extended attribute of inode {ino} is damaged.")
                continue
            if name in acl.NAMES and ino in self._inodes:
                yield from self._judge_acl(ino, self._inodes[ino].mode, name, content)

    def _judge_acl(self, ino: int, mode: int, name: bytes, content: bytes) -> Iterator[Finding]:
        try:
            found = acl.parse(content)
        except PosixError:
            found = None
        if found is None:
            yield Finding("acl", ino, f"An ACL of inode {ino} has a wrong form.")
        elif name == acl.ACCESS and found.mode != mode & 0o777:
            yield Finding("acl", ino, f"The mode of inode {ino} says something else than its ACL.")

    def _read_staged(self) -> Iterator[Finding]:
        for ino, slot, value in self._metadata.staged():
            self._tick()
            seen = self._inodes.get(ino)
            if seen is None:
                yield Finding("staged", ino, f"Bytes are staged for inode {ino}, which is not there.")
                continue
            try:
                if not value:
                    raise Corrupt(what="a record of staged bytes", reason="it does not open")
                extents_from_bytes(value[1:])
            except (Corrupt, UnknownVersion):
                yield Finding("damaged", ino, f"What is staged of file {ino} in slot {slot} is damaged.")
                continue
            if slot >= slots_of(seen.size) and ino not in self._orphans:
                yield Finding("staged", ino, f"Bytes are staged for file {ino} beyond its end.")

    def _judge(self, ino: int, seen: _Seen) -> Iterator[Finding]:
        if not seen.nlink:
            if ino not in self._orphans:
                yield Finding("orphan", ino, f"Inode {ino} has no name and is not marked to be removed.")
            if seen.names:
                yield Finding("nlink", ino, f"Inode {ino} counts as removed, but has {seen.names} names.")
            return
        if stat.S_ISDIR(seen.mode):
            names = 1 if ino != ROOT_INO else 0
            if seen.names != names:
                yield Finding("nlink", ino, f"Directory {ino} has {seen.names} names instead of {names}.")
            if seen.nlink != 2 + seen.subdirectories:
                yield Finding("nlink", ino, f"Directory {ino} counts {seen.nlink} links, not {2 + seen.subdirectories}.")
        elif seen.nlink != seen.names:
            yield Finding("nlink", ino, f"Inode {ino} counts {seen.nlink} links but has {seen.names} names.")
        if ino == ROOT_INO:
            if seen.parent != ROOT_INO:
                yield Finding("parent", ino, "The root directory has another parent than itself.")
        elif (
            0 < len(seen.parents) < MANY_PARENTS
            and seen.parent not in seen.parents
            and (seen.parent or stat.S_ISDIR(seen.mode))
        ):
            yield Finding("parent", ino, f"Inode {ino} does not lie in the directory it says ({seen.parent}).")
        if stat.S_ISREG(seen.mode):
            if seen.covered < slots_of(seen.size):
                yield Finding("map", ino, f"The map of file {ino} ends before the file does.")
            elif seen.filled * CHUNK_BYTES != seen.allocated:
                yield Finding(
                    "allocated", ino, f"File {ino} counts {seen.allocated} bytes, not {seen.filled * CHUNK_BYTES}."
                )

    def _judge_loops(self) -> Iterator[Finding]:
        """Directories that cannot be reached from the root although each has a parent."""
        good = {ROOT_INO}
        for ino, seen in self._inodes.items():
            if not stat.S_ISDIR(seen.mode) or not seen.nlink:
                continue
            path: list[int] = []
            at = ino
            while at not in good and at not in path and at in self._inodes:
                path.append(at)
                at = self._inodes[at].parent
                if len(path) > 4096:
                    break
            if at in good:
                good.update(path)
            elif at in path:
                yield Finding("loop", ino, f"Directory {ino} lies inside itself.")


def check(metadata: CheckedMetadata, progress: Callable[[int], None] = lambda count: None) -> Iterator[Finding]:
    """Everything that is wrong with a committed state of the metadata."""
    return Check(metadata, progress).run()
