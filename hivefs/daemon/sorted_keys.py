"""Keys without end, sorted and each once, in little memory: runs of them lie in a file without a name, and are merged."""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hivefs.errors import NO_ROOM, DiskFull

RUN: Final = 65_536
"""Keys in memory: some 5 MB."""

AT_A_TIME: Final = 256
"""Keys of a run that are read at once."""


class SortedKeys:
    """``size`` is the length of each key in bytes, ``directory`` where the file is made: it has no name, so a killed
    process leaves nothing. ``add`` and iteration raise DiskFull.
    """

    def __init__(self, directory: Path, size: int, run: int = RUN) -> None:
        self._directory = directory
        self._size = size
        self._run = run
        self._keys: set[bytes] = set()
        self._file: int | None = None
        self._runs: list[tuple[int, int]] = []
        """Beginning and end of each run in the file."""

    def add(self, key: bytes) -> None:
        """One more; it may have been added before."""
        self._keys.add(key)
        if len(self._keys) >= self._run:
            self._write()

    def _write(self) -> None:
        data = b"".join(sorted(self._keys))
        self._keys.clear()
        begin = self._runs[-1][1] if self._runs else 0
        try:
            if self._file is None:
                self._file, name = tempfile.mkstemp(prefix="look-", dir=self._directory)
                os.unlink(name)
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], begin + written)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            state = os.statvfs(self._directory)
            raise DiskFull(path=self._directory, free=state.f_bavail * state.f_frsize) from None
        self._runs.append((begin, begin + len(data)))

    def __iter__(self) -> Iterator[bytes]:
        """All of them in order, each once. Nothing may be added meanwhile."""
        last: bytes | None = None
        for key in heapq.merge(*(self._read(*run) for run in self._runs), sorted(self._keys)):
            if key != last:
                yield key
            last = key

    def _read(self, begin: int, end: int) -> Iterator[bytes]:
        if self._file is None:
            raise AssertionError("runs are in the file")
        step = self._size * AT_A_TIME
        for at in range(begin, end, step):
            data = os.pread(self._file, min(step, end - at), at)
            yield from (data[i : i + self._size] for i in range(0, len(data), self._size))

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
