"""Comparing a directory on the drive with a plain one: attributes, times, contents, link groups.

Times cannot be equal unless they were set, so what is compared is whether a call moved them: ``since`` is the kernel's
coarse clock before the call, a time at or after it was set by the call. (Where the time before was so young already, a
second stamp cannot be told from the first, and nothing is said.) Every time outside the run of the tests was set by a
call and must be equal to the nanosecond.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from hands import status_of

_COARSE = 5
BEGAN_NS = time.time_ns() - 1_000_000_000
LATER_NS = 86_400_000_000_000
Times = tuple[int, int, int]
Path = bytes


def coarse_ns() -> int:
    """The clock that files are stamped with, nanoseconds, a tick ago: on a busy machine ext4 was seen to stamp with the
    tick before the one that was read here before the call.
    """
    return time.clock_gettime_ns(_COARSE) - int(time.clock_getres(_COARSE) * 1e9)


def _times(status: os.stat_result) -> Times:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_atime_ns


def is_set(time_ns: int) -> bool:
    """Whether a time was chosen by a call, not by a clock."""
    return not BEGAN_NS <= time_ns <= BEGAN_NS + LATER_NS


class Oracle:
    """One pair of directories. ``paths`` and ``dirs`` are what the plain one holds, relative, sorted."""

    def __init__(self, drive: bytes, plain: bytes) -> None:
        self.drive, self.plain = drive, plain
        self.dirs: list[Path] = []
        self.paths: list[Path] = []
        self.doing = ""
        self._before: dict[int, tuple[Times, Times]] = {}
        self.look()

    def look(self) -> None:
        """See what there is now."""
        self.dirs, self.paths = [b""], []
        for at, below, files in os.walk(self.plain):
            here = at[len(self.plain) + 1 :]
            self.dirs += [os.path.join(here, name) for name in below if not os.path.islink(os.path.join(at, name))]
            self.paths += [os.path.join(here, name) for name in below + files]
        self.dirs.sort()
        self.paths.sort()

    def pairs(self) -> Iterator[tuple[Path, bytes, bytes]]:
        """Every path, and where it is on both sides; the directory itself (an empty path) first."""
        yield b"", self.drive, self.plain
        for path in self.paths:
            yield path, self.drive + b"/" + path, self.plain + b"/" + path

    def compare(self, since: int) -> None:
        """Everything that lstat(2) and readlink(2) show, after a call that began at ``since``."""
        self.look()
        now: dict[int, tuple[Times, Times]] = {}
        numbers: dict[int, int] = {}
        for path, ours, theirs in self.pairs():
            mine, wanted = os.lstat(ours), os.lstat(theirs)
            assert status_of(mine) == status_of(wanted), (self.doing, path, status_of(mine), status_of(wanted))
            assert numbers.setdefault(wanted.st_ino, mine.st_ino) == mine.st_ino, (path, "is another file")
            if stat.S_ISLNK(wanted.st_mode):
                assert os.readlink(ours) == os.readlink(theirs), path
            now[wanted.st_ino] = (_times(mine), _times(wanted))
            regular = stat.S_ISREG(wanted.st_mode)
            self._compare_times(path, regular, since, self._before.get(wanted.st_ino), now[wanted.st_ino])
        assert len(set(numbers.values())) == len(numbers), "two files have one number"
        self._before = now

    def _compare_times(
        self, path: Path, regular: bool, since: int, before: tuple[Times, Times] | None, now: tuple[Times, Times]
    ) -> None:
        for which, name in enumerate(("mtime", "ctime", "atime")):
            mine, wanted = now[0][which], now[1][which]
            moved = (mine >= since, wanted >= since)
            told = (self.doing, path, name, mine, wanted, before and (before[0][which], before[1][which]), since)
            if name == "atime" and not is_set(wanted):
                # A read that the kernel answers from its cache is not seen by the drive: it stamps with a later one.
                late = before is None or before[0][which] < before[1][which] or before[0][which] >= since
                assert moved[1] or not moved[0] or late or is_set(mine) or regular, told
            elif name == "atime" and regular and not is_set(mine):
                pass  # a write into a part of a page makes the kernel read the page: the drive takes that for a reading
            elif is_set(wanted) or is_set(mine):
                assert mine == wanted, told
            elif before is not None and max(before[0][which], before[1][which]) < since:
                same = name == "ctime" and self.doing.startswith("setxattr")  # ext4 lets a value that is there be
                assert moved[0] == moved[1] or (moved[0] and same), told
                assert moved[0] or mine == before[0][which], told

    def compare_contents(self) -> None:
        """Names, bytes and extended attributes of everything; the drive's from the drive, not from the page cache."""
        for path in self.dirs:
            assert sorted(os.listdir(self.drive + b"/" + path)) == sorted(os.listdir(self.plain + b"/" + path)), path
        for path, ours, theirs in self.pairs():
            mode = os.lstat(theirs).st_mode
            if stat.S_ISREG(mode):
                assert _cold(ours) == _bytes(theirs), path
            mine, wanted = _xattrs(ours), _xattrs(theirs)
            assert mine == wanted, (path, mine, wanted)

    def times(self) -> dict[Path, tuple[int, ...]]:
        """What must be the same after unmounting and mounting again: mtime, ctime, atime but of files, blocks."""
        found = {}
        for path, ours, _ in self.pairs():
            status = os.lstat(ours)
            access = 0 if stat.S_ISREG(status.st_mode) else status.st_atime_ns
            found[path] = (status.st_mtime_ns, status.st_ctime_ns, access, status.st_blocks)
        return found


def _xattrs(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def _bytes(path: bytes) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - arbitrary bytes
        return file.read()


def _cold(path: bytes) -> bytes:
    """A file's bytes after the kernel has handed over what it had not written, and forgotten what it had read."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        parts = []
        while part := os.read(file, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)
