"""A drive for tests: the real metadata store and stage log in a directory, chunks and placements in memory."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from hivefs.crypto.keys import VaultKeys
from hivefs.errors import HivefsError, NotInMemory, PosixError
from hivefs.filesystem.check import Finding, check
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Caller
from hivefs.filesystem.service import VaultService
from hivefs.formats.records import extent_from_bytes
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef, Inode
from hivefs.model.staged import DirtySlot
from hivefs.stage.log import StageLog

T = TypeVar("T")
KEYS = VaultKeys(bytes(range(32)))
ROOT = Caller(0, 0, 0)
MIB = 1 << 20


def run(function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
    """One async call, with a bound on how long it may take."""

    async def bounded() -> T:
        with trio.fail_after(60):
            return await function(*args)

    return trio.run(bounded)


def refuses(number: int, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    """The call must raise PosixError with just that errno."""
    with pytest.raises(PosixError) as caught:
        call(*args, **options)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


class MemoryChunks:
    """A ChunkSource that holds plaintext. With ``remote`` nothing is on this machine: everything is fetched."""

    def __init__(self) -> None:
        self.plain: dict[bytes, bytes] = {}
        self.remote = False
        self.fetched: list[tuple[bytes, int, int]] = []
        self.hints: list[Sequence[ChunkRef]] = []
        self.begun: list[ChunkRef] = []
        self.cold: set[bytes] = set()
        """Chunks that the kernel has not in memory when they are read the first time."""
        self.failing = False

    def put(self, plain: bytes) -> ChunkRef:
        ref = ChunkRef(ChunkId(os.urandom(16)), os.urandom(32), len(plain), 0)
        self.plain[ref.chunk_id] = plain
        return ref

    def begin(self, ref: ChunkRef) -> None:
        self.begun.append(ref)

    def cached(self, ref: ChunkRef, start: int, end: int, wait: bool = True) -> bytes | None:
        assert 0 <= start < end <= ref.length
        if not wait and ref.chunk_id in self.cold:
            self.cold.discard(ref.chunk_id)
            raise NotInMemory(Path("/nonexistent") / ref.chunk_id.hex(), start, end - start)
        return None if self.remote else self.plain[ref.chunk_id][start:end]

    async def fetch(self, ref: ChunkRef, start: int, end: int, next_refs: Sequence[ChunkRef]) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.failing:
            raise HivefsError(detail="the nodes are away")
        self.fetched.append((ref.chunk_id, start, end))
        self.hints.append(list(next_refs))
        return self.plain[ref.chunk_id][start:end]

    def ahead(self, next_refs: Sequence[ChunkRef]) -> None:
        self.hints.append(list(next_refs))


class Drive:
    """Mount, use, unmount or kill, mount again."""

    def __init__(self, path: Path, *, clock: Callable[[], int] = time.time_ns, **options: Any) -> None:
        self.path = path
        self.clock = clock
        self.chunks = MemoryChunks()
        self.options = options
        self.mount(create=True)

    def mount(self, *, create: bool = False, **store_options: Any) -> None:
        self.store = MetadataStore(self.path / "metadata", KEYS, create=create, **store_options)
        self.stage = StageLog(
            self.path / "stage", KEYS.stage_key, os.urandom, reserve_bytes=1 << 20, restore=self.store.take_pieces()
        )
        self.fs = Filesystem(self.store, self.stage, self.chunks, clock=self.clock, **self.options)
        self.service = VaultService(self.fs, os.urandom(16))

    def unmount(self) -> None:
        self.fs.close()
        self.kill()

    def kill(self) -> None:
        """Stop without committing anything."""
        self.store.close()
        self.stage.close()

    def remount(self) -> None:
        self.unmount()
        self.mount()

    def copy(self, target: Path) -> Drive:
        """The drive as a crash at this moment would leave it, mounted."""
        shutil.copytree(self.path, target)
        copied = Drive.__new__(Drive)
        copied.path, copied.clock, copied.chunks, copied.options = target, self.clock, self.chunks, self.options
        copied.mount()
        return copied

    def snapshot(self) -> MetadataSnapshot:
        return MetadataSnapshot(self.path / "metadata", KEYS, store=self.store)

    def check(self) -> list[Finding]:
        snapshot = self.snapshot()
        try:
            return list(check(snapshot))
        finally:
            snapshot.close()

    # ---- by path ----------------------------------------------------------------------------------------------------

    def at(self, path: str) -> Inode:
        inode = self.fs.getattr(1)
        for part in path.encode().split(b"/"):
            if part:
                inode = self.fs.lookup(inode.ino, part)
        return inode

    def file(self, name: str, data: bytes = b"", parent: int = 1) -> int:
        ino = self.fs.create(parent, name.encode(), 0o644, ROOT).ino
        if data:
            self.fs.write(ino, 0, data)
        return ino

    def dir(self, name: str, parent: int = 1) -> int:
        return self.fs.mkdir(parent, name.encode(), 0o755, ROOT).ino

    def read(self, ino: int, offset: int = 0, size: int = 1 << 40) -> bytes:
        data = self.fs.read_now(ino, offset, size)
        return run(self.fs.read, ino, offset, size) if data is None else data

    def names(self, ino: int = 1) -> list[bytes]:
        return sorted(name for _, name, _ in self.fs.readdir(ino) if name not in (b".", b".."))

    # ---- the engine's part ------------------------------------------------------------------------------------------

    def plain(self, work: DirtySlot) -> bytes:
        """What the engine would seal for a slot."""
        buffer = bytearray(work.length)
        if work.base is not None:
            old = self.chunks.plain[work.base.chunk_id][: work.length]
            buffer[: len(old)] = old
        for extent in work.extents:
            end = min(extent.end, work.length)
            if end > extent.start:
                data = self.stage.read(work.ino, work.slot, extent, extent.start, end - extent.start)
                buffer[extent.start : end] = data
        return bytes(buffer)

    def place(self, limit: int = 1000, only: Callable[[DirtySlot], bool] = lambda work: True) -> int:
        """Place dirty slots as the engine does; how many were taken."""
        work = [w for w in run(self.service.dirty, limit, 0, []) if only(w)]
        results = [(w.ino, w.slot, w.generation, self.chunks.put(self.plain(w))) for w in work]
        taken = run(self.service.placed, results) if results else []
        for good, (_, _, _, ref) in zip(taken, results, strict=True):
            if not good:
                del self.chunks.plain[ref.chunk_id]
        return sum(taken)

    def forget_released(self) -> int:
        """Destroy the chunks that the drive released; they must not be needed any more."""
        queue = run(self.service.released, 0, 10_000)
        for _, chunk_id in queue:
            del self.chunks.plain[chunk_id]
        if queue:
            run(self.service.released_done, queue[-1][0])
        return len(queue)

    def named_chunks(self) -> set[bytes]:
        """Ids of all chunks that the maps of files name."""
        found = set()
        for _, value in self.store.scan(b"m"):
            extent = None if value is None else extent_from_bytes(0, value)
            if extent is not None and extent.chunk is not None:
                found.add(bytes(extent.chunk.chunk_id))
        return found

    def publish(self) -> None:
        """A checkpoint with everything up to now is out."""
        run(self.service.flush)
        run(self.service.published, self.store.seq - 1)

    def reap(self) -> None:
        run(self.fs._handles.reap)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ everywhere."""
    return random.Random(seed).randbytes(length)
