"""Walking over the committed metadata for questions about policies: paths, files, their chunks. Reading is done in a worker
thread and in steps, so that the engine's loop stands still for no directory however large.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import trio

from hivefs.errors import Corrupt, PathNotInDrive, UnknownVersion
from hivefs.formats import records
from hivefs.model.ids import ROOT_INO, ChunkId
from hivefs.model.inode import SlotKind

STEP = 512
T = TypeVar("T")


class Snapshot(Protocol):
    """A committed state (metadata/snapshot.py)."""

    def get(self, key: bytes) -> bytes | None: ...
    def scan(self, prefix: bytes, start: bytes = ...) -> Iterator[tuple[bytes, bytes | None]]: ...
    def staged(self) -> Iterator[tuple[int, int, bytes | None]]: ...


File = tuple[int, str]
"""An inode and the path that it was found at."""


async def stepped(items: Iterator[T]) -> AsyncGenerator[list[T], None]:
    """The items in lists of at most STEP, each made in a worker thread."""
    while batch := await trio.to_thread.run_sync(lambda: list(islice(items, STEP))):
        yield batch


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
    waiting = [(ino, path.rstrip("/"))] if stat.S_ISDIR(mode) else []
    while waiting:
        directory, at = waiting.pop()
        for _, found in snapshot.scan(records.dirent_prefix(directory)):
            try:
                if found is None:
                    continue
                entry = records.dirent_from_bytes(found)
            except (Corrupt, UnknownVersion):
                continue  # 'hivefs check' names it
            below = f"{at}/{entry.name.decode('utf-8', 'surrogateescape')}"
            if stat.S_ISDIR(entry.kind << 12):
                waiting.append((entry.ino, below))
            elif stat.S_ISREG(entry.kind << 12):
                yield entry.ino, below


def chunks_of(snapshot: Snapshot, ino: int) -> tuple[list[ChunkId], bool]:
    """The chunks of a file, and whether some of it was never placed."""
    chunks: list[ChunkId] = []
    local = False
    for key, value in snapshot.scan(records.map_prefix(ino)):
        try:
            extent = None if value is None else records.extent_from_bytes(int.from_bytes(key[9:], "big"), value)
        except (Corrupt, UnknownVersion):
            extent = None
        if extent is None or extent.kind == SlotKind.PENDING:
            local = True
        elif extent.chunk is not None:
            chunks.append(extent.chunk.chunk_id)
    return chunks, local


def files_with_chunks(snapshot: Snapshot, ino: int, path: str) -> Iterator[tuple[str, list[ChunkId], bool]]:
    """Each file at and below a path once: its path, chunks, and whether some of it is only on this machine."""
    staged = {number for number, _, _ in snapshot.staged()}
    seen: set[int] = set()
    for number, at in files_below(snapshot, ino, path):
        if number not in seen:
            seen.add(number)
            chunks, local = chunks_of(snapshot, number)
            yield at, chunks, local or number in staged
