"""The drive under test: store, stage and file system as the product opens them, with limits so small that every path is
met, and what can be seen of it.

What is random is seeded: the same sequence writes the same bytes, so a failure is replayed by its name alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import trio

import hivefs.filesystem.commits as commits
import hivefs.metadata.journal as journal
import hivefs.metadata.transaction as transaction
import hivefs.stage.log as stage_log
from hivefs.crypto.keys import VaultKeys
from hivefs.filesystem.check import Finding, check
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Caller
from hivefs.filesystem.service import VaultService
from hivefs.formats.records import extent_from_bytes
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import ROOT_INO, ChunkId
from hivefs.model.inode import ChunkRef, Inode
from hivefs.model.staged import DirtySlot
from hivefs.stage.log import StageLog

T = TypeVar("T")
KEYS = VaultKeys(bytes(range(32)))
ROOT = Caller(0, 0, 0)
MIB = 1 << 20
SECOND = 10**9
EPOCH = 1_750_000_000 * SECOND


def run(function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """One async call, with a bound on how long it may take."""

    async def bounded() -> T:
        with trio.fail_after(60):
            return await function(*args)

    return trio.run(bounded)


@dataclass(frozen=True)
class Limits:
    """Bounds of the product, made small. ``usual``: an fsync is one frame; ``tight``: it needs the segment synced first, a
    round holds two frames, segments hold one write.
    """

    name: str
    segment: int
    pieces: int
    inline: int
    frame: int
    round: int
    retire: int
    step: int = 8192

    @contextmanager
    def applied(self) -> Iterator[None]:
        with (
            mock.patch.object(commits, "INLINE_PIECES", self.pieces),
            mock.patch.object(commits, "INLINE_BYTES", self.inline),
            mock.patch.object(transaction, "FRAME_BYTES", self.frame),
            mock.patch.object(journal, "ROUND_BYTES", self.round),
            mock.patch.object(journal, "STEP_BYTES", self.step),
            mock.patch.object(stage_log, "_RETIRE_BYTES", self.retire),
        ):
            yield


USUAL = Limits("usual", segment=1500, pieces=128 << 10, inline=1 << 20, frame=1 << 20, round=16 << 20, retire=1000)
TIGHT = Limits("tight", segment=300, pieces=100, inline=100, frame=3000, round=8192, retire=100)
LIMITS = {limits.name: limits for limits in (USUAL, TIGHT)}


class Chunks:
    """A ChunkSource: chunks in the hive, as plaintext. They survive every crash; ``destroyed`` ones are gone."""

    def __init__(self) -> None:
        self.plain: dict[bytes, bytes] = {}
        self.destroyed: set[bytes] = set()

    def begin(self, ref: ChunkRef) -> None:
        pass

    def cached(self, ref: ChunkRef, start: int, end: int, wait: bool = True) -> bytes | None:
        assert ref.chunk_id not in self.destroyed, "a chunk that was released is named again"
        return self.plain[ref.chunk_id][start:end]

    async def fetch(self, ref: ChunkRef, start: int, end: int, next_refs: Any) -> bytes:
        raise AssertionError("all chunks are on this machine")

    def ahead(self, next_refs: Any) -> None:
        raise AssertionError("all chunks are on this machine")


@dataclass
class Clock:
    """Nanoseconds since 1970: a millisecond later each time it is read, and ``step`` can be anything."""

    now: int = EPOCH
    tick: int = 1_000_000

    def __call__(self) -> int:
        self.now += self.tick
        return self.now


@dataclass(frozen=True)
class Seen:
    """What a drive is at one moment, for comparing. ``tree``: path -> attributes; ``chunks``: (inode, slot, chunk) of the
    files that have a name; ``accounted``: chunks that a map or the queue of released ones names; ``changed``: keys that no
    published checkpoint has.
    """

    tree: dict[str, tuple[Any, ...]]
    chunks: frozenset[tuple[int, int, bytes]]
    accounted: frozenset[bytes] = field(compare=False)
    changed: frozenset[bytes] = field(compare=False)

    @property
    def files(self) -> set[int]:
        return {entry[0] for entry in self.tree.values() if entry[1] >> 12 == 8}

    @property
    def inodes(self) -> int:
        return len({entry[0] for entry in self.tree.values()})


class CrashDrive:
    """Opened in ``path`` (whose directories metadata and stage must be there)."""

    def __init__(self, path: Path, limits: Limits, seed: str, clock: Callable[[], int], chunks: Chunks) -> None:
        self.path, self.limits, self.clock, self.chunks = path, limits, clock, chunks
        self._seed = seed
        self._opened = 0
        self.open(create=True)

    @classmethod
    def existing(cls, path: Path, limits: Limits, seed: str, clock: Callable[[], int], chunks: Chunks) -> CrashDrive:
        """One that is there: recovered as a mount does it."""
        drive = cls.__new__(cls)
        drive.path, drive.limits, drive.clock, drive.chunks = path, limits, clock, chunks
        drive._seed, drive._opened = seed, 0
        drive.open()
        return drive

    def open(self, *, create: bool = False) -> None:
        source = random.Random(f"{self._seed}/{self._opened}")
        self._opened += 1
        self.store = MetadataStore(self.path / "metadata", KEYS, source.randbytes, create=create)
        try:
            self.stage = StageLog(
                self.path / "stage",
                KEYS.stage_key,
                source.randbytes,
                reserve_bytes=1 << 20,
                segment_limit=self.limits.segment,
                restore=self.store.take_pieces(),
            )
            self.fs = Filesystem(self.store, self.stage, self.chunks, clock=self.clock, slice_records=2)
        except BaseException:
            self.store.close()
            raise
        self.service = VaultService(self.fs, bytes(16))

    def kill(self) -> None:
        """The process ends without committing anything."""
        self.store.close()
        self.stage.close()

    def unmount(self) -> None:
        self.fs.close()
        self.kill()

    def settle(self) -> None:
        """What the loop does every two seconds."""
        if self.fs.inodes.orphans:
            run(self.fs._handles.reap)
        if not self.fs.commits.settled:
            run(lambda: self.fs.commits.all(settle=True))

    def settle_at_once(self) -> None:
        """The same without waiting for others that commit (and without the time that trio needs to start)."""
        if self.fs.inodes.orphans:
            run(self.fs._handles.reap)
        if not self.fs.commits.settled:
            self.fs.commits.now()

    def check(self) -> list[Finding]:
        """As ``hivefs check`` does it, on what is committed."""
        snapshot = MetadataSnapshot(self.path / "metadata", KEYS, store=self.store)
        try:
            return list(check(snapshot))
        finally:
            snapshot.close()

    # ---- looking ----------------------------------------------------------------------------------------------------

    def names(self, directory: int = ROOT_INO, path: str = "") -> Iterator[tuple[str, Inode]]:
        """All paths with their inodes; changes nothing (a lookup may correct the parent, readdir moves access times)."""
        for _, name, inode in list(self.fs._names.listing(directory, 0)):
            if name in (b".", b".."):
                continue
            here = path + name.decode()
            yield here, inode
            if inode.mode >> 12 == 4:
                yield from self.names(inode.ino, here + "/")

    def find(self, path: str) -> Inode | None:
        return dict(self.names()).get(path)

    def _entry(self, inode: Inode) -> tuple[Any, ...]:
        xattrs = tuple(sorted((name, self.fs.getxattr(inode.ino, name)) for name in self.fs.listxattr(inode.ino)))
        times = (inode.mtime_ns, inode.ctime_ns, inode.btime_ns)
        return (inode.ino, inode.mode, inode.nlink, inode.size, inode.uid, inode.gid, *times, xattrs)

    def look(self) -> Seen:
        """Everything but contents; changes nothing."""
        root = self.fs.getattr(ROOT_INO)
        tree = {path: self._entry(inode) for path, inode in [("", root), *self.names()]}
        placed = []
        for key, value in self.store.scan(b"m"):
            assert value is not None
            extent = extent_from_bytes(int.from_bytes(key[9:], "big"), value)
            if extent.chunk is not None:
                placed.append((int.from_bytes(key[1:9], "big"), extent.slot, bytes(extent.chunk.chunk_id)))
        named = {entry[0] for entry in tree.values()}
        queued = self._released_ids()
        changed = frozenset(
            key
            for key, value in self.store._batch(self.store._changed, b"", b"", 1 << 62)
            if int.from_bytes(value, "big") > self.store.published
        )
        return Seen(
            tree,
            frozenset(item for item in placed if item[0] in named),
            frozenset({chunk for _, _, chunk in placed} | queued),
            changed,
        )

    def _released_ids(self) -> set[bytes]:
        """Chunks in the queue of released ones, committed or not."""
        rows = self.store._batch(self.store._released, b"", b"", 1 << 62)
        return {self.store._sealer.open(b"released" + key, value) for key, value in rows}

    def contents(self, ino: int) -> bytes:
        data = self.fs.read_now(ino, 0, 1 << 40)
        assert data is not None
        return data

    # ---- the engine's part ------------------------------------------------------------------------------------------

    def sealed(self, work: DirtySlot, name: str) -> ChunkRef:
        """A chunk in the hive with what the engine reads for a slot."""
        buffer = bytearray(work.length)
        if work.base is not None:
            old = self.chunks.cached(work.base, 0, work.base.length) or b""
            buffer[: len(old)] = old[: work.length]
        for extent in work.extents:
            end = min(extent.end, work.length)
            if end > extent.start:
                data = self.stage.read(work.ino, work.slot, extent, extent.start, end - extent.start)
                buffer[extent.start : end] = data
        source = random.Random(name)
        ref = ChunkRef(ChunkId(source.randbytes(16)), source.randbytes(32), len(buffer), 0)
        self.chunks.plain[ref.chunk_id] = bytes(buffer)
        return ref
