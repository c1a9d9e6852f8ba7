"""What a disk was asked to do, in order. Inodes are numbers; a name is in a directory, given by its inode.

As bytes an event is a header and two variable parts; integers are little endian. It never leaves the machine.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("<BQQQII")


class Kind(enum.IntEnum):
    """``ino``, ``other`` and ``offset`` are used as said; ``name`` and ``data`` are empty unless said."""

    CREATE = 1
    """File ``other`` under ``name`` in directory ``ino``."""
    MKDIR = 2
    """Directory ``other`` under ``name`` in directory ``ino``."""
    WRITE = 3
    """``data`` at ``offset`` of file ``ino``."""
    TRUNCATE = 4
    """File ``ino`` has ``offset`` bytes now."""
    UNLINK = 5
    """``name`` is removed from directory ``ino`` (a file or an empty directory)."""
    RENAME = 6
    """``name`` of directory ``ino`` becomes the name ``data`` of directory ``other``, over what was there."""
    SYNC = 7
    """fsync or fdatasync of ``ino``, which succeeded."""
    FAILED_SYNC = 8
    """The same, which failed: what was written before is lost or not, and no later sync can tell."""


@dataclass(frozen=True, slots=True)
class Event:
    """See Kind."""

    kind: Kind
    ino: int
    other: int = 0
    offset: int = 0
    name: bytes = b""
    data: bytes = b""

    def to_bytes(self) -> bytes:
        """For the way from the server to the test."""
        head = _HEADER.pack(self.kind, self.ino, self.other, self.offset, len(self.name), len(self.data))
        return head + self.name + self.data

    def __str__(self) -> str:
        """As few words as a person needs who follows a crash."""
        match self.kind:
            case Kind.WRITE:
                return f"write {self.ino} [{self.offset}, {self.offset + len(self.data)})"
            case Kind.TRUNCATE:
                return f"truncate {self.ino} {self.offset}"
            case Kind.RENAME:
                return f"rename {self.ino}/{self.name.decode()} {self.other}/{self.data.decode()}"
            case Kind.SYNC | Kind.FAILED_SYNC:
                return f"{self.kind.name.lower()} {self.ino}"
        return f"{self.kind.name.lower()} {self.ino}/{self.name.decode()} {self.other or ''}".strip()


def events_from_bytes(data: bytes) -> Iterator[Event]:
    """All events of a record."""
    at = 0
    while at < len(data):
        kind, ino, other, offset, name, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        yield Event(Kind(kind), ino, other, offset, data[at : at + name], data[at + name : at + name + length])
        at += name + length
