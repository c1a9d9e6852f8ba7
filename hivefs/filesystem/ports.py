"""What the file system needs from outside: the metadata store, the stage, chunks, and the engine's book of placements.

Implementations: metadata/store.py, stage/log.py, the daemon's chunk source, metadata/engine_store.py; in tests memory
ones. Errors are HivefsErrors (errors.py); NotLoaded passes through everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import SegmentPiece, StagedExtent
from hivefs.model.stripe import ChunkPlace, Level, Stripe


def _no_groups() -> Sequence[int]:
    return ()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``groups`` gives the supplementary group ids and is called only when they matter."""

    uid: int
    gid: int
    umask: int = 0o022
    pid: int = 0
    groups: Callable[[], Sequence[int]] = field(default=_no_groups)

    def belongs_to(self, gid: int) -> bool:
        """Whether a file of this group may keep the caller's set-gid bit (root's always may)."""
        return not self.uid or gid == self.gid or gid in self.groups()


ROOT = Caller(0, 0)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the hive reported last, in bytes of user data (the code's expansion already divided out)."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Statfs:
    """For statvfs(3). ``blocks``, ``free`` and ``available`` count blocks of ``block_size`` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int = 255


class Store(Protocol):
    """The mount's metadata (metadata/store.py). ``seq`` numbers the open transaction; commit() and journal() raise it.
    What is ``pending`` is not durable; what is ``journaled`` is, but only commit() shows it to other processes.

    Reads see what was put before in the same transaction. ``get``, ``scan`` and ``floor`` raise NotLoaded for what is
    not on this machine yet, Corrupt for a record that does not open, StoreDamaged when LMDB itself fails.
    """

    seq: int
    published: int
    changed_seq: int
    pending: bool
    journaled: bool
    inodes: int

    @property
    def hydrating(self) -> bool: ...
    @property
    def failed(self) -> bool: ...

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes, *, quiet: bool = False) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def keys(self, prefix: bytes, start: bytes = b"", limit: int = 0) -> list[bytes]: ...
    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]: ...
    def floor(self, key: bytes, prefix: bytes) -> tuple[bytes, bytes] | None: ...

    def get_staged(self, ino: int, slot: int) -> bytes | None: ...
    def put_staged(self, ino: int, slot: int, value: bytes) -> None: ...
    def delete_staged(self, ino: int, slot: int) -> None: ...
    def staged_slots(self, ino: int, slot: int = 0, limit: int = 0) -> list[int]: ...
    def staged_keys(self, start: tuple[int, int], limit: int) -> list[tuple[int, int]]: ...
    def scan_staged(self) -> Iterator[tuple[int, int, bytes | None]]: ...

    def put_orphan(self, ino: int) -> None: ...
    def delete_orphan(self, ino: int) -> None: ...
    def orphans(self) -> list[int]: ...

    def push_released(self, chunk_id: ChunkId) -> None: ...
    def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]: ...
    def released_done(self, upto: int) -> None: ...

    def get_info(self, name: bytes) -> bytes | None: ...
    def put_info(self, name: bytes, value: bytes) -> None: ...
    def next_ino(self) -> int: ...
    def publish(self, seq: int) -> None: ...
    def forget_changed(self, after: bytes, limit: int) -> bytes | None: ...

    def commit(self, *, last: bool = False) -> None: ...
    def journal(self, pieces: Sequence[SegmentPiece]) -> bool: ...
    @property
    def durable(self) -> int: ...
    def begin_frame(self, pieces: Sequence[SegmentPiece]) -> Callable[[], bool] | None: ...
    def end_frame(self, written: bool) -> bool: ...
    def name_hash(self, directory: int, name: bytes) -> bytes: ...
    def disk(self) -> tuple[int, int]: ...


class StagePort(Protocol):
    """The stage (stage/log.py)."""

    @property
    def unsynced_bytes(self) -> int: ...
    @property
    def loose_bytes(self) -> int: ...
    @property
    def usage(self) -> int: ...

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> list[tuple[int, StagedExtent]]: ...
    def read(self, ino: int, slot: int, extent: StagedExtent, start: int, length: int, wait: bool = True) -> bytes: ...
    def retain(self, extent: StagedExtent) -> None: ...
    def loaded(self) -> None: ...
    def release(self, extent: StagedExtent) -> None: ...
    def loose_pieces(self, limit: int) -> list[SegmentPiece] | None: ...
    def pieces_kept(self, pieces: Sequence[SegmentPiece]) -> None: ...
    def sync(self) -> None: ...
    def reclaim(self) -> int: ...
    def movable(self, limit: int) -> int | None: ...


class ChunkSource(Protocol):
    """Plaintext of placed chunks."""

    def cached(self, ref: ChunkRef, start: int, end: int, wait: bool = True) -> bytes | None:
        """Bytes [start, end) of the chunk if it is on this machine, at once. Raises NotInMemory without ``wait``."""

    def where(self, ref: ChunkRef) -> Path | None:
        """The file that holds the chunk on this machine, as far as that is known."""

    async def fetch(self, ref: ChunkRef, start: int, end: int, next_refs: Sequence[ChunkRef]) -> bytes:
        """The same from the nodes; ``next_refs`` are what will be read next. Raises HivefsError after its deadline."""

    def ahead(self, next_refs: Sequence[ChunkRef]) -> None:
        """These will be read next: begin to bring them."""


class Placements(Protocol):
    """The engine's book, read-only."""

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None: ...
    def stripe(self, stripe_id: StripeId) -> Stripe | None: ...
    def stripe_level(self, stripe_id: StripeId) -> Level: ...
    def metadata_level(self) -> Level: ...
