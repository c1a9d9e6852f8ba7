"""What the vault knows of one file, directory, link or special file."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hivefs.model.ids import ChunkId


@dataclass(slots=True)
class Inode:
    """Attributes of one inode. Mutable: the filesystem room changes it in place and saves it at the next commit.

    Times are nanoseconds since 1970 (may be negative). ``size`` is bytes (length of the target for a symbolic link);
    ``allocated`` the number of slots that are not holes, times the size of a slot (for st_blocks: see ``stored``).
    ``parent`` is the directory of the first link (for a directory: the directory), used for ``..``, for durability of
    the way to a file, and by check; 0 when it is not known (one of several names was removed).
    """

    ino: int
    mode: int
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    allocated: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    btime_ns: int = 0
    parent: int = 0
    flags: int = 0
    target: bytes = b""

    @property
    def stored(self) -> int:
        """Bytes that are not holes, for st_blocks: the last slot counts up to the end of the file."""
        return min(self.allocated, self.size)


@dataclass(frozen=True, slots=True)
class Dirent:
    """One name in a directory. ``kind`` is the file type bits of st_mode shifted right by 12 (as d_type)."""

    name: bytes
    ino: int
    kind: int


class SlotKind(enum.IntEnum):
    """What a range of slots of a file's map holds."""

    HOLE = 0
    """Zeros, and meant to be."""
    CHUNK = 1
    """One chunk."""
    PENDING = 2
    """Written on the device that made the map, but never placed: after a recovery the bytes are not there (EIO)."""


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """How a file's map names a chunk: which, the key that opens it, and how long the plaintext is.

    ``key`` is 32 random bytes used for this chunk alone. ``codec`` is 0 for plain, 1 for zstd.
    """

    chunk_id: ChunkId
    key: bytes
    length: int
    codec: int


@dataclass(frozen=True, slots=True)
class MapExtent:
    """``count`` slots from ``slot`` on that hold the same kind of thing (a CHUNK extent has count 1).

    The extents of a file cover every slot below its size without gap: a missing record is damage, never a hole.
    """

    slot: int
    count: int
    kind: SlotKind
    chunk: ChunkRef | None = None
