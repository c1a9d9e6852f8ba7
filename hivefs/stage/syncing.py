"""Making appended segments last: the only part of the stage that two threads share.

The event loop appends and closes segments; ``sync`` may run in a worker thread meanwhile. They share the list of
segments that are not finished (guarded by ``_state``) and the descriptors, which only the holder of ``_syncing`` closes.
``end`` of a segment is set by the loop after the bytes are in the page cache, so whatever sync reads there is covered
by the fdatasync that follows.

**When the disk fails** (EIO in fdatasync) the kernel may drop the dirty pages and answer the next fdatasync with
success, for a directory and the names in it too. So a segment that failed once, or its name, stays failed: sync raises
for as long as it holds live bytes. New bytes go to a new segment meanwhile. What failed can mostly still be read, so
moving it out (StageLog.movable names such a segment first) heals; what reads Corrupt is lost, and accepted as lost once
that is known.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from hivefs.crypto.unit import UnitSealer
from hivefs.errors import StoreDamaged
from hivefs.formats.staged import HEADER_BYTES
from hivefs.model.staged import SegmentPiece
from hivefs.stage.files import read_at, sync_directory


class Appended:
    """A segment that this process writes. ``end`` is where the next unit goes; ``synced`` <= ``end`` is on disk;
    what lies before ``journaled`` is on disk or in the journal (with the header, which ``synced`` does not tell of).

    ``closed``: nothing is appended any more. ``deleted``: the file is unlinked. ``failed``: it could not be synced.
    """

    __slots__ = ("closed", "deleted", "end", "failed", "fd", "journaled", "number", "sealer", "synced")

    def __init__(self, number: int, fd: int, sealer: UnitSealer) -> None:
        self.number = number
        self.fd = fd
        self.sealer = sealer
        self.end = HEADER_BYTES
        self.synced = HEADER_BYTES
        self.journaled = 0
        self.closed = False
        self.deleted = False
        self.failed = False


class Syncer:
    """The segments of this process that are not finished. ``live`` gives the live bytes of a segment by number."""

    def __init__(self, directory: Path, live: Callable[[int], int]) -> None:
        self._directory = directory
        self._live = live
        self._syncing = threading.Lock()
        self._state = threading.Lock()
        self._segments: list[Appended] = []
        self._unnamed: list[Appended] = []
        """New files whose names are not synced yet."""

    def add(self, segment: Appended) -> None:
        """A new file: from now on its descriptor belongs to the Syncer, and its name must be synced too."""
        with self._state:
            self._segments.append(segment)
            self._unnamed.append(segment)

    @property
    def unsynced_bytes(self) -> int:
        """Bytes appended since the last sync that succeeded; those of deleted segments do not count."""
        with self._state:
            return sum(s.end - s.synced for s in self._segments if not s.deleted)

    def _loose(self) -> list[Appended] | None:
        if self._failed():
            return None
        return [s for s in self._segments if s.journaled < s.end and not s.deleted]

    @property
    def loose_bytes(self) -> int:
        """See StageLog.loose_bytes."""
        with self._state:
            return sum(s.end - s.journaled for s in self._loose() or ())

    def loose_pieces(self, limit: int) -> list[SegmentPiece] | None:
        """See StageLog.loose_pieces. Under the lock, because a sync that ends may close files."""
        with self._state:
            loose = self._loose()
            if loose is None or sum(s.end - s.journaled for s in loose) > limit:
                return None
            try:
                return [SegmentPiece(s.number, s.journaled, read_at(s.fd, s.end - s.journaled, s.journaled)) for s in loose]
            except OSError:
                return None  # sync() will say what is wrong

    def journaled(self, pieces: Iterable[SegmentPiece]) -> None:
        """These are in the journal."""
        ends = {piece.segment: piece.position + len(piece.data) for piece in pieces}
        with self._state:
            for segment in self._segments:
                segment.journaled = max(segment.journaled, ends.get(segment.number, 0))

    def sync(self) -> None:
        """See StageLog.sync. Raises StoreDamaged."""
        with self._syncing:
            with self._state:
                work = [(s, s.end) for s in self._segments if s.end > s.synced and not s.failed and not s.deleted]
                unnamed = list(self._unnamed)
            try:
                for segment, end in work:
                    _sync_segment(segment, end)
                if unnamed:
                    self._sync_names(unnamed)
                for segment, end in work:
                    segment.journaled = max(segment.journaled, end)
            except OSError as error:
                raise StoreDamaged(path=self._directory, reason=error.strerror or "it cannot be synced") from None
            finally:
                self._close_finished()
            with self._state:
                if any(self._live(s.number) for s in self._failed()):
                    raise StoreDamaged(path=self._directory, reason="the disk could not store earlier writes")

    def _sync_names(self, segments: list[Appended]) -> None:
        with self._state:
            self._unnamed = [s for s in self._unnamed if s not in segments]
        try:
            sync_directory(self._directory)
        except OSError:
            with self._state:
                for segment in segments:
                    segment.failed, segment.synced = True, HEADER_BYTES
            raise

    def _failed(self) -> list[Appended]:
        return [s for s in self._segments if s.failed and s.synced < s.end and not s.deleted]

    def failed(self) -> list[int]:
        """Numbers of the segments that could not be synced."""
        with self._state:
            return [s.number for s in self._failed()]

    def accept_loss(self, number: int) -> None:
        """Do not raise for that failed segment any more. No effect on others."""
        with self._state:
            for segment in self._failed():
                if segment.number == number:
                    segment.synced = segment.end

    def deleted(self, number: int) -> None:
        """The file of that segment was unlinked; it needs no sync, and must not hold disk space for long."""
        with self._state:
            for segment in self._segments:
                segment.deleted = segment.deleted or segment.number == number

    def close_finished(self) -> None:
        """Close what is finished, at once; if a sync runs just now, it does so at its end."""
        if self._syncing.acquire(blocking=False):
            try:
                self._close_finished()
            finally:
                self._syncing.release()

    def _close_finished(self) -> None:
        with self._state:
            done = [s for s in self._segments if s.deleted or (s.closed and s.synced == s.end)]
            self._segments = [s for s in self._segments if s not in done]
            for segment in done:
                os.close(segment.fd)

    def close(self) -> None:
        """Close everything, without sync; waits for a sync that runs."""
        with self._syncing:
            with self._state:
                for segment in self._segments:
                    segment.deleted = True
            self._close_finished()


def _sync_segment(segment: Appended, end: int) -> None:
    try:
        os.fdatasync(segment.fd)
    except OSError:
        segment.failed = True
        raise
    segment.synced = end
