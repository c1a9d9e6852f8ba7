"""When what is written becomes durable: one commit for all who wait, and the loop that commits every two seconds.

The order of a commit: everything changed in memory is put into the open transaction (inodes, staged extents), the stage
is synced, the transaction is committed, segments of the stage that nothing names any more are deleted. These four run
without an await between them, so a commit is the state of the drive at one moment. What makes that cheap although the
stage may hold much that is not on disk: before them the stage is synced in a worker thread, as often as needed to leave
little for the last time; and the loop does the same in the background while much is written.

There are two ways to commit. Whoever waits (fsync, the engine) gets a frame of the **journal**, which holds the changed
rows and the last few bytes of the stage: one flush of the disk instead of three. Every two seconds, and when a frame
would be too large, the stage is synced and the **store** commits; only that shows the state to other processes.

Whoever is in no hurry (the engine, for every stripe) has its frame written in a worker thread: the disk may take some
milliseconds under load, and a program that asks for a file must not wait for that. What is changed meanwhile is in the
next frame.
"""

from __future__ import annotations

import errno
import logging
from contextlib import suppress

import trio

from hivefs.errors import DiskFull, HivefsError, PosixError, StoreDamaged
from hivefs.filesystem.data import MUCH, Data
from hivefs.filesystem.handles import Handles
from hivefs.filesystem.inodes import Inodes
from hivefs.filesystem.overlay import Overlay
from hivefs.filesystem.ports import StagePort, Store
from hivefs.model.staged import SegmentPiece

log = logging.getLogger(__name__)

COMMIT_EVERY = 2.0
TICK = 0.25
_THREADS = 3
WORTH_SHARING = 0.0005
"""Seconds. A disk that is quicker serves those who want a commit sooner one by one than together."""

LONELY = 8
"""After so many commits before which nobody else came, only every LONELY-th one gives others the time to come (or the one
before that, in turn: so it is not always the last of several who come together that waits for the rest).
"""

INLINE_BYTES = 1 << 20
"""Syncing so much takes less than handing it to a thread is worth."""

INLINE_PIECES = 128 << 10
"""Writing so much twice, into the journal and later to its own file, is cheaper than one more flush of the disk."""

ROUNDS = 6
SPREAD_OVER = 200
"""Changed inodes or files with staged bytes that are worth putting into the transaction before the commit."""

SPREAD = 24
"""Inodes, or files with changed slots, that are put in one go: half a millisecond."""

MOVE_EVERY = 20.0
MOVE_BYTES = 16 << 20
"""A stage segment is emptied by hand when it has at most so many live bytes left."""


class Commits:
    """See the head of the file."""

    def __init__(
        self, store: Store, stage: StagePort, inodes: Inodes, overlay: Overlay, data: Data, handles: Handles
    ) -> None:
        self._store = store
        self._stage = stage
        self._inodes = inodes
        self._overlay = overlay
        self._data = data
        self._handles = handles
        self._asked = 0
        self._done = 0
        self._leading: trio.Event | None = None
        self._settle = False
        self._urgent = False
        self._took = 1.0
        """Seconds of the last commit."""
        self._lonely = 0
        """So many times in a row nobody else came."""
        self._skipped = 0
        """Commits since others were given time."""
        self._aside = False
        """A frame is being written in a worker thread: what it holds is not durable yet."""
        self._threads = trio.CapacityLimiter(_THREADS)
        """Of its own: reads that wait for a disk must not keep a commit waiting for a thread."""
        self._said = ""
        self._much = trio.Event()
        data.on_much = self._wake
        self._unmovable: set[int] = set()

    @property
    def pending(self) -> bool:
        """Whether there is anything that a crash would take."""
        if self._aside or self._store.durable < self._store.seq - 1:
            return True
        return self._store.pending or self._inodes.pending or self._overlay.pending

    @property
    def settled(self) -> bool:
        """Whether other processes see all there is."""
        return not (self.pending or self._store.journaled)

    def begin(self) -> None:
        """Commit what was found when the drive was opened, so that all that is shown from now on is known to be durable.

        A disk that is full puts it off. Raises StoreDamaged.
        """
        if not self.settled:
            try:
                self.now()
            except DiskFull as error:
                self._say(str(error))

    def now(self, *, last: bool = False, settle: bool = True) -> None:
        """Commit, blocking; without ``settle`` by the journal if possible. ``last``: see Store.commit.

        Raises DiskFull (nothing is lost), StoreDamaged.
        """
        try:
            self._overlay.flush()
            self._inodes.flush()
            if settle or not self._journal():
                if self._stage.unsynced_bytes:
                    self._stage.sync()
                self._store.commit(last=last)
        except (DiskFull, StoreDamaged) as error:
            self._note_trouble(error)
            raise
        self._data.full = False
        try:
            self._stage.reclaim()
        except HivefsError as error:
            self._say(f"a stage segment stays: {error}")
        self._inodes.trim()

    def _note_trouble(self, error: HivefsError) -> None:
        """What goes wrong with the disk decides whether more may be written."""
        if isinstance(error, DiskFull):
            self._data.full = True
        else:
            self._data.broken = self._store.failed

    def _journal(self) -> bool:
        pieces = self._pieces()
        if not self._store.journal(pieces):
            return False
        self._stage.pieces_kept(pieces)
        return True

    def _pieces(self) -> list[SegmentPiece]:
        """What the frame must hold of the stage."""
        pieces = self._stage.loose_pieces(INLINE_PIECES)
        if pieces is None:
            self._stage.sync()
            return []
        return pieces

    async def _journal_aside(self) -> bool:
        """The same in a worker thread; False when the store has to commit. Segments are not reclaimed here: what was
        released since the frame was cut is not durable.
        """
        try:
            self._overlay.flush()
            self._inodes.flush()
            pieces = self._pieces()
            write = self._store.begin_frame(pieces)
        except (DiskFull, StoreDamaged) as error:
            self._note_trouble(error)
            raise
        if write is None:
            return False
        self._aside = True
        written = False
        try:
            with trio.CancelScope(shield=True):  # a frame that was cut must be written, whoever asked for it is gone
                written = await trio.to_thread.run_sync(write, limiter=self._threads)
        finally:
            self._aside = False
            if self._store.end_frame(written):
                self._stage.pieces_kept(pieces)
        return written

    async def all(self, *, settle: bool = False, patient: bool = False) -> None:
        """Everything done before this call is durable on return; with ``settle``, other processes see it too.

        ``patient`` callers let others go first. Raises DiskFull, StoreDamaged.
        """
        self._asked += 1
        ticket = self._asked
        self._settle = self._settle or settle
        self._urgent = self._urgent or not patient
        self._skipped += 1
        if self._took > WORTH_SHARING and (self._lonely < LONELY or self._skipped >= LONELY - self._lonely % 2):
            self._skipped = 0
            await trio.lowlevel.checkpoint()  # others that want the same may come before the work begins
            self._lonely = 0 if self._asked > ticket else self._lonely + 1
        while self._done < ticket:
            if self._leading is not None:
                await self._leading.wait()
                continue
            leading = self._leading = trio.Event()
            try:
                await self._sync_most()
                settle, self._settle = self._settle, False
                urgent, self._urgent = self._urgent, False
                asked = self._asked
                began = trio.current_time()
                try:
                    if urgent or settle or not self._can_wait() or not await self._journal_aside():
                        self.now(settle=settle)
                    self._took = trio.current_time() - began
                except BaseException:  # cancellation too: what was asked for is still to be done; raised again
                    self._settle, self._urgent = self._settle or settle, self._urgent or urgent
                    raise
                self._done = asked
            finally:
                self._leading = None
                leading.set()

    def _can_wait(self) -> bool:
        """Whether there is something to write, and no trouble that only ``now`` handles."""
        return self.pending and not (self._data.full or self._data.broken)

    async def _sync_most(self) -> None:
        for _ in range(ROUNDS):
            left = self._stage.unsynced_bytes if self._settle else self._stage.loose_bytes
            if left <= INLINE_BYTES:
                return
            await trio.to_thread.run_sync(self._stage.sync, limiter=self._threads)

    async def fsync(self, ino: int) -> None:
        """See Filesystem.fsync."""
        live = self._inodes.get(ino)
        saved = not live.dirty or live.quiet
        if saved and live.changed_seq <= self._store.durable and not self._overlay.changed(ino):
            return  # without a pass through the scheduler, which costs more than all of this
        await self.syncfs()

    async def syncfs(self) -> None:
        """See Filesystem.syncfs."""
        if not self.pending:
            return
        try:
            await self.all()
        except DiskFull as error:
            self._say(str(error))
            raise PosixError(errno.ENOSPC) from None
        except HivefsError as error:
            self._say(str(error))
            raise PosixError(errno.EIO) from None

    def _say(self, problem: str) -> None:
        """The same problem is logged once, until something went well."""
        if problem != self._said:
            self._said = problem
            log.error("%s", problem)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    async def maintain(self, task_status: trio.TaskStatus[None]) -> None:
        """See Filesystem.maintain."""
        task_status.started()
        committed = moved = trio.current_time()
        while True:
            with trio.move_on_after(TICK):
                await self._much.wait()
            self._much = trio.Event()
            now = trio.current_time()
            try:
                if self._stage.unsynced_bytes > MUCH and self._leading is None:
                    await trio.to_thread.run_sync(self._stage.sync, limiter=self._threads)
                await self._handles.reap()
                await self._spread()
                if now - committed >= COMMIT_EVERY:
                    committed = now
                    if not self.settled:
                        with suppress(HivefsError):  # the commit meets it again, and notes what it means
                            await self._spread(0)
                        await self.all(settle=True)
                        self._said = ""
                if now - moved >= MOVE_EVERY:
                    moved = now
                    await self._empty_segment()
            except HivefsError as error:
                self._say(str(error))

    def _wake(self) -> None:
        """Much was written: begin to put it on the disk now, so that an fsync finds little left to do."""
        self._much.set()

    async def _spread(self, over: int = SPREAD_OVER) -> None:
        """Put what was changed into the transaction a little at a time, so that a commit does not take long, and with turns
        for others. (Each commit syncs the stage before, and puts what is left, so some rows may be put early.)
        """
        for part in (self._overlay, self._inodes):
            if part.unflushed > over:
                for _ in range(-(-part.unflushed // SPREAD)):
                    part.flush(SPREAD)
                    await trio.lowlevel.checkpoint()

    async def _empty_segment(self) -> None:
        """Give the space of a mostly dead stage segment back."""
        segment = self._stage.movable(MOVE_BYTES)
        if segment is None or segment in self._unmovable:
            return
        total = 0
        for moved in self._overlay.move_out_of(segment):
            total += moved
            await trio.lowlevel.checkpoint()
        if not total:
            self._unmovable.add(segment)
