"""How the kernel reads LMDB's file when a page is looked at that is not in memory.

LMDB is opened with MDB_NORDAHEAD: in a file of gigabytes the pages beside the wanted one are of other directories, and
would push out of memory what is needed. In a small file they are what is needed next: after a start, or when the page cache
was emptied, a walk through 2000 names met 66 pages that were not there, each a wait for the disk. So a small file is read
with the pages around (madvise(2), MADV_NORMAL), until it is no longer small.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

SMALL_BYTES: Final = 64 << 20
"""The data file is small up to this size (some 90 000 files of 4 KiB)."""

_NORMAL, _RANDOM = 0, 1


class ReadAround:
    """For the mapped file ``path`` of this process, which was opened without read-ahead."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._around = False

    def follow(self) -> None:
        """Look at the size (two microseconds) and tell the kernel when it matters. Raises nothing: it is only a hint."""
        try:
            small = self._path.stat().st_size <= SMALL_BYTES
            if small != self._around:
                self._around = small
                _advise(self._path, _NORMAL if small else _RANDOM)
        except (OSError, ValueError):
            return


def _advise(path: Path, advice: int) -> None:
    inode, name = str(path.stat().st_ino), path.name
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] == inode and fields[5].endswith(name):
            low, high = (int(part, 16) for part in fields[0].split("-"))
            madvise(low, high - low, advice)
