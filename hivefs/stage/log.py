"""The stage log: where written bytes are kept, sealed, until they are placed in the hive.

**Why a log.** Overwriting a sealed block in place and losing power half-way leaves a block that does not open, and with
it bytes that were fsynced before. Here nothing is overwritten: a write appends units (formats/staged.py) to the current
segment file, and the caller's metadata names them by extents. Bytes that no extent names are dead, whatever they are:
the tail that a crash or a full disk tore, a run that was overwritten. A segment without live bytes is deleted as a whole.

**Replay.** Somebody with the disk can put an older state of a segment file back. Units are bound to segment number,
position, file and offset, a position is never written twice (after a failed write the segment is given up, not
continued), and a segment number is never used twice (each session begins at a random one of 2^39): an older state holds
the same bytes or none. So the answer is right or Corrupt, never old bytes.

**Who may do what.** One process has a StageLog; its event loop calls everything, and ``sync`` may run in a worker
thread beside any other call (stage/syncing.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hivefs.crypto.unit import UnitSealer
from hivefs.errors import DiskFull, StoreDamaged
from hivefs.formats.staged import HEADER_BYTES, UNIT_BYTES, UNIT_OVERHEAD, UNIT_STRIDE, run_bytes, unit_context
from hivefs.model.ids import CHUNK_BYTES, KEY_BYTES
from hivefs.model.staged import SegmentPiece, SegmentUse, StagedExtent
from hivefs.stage import files
from hivefs.stage.ledger import Ledger, movable
from hivefs.stage.reader import UnitReader
from hivefs.stage.syncing import Appended, Syncer

SEGMENT_LIMIT = 64 << 20
"""A new segment is begun once the current one has so many bytes (it exceeds it by less than one write)."""

RESERVE_BYTES = 256 << 20
"""Left free on the disk, for the metadata, the engine and everybody else."""

_CHECK_BYTES = 8 << 20
_BATCH_BYTES = CHUNK_BYTES
_RETIRE_BYTES = 1 << 20
_OPEN_FILES = 64
_TRIES = 16


class StageLog:
    """The one writer of a stage directory (made if missing). ``key`` is VaultKeys.stage_key, ``random`` os.urandom.

    ``reserve_bytes`` is left free on the disk; ``free_bytes`` says how much is free (tests put their own).
    Segments of earlier processes are read and reclaimed, never appended to; ``restore`` is what the journal holds of
    them, and is synced on return. Raises StoreDamaged, DiskFull.
    """

    def __init__(
        self,
        directory: Path,
        key: bytes,
        random: Callable[[int], bytes],
        *,
        reserve_bytes: int = RESERVE_BYTES,
        segment_limit: int = SEGMENT_LIMIT,
        free_bytes: Callable[[Path], int] = files.free_bytes,
        restore: Sequence[SegmentPiece] = (),
    ) -> None:
        self._directory = directory
        self._random = random
        self._reserve = reserve_bytes
        self._segment_limit = segment_limit
        self._free_bytes = free_bytes
        self._files = files.SegmentFiles(directory, key, random, _OPEN_FILES)
        self._units = UnitReader(self._files)
        self._ledger = Ledger()
        self._room = 0
        self._next = 0
        self._out = memoryview(bytearray(_BATCH_BYTES + UNIT_OVERHEAD * (2 + _BATCH_BYTES // UNIT_BYTES)))
        self._loaded = False
        self._kept: frozenset[int] = frozenset()
        self._sizes: dict[int, int] = {}
        """Bytes of every closed segment on disk."""
        self._closed_bytes = 0
        self._current: Appended | None = None
        self._syncer = Syncer(directory, self._ledger.live)

        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.put_back(directory, restore)
            with os.scandir(directory) as entries:
                for entry in entries:
                    number = files.number_of(entry.name)
                    if number is not None:
                        self._sizes[number] = entry.stat(follow_symlinks=False).st_size
                        self._ledger.empty(number)
        except OSError as error:
            raise files.translate(error, directory) from None
        self._closed_bytes = sum(self._sizes.values())

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> list[tuple[int, StagedExtent]]:
        """Append ``data``, which is to lie at byte ``offset`` of file ``ino``; (slot, extent) for each slot it touches.

        Into the page cache only: sync() makes it last. The bytes count as live from now on: lay each extent over its
        slot and release() what SlotExtents hands back. Raises DiskFull or StoreDamaged; nothing is accepted then, and
        the log can be used further.
        """
        if offset < 0:
            raise ValueError("a negative offset")
        view = memoryview(data).cast("B")
        total = len(view)
        extents: list[tuple[int, StagedExtent]] = []
        if total <= _BATCH_BYTES:
            if total:
                self._append(ino, offset, view, extents)
        else:
            for at in range(0, total, _BATCH_BYTES):
                self._append(ino, offset + at, view[at : at + _BATCH_BYTES], extents)
        for _, extent in extents:
            self._ledger.retain(extent.segment, extent.length)
        return extents

    def _append(self, ino: int, offset: int, view: memoryview, extents: list[tuple[int, StagedExtent]]) -> None:
        """Seal and write at most _BATCH_BYTES, which lie in one or two slots."""
        segment = self._segment_for(len(view))
        number, position = segment.number, segment.end
        out, filled, at, total = self._out, 0, 0, len(view)
        while at < total:
            slot, run_start = divmod(offset + at, CHUNK_BYTES)
            run = min(CHUNK_BYTES - run_start, total - at)
            here, absolute = position + filled, offset + at
            count = -(-run // UNIT_BYTES)
            contexts = [
                unit_context(number, here + j * UNIT_STRIDE, ino, absolute + j * UNIT_BYTES, run) for j in range(count)
            ]
            nonces = self._random(16 * count)
            filled += segment.sealer.seal_into(out[filled:], view[at : at + run], UNIT_BYTES, contexts, nonces)
            extents.append((slot, StagedExtent(run_start, run, number, here, run_start, run)))
            at += run
        try:
            files.write_at(segment.fd, out[:filled], position)
        except OSError as error:
            self._give_up(segment)
            raise files.translate(error, self._directory) from None
        segment.end = position + filled
        self._room -= filled

    def _segment_for(self, length: int) -> Appended:
        """The segment to append to, after looking whether the disk has room."""
        if self._room < run_bytes(length) + HEADER_BYTES + UNIT_OVERHEAD:
            self._look_for_room(length)
        current = self._current
        if current is not None and current.end < self._segment_limit and not current.failed:
            return current
        self._retire()
        return self._begin()

    def _look_for_room(self, length: int) -> None:
        """Raises DiskFull. statvfs takes a microsecond, but others fill the disk too: far from the limit it is asked
        every 8 MiB, near it ever more often.
        """
        needed = run_bytes(length) + HEADER_BYTES + UNIT_OVERHEAD
        try:
            free = self._free_bytes(self._directory)
        except OSError as error:
            raise files.translate(error, self._directory) from None
        if free - needed < self._reserve:
            self._room = 0
            raise DiskFull(path=self._directory, free=free)
        self._room = max(needed, min(_CHECK_BYTES, (free - self._reserve) // 2))

    def _begin(self) -> Appended:
        """A new segment with its own random key, as the current one. Raises DiskFull, StoreDamaged."""
        try:
            for _ in range(_TRIES):
                if not self._next:
                    self._next = int.from_bytes(self._random(5), "big") >> 1 << 24
                number, self._next = self._next, self._next + 1
                path = files.segment_path(self._directory, number)
                try:
                    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                    break
                except FileExistsError:
                    self._next = 0
            else:
                raise StoreDamaged(path=self._directory, reason="no segment number is free")
            key = self._random(KEY_BYTES)
            try:
                files.write_at(fd, memoryview(self._files.new_header(number, key)), 0)
            except OSError:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._room = 0
            raise files.translate(error, self._directory) from None
        segment = Appended(number, fd, UnitSealer(key))
        self._syncer.add(segment)
        self._current = segment
        return segment

    def _retire(self) -> None:
        """Close the current segment for writing; sync still has to come by."""
        current = self._current
        if current is None:
            return
        self._current = None
        current.closed = True
        self._sizes[current.number] = current.end
        self._closed_bytes += current.end
        self._ledger.empty(current.number)

    def _give_up(self, segment: Appended) -> None:
        """After a failed write: never write at these positions again, give the torn tail back to the disk."""
        self._room = 0
        with contextlib.suppress(OSError):  # if the disk fails, the tail stays: nobody names it
            os.ftruncate(segment.fd, segment.end)
        self._retire()

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read(self, ino: int, slot: int, extent: StagedExtent, start: int, length: int, wait: bool = True) -> bytes:
        """Bytes [start, start + length) of the slot, which must lie inside the extent (ValueError).

        Raises Corrupt (the bytes were changed, are of another place, or the segment is missing), UnknownVersion,
        StoreDamaged (the disk does not read); NotInMemory without ``wait``, when the disk would have to be waited for.
        """
        data = self._units.read(ino, slot, extent, start, length, wait)
        if data is None:
            raise files.missing()
        return data

    @property
    def units_opened(self) -> int:
        """How many units have been opened so far."""
        return self._units.opened

    # ---- accounts ----------------------------------------------------------------------------------------------------

    def retain(self, extent: StagedExtent) -> None:
        """Count an extent that the metadata holds from an earlier process. (write() has retained what it returned.)"""
        self._ledger.retain(extent.segment, extent.length)

    def loaded(self, complete: bool = True) -> None:
        """Every extent of the metadata was retained: from now on, segments without live bytes may be deleted.

        With ``complete`` False, some extents could not be read: what was there at the start is kept for this session.
        """
        self._loaded = True
        self._kept = frozenset() if complete else frozenset(self._sizes)

    def release(self, extent: StagedExtent) -> None:
        """Nothing names these bytes any more (an extent, or the part of one that SlotExtents handed back).

        Raises ValueError when so many bytes of the segment are not live.
        """
        self._ledger.release(extent.segment, extent.length)

    @property
    def usage(self) -> int:
        """Bytes of all segments on disk."""
        current = self._current
        return self._closed_bytes + (0 if current is None else current.end)

    def segments(self) -> list[SegmentUse]:
        """All segments by number. The current one is not ``closed``."""
        current = self._current
        uses = [SegmentUse(n, self._ledger.live(n), size, True) for n, size in self._sizes.items()]
        if current is not None:
            uses.append(SegmentUse(current.number, self._ledger.live(current.number), current.end, False))
        return sorted(uses, key=lambda use: use.number)

    def movable(self, limit: int) -> int | None:
        """The segment that is worth emptying by hand, or None: first of all one that could not be synced and has live
        bytes, however many; else the closed one with the fewest, if at most ``limit`` and less than half of the file.

        A few long-lived bytes keep 64 MiB on disk. To free them: for each slot whose extents name the segment, read()
        each such extent, write() the bytes again at slot * 1 MiB + start, insert() the new extent, release() what
        insert hands back, save the slot's record; content, times and generation do not change. Then sync() and commit
        the metadata as for any write, and reclaim() deletes the segment. Interrupted anywhere, the old extents and
        their segment are still there. An extent that reads Corrupt stays as it is; when that is all that is left of a
        segment, say so with accept_loss().
        """
        for number in self._syncer.failed():
            if self._ledger.live(number):
                return number
        return movable(self.segments(), limit)

    def accept_loss(self, number: int) -> None:
        """All live bytes of a segment that failed to sync were read, and do not open: they are lost, and reading them
        says so. sync() raises for them no longer. No effect on a segment that did not fail.
        """
        self._syncer.accept_loss(number)

    # ---- durability and space ----------------------------------------------------------------------------------------

    @property
    def unsynced_bytes(self) -> int:
        """Bytes written since the last sync that succeeded, with overhead; 0 when sync has nothing to do."""
        return self._syncer.unsynced_bytes

    @property
    def loose_bytes(self) -> int:
        """Bytes that are neither synced nor in the journal; 0 while only sync() can tell (see loose_pieces)."""
        return self._syncer.loose_bytes

    def loose_pieces(self, limit: int) -> list[SegmentPiece] | None:
        """What sync() would have to make last and the journal does not hold yet: durable once a frame of the journal
        holds it; then say so with ``pieces_kept``. None when it is more than ``limit`` bytes, or after a failed sync.
        """
        return self._syncer.loose_pieces(limit)

    def pieces_kept(self, pieces: Iterable[SegmentPiece]) -> None:
        """These pieces are durable in the journal, which is kept until after the next sync()."""
        self._syncer.journaled(pieces)

    def sync(self) -> None:
        """What write() returned before this call began survives a crash from its return on.

        Blocks for as long as the disk takes; may run in a worker thread beside all other methods but close. Raises
        StoreDamaged when the disk cannot store it: what is not on disk is then unknown (see stage/syncing.py).
        """
        self._syncer.sync()

    def reclaim(self) -> int:
        """Delete closed segments without live bytes; returns the bytes freed.

        Call it right after a commit of the metadata, with no write between: what was released before that commit must
        not come back after a crash. Raises RuntimeError before loaded(), StoreDamaged.
        """
        if not self._loaded:
            raise RuntimeError("loaded() must be called after every staged extent was retained")
        freed = 0
        dead = [number for number in self._ledger.dead() if number not in self._kept]
        if not dead:
            return 0
        current = self._current
        if current is not None and current.number in dead and current.end >= _RETIRE_BYTES:
            self._retire()
        try:
            for number in dead:
                if self._current is None or self._current.number != number:
                    freed += self._delete(number)
        except OSError as error:
            raise files.translate(error, self._directory) from None
        finally:
            self._syncer.close_finished()
        return freed

    def _delete(self, number: int) -> int:
        files.segment_path(self._directory, number).unlink(missing_ok=True)
        self._ledger.forget(number)
        self._units.forget(number)
        self._syncer.deleted(number)
        size = self._sizes.pop(number, 0)
        self._closed_bytes -= size
        return size

    def close(self) -> None:
        """Close all files, without sync. The log cannot be used any more."""
        self._retire()
        self._syncer.close()
        self._units.close()
