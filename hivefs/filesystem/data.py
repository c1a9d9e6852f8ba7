"""Bytes of files: reading through stage, chunks and holes; writing into the stage; changing the size.

What a slot reads as, newest first: staged extents; the chunk that the map names, up to its length; zeros. Two rules keep
old bytes from coming back when a file shrinks and grows again: shrinking cuts the staged extents at the new end, and
growing first stages zeros over what the chunk of the last slot still holds beyond the old end (a chunk cannot be
shortened: its length is part of its seal).
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import trio

from hivefs.chunkstore.disk import LONG, Windows, warm
from hivefs.errors import Corrupt, DiskFull, HivefsError, NotInMemory, NotLoaded, PosixError, StoreDamaged
from hivefs.filesystem.filemap import FileMaps, slots_of
from hivefs.filesystem.inodes import Inodes, Live
from hivefs.filesystem.overlay import Overlay
from hivefs.filesystem.ports import Capacity, ChunkSource, StagePort
from hivefs.model.ids import CHUNK_BYTES, ChunkId
from hivefs.model.inode import ChunkRef, SlotKind

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 60
AHEAD = 8
"""Chunks named to the source as what will be read next."""

TIGHT = 128 << 20
"""With less room than this left in the hive, files are opened past the kernel's write-back cache."""

OVERDRAFT = 256 << 20
"""What the kernel had accepted before the hive filled up (its limit for one drive is far below) is still staged."""

MUCH = 16 << 20
"""Bytes written after which somebody is told."""

_SHIFT = CHUNK_BYTES.bit_length() - 1
_MASK = CHUNK_BYTES - 1
_READ_TRIES = 64
_WARM_TRIES = 3
"""So often a read has a thread bring the same bytes; then memory is so short that it has to wait for them itself."""

_THREADS = 12
"""Reads that wait for this disk at once."""

LOCAL_AHEAD = 8
"""Chunks whose cached shares are opened and brought into memory ahead of a reader who goes on from slot to slot."""

AROUND = 16
"""Chunks in a row of which all shares are begun when small reads there met AROUND_AFTER that were not in memory: whoever
jumps about in a file meets the others soon, and each would be a wait.
"""
AROUND_AFTER = 3

_STREAMS = 64
"""Files that are remembered as being read from nodes, one slot after the other."""


class _Wanted:
    """One read on its way: what came from nodes, what must come from there, and whether to wait for this disk."""

    __slots__ = ("have", "missing", "wait")

    def __init__(self) -> None:
        self.have: dict[tuple[bytes, int, int], bytes] = {}
        self.missing: list[tuple[ChunkRef, int, int]] = []
        self.wait = False


class Data:
    """See the head of the file."""

    def __init__(
        self,
        inodes: Inodes,
        maps: FileMaps,
        overlay: Overlay,
        stage: StagePort,
        chunks: ChunkSource,
        clock: Callable[[], int],
        drop_capability: Callable[[Live], None],
    ) -> None:
        """``drop_capability`` removes security.capability of a file that is written to."""
        self._inodes = inodes
        self._drop_capability = drop_capability
        self._maps = maps
        self._overlay = overlay
        self._stage = stage
        self._chunks = chunks
        self._clock = clock
        self.capacity: Capacity | None = None
        self.full = False
        """The disk of the metadata is full: nothing new until a commit succeeds."""
        self.on_much: Callable[[], None] = lambda: None
        self._written = 0
        self._windows = Windows()
        self._marks: OrderedDict[ChunkId, tuple[int, int]] = OrderedDict()
        self._streams: OrderedDict[int, int] = OrderedDict()
        """The last slot that had to be brought, of the files read last."""
        self._local: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """(last slot read, slot up to which shares were begun) of the files read last in long pieces."""
        self._jumps: OrderedDict[tuple[int, int], int] = OrderedDict()
        """How often small reads missed something in a row of AROUND slots, of the rows in which they did last."""
        self._threads = trio.CapacityLimiter(_THREADS)
        self.broken = False
        """The metadata cannot be committed any more: nothing new for good."""

    # ---- reading ----------------------------------------------------------------------------------------------------

    def read_now(self, ino: int, offset: int, size: int) -> bytes | None:
        """See Filesystem.read_now."""
        live = self._inodes.file(ino)
        if size >= LONG:
            self._begin_ahead(live, offset + size - 1 >> _SHIFT)
        try:
            return self._read(live, offset, size, _Wanted())
        except NotInMemory:
            return None

    def _begin_ahead(self, live: Live, slot: int) -> None:
        """Somebody reads a long piece that ends in ``slot``: when he comes from the slot before, or begins with the file,
        this machine's shares of the next ones are brought into memory.
        """
        last, begun = self._local.get(live.ino, (-1, 0))
        if slot == last:
            return
        goes_on, following = 0 < slot - last <= 2, slot + 1
        if goes_on or not slot:
            self._begin(live, max(begun, following) if goes_on else following, following + LOCAL_AHEAD)
            begun = following + LOCAL_AHEAD
        else:
            begun = following  # at some place in the file: nothing is known of the next read
        self._local[live.ino] = slot, begun
        self._local.move_to_end(live.ino)
        if len(self._local) > _STREAMS:
            self._local.popitem(last=False)

    def _begin_around(self, live: Live, slot: int) -> None:
        """A small read in ``slot`` met something that was not in memory."""
        row = slot // AROUND
        missed = self._jumps.pop((live.ino, row), 0) + 1
        if missed >= AROUND_AFTER:
            self._begin(live, row * AROUND, (row + 1) * AROUND)
            return
        self._jumps[live.ino, row] = missed
        if len(self._jumps) > _STREAMS:
            self._jumps.popitem(last=False)

    def _begin(self, live: Live, start: int, stop: int) -> None:
        """Have the shares of slots [start, stop) brought into memory that are on this machine."""
        try:
            for number in range(start, min(stop, slots_of(live.size))):
                extent = self._maps.covering(live.ino, number)
                if extent is not None and extent.chunk is not None:
                    self._chunks.begin(extent.chunk)
        except (HivefsError, PosixError, NotLoaded):
            pass  # only a hint: the read itself says what is wrong

    def _read(self, live: Live, offset: int, size: int, wanted: _Wanted) -> bytes | None:
        end = min(offset + size, live.size)
        if offset >= end:
            return b""
        first, last = offset >> _SHIFT, end - 1 >> _SHIFT
        if first == last:
            base = first << _SHIFT
            data = self._read_slot(live.ino, first, offset - base, end - base, wanted)
        else:
            parts: list[bytes] = []
            for slot in range(first, last + 1):
                base = slot << _SHIFT
                part = self._read_slot(live.ino, slot, max(offset - base, 0), min(end - base, CHUNK_BYTES), wanted)
                if part is None:
                    return None
                parts.append(part)
            data = b"".join(parts)
        if data is not None:
            self._inodes.accessed(live, self._clock())
        return data

    def _read_slot(self, ino: int, number: int, start: int, end: int, wanted: _Wanted) -> bytes | None:
        slot = self._overlay.find(ino, number)
        if slot is None:
            under = self._maps.find(ino, number)
            if under.chunk is not None:
                return self._chunk(ino, under.chunk, start, end, wanted)
            if under.kind == SlotKind.HOLE:
                return bytes(end - start)
            self._inodes.damage("a part that was never placed before the machine was lost", ino)
        parts: list[bytes] = []
        for low, high, extent in slot.extents.cover(start, end):
            if extent is not None:
                try:
                    part: bytes | None = self._stage.read(ino, number, extent, low, high - low, wanted.wait)
                except (Corrupt, StoreDamaged) as error:
                    self._inodes.damage("what is staged", ino, error)
            elif slot.base is not None:
                part = self._chunk(ino, slot.base, low, high, wanted)
            elif slot.lost:
                self._inodes.damage("a part that was never placed before the machine was lost", ino)
            else:
                part = bytes(high - low)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _chunk(self, ino: int, ref: ChunkRef, start: int, end: int, wanted: _Wanted) -> bytes | None:
        stop = min(end, ref.length)
        if start >= stop:
            return bytes(end - start)
        data = wanted.have.get((ref.chunk_id, start, stop))
        if data is None:
            try:
                data = self._chunks.cached(ref, start, stop, wanted.wait)
            except Corrupt as error:
                self._inodes.damage("a chunk", ino, error)
            if data is not None and self._marks and (mark := self._marks.pop(ref.chunk_id, None)) is not None:
                self._reached(*mark)
        if data is None:
            wanted.missing.append((ref, start, stop))
            return None
        return data if stop == end else data + bytes(end - stop)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        """See Filesystem.read."""
        wanted = _Wanted()
        brought: dict[tuple[Path, int], int] = {}
        tries = 0
        while tries < _READ_TRIES:
            wanted.missing = []
            try:
                data = self._read(self._inodes.file(ino), offset, size, wanted)
            except NotInMemory as cold:
                times = brought[cold.path, cold.position] = brought.get((cold.path, cold.position), 0) + 1
                wanted.wait = times >= _WARM_TRIES
                if size < LONG:
                    self._begin_around(self._inodes.file(ino), offset >> _SHIFT)
                await trio.to_thread.run_sync(warm, cold, self._windows.next(cold), limiter=self._threads)
                continue
            if data is not None:
                return data
            tries += 1
            following = self._read_next(ino, offset, size)
            for ref, start, stop in wanted.missing:
                try:
                    wanted.have[ref.chunk_id, start, stop] = await self._chunks.fetch(ref, start, stop, following)
                except HivefsError as error:
                    self._inodes.damage("a chunk", ino, error)
        log.error("inode %d changed all the time while it was read", ino)
        raise PosixError(errno.EIO)

    def _read_next(self, ino: int, offset: int, size: int) -> list[ChunkRef]:
        """What to bring behind a read that meets chunks which are not here: nothing for a read at some place in a file,
        the next chunks for one that goes on from the last, or begins at the start.
        """
        first, last = offset >> _SHIFT, offset + size - 1 >> _SHIFT
        before = self._streams.get(ino)
        self._note_stream(ino, last)
        if first and (before is None or not 0 <= first - before <= AHEAD + 1):
            return []
        following = self._ahead(ino, offset + size)
        self._mark(ino, last, following)
        return following

    def _note_stream(self, ino: int, slot: int) -> None:
        self._streams[ino] = slot
        self._streams.move_to_end(ino)
        if len(self._streams) > _STREAMS:
            self._streams.popitem(last=False)

    def _mark(self, ino: int, slot: int, following: list[ChunkRef]) -> None:
        """Remember in the middle of what is brought ahead to go on with it there: its first half is read while the second
        one comes. Asking at each chunk would cost a question to the engine for each.
        """
        if following:
            middle = (len(following) - 1) // 2
            self._marks[following[middle].chunk_id] = (ino, slot + middle + 1)
            if len(self._marks) > _STREAMS:
                self._marks.popitem(last=False)

    def _reached(self, ino: int, slot: int) -> None:
        """A reader came to a mark."""
        self._note_stream(ino, slot)
        following = self._ahead(ino, slot + 1 << _SHIFT)
        self._chunks.ahead(following)
        self._mark(ino, slot, following)

    def _ahead(self, ino: int, offset: int) -> list[ChunkRef]:
        refs: list[ChunkRef] = []
        try:
            for extent in self._maps.scan(ino, offset + CHUNK_BYTES - 1 >> _SHIFT):
                if extent is None or extent.chunk is None or len(refs) == AHEAD:
                    break
                refs.append(extent.chunk)
        except NotLoaded:
            pass  # only a hint
        return refs

    # ---- writing ----------------------------------------------------------------------------------------------------

    def write(self, ino: int, offset: int, data: bytes | memoryview, accepted: bool = False) -> int:
        """See Filesystem.write."""
        live = self._inodes.file(ino)
        length = len(data)
        end = offset + length
        if not length:
            return 0
        if offset < 0:
            raise PosixError(errno.EINVAL)
        if end > MAX_FILE_BYTES:
            raise PosixError(errno.EFBIG)
        count = slots_of(live.size)
        first, last = offset >> _SHIFT, end - 1 >> _SHIFT
        self._room(length, accepted)
        if not accepted and not live.plain:
            self._drop_capability(live)
        if last >= count:
            self._clear(live, count, last + 1)
        if offset > live.size:
            self._zero_tail(live, offset)
        slots = {number: self._overlay.prepare(ino, number, count) for number in range(first, last + 1)}
        now = self._clock()
        try:
            laid = self._stage.write(ino, offset, data)
        except DiskFull:
            raise PosixError(errno.ENOSPC) from None
        except StoreDamaged as error:
            self._inodes.damage("the stage, for a write", ino, error)
        for number, extent in laid:
            if self._overlay.lay(ino, number, slots[number], extent, now):
                live.allocated += CHUNK_BYTES
        if end > live.size:
            self._maps.cover(ino, count, first)
            live.size = end
        if not accepted:
            live.mtime_ns = live.ctime_ns = now
        self._inodes.touch(live)
        self._written += length
        if self._written >= MUCH:
            self._written = 0
            self.on_much()
        return length

    @property
    def tight(self) -> bool:
        """See Filesystem.tight."""
        return self.capacity is not None and self.capacity.free - self._overlay.bytes < TIGHT

    def _room(self, length: int, accepted: bool) -> None:
        if self.broken:
            raise PosixError(errno.EIO)
        if self.full:
            raise PosixError(errno.ENOSPC)
        if self.capacity is not None:
            room = self.capacity.free + (OVERDRAFT if accepted else 0)
            if self._overlay.bytes + length > room:
                raise PosixError(errno.ENOSPC)

    def _zero_tail(self, live: Live, end: int) -> None:
        """The file will grow to ``end`` or beyond, its old last slot with zeros: hide what its chunk still holds there."""
        used = live.size & _MASK
        if not used:
            return
        number = live.size >> _SHIFT
        slot = self._overlay.prepare(live.ino, number, number + 1)
        if slot.base is None or slot.base.length <= used:
            return
        zeros = min(slot.base.length, end - (number << _SHIFT)) - used
        now = self._clock()
        try:
            laid = self._stage.write(live.ino, live.size, bytes(zeros))
        except DiskFull:
            raise PosixError(errno.ENOSPC) from None
        except StoreDamaged as error:
            self._inodes.damage("the stage, for a write", live.ino, error)
        for at, extent in laid:
            self._overlay.lay(live.ino, at, slot, extent, now)

    def _clear(self, live: Live, start: int, end: int) -> None:
        """Remove what an earlier life of the file left in slots [start, end), all beyond its size."""
        if live.tidy:
            return
        while True:
            staged = [number for number in self._overlay.slots_from(live.ino, start, self._maps.slice) if number < end]
            for number in staged:
                self._overlay.drop(live, number)
            tail = self._maps.tail(live.ino, start)
            complete = tail.complete and not staged
            nothing_left = complete and not tail.extents
            tail.complete = tail.complete or bool(tail.extents and tail.extents[-1][0] >= end)
            tail.extents = [item for item in tail.extents if item[0] < end]
            live.allocated = max(0, live.allocated - CHUNK_BYTES * self._maps.drop(tail))
            if nothing_left:
                live.tidy = True
            if tail.complete and not staged:
                return

    # ---- size -------------------------------------------------------------------------------------------------------

    def set_size(self, live: Live, size: int, now: int) -> None:
        """truncate(2), up or down. The caller saves the inode and sets the times. EFBIG, ENOSPC, EIO."""
        if size < 0:
            raise PosixError(errno.EINVAL)
        if size > MAX_FILE_BYTES:
            raise PosixError(errno.EFBIG)
        if size > live.size:
            self._grow(live, size)
        elif size < live.size:
            self._shrink(live, size, now)

    def _grow(self, live: Live, size: int) -> None:
        count, new_count = slots_of(live.size), slots_of(size)
        if new_count > count:
            self._clear(live, count, new_count)
        self._zero_tail(live, size)
        self._maps.cover(live.ino, count, new_count)
        live.size = size

    def _shrink(self, live: Live, size: int, now: int) -> None:
        count = slots_of(size)
        if not size and self.empty_small(live):
            return
        self._maps.tail(live.ino, count)
        if size & _MASK:
            self._overlay.find(live.ino, count - 1)
        # Everything that may have to be loaded was looked at: from here on the file changes.
        live.size = size
        if size & _MASK:
            self._overlay.cut(live, count - 1, size & _MASK, now)
        if not self._sweep(live, count):
            live.tidy = False
            self._inodes.orphaned(live.ino)

    def empty_small(self, live: Live) -> bool:
        """Cut a file of one slot to nothing, if it is known that no more of it lies around. (Most files are like that.)

        EIO; raises NotLoaded.
        """
        if not live.tidy or live.size > CHUNK_BYTES:
            return False
        if live.size:
            self._maps.remove_first(live.ino, self._overlay.chunkless(live.ino, 0))
            self._overlay.drop(live, 0)
            live.size = live.allocated = 0
        return True

    def _sweep(self, live: Live, count: int) -> bool:
        """Remove one slice of what lies beyond the last slot; whether that was all."""
        staged = self._overlay.slots_from(live.ino, count, self._maps.slice)
        for number in staged:
            self._overlay.drop(live, number)
        tail = self._maps.tail(live.ino, count)
        live.allocated = max(0, live.allocated - CHUNK_BYTES * self._maps.drop(tail))
        return len(staged) < self._maps.slice and tail.complete

    def sweep(self, live: Live) -> bool:
        """One slice (less than a millisecond) of removing what lies beyond the size of a file; whether that was all.

        Raises NotLoaded.
        """
        done = self._sweep(live, slots_of(live.size))
        self._inodes.touch(live)
        return done
