"""Where bytes lie that were written on this machine and are not placed in the hive yet."""

from __future__ import annotations

from dataclasses import dataclass

from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.inode import ChunkRef


@dataclass(frozen=True, slots=True)
class StagedExtent:
    """Plaintext bytes [start, start + length) of one slot, held in the stage log (docs/formats/stage.md).

    ``start`` and ``run_start`` count from the beginning of the slot (0 .. 1 MiB); ``segment`` is the number of the log
    segment and ``position`` the byte offset in it of the first unit of the *run* (one write inside one slot) that this
    extent came from. An extent that is overwritten in part is cut: start and length change, the run fields stay.
    """

    start: int
    length: int
    segment: int
    position: int
    run_start: int
    run_length: int

    @property
    def end(self) -> int:
        """Offset inside the slot of the first byte after this extent."""
        return self.start + self.length

    @property
    def possible(self) -> bool:
        """0 <= run_start <= start < end <= end of the run <= 1 MiB."""
        run_end = self.run_start + self.run_length
        return 0 <= self.run_start <= self.start < self.start + self.length <= run_end <= CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """How much of one segment of the stage log is still needed. ``live`` counts plaintext bytes that extents name,
    ``size`` the bytes of the file; a ``closed`` segment is never appended to again.
    """

    number: int
    live: int
    size: int
    closed: bool


@dataclass(frozen=True, slots=True)
class DirtySlot:
    """One slot that is to be placed: ``length`` bytes of plaintext (less than 1 MiB only in the last slot of a file).

    What neither ``extents`` nor ``base`` (the chunk that lies under them, if any) holds is zeros. ``generation``
    changes with every write to the slot, so that an answer about an older state is noticed. ``policy`` is the name of
    the one that the file has by its place in the drive.
    """

    ino: int
    slot: int
    generation: int
    length: int
    extents: tuple[StagedExtent, ...]
    base: ChunkRef | None
    policy: str = "default"


@dataclass(frozen=True, slots=True)
class SegmentPiece:
    """Bytes of a segment file from ``position`` on that are in the journal, because the file is not synced yet."""

    segment: int
    position: int
    data: bytes
