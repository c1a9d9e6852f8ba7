"""The mount's metadata on LMDB: one write transaction that stays open and is committed every few seconds, and a journal
in which what an fsync asks for is durable until then (metadata/journal.py).

Tables (values sealed with the vault's metadata key, bound to table and key, unless said otherwise):

    tree      the records of formats/records.py (i, d, m, x); an inode's value begins with 16 local bytes
    staged    inode (8) slot (8) -> flags and extents of what is staged over that slot
    changed   tree key -> number of the commit that changed it last, while no checkpoint has it           (plain)
    released  counter (8) -> id of a chunk that no file names any more
    orphans   inode (8) -> empty: no name any more, to be reaped                                           (plain)
    info      name -> small values: seq, published, counter, device, hydrating, capacity ...
    loaded    'r' low key -> high key: what of the tree is here, only while hydrating                      (plain)

``seq`` is the number of the open transaction; what a commit made durable has numbers below it, by LMDB or by a frame of the
journal. Other processes see what LMDB has committed. All keys that could tell
something are keyed hashes already (formats/records.py). Sequence, inode counter and release counter are written once
per commit. The filesystem room does all the thinking; here nothing is known of what a record means, but that an inode
record has local bytes and a link count (load_page).

After a recovery (``hydrating``) the tree is filled page by page. What was put or deleted here lies in ranges that were
loaded before (everything is read before it is changed) or belongs to inodes made here, so a page never overwrites it.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import lmdb

from hivefs.crypto.keys import VaultKeys
from hivefs.errors import Corrupt, DiskFull, HivefsError, NotLoaded, StoreDamaged
from hivefs.formats.journal import Frame, Numbers, body_to_bytes
from hivefs.formats.local import LOCAL_BYTES
from hivefs.formats.records import inode_from_bytes, name_hash
from hivefs.metadata.ranges import Ranges
from hivefs.metadata.transaction import OpenTransaction
from hivefs.model.ids import INO_DEVICE_SHIFT, ChunkId
from hivefs.model.staged import SegmentPiece

log = logging.getLogger(__name__)

FORMAT = b"\x02"
"""1 had no journal: an older HiveFS would not look into it, and must not open the store."""
DISK_RESERVE = 32 << 20
"""A commit is refused (and can be tried again) while the disk has less free than this: LMDB's own failure would lose
the transaction."""

OWN_PREFIXES = b"dimx"
FIRST_COUNTER = 2
_BATCH = 64
_KEY_BYTES = {b"i": 9, b"m": 17, b"d": 25, b"x": 25}
_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">QQ")


class MetadataStore(OpenTransaction):
    """Implements filesystem.ports.Store. Raises VaultInUse, StoreDamaged; Corrupt for wrong keys."""

    def __init__(
        self,
        path: Path,
        keys: VaultKeys,
        random: Callable[[int], bytes] = os.urandom,
        *,
        create: bool = False,
        device: int = 1,
        next_counter: int = FIRST_COUNTER,
        hydrating: bool = False,
        holder: str = "",
    ) -> None:
        """Open, or with ``create`` make when there is none. ``device`` (1 to 65535), ``next_counter`` and ``hydrating``
        count only when it is made. ``holder`` is what VaultInUse tells others (the mountpoint).
        """
        super().__init__(path, keys, random, create, holder)
        self._names_key = keys.names_key
        self._touched: set[bytes] = set()
        self.published = 0
        self.changed_seq = 0
        """The last commit that changed something a checkpoint holds."""
        self.inodes = 0
        """How many inode records there are; kept by the file system."""
        self._ranges: Ranges | None = None
        self.on_cold: Callable[[], None] | None = None
        """Called when a scan had to wait for the disk: pages of LMDB's file that were not in memory."""
        self._pieces: list[SegmentPiece] = []
        self._frame: bytes | None = None
        self.durable = 0
        """The last commit that is known to be on the disk, by LMDB or by the journal."""
        try:
            if self._txn.stat(self._info)["entries"] == 0:
                if not create:
                    raise StoreDamaged(path=path, reason="it is empty")
                self._make(device, next_counter, hydrating)
            else:
                self._load()
        except HivefsError:
            self.close()
            raise

    # ---- opening and closing ----------------------------------------------------------------------------------------

    def _make(self, device: int, next_counter: int, hydrating: bool) -> None:
        if not 1 <= device < 1 << 16:
            raise ValueError("a device number is 1 to 65535")
        self._journal.clear()
        self.seq = 1
        self.device, self._counter, self._release_counter = device, next_counter, 0
        self._committed_release = 0
        self.put_info(b"format", FORMAT)
        self.put_info(b"device", _U64.pack(device))
        self.put_info(b"published", _U64.pack(0))
        if hydrating:
            self.put_info(b"hydrating", b"\x01")
            self._ranges = Ranges()
            # Inodes that this device will make cannot be in any page of the recovered tree.
            first, end = self._counter | device << INO_DEVICE_SHIFT, (device + 1) << INO_DEVICE_SHIFT
            for prefix in OWN_PREFIXES:
                self._mark(bytes([prefix]) + _U64.pack(first), bytes([prefix]) + _U64.pack(end))
        self.commit()

    def _load(self) -> None:
        made_as = self._number(b"format", struct.Struct(">B"))
        if made_as > FORMAT[0]:
            raise StoreDamaged(path=self.path, reason="a newer HiveFS made it")
        self.seq = self._number(b"seq") + 1
        self.device = self._number(b"device")
        changed = self.get_info(b"changed")
        self.changed_seq = _U64.unpack(changed)[0] if changed else 0
        self._counter = self._number(b"counter")
        self.inodes = self._number(b"inodes")
        self._release_counter = self._committed_release = self._number(b"released")
        # LMDB's last commit may have failed when the disk did, and be in the page cache only; no later sync would tell.
        # Another commit is sure to be on the disk; before it, a frame must not begin a new round over the old one.
        self.journaled = True
        self._too_many_rows()
        if made_as < FORMAT[0]:
            self._journal.clear()
            self.put_info(b"format", FORMAT)
            self.commit()  # before the first frame: an older HiveFS must not find a store with a journal
        for frame in self._journal.frames_after(self.seq - 1):
            self._replay(frame)
        self.published = self._number(b"published")
        if self.get_info(b"hydrating"):
            self._ranges = Ranges()
            for key, value in self._txn.cursor(db=self._loaded):
                self._ranges.add(key[1:], value or None)

    def _replay(self, frame: Frame) -> None:
        """Do again what a frame of the journal says. Only LMDB's next commit makes the journal unnecessary."""
        try:
            for table, key, value in frame.rows:
                if value is None:
                    self._txn.delete(key, db=self.tables[table])
                else:
                    self._txn.put(key, value, db=self.tables[table])
        except lmdb.Error as error:
            self._fail(error)
        numbers = frame.numbers
        self._counter, self.inodes = numbers.counter, numbers.inodes
        self._release_counter, self.changed_seq = numbers.released, numbers.changed
        self._pieces += frame.pieces
        self.seq += 1
        self.journaled = self.pending = True
        self._too_many_rows()

    def take_pieces(self) -> list[SegmentPiece]:
        """What the stage must have in its segment files before the first commit (StageLog's ``restore``)."""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _number(self, name: bytes, form: struct.Struct = _U64) -> int:
        value = self.get_info(name)
        if value is None or len(value) != form.size:
            raise StoreDamaged(path=self.path, reason="an entry about itself is missing")
        return int(form.unpack(value)[0])

    def close(self, *, commit: bool = False) -> None:
        """Let the lock go; what was not committed is lost. Idempotent.

        ``commit`` is only for those who staged nothing: what the stage holds must be synced before (Filesystem.close).
        """
        try:
            if commit and self._txn is not None:
                self.commit()
        finally:
            self._drop()

    # ---- tree -------------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The plain value (inodes with their local bytes). Raises NotLoaded, Corrupt, StoreDamaged."""
        try:
            value = self._live().get(key, None, self._tree)
        except lmdb.Error as error:
            self._fail(error)
        if value is None:
            if self._ranges is not None and not self._ranges.holds(key):
                raise NotLoaded(key)
            return None
        return self._sealer.open(b"tree" + key, value)

    def put(self, key: bytes, value: bytes, *, quiet: bool = False) -> None:
        """Save a record; ``quiet`` keeps it out of the next checkpoint unless something else changes it."""
        self._put(self._tree, key, self._sealer.seal(b"tree" + key, value))
        if not quiet and key not in self._touched:
            self._touched.add(key)
            self._put(self._changed, key, _U64.pack(self.seq))

    def delete(self, key: bytes) -> None:
        """Remove a record (nothing happens when it is not there)."""
        if self._delete(self._tree, key) and key not in self._touched:
            self._touched.add(key)
            self._put(self._changed, key, _U64.pack(self.seq))

    def _slices(self, prefix: bytes, start: bytes, size: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """Sealed records of the tree in slices; NotLoaded once the next one might not be here."""
        position = _padded(max(start, prefix))
        told = self.on_cold
        while True:
            faults = 0 if told is None else _waits()
            batch = self._batch(self._tree, position, prefix, size)
            if told is not None and _waits() > faults:
                told()
            gap = None if self._ranges is None else self._ranges.first_gap(position)
            if gap is not None:
                kept = [item for item in batch if item[0] < gap]
                if len(kept) < len(batch) or (len(batch) < size and gap < _after(prefix)):
                    yield kept
                    raise NotLoaded(gap)
            yield batch
            if len(batch) < size:
                return
            position = batch[-1][0] + b"\0"

    def keys(self, prefix: bytes, start: bytes = b"", limit: int = 0) -> list[bytes]:
        """Up to ``limit`` (0: all) keys of the tree with that prefix, from ``start`` on. Raises NotLoaded."""
        found: list[bytes] = []
        for batch in self._slices(prefix, start, min(limit or 256, 256)):
            found += [key for key, _ in batch]
            if limit and len(found) >= limit:
                return found[:limit]
        return found

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]:
        """(key, plain value) in key order; None for a record that does not open. Stays right while records change.

        Raises NotLoaded when it comes to a part that is not here.
        """
        for batch in self._slices(prefix, start, _BATCH):
            for key, value in batch:
                yield key, self._opened(key, value)

    def scan_slices(self, prefix: bytes, start: bytes = b"") -> Iterator[list[tuple[bytes, bytes | None]]]:
        """The same in slices of _BATCH, each opened at once: for who wants all, as every generator on the way counts."""
        opened = self._sealer.open
        for batch in self._slices(prefix, start, _BATCH):
            try:
                found: list[tuple[bytes, bytes | None]] = [(key, opened(b"tree" + key, value)) for key, value in batch]
            except Corrupt:
                found = [(key, self._opened(key, value)) for key, value in batch]
            yield found

    def _opened(self, key: bytes, value: bytes) -> bytes | None:
        try:
            return self._sealer.open(b"tree" + key, value)
        except Corrupt:
            return None

    def floor(self, key: bytes, prefix: bytes) -> tuple[bytes, bytes] | None:
        """The record with the greatest key at most ``key`` that has ``prefix``. Raises NotLoaded, Corrupt."""
        found: tuple[bytes, bytes] | None = None
        try:
            if self._cursor is None:
                self._cursor = self._live().cursor(db=self._tree)
            cursor = self._cursor
            there = cursor.last() if not cursor.set_range(key) else cursor.key() == key or cursor.prev()
            if there and (at := cursor.key()).startswith(prefix):
                found = at, cursor.value()
        except lmdb.Error as error:
            self._fail(error)
        if self._ranges is not None:
            self._require_between(found[0] if found else _padded(prefix), key)
        if found is None:
            return None
        return found[0], self._sealer.open(b"tree" + found[0], found[1])

    def _require_between(self, low: bytes, high: bytes) -> None:
        """Raise NotLoaded when a part of [low, high] is missing, for the part next to ``high`` first."""
        ranges = self._ranges
        if ranges is None:
            return
        around = ranges.around(high)
        if around is None:
            raise NotLoaded(high)
        if low < around[0] and (gap := ranges.first_gap(low)) is not None and gap < high:
            raise NotLoaded(gap)

    # ---- staged, orphans, released ----------------------------------------------------------------------------------

    def get_staged(self, ino: int, slot: int) -> bytes | None:
        """What is staged over a slot. Raises Corrupt."""
        key = _TWO.pack(ino, slot)
        value = self._live().get(key, None, self._staged)
        return None if value is None else self._sealer.open(b"staged" + key, value)

    def put_staged(self, ino: int, slot: int, value: bytes) -> None:
        """Save what is staged over a slot. The stage must be synced before the next commit."""
        key = _TWO.pack(ino, slot)
        self._put(self._staged, key, self._sealer.seal(b"staged" + key, value))

    def delete_staged(self, ino: int, slot: int) -> None:
        """Nothing is staged over this slot any more."""
        self._delete(self._staged, _TWO.pack(ino, slot))

    def staged_slots(self, ino: int, slot: int = 0, limit: int = 0) -> list[int]:
        """Slots of a file, from ``slot`` on, that have something staged; at most ``limit`` (0: all)."""
        rows = self._batch(self._staged, _TWO.pack(ino, slot), _U64.pack(ino), limit or 1 << 62)
        return [int.from_bytes(key[8:], "big") for key, _ in rows]

    def staged_keys(self, start: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        """At most ``limit`` (inode, slot) that have something staged, in order, from ``start`` on."""
        return [_TWO.unpack(key) for key, _ in self._batch(self._staged, _TWO.pack(*start), b"", limit)]

    def scan_staged(self) -> Iterator[tuple[int, int, bytes | None]]:
        """(inode, slot, value) of everything staged; None for a record that does not open."""
        position = b""
        while rows := self._batch(self._staged, position, b"", 256):
            for key, value in rows:
                ino, slot = _TWO.unpack(key)
                try:
                    yield ino, slot, self._sealer.open(b"staged" + key, value)
                except Corrupt:
                    yield ino, slot, None
            position = rows[-1][0] + b"\0"

    def put_orphan(self, ino: int) -> None:
        """This inode has no name any more."""
        self._put(self._orphans, _U64.pack(ino), b"")

    def delete_orphan(self, ino: int) -> None:
        """It is reaped."""
        self._delete(self._orphans, _U64.pack(ino))

    def orphans(self) -> list[int]:
        """All inodes without a name."""
        return [int.from_bytes(key, "big") for key, _ in self._batch(self._orphans, b"", b"", 1 << 62)]

    def push_released(self, chunk_id: ChunkId) -> None:
        """No file names this chunk any more, once this transaction is committed."""
        self._release_counter += 1
        key = _U64.pack(self._release_counter)
        self._put(self._released, key, self._sealer.seal(b"released" + key, chunk_id))

    def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]:
        """(number, chunk) above ``after``, committed ones only. A record that does not open is left out."""
        found = []
        for key, value in self._batch(self._released, _U64.pack(after + 1), b"", limit):
            number = int.from_bytes(key, "big")
            if number > self._committed_release:
                break
            try:
                found.append((number, ChunkId(self._sealer.open(b"released" + key, value))))
            except Corrupt:
                log.error("an entry of the table of released chunks does not open")
        return found

    def released_done(self, upto: int) -> None:
        """Drop the queue up to and with this number."""
        for key, _ in self._batch(self._released, b"", b"", 1 << 62):
            if int.from_bytes(key, "big") > upto:
                break
            self._delete(self._released, key)

    # ---- info, counters, commit -------------------------------------------------------------------------------------

    def next_ino(self) -> int:
        """A number that no inode of this vault had before."""
        counter = self._counter
        self._counter = counter + 1
        return self.device << INO_DEVICE_SHIFT | counter

    def name_hash(self, directory: int, name: bytes) -> bytes:
        """formats.records.name_hash under the vault's key."""
        return name_hash(self._names_key, directory, name)

    def commit(self, *, last: bool = False) -> None:
        """Make everything up to now durable by LMDB, for other processes to see (two fdatasyncs, about 0.3 ms), and begin
        the next transaction. The stage must be synced before.

        Does nothing when nothing was put. Raises DiskFull (nothing is lost, try again) or StoreDamaged (all is over).
        The ``last`` commit before closing may use up what is reserved on the disk.
        """
        self._live()
        if not self.pending and not self.journaled:
            return
        if self._frame is not None:
            raise RuntimeError("a frame of the journal is being written")
        if self._pieces:
            raise RuntimeError("the stage has not taken its pieces")
        if not last:
            self._require_room()
        self._count()
        self.put_info(b"seq", _U64.pack(self.seq))
        self.put_info(b"counter", _U64.pack(self._counter))
        self.put_info(b"inodes", _U64.pack(self.inodes))
        self.put_info(b"released", _U64.pack(self._release_counter))
        self.put_info(b"changed", _U64.pack(self.changed_seq))
        self._commit()
        self.durable = self.seq
        self._committed_release = self._release_counter
        self._touched.clear()
        self.seq += 1

    def journal(self, pieces: Sequence[SegmentPiece]) -> bool:
        """Make everything up to now durable by one frame of the journal (one fdatasync, about 0.1 ms); ``pieces`` is what
        the stage has not synced. False when only a commit can do it: too much was changed, or the journal is full.

        Raises DiskFull, StoreDamaged as commit does.
        """
        self._live()
        if not self.pending and self.durable == self.seq - 1:
            return True
        write = self.begin_frame(pieces)
        return write is not None and self.end_frame(write())

    def begin_frame(self, pieces: Sequence[SegmentPiece]) -> Callable[[], bool] | None:
        """The same in three steps, for who does not want to wait for the disk: call what is returned, in any thread, and
        end_frame with its answer; other changes may be made meanwhile (they are not in the frame), but no commit.
        """
        self._live()
        if self._frame is not None:
            raise RuntimeError("a frame of the journal is being written")
        if self._rows is None or self._pieces:
            return None
        self._require_room()
        self._count()
        numbers = Numbers(self._counter, self.inodes, self._release_counter, self.changed_seq)
        frame = self._journal.next_frame(self.seq, body_to_bytes(numbers, self._row_bytes(), pieces))
        if frame is None:
            return None
        self._frame = frame
        self._begin_rows()
        self._touched.clear()
        self.seq += 1
        return lambda: self._journal.write(frame)

    def end_frame(self, written: bool) -> bool:
        """``written`` is whether the frame is durable; when not, a commit has to follow. Returns it."""
        frame, self._frame = self._frame, None
        if written and frame is not None:
            self._journal.follow(frame)
            self.durable = self.seq - 1
            self.journaled = True
        else:
            self._too_many_rows()
            self.pending = True
        return written

    def _require_room(self) -> None:
        free = self.disk()[1]
        if free < DISK_RESERVE:
            raise DiskFull(path=self.path, free=free)

    def _count(self) -> None:
        if self._touched:
            self.changed_seq = self.seq

    def publish(self, seq: int) -> None:
        """Everything up to commit ``seq`` is in a published checkpoint; call forget_changed until it is done."""
        if seq > self.published:
            self.published = seq
            self.put_info(b"published", _U64.pack(seq))

    def forget_changed(self, after: bytes, limit: int) -> bytes | None:
        """Drop rows of ``changed`` that are published, looking at ``limit`` rows above key ``after`` (b"" at first).

        Returns the last key looked at, None at the end. Rows that stay by a crash do no harm.
        """
        rows = self._batch(self._changed, after + b"\0" if after else b"", b"", limit)
        for key, value in rows:
            if _U64.unpack(value)[0] <= self.published:
                self._delete(self._changed, key)
                self._touched.discard(key)
        return rows[-1][0] if len(rows) == limit else None

    def counts(self) -> dict[str, int]:
        """Entries per table, of the open transaction."""
        names = {"tree": self._tree, "staged": self._staged, "changed": self._changed, "orphans": self._orphans}
        return {name: int(self._live().stat(table)["entries"]) for name, table in names.items()}

    # ---- hydration --------------------------------------------------------------------------------------------------

    @property
    def hydrating(self) -> bool:
        """Whether a part of the tree is not on this machine yet."""
        return self._ranges is not None

    def unloaded(self) -> tuple[bytes, bytes | None] | None:
        """The next missing range [low, high) (None: to the end), or None when all is here."""
        return None if self._ranges is None else self._ranges.gap()

    def load_page(self, low: bytes, high: bytes | None, records: Iterable[tuple[bytes, bytes]]) -> int:
        """Take the canonical records of [low, high) of the recovered tree; returns how many were new.

        Records of other tables, those in ranges that were loaded before, and those changed here are left alone.
        """
        if self._ranges is None:
            return 0
        taken = 0
        for key, value in records:
            if key[:1] not in (b"d", b"i", b"m", b"x") or self._ranges.holds(key):
                continue
            if self._txn.get(key, None, self._tree) is not None or self._txn.get(key, None, self._changed) is not None:
                continue
            if key[:1] == b"i":
                if inode_from_bytes(value).nlink == 0:
                    self.put_orphan(int.from_bytes(key[1:], "big"))
                value = bytes(LOCAL_BYTES) + value
                self.inodes += 1
            self.put(key, value, quiet=True)
            taken += 1
        self._mark(low, high)
        if self._ranges.gap() is None:
            self._ranges = None
            self._live().drop(self._loaded, delete=False)
            self._too_many_rows()
            self._delete(self._info, b"hydrating")
            self.pending = True
        return taken

    def _mark(self, low: bytes, high: bytes | None) -> None:
        ranges = self._ranges
        if ranges is None:
            return
        (low, high), swallowed = ranges.add(low, high)
        for one in swallowed:
            self._delete(self._loaded, b"r" + one)
        self._put(self._loaded, b"r" + low, high or b"")


def _waits() -> int:
    """How often this thread looked at a mapped page that had to be read from the disk (getrusage(2), a microsecond)."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _padded(position: bytes) -> bytes:
    """The least key a record at or after ``position`` can have: what lies before it need not be here."""
    return position.ljust(_KEY_BYTES.get(position[:1], 0), b"\0")


def _after(prefix: bytes) -> bytes:
    """The least key above all that begin with ``prefix`` (which is not all 0xff)."""
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big")
