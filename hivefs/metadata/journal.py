"""The journal: what makes an fsync cheap.

A commit of LMDB flushes the disk twice, after the stage has flushed it once. Here a commit is one frame with the rows that
changed since the last one and the few bytes that the stage has not synced, appended to a file and flushed once; LMDB
follows every two seconds and the journal is written again from its beginning. The file does not shrink and grows by
STEP_BYTES of zeros, so that nearly every frame overwrites blocks that are there: then a flush need not touch the journal
of the file system below. A frame is one call: written past the page cache and flushed (O_DIRECT, O_DSYNC; open(2)), which
takes two thirds of the time and of the processor that a write and fdatasync take (decisions/0026).

At the start frames that follow LMDB's last commit without a gap are put into the open transaction. A frame that was not
written whole ends them: nobody was told that it is durable. The technique is a write-ahead log (Mohan and others, ARIES,
1992), whose frames are chained as in SQLite's WAL.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hivefs.crypto.seal import RecordSealer
from hivefs.errors import NO_ROOM, Corrupt, DiskFull, StoreDamaged
from hivefs.formats.journal import BLOCK, HEADER_BYTES, Frame, FrameChain, body_from_bytes

log = logging.getLogger(__name__)

NAME = "journal"
ROUND_BYTES = 16 << 20
"""A frame that would end beyond this is not written: LMDB commits instead, and a new round begins."""

STEP_BYTES = 256 << 10
"""By so much the file grows at once."""

NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""What file systems answer that do not know O_DIRECT (open(2)), or not with such blocks."""

FRAME_BYTES = 1 << 20
"""Rows and pieces worth a frame; more go to LMDB and to the segment files at once."""


class Journal:
    """The file ``journal`` beside the store (made if missing), which its one writer holds. Raises StoreDamaged."""

    def __init__(self, directory: Path, sealer: RecordSealer) -> None:
        self._path = directory / NAME
        self._chain = FrameChain(sealer)
        self._usable = True
        self._said = 0
        """The error that was logged last (errno; -1 for one without), 0 when frames are written."""
        self._short_of = 0
        """Where the longest frame ended that could not be written since then."""
        self._out = mmap.mmap(-1, STEP_BYTES)
        """Where direct writes begin in memory: it must be aligned like the disk's blocks."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.fdatasync(self._fd)  # frames of a process that was killed before it could: they will count as durable
            _sync_directory(directory)
            self._end = os.fstat(self._fd).st_size
        except OSError as error:
            raise StoreDamaged(path=self._path, reason=error.strerror or "it cannot be opened") from None
        self._frames: int | None = None

    def frames_after(self, number: int) -> Iterator[Frame]:
        """What was committed here after commit ``number`` of the store, in order. Raises StoreDamaged (cannot be read)."""
        try:
            while True:
                header = os.pread(self._fd, HEADER_BYTES, self._chain.position)
                found = FrameChain.length_of(header)
                if found is None or found[0] != number + 1:
                    return
                frame = os.pread(self._fd, found[1], self._chain.position)
                if len(frame) < found[1]:
                    return
                try:
                    body = self._chain.open(number + 1, frame)
                except Corrupt:
                    return  # torn, or of an earlier round
                yield body_from_bytes(body)
                self._chain.follow(frame)
                number += 1
        except OSError as error:
            raise StoreDamaged(path=self._path, reason=error.strerror or "it cannot be read") from None

    def append(self, number: int, body: bytes) -> bool:
        """Make commit ``number`` durable; False when that is not possible here and LMDB has to commit."""
        frame = self.next_frame(number, body)
        if frame is None or not self.write(frame):
            return False
        self.follow(frame)
        return True

    def next_frame(self, number: int, body: bytes) -> bytes | None:
        """The bytes that ``write`` must write now, and ``follow`` be told of; None when there is no room for them."""
        if not self._usable or self._chain.position + len(body) > ROUND_BYTES:
            return None
        return self._chain.seal(number, body)

    def write(self, frame: bytes) -> bool:
        """Write and flush; whether it is durable. May run in a worker thread: nothing else is called meanwhile."""
        at = self._chain.position
        end = at + len(frame)
        grown = end + -end % STEP_BYTES if end > self._end else end
        try:
            try:
                self._write_through(self._filled(frame, grown - at), at)
            except OSError as error:
                if error.errno not in NO_ROOM or grown == end:
                    raise
                grown = end  # no room for the zeros: for the frame alone there may be
                self._write_through(self._filled(frame, end - at), at)
        except OSError as error:
            # The store commits itself then, which says DiskFull when it cannot, and begins a new round.
            # What is on the disk now is not known, and the same number must not be written there again with other rows.
            self._usable = False
            self._short_of = max(self._short_of, end)
            self._say(error)
            return False
        self._end = max(self._end, grown)
        if self._said and end >= self._short_of:  # one that needs no more of the disk says nothing of it
            self._said = self._short_of = 0
            log.warning("the journal can be written again")
        return True

    def _say(self, error: OSError) -> None:
        """Once for each reason: with every round it is tried again."""
        if self._said == (error.errno or -1):
            return
        self._said = error.errno or -1
        if error.errno in NO_ROOM:
            free = 0
            with contextlib.suppress(OSError):  # whatever is said of it, that the frame was not written has to be known
                free = shutil.disk_usage(self._path.parent).free
            log.warning("%s Until then commits are slower.", DiskFull(path=self._path.parent, free=free))
        else:
            log.error("the journal cannot be written (%s); commits are slower until it can", error.strerror)

    def _filled(self, frame: bytes, length: int) -> memoryview:
        """The frame and zeros behind it, ``length`` bytes, in aligned memory."""
        if length > len(self._out):
            self._out = mmap.mmap(-1, length)
        self._out[: len(frame)] = frame
        if length > len(frame):
            self._out[len(frame) : length] = bytes(length - len(frame))
        return memoryview(self._out)[:length]

    def _write_through(self, view: memoryview, at: int) -> None:
        if self._frames is None:
            self._frames = self._open_for_frames(os.O_DIRECT)
        while view:
            try:
                written = os.pwrite(self._frames, view, at)
            except OSError as error:
                if error.errno not in NO_DIRECT:
                    raise
                self._close_frames()  # larger blocks than ours, or a file system that says so only now
                self._frames = self._open_for_frames(0)
                written = os.pwrite(self._frames, view, at)
            written -= written % BLOCK  # what is left must begin at a block again
            if not written:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            view, at = view[written:], at + written

    def _open_for_frames(self, direct: int) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_DSYNC
        try:
            return os.open(self._path, flags | direct)
        except OSError as error:
            if error.errno not in NO_DIRECT:
                raise
            return os.open(self._path, flags)

    def _close_frames(self) -> None:
        if self._frames is not None:
            os.close(self._frames)
            self._frames = None

    def follow(self, frame: bytes) -> None:
        """That frame was written."""
        self._chain.follow(frame)

    def begin_round(self) -> None:
        """LMDB has committed: every frame is out of date."""
        self._chain.reset()
        self._usable = True

    def clear(self) -> None:
        """Nothing in it is of this store. Raises StoreDamaged."""
        try:
            os.ftruncate(self._fd, 0)
            os.fsync(self._fd)
        except OSError as error:
            raise StoreDamaged(path=self._path, reason=error.strerror or "it cannot be cleared") from None
        self._end = 0
        self._chain.reset()

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._close_frames()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
