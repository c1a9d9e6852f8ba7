"""The maps of files: which slots are holes, chunks, or written here and not placed yet.

Below the size of a file its map has no gap; a gap that is met is damage (EIO), never zeros. Records *beyond* the size
may lie around for a while (a huge file that was cut is cleaned in slices, after a crash or a recovery too): they are
never looked at, and whoever lets a file grow clears the way first (``cover``).

Reading comes before changing in every method, so NotLoaded leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hivefs.errors import Corrupt, NotLoaded, PosixError, UnknownVersion
from hivefs.filesystem.inodes import Inodes
from hivefs.filesystem.ports import Store
from hivefs.formats.records import extent_from_bytes, extent_to_bytes, map_key, map_prefix
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.inode import ChunkRef, MapExtent, SlotKind

SLICE = 64
"""Records that are removed in one step, which takes less than a millisecond."""


def slots_of(size: int) -> int:
    """How many slots a file of ``size`` bytes has."""
    return (size + CHUNK_BYTES - 1) // CHUNK_BYTES


def _slot_of(key: bytes) -> int:
    return int.from_bytes(key[9:], "big")


@dataclass(slots=True)
class Tail:
    """The records of a map from some slot on: what ``FileMaps.drop`` will remove.

    ``straddling`` is a run that begins before that slot and reaches over it. ``complete`` is False when there are more.
    """

    ino: int
    slot: int
    straddling: MapExtent | None
    extents: list[tuple[int, MapExtent | None]]
    complete: bool


class FileMaps:
    """See the head of the file."""

    def __init__(self, store: Store, inodes: Inodes, slice_records: int = SLICE) -> None:
        """``slice_records``: how many records are removed in one step."""
        self._store = store
        self._damage = inodes.damage
        self.slice = slice_records

    def _decode(self, ino: int, key: bytes, value: bytes) -> MapExtent:
        try:
            return extent_from_bytes(_slot_of(key), value)
        except (Corrupt, UnknownVersion) as error:
            self._damage("a map record", ino, error)

    def covering(self, ino: int, slot: int) -> MapExtent | None:
        """The extent that holds ``slot``, or None. EIO; raises NotLoaded."""
        try:
            found = self._store.floor(map_key(ino, slot), map_prefix(ino))
        except Corrupt as error:
            self._damage("a map record", ino, error)
        if found is None:
            return None
        extent = self._decode(ino, *found)
        return extent if slot < extent.slot + extent.count else None

    def find(self, ino: int, slot: int) -> MapExtent:
        """The extent that holds a slot below the size of the file: a gap is EIO."""
        extent = self.covering(ino, slot)
        if extent is None:
            self._damage("the map (it has a gap)", ino)
        return extent

    def scan(self, ino: int, slot: int = 0) -> Iterator[MapExtent | None]:
        """The extents that begin at ``slot`` or later, in order; None for one that is damaged."""
        for key, value in self._store.scan(map_prefix(ino), map_key(ino, slot)):
            try:
                yield None if value is None else extent_from_bytes(_slot_of(key), value)
            except (Corrupt, UnknownVersion):
                yield None

    def set_slot(self, ino: int, slot: int, kind: SlotKind, chunk: ChunkRef | None = None) -> None:
        """Say what one slot holds now, splitting the run it was part of. A chunk that it named is released.

        A damaged record is written over: the caller knows what the slot holds.
        """
        try:
            before = self.covering(ino, slot)
        except PosixError:
            before = None
        if before is not None and before.count > 1:
            if before.slot < slot:
                self._put(ino, MapExtent(before.slot, slot - before.slot, before.kind))
            if (rest := before.slot + before.count - slot - 1) > 0:
                self._put(ino, MapExtent(slot + 1, rest, before.kind))
        if before is not None and before.chunk is not None and before.chunk != chunk:
            self._store.push_released(before.chunk.chunk_id)
        self._put(ino, MapExtent(slot, 1, kind, chunk))

    def append_pending(self, ino: int, slot: int) -> None:
        """The same for a slot that has no record yet (quicker)."""
        self._put(ino, MapExtent(slot, 1, SlotKind.PENDING))

    def _put(self, ino: int, extent: MapExtent) -> None:
        self._store.put(map_key(ino, extent.slot), extent_to_bytes(extent))

    def tail(self, ino: int, slot: int) -> Tail:
        """At most ``slice`` records from ``slot`` on. Raises NotLoaded unless it has at least one to begin with."""
        straddling = self.covering(ino, slot - 1) if slot else None
        if straddling is not None and straddling.slot + straddling.count <= slot:
            straddling = None
        extents: list[tuple[int, MapExtent | None]] = []
        try:
            for key, value in self._store.scan(map_prefix(ino), map_key(ino, slot)):
                if len(extents) == self.slice:
                    return Tail(ino, slot, straddling, extents, False)
                try:
                    extents.append((_slot_of(key), None if value is None else extent_from_bytes(_slot_of(key), value)))
                except (Corrupt, UnknownVersion):
                    extents.append((_slot_of(key), None))
        except NotLoaded:
            if not extents:
                raise
            return Tail(ino, slot, straddling, extents, False)
        return Tail(ino, slot, straddling, extents, True)

    def drop(self, tail: Tail) -> int:
        """Remove these records and release their chunks; returns how many slots that are not holes they held."""
        removed = 0
        if (run := tail.straddling) is not None:
            keep = tail.slot - run.slot
            self._put(tail.ino, MapExtent(run.slot, keep, run.kind))
            removed += 0 if run.kind == SlotKind.HOLE else run.count - keep
        for slot, extent in tail.extents:
            if extent is None or extent.kind != SlotKind.HOLE:
                removed += 1 if extent is None else extent.count
            if extent is not None and extent.chunk is not None:
                self._store.push_released(extent.chunk.chunk_id)
            self._store.delete(map_key(tail.ino, slot))
        return removed

    def remove_first(self, ino: int, chunkless: bool = False) -> None:
        """Remove the record of slot 0 of a file that has no other; a chunk is released, unless it is known that there is
        none (``chunkless``). Raises NotLoaded.
        """
        key = map_key(ino, 0)
        if chunkless:
            self._store.delete(key)
            return
        try:
            value = self._store.get(key)
            extent = None if value is None else extent_from_bytes(0, value)
        except (Corrupt, UnknownVersion):
            extent = None
        if extent is not None and extent.chunk is not None:
            self._store.push_released(extent.chunk.chunk_id)
        self._store.delete(key)

    def cover(self, ino: int, start: int, end: int) -> None:
        """Make slots [start, end), beyond the old size and cleared before, holes."""
        if start >= end:
            return
        before = self.covering(ino, start - 1) if start else None
        if before is not None and before.kind == SlotKind.HOLE and before.slot + before.count == start:
            start = before.slot
        self._put(ino, MapExtent(start, end - start, SlotKind.HOLE))
