"""Segment files of the stage as files: names, errors, free space, and a few of them kept open for reading."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from hivefs.crypto.seal import RecordSealer
from hivefs.crypto.unit import UnitSealer
from hivefs.errors import NO_ROOM, Corrupt, DiskFull, HivefsError, StoreDamaged
from hivefs.formats import staged
from hivefs.model.staged import SegmentPiece

SUFFIX = ".seg"


@lru_cache(maxsize=64)
def segment_path(directory: Path, number: int) -> Path:
    """The number in 16 hexadecimal digits, so that the segments of one session sort as they were written."""
    return directory / f"{number:016x}{SUFFIX}"


def number_of(name: str) -> int | None:
    """The number of a segment file; None for the name of anything else."""
    digits = name.removesuffix(SUFFIX)
    if len(digits) != 16 or len(name) != 16 + len(SUFFIX) or not set(digits) <= set("0123456789abcdef"):
        return None
    return int(digits, 16)


def free_bytes(directory: Path) -> int:
    """Bytes that an ordinary user may still write to the file system under ``directory``. Raises OSError."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def translate(error: OSError, directory: Path) -> HivefsError:
    """What an error of the operating system means here: DiskFull, or StoreDamaged for everything else."""
    if error.errno in NO_ROOM:
        try:
            free = free_bytes(directory)
        except OSError:
            free = 0
        return DiskFull(path=directory, free=free)
    return StoreDamaged(path=directory, reason=error.strerror or "the operating system refused")


def read_at(fd: int, length: int, position: int) -> bytes:
    """``length`` bytes from ``position``, fewer only at the end of the file. Raises OSError."""
    data = os.pread(fd, length, position)
    while len(data) < length:
        more = os.pread(fd, length - len(data), position + len(data))
        if not more:
            break
        data += more
    return data


def write_at(fd: int, data: memoryview, position: int) -> None:
    """All of ``data`` at ``position``; one call unless the disk takes less. Raises OSError, part may be written then."""
    done = os.pwrite(fd, data, position)
    while done < len(data):
        done += os.pwrite(fd, data[done:], position + done)


def put_back(directory: Path, pieces: Sequence[SegmentPiece]) -> None:
    """Write pieces from the journal where they belong (the same bytes may be there already) and sync. Raises OSError."""
    for number, of_one in itertools.groupby(sorted(pieces, key=_place), key=lambda piece: piece.segment):
        fd = os.open(segment_path(directory, number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            for piece in of_one:
                write_at(fd, memoryview(piece.data), piece.position)
            os.fdatasync(fd)
        finally:
            os.close(fd)
    if pieces:
        sync_directory(directory)


def _place(piece: SegmentPiece) -> tuple[int, int]:
    return piece.segment, piece.position


def sync_directory(directory: Path) -> None:
    """Names of files made in it are on disk on return. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class OpenSegment:
    """A segment open for reading: its descriptor and what opens its units."""

    __slots__ = ("fd", "sealer")

    def __init__(self, fd: int, sealer: UnitSealer) -> None:
        self.fd = fd
        self.sealer = sealer


class SegmentFiles:
    """At most ``limit`` segments open for reading; the one unused longest is closed first.

    The key of a segment is read from its header once, when it is opened. ``key`` is the vault's stage key.
    """

    def __init__(self, directory: Path, key: bytes, random: Callable[[int], bytes], limit: int) -> None:
        self.directory = directory
        self._sealer = RecordSealer(key, random)
        self._limit = limit
        self._open: dict[int, OpenSegment] = {}

    def get(self, number: int) -> OpenSegment | None:
        """The segment, opened if need be; None when there is no such file. Raises Corrupt, UnknownVersion, OSError."""
        segment = self._open.get(number)
        if segment is not None:
            if len(self._open) > 1:
                del self._open[number]
                self._open[number] = segment
            return segment
        try:
            fd = os.open(segment_path(self.directory, number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            segment = OpenSegment(fd, self._read_key(fd, number))
        except BaseException:  # whatever it is, the descriptor must not leak; raised again
            os.close(fd)
            raise
        while len(self._open) >= self._limit:
            self.drop(next(iter(self._open)))
        self._open[number] = segment
        return segment

    def _read_key(self, fd: int, number: int) -> UnitSealer:
        sealed = staged.header_from_bytes(read_at(fd, staged.HEADER_BYTES, 0), number)
        return UnitSealer(self._sealer.open(staged.key_place(number), sealed))

    def new_header(self, number: int, segment_key: bytes) -> bytes:
        """The header of a new segment with that 32-byte key."""
        return staged.header_to_bytes(number, self._sealer.seal(staged.key_place(number), segment_key))

    def drop(self, number: int) -> None:
        """Close it, if it is open."""
        segment = self._open.pop(number, None)
        if segment is not None:
            os.close(segment.fd)

    def trim(self) -> list[int]:
        """Close what was deleted meanwhile (an open file holds its disk space); returns the numbers."""
        gone = [n for n, s in self._open.items() if os.fstat(s.fd).st_nlink == 0]
        for number in gone:
            self.drop(number)
        return gone

    def close(self) -> None:
        """Close all."""
        for number in list(self._open):
            self.drop(number)


def too_short() -> Corrupt:
    """A segment ends before the end of a unit that an extent names."""
    return Corrupt(what="a stage segment", reason="it is cut short")


def missing() -> Corrupt:
    """An extent names a segment that is not there."""
    return Corrupt(what="a stage segment", reason="it is missing")
