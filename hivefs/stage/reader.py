"""Reading staged bytes: opening sealed units of log segments, in the process that writes them and in any other.

A run is cut into units of 32 KiB, each under its own tag, so a small read opens one unit. Someone who reads a file in
small steps would open the same unit again and again; therefore the last few units that were read *in part* are kept
open. The key of that small cache is the unit's associated data: a hit proves the same place, file and offset as
opening does, and since a position of a segment is written once and segment numbers are never used again, what is in
the cache can never be out of date. It is forgotten when its segment is.
"""

from __future__ import annotations

import os
from pathlib import Path

from hivefs.chunkstore.disk import read_now
from hivefs.errors import StoreDamaged
from hivefs.formats.staged import UNIT_BYTES, UNIT_OVERHEAD, UNIT_STRIDE, unit_context
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent
from hivefs.stage.files import SegmentFiles, read_at, segment_path, too_short, translate

_BUFFER_BYTES = CHUNK_BYTES // UNIT_BYTES * UNIT_STRIDE + UNIT_STRIDE
"""As much as a chunk takes in a segment."""

CACHED_UNITS = 16
"""Units kept open, 32 KiB each: as many sequential readers are served without opening a unit twice."""


class UnitReader:
    """Reads extents through a SegmentFiles. Not thread-safe. ``opened`` counts units, for tests and measurements."""

    def __init__(self, files: SegmentFiles) -> None:
        self._files = files
        self._cache: dict[bytes, tuple[int, bytes]] = {}
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.opened = 0

    def read(self, ino: int, slot: int, extent: StagedExtent, start: int, length: int, wait: bool = True) -> bytes | None:
        """Bytes [start, start + length) of the slot; None when the segment is not there.

        Raises ValueError when they are not inside the extent; Corrupt, UnknownVersion, StoreDamaged; NotInMemory without
        ``wait``, when the disk would have to be waited for.
        """
        if length < 0 or start < extent.start or start + length > extent.end:
            raise ValueError("outside the extent")
        if not length:
            return b""
        number, run = extent.segment, extent.run_length
        begin = start - extent.run_start
        first, last = begin // UNIT_BYTES, (begin + length - 1) // UNIT_BYTES
        offset = slot * CHUNK_BYTES + extent.run_start
        contexts = [
            unit_context(number, extent.position + j * UNIT_STRIDE, ino, offset + j * UNIT_BYTES, run)
            for j in range(first, last + 1)
        ]
        low, high = first, last
        head = self._hit(contexts[0])
        tail = self._hit(contexts[-1]) if last > first else None
        low += head is not None
        high -= tail is not None
        plains: list[bytes] = []
        if low <= high:
            wanted = contexts[low - first : high - first + 1]
            opened = self._open(number, extent.position + low * UNIT_STRIDE, run - low * UNIT_BYTES, wanted, wait)
            if opened is None:
                return None
            plains = opened
        if head is not None:
            plains.insert(0, head)
        if tail is not None:
            plains.append(tail)

        skip = begin - first * UNIT_BYTES
        stop = begin + length - last * UNIT_BYTES
        if first == last:
            plain = plains[0]
            if length == len(plain):
                return plain
            self._keep(contexts[0], number, plain)
            return plain[skip:stop]
        if skip:
            self._keep(contexts[0], number, plains[0])
            plains[0] = plains[0][skip:]
        if stop < len(plains[-1]):
            self._keep(contexts[-1], number, plains[-1])
            plains[-1] = plains[-1][:stop]
        return b"".join(plains)

    def _open(self, number: int, position: int, remaining: int, contexts: list[bytes], wait: bool) -> list[bytes] | None:
        """Open consecutive units; ``remaining`` plaintext bytes of the run are from the first of them on."""
        length = min(len(contexts) * UNIT_BYTES, remaining) + len(contexts) * UNIT_OVERHEAD
        try:
            segment = self._files.get(number)
            if segment is None:
                return None
            if wait or length > len(self._buffer):
                data: bytes | memoryview = read_at(segment.fd, length, position)
            else:
                into = self._buffer[:length]
                data = into[: read_now(segment.fd, segment_path(self._files.directory, number), into, position)]
        except OSError as error:
            raise translate(error, self._files.directory) from None
        if len(data) < length:
            raise too_short()
        self.opened += len(contexts)
        if len(contexts) == 1:
            return [segment.sealer.open(data, contexts[0])]
        view = memoryview(data)
        unseal = segment.sealer.open
        return [unseal(view[j * UNIT_STRIDE : (j + 1) * UNIT_STRIDE], context) for j, context in enumerate(contexts)]

    def _hit(self, context: bytes) -> bytes | None:
        found = self._cache.get(context)
        return None if found is None else found[1]

    def _keep(self, context: bytes, number: int, plain: bytes) -> None:
        self._cache.pop(context, None)
        if len(self._cache) >= CACHED_UNITS:
            del self._cache[next(iter(self._cache))]
        self._cache[context] = (number, plain)

    def forget(self, number: int) -> None:
        """The segment was deleted: close it and drop its plaintext."""
        self._files.drop(number)
        self._drop_units({number})

    def _drop_units(self, numbers: set[int]) -> None:
        for context in [c for c, (number, _) in self._cache.items() if number in numbers]:
            del self._cache[context]

    def trim(self) -> None:
        """Forget every segment that was deleted by someone else. Raises StoreDamaged."""
        try:
            gone = self._files.trim()
        except OSError as error:
            raise translate(error, self._files.directory) from None
        if gone:
            self._drop_units(set(gone))

    def close(self) -> None:
        """Close all files, drop all plaintext."""
        self._files.close()
        self._cache.clear()


class StageReader:
    """Reads the stage of another process (the engine reads the mount's). Nothing is written. Not thread-safe.

    ``key`` is VaultKeys.stage_key; ``open_files`` how many segments are kept open.
    """

    def __init__(self, directory: Path, key: bytes, *, open_files: int = 16) -> None:
        self._units = UnitReader(SegmentFiles(directory, key, os.urandom, open_files))
        self._directory = directory

    def read(self, ino: int, slot: int, extent: StagedExtent, start: int, length: int) -> bytes | None:
        """Bytes [start, start + length) of the slot, which must lie inside the extent (ValueError). None when the
        segment was reclaimed: the extent is out of date, ask again. Raises Corrupt, UnknownVersion, StoreDamaged.

        A segment that was deleted while it is open here can still be read, and gives the right bytes.
        """
        data = self._units.read(ino, slot, extent, start, length)
        if data is None and not self._directory.is_dir():
            raise StoreDamaged(path=self._directory, reason="it is not there")
        return data

    def trim(self) -> None:
        """Let go of deleted segments, which hold disk space while they are open. Call it every few seconds."""
        self._units.trim()

    def close(self) -> None:
        """Close all files."""
        self._units.close()
