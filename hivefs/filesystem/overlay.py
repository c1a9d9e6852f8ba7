"""What is staged over the slots of files: written here, not placed in the hive yet.

Every slot with staged bytes has a row in the store: a byte of flags, then its extents (formats/staged.py). The extents
are kept decoded only for slots that were used lately. Changes stay in memory until ``flush``, which the commit calls
right before it syncs the stage: a row never names bytes that a crash could take.

A slot that was changed lately, or offered to the engine, has a ``Stamp`` in memory too (a few hundred bytes); the others
are called *cold*: a million files may wait to be placed. A cold slot gets a stamp when it is changed or offered, and no
stamp is forgotten while the engine may answer for it: its answer could not be taken.

Bytes of a staged slot that no extent covers belong to the chunk under it (``base``), or are zeros: a slot without a
chunk was a hole, or beyond the end, when its first byte was staged. The one exception is ``lost``: the slot was PENDING
without anything staged, which means that a recovery could not bring its bytes back. Those stay EIO, byte for byte, until
they are written again; such a slot is placed only once nothing of it is lost.

``generation`` changes with every change of a slot's staged bytes; it is how an answer about an older state is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from hivefs.content.extents import SlotExtents
from hivefs.errors import Corrupt, PosixError, UnknownVersion
from hivefs.filesystem.filemap import FileMaps, slots_of
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.ports import StagePort, Store
from hivefs.formats.staged import extents_from_bytes, extents_to_bytes
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.inode import ChunkRef, SlotKind
from hivefs.model.staged import DirtySlot, StagedExtent

log = logging.getLogger(__name__)

CACHED = 8192
"""Slots whose extents are kept decoded."""

STAMPED = 8192
"""Slots whose stamps are kept at least."""

_LOST = 1
_LONG_AGO = 0
_LOOKS = 4
"""Rows looked at for each slot that is asked for: most may be in the engine's hands."""

Key = tuple[int, int]


class Stamp:
    """When a slot was changed, and how often."""

    __slots__ = ("generation", "last", "since")

    def __init__(self, generation: int, now: int) -> None:
        self.generation = generation
        self.since = now
        self.last = now


@dataclass(slots=True, eq=False)
class Slot:
    """A staged slot. ``fresh``: the map does not say PENDING yet; ``new``: the map has no record of the slot; ``kept``:
    the store has a row of it.
    """

    extents: SlotExtents
    base: ChunkRef | None = None
    lost: bool = False
    fresh: bool = False
    new: bool = False
    kept: bool = False


class Overlay:
    """See the head of the file."""

    def __init__(self, store: Store, stage: StagePort, maps: FileMaps, inodes: Inodes) -> None:
        """Reads all rows, so that the stage knows which of its segments are needed (about 10 µs a slot)."""
        self._store = store
        self._stage = stage
        self._maps = maps
        self._inodes = inodes
        self._stamps: dict[Key, Stamp] = {}
        self._slots: dict[Key, Slot] = {}
        self._unflushed: dict[int, set[int]] = {}
        self._bad: set[Key] = set()
        self._generation = 0
        self._offered: frozenset[Key] = frozenset()
        """What the engine may still answer for."""
        self._cold = 0
        self._cold_at: Key = (0, 0)
        self._cold_since = _LONG_AGO
        self.bytes = 0
        """Staged bytes that something still names."""
        for ino, _, value in store.scan_staged():
            self._cold += 1
            try:
                extents = self._parse(value)[0]
            except (Corrupt, UnknownVersion) as error:
                log.error("what is staged of inode %d cannot be used (%s)", ino, error)
                continue
            for extent in extents:
                stage.retain(extent)
                self.bytes += extent.length
        stage.loaded()

    @staticmethod
    def _parse(value: bytes | None) -> tuple[SlotExtents, bool]:
        if not value:
            raise Corrupt(what="a record of staged bytes", reason="its seal does not open")
        return SlotExtents(extents_from_bytes(value[1:])), bool(value[0] & _LOST)

    def __len__(self) -> int:
        return len(self._stamps) + self._cold

    @property
    def pending(self) -> bool:
        """Whether flush would put something."""
        return bool(self._unflushed)

    @property
    def unflushed(self) -> int:
        """How many files have slots that flush would put."""
        return len(self._unflushed)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def find(self, ino: int, slot: int) -> Slot | None:
        """What is staged over a slot, None when nothing is. EIO; raises NotLoaded."""
        key = (ino, slot)
        found = self._slots.get(key)
        if found is not None or not (self._cold or key in self._stamps):
            return found
        try:
            value = self._store.get_staged(ino, slot)
            if value is None:
                return None
            extents, lost = self._parse(value)
        except (Corrupt, UnknownVersion) as error:
            self._inodes.damage("what is staged", ino, error)
        under = self._maps.covering(ino, slot)
        found = self._slots[key] = Slot(extents, None if under is None else under.chunk, lost, kept=True)
        if len(self._slots) > 2 * CACHED:
            self._shrink()
        return found

    def _shrink(self) -> None:
        """Forget decoded extents that are in the store too, the oldest first (but not the newest: it is in use)."""
        surplus = len(self._slots) - CACHED * 3 // 4
        for key in list(self._slots)[:surplus]:
            if key[1] not in self._unflushed.get(key[0], ()):
                del self._slots[key]

    def changed(self, ino: int) -> bool:
        """Whether something of a file was staged since the last flush."""
        return ino in self._unflushed

    def has(self, ino: int) -> bool:
        """Whether anything of a file is staged."""
        return ino in self._unflushed or bool(self._store.staged_slots(ino, 0, 1))

    def chunkless(self, ino: int, slot: int) -> bool:
        """Whether it is known without reading that the map names no chunk for a slot."""
        found = self._slots.get((ino, slot))
        return found is not None and found.base is None

    def slots_from(self, ino: int, slot: int, limit: int = 0) -> list[int]:
        """Staged slots of a file from ``slot`` on, in order, at most ``limit`` (0: all)."""
        found = set(self._store.staged_slots(ino, slot, limit))
        found.update(s for s in self._unflushed.get(ino, ()) if s >= slot)
        ordered = sorted(found)
        return ordered[:limit] if limit else ordered

    # ---- writing ----------------------------------------------------------------------------------------------------

    def prepare(self, ino: int, slot: int, count: int) -> Slot:
        """The slot as it must be before bytes are laid over it, in a file of ``count`` slots. Changes nothing.

        EIO; raises NotLoaded.
        """
        found = self.find(ino, slot)
        if found is not None:
            return found
        if slot >= count:
            return Slot(SlotExtents(), fresh=True, new=True)
        under = self._maps.find(ino, slot)
        if under.kind == SlotKind.HOLE:
            return Slot(SlotExtents(), fresh=True)
        return Slot(SlotExtents(), under.chunk, lost=under.kind == SlotKind.PENDING)

    def lay(self, ino: int, number: int, slot: Slot, extent: StagedExtent, now: int) -> bool:
        """Lay staged bytes over a prepared slot; whether the slot was a hole before."""
        key = (ino, number)
        first = key not in self._stamps
        for part in slot.extents.insert(extent):
            self._stage.release(part)
            self.bytes -= part.length
        self.bytes += extent.length
        if slot.lost and slot.extents.covered_bytes == CHUNK_BYTES:
            slot.lost = False
        self._slots[key] = slot
        self._changed(key, slot, now)
        return first and slot.fresh

    def _stamp(self, key: Key, slot: Slot, now: int) -> Stamp:
        """A new generation of a slot."""
        self._generation += 1
        stamp = self._stamps.get(key)
        if stamp is None:
            stamp = self._stamps[key] = Stamp(self._generation, now)
            self._cold -= slot.kept
        else:
            stamp.generation, stamp.last = self._generation, now
        return stamp

    def _changed(self, key: Key, slot: Slot, now: int) -> None:
        self._stamp(key, slot, now)
        unflushed = self._unflushed.get(key[0])
        if unflushed is None:
            self._unflushed[key[0]] = {key[1]}
        else:
            unflushed.add(key[1])

    def cut(self, live: Live, number: int, length: int, now: int) -> None:
        """Forget staged bytes of a slot from ``length`` on (the file ends there now)."""
        slot = self.find(live.ino, number)
        if slot is None or not (dropped := slot.extents.cut(length)):
            return
        self._release(dropped)
        self._changed((live.ino, number), slot, now)
        if len(slot.extents):
            return
        self.drop(live, number)
        if slot.base is None and not slot.lost and (slot.new or not slot.fresh):
            self._maps.set_slot(live.ino, number, SlotKind.HOLE)
            if not slot.fresh:
                live.allocated -= CHUNK_BYTES

    def drop(self, live: Live, number: int) -> None:
        """Nothing is staged over this slot any more."""
        key = (live.ino, number)
        slot = self._slots.get(key)
        if slot is not None:
            self._release(slot.extents.clear())
            if slot.fresh:
                live.allocated -= CHUNK_BYTES
        elif self._cold or key in self._stamps:
            try:
                value = self._store.get_staged(live.ino, number)
                if value is None:
                    return
                self._release(list(self._parse(value)[0]))
            except (Corrupt, UnknownVersion) as error:
                log.error("what was staged of inode %d could not be read any more (%s)", live.ino, error)
        else:
            return
        self._forget(key)

    def _release(self, parts: list[StagedExtent]) -> None:
        for part in parts:
            self._stage.release(part)
            self.bytes -= part.length

    def _forget(self, key: Key) -> None:
        if self._stamps.pop(key, None) is None:
            self._cold -= 1
        self._slots.pop(key, None)
        self._bad.discard(key)
        self._store.delete_staged(*key)
        unflushed = self._unflushed.get(key[0])
        if unflushed is not None:
            unflushed.discard(key[1])
            if not unflushed:
                del self._unflushed[key[0]]

    def flush(self, most: int | None = None) -> None:
        """Put all changed rows into the open transaction, and PENDING into the maps of slots that were holes; or those of
        ``most`` files.

        The stage must be synced between this and the commit.
        """
        unflushed = self._unflushed
        for _ in range(len(unflushed) if most is None else min(most, len(unflushed))):
            ino, numbers = unflushed.popitem()
            try:
                self._flush(ino, numbers)
            except BaseException:  # whatever it is, these rows are not all put; raised again
                unflushed[ino] = numbers
                raise
        if unflushed:
            return
        if len(self._slots) > CACHED:
            self._shrink()
        if len(self._stamps) > 2 * STAMPED:
            self._cool()

    def _flush(self, ino: int, numbers: set[int]) -> None:
        for number in sorted(numbers):
            slot = self._slots[ino, number]
            value = bytes([_LOST if slot.lost else 0]) + extents_to_bytes(slot.extents)
            self._store.put_staged(ino, number, value)
            if slot.new:
                self._maps.append_pending(ino, number)
            elif slot.fresh:
                self._maps.set_slot(ino, number, SlotKind.PENDING)
            slot.fresh = slot.new = False
            slot.kept = True

    def _cool(self) -> None:
        """Forget the oldest stamps; all rows are in the store."""
        if not self._cold:
            self._cold_since = self.oldest_ns or _LONG_AGO
        idle = [key for key in self._stamps if key not in self._offered]
        for key in idle[: len(self._stamps) - STAMPED]:
            del self._stamps[key]
            self._cold += 1

    # ---- placing ----------------------------------------------------------------------------------------------------

    @property
    def oldest_ns(self) -> int | None:
        """When the slot that waits longest was staged, None when none waits."""
        if self._cold:
            return self._cold_since
        stamp = next(iter(self._stamps.values()), None)
        return None if stamp is None else stamp.since

    def dirty(self, limit: int, most: int, quiet_ns: int, skip: frozenset[Key], now: int) -> list[DirtySlot]:
        """At most ``limit`` slots to place, of ``most`` bytes (one more than that ends it), the longest dirty first: not
        changed for ``quiet_ns``, or dirty for ten times as long. Only what is committed. ``skip`` is what the engine has
        in its hands of what it was given before.
        """
        given: list[DirtySlot] = []
        size = 0
        waiting = self._waiting(limit, quiet_ns, skip, now)
        while len(given) < limit and size < most and (work := next(waiting, None)) is not None:
            given.append(work)
            size += work.length
        self._offered = skip.union((work.ino, work.slot) for work in given)
        return given

    def _waiting(self, limit: int, quiet_ns: int, skip: frozenset[Key], now: int) -> Iterator[DirtySlot]:
        stamped = len(self._stamps)  # what gets a stamp here comes behind these
        for key in self._cold_keys(_LOOKS * limit):
            if key not in skip and (work := self._offer(key)) is not None:
                yield work
        for key, stamp in islice(self._stamps.items(), stamped):
            if 0 <= now - stamp.since < quiet_ns:
                return
            if 0 <= now - stamp.last < quiet_ns and 0 <= now - stamp.since < 10 * quiet_ns:
                continue
            if key not in skip and (work := self._offer(key)) is not None:
                yield work

    def _cold_keys(self, limit: int) -> Iterator[Key]:
        """Cold slots in the order of their keys, beginning where the last call ended; ``limit`` rows are looked at."""
        if not self._cold:
            return
        began = self._cold_at
        rows = self._store.staged_keys(began, limit)
        if len(rows) < limit:
            rows += [key for key in self._store.staged_keys((0, 0), limit - len(rows)) if key < began]
        for key in rows:
            self._cold_at = key[0], key[1] + 1
            if key not in self._stamps:
                yield key

    def _offer(self, key: Key) -> DirtySlot | None:
        """The work that a slot is, when it can be placed now."""
        ino, number = key
        if key in self._bad or (ino in self._unflushed and number in self._unflushed[ino]):
            return None
        try:
            return self._work(ino, number)
        except PosixError:
            self._bad.add(key)
            return None

    def _work(self, ino: int, number: int) -> DirtySlot | None:
        slot = self.find(ino, number)
        live = self._inodes.get(ino)
        length = min(CHUNK_BYTES, live.size - number * CHUNK_BYTES)
        if slot is None or length <= 0 or not live.nlink:
            return None
        if slot.lost and slot.extents.covered_bytes < length:
            return None
        stamp = self._stamps.get((ino, number)) or self._stamp((ino, number), slot, _LONG_AGO)
        return DirtySlot(ino, number, stamp.generation, length, tuple(slot.extents), slot.base)

    def place(self, ino: int, number: int, generation: int, ref: ChunkRef) -> bool:
        """The slot's bytes are a chunk now, unless it was changed since that generation."""
        stamp = self._stamps.get((ino, number))
        if stamp is None or stamp.generation != generation:
            return False
        slot, live = self.find(ino, number), self._inodes.get(ino)
        if slot is None or slot.fresh or number >= slots_of(live.size) or not live.nlink:
            return False
        self._release(slot.extents.clear())
        self._forget((ino, number))
        self._maps.set_slot(ino, number, SlotKind.CHUNK, ref)
        self._inodes.touch(live)
        return True

    # ---- moving -----------------------------------------------------------------------------------------------------

    def move_out_of(self, segment: int) -> Iterator[int]:
        """Write the live bytes of a stage segment again, so that it can be deleted; yields, after every few slots, how
        many bytes were moved since. Between two steps anything may happen. Content, times and generations stay.
        """
        moved = 0
        for number, key in enumerate(self._all_keys(), 1):
            if key not in self._bad:
                moved += self._move(key, segment)
            if not number % 32 or moved >= CHUNK_BYTES:
                yield moved
                moved = 0
        yield moved

    def _all_keys(self) -> Iterator[Key]:
        """Every staged slot, those first that have no row yet. Stays right while slots change."""
        yield from [(ino, number) for ino, numbers in self._unflushed.items() for number in numbers]
        at: Key = (0, 0)
        while keys := self._store.staged_keys(at, 256):
            yield from keys
            at = keys[-1][0], keys[-1][1] + 1

    def _move(self, key: Key, segment: int) -> int:
        ino, number = key
        moved = 0
        try:
            slot = self.find(ino, number)
        except PosixError:
            self._bad.add(key)
            return 0
        if slot is None:
            return 0
        for extent in [e for e in slot.extents if e.segment == segment]:
            try:
                data = self._stage.read(ino, number, extent, extent.start, extent.length)
            except Corrupt:
                continue
            copies = self._stage.write(ino, number * CHUNK_BYTES + extent.start, data)
            self._unflushed.setdefault(ino, set()).add(number)  # at once: the next extent may fail
            for _, copy in copies:
                self.bytes += copy.length
                self._release(slot.extents.insert(copy))
            moved += extent.length
        return moved
