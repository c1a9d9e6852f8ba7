"""POSIX ACLs: the binary form in which Linux hands them over, and what they mean for permission bits.

The kernel caches and enforces ACLs; what is left to a file system (linux/fuse.h: FUSE_POSIX_ACL) is to store them, to keep
the permission bits in step with them, and to inherit them. Sources: acl(5); POSIX.1e draft 17, 23.1 (what an ACL is, its
correspondence to permission bits, its inheritance); fs/posix_acl.c, whose answers ext4 gives.

The form (linux/posix_acl_xattr.h), little-endian: version:4 = 2, then for each entry tag:2 permissions:2 id:4. Entries come
by tag: owner, named users, owning group, named groups, mask, others. Entries without a name have the id 2**32 - 1.

The group bits of a mode are the mask where there is one, else the owning group's entry (23.1.2): so chmod(2) limits what
all named entries grant without changing them, and programs that know nothing of ACLs never show less than is granted.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from hivefs.errors import PosixError

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)

OWNER, USER, GROUP_OWNER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID: Final = 0xFFFF_FFFF
VERSION: Final = 2

_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
NOTHING: Final = _HEAD.pack(VERSION)
"""An ACL without entries, which stands for none (as in the kernel)."""

_NAMED = (USER, GROUP)
_SHIFTS = {OWNER: 6, GROUP_OWNER: 3, MASK: 3, OTHER: 0}


@dataclass(frozen=True, slots=True)
class Entry:
    """``permissions`` as in a mode (read 4, write 2, execute 1); ``id`` is a uid, a gid or NO_ID, by ``tag``."""

    tag: int
    permissions: int
    id: int = NO_ID


@dataclass(frozen=True, slots=True)
class Acl:
    """A valid ACL."""

    entries: tuple[Entry, ...]

    @property
    def minimal(self) -> bool:
        """Whether it says no more than permission bits do."""
        return len(self.entries) == 3

    @property
    def mode(self) -> int:
        """The nine permission bits that stand for it."""
        bits = 0
        for entry in self.entries:
            if self._shown(entry):
                bits |= entry.permissions << _SHIFTS[entry.tag]
        return bits

    def after_chmod(self, mode: int) -> Acl:
        """With the nine bits of ``mode`` in the entries they stand for."""
        return Acl(
            tuple(
                replace(entry, permissions=mode >> _SHIFTS[entry.tag] & 7) if self._shown(entry) else entry
                for entry in self.entries
            )
        )

    def inherited(self, mode: int) -> Acl:
        """The access ACL of something made with ``mode`` where this is the default ACL: what both grant (23.1.6).

        The umask has no say then: the default ACL is there to replace it.
        """
        return self.after_chmod(self.mode & mode)

    def to_bytes(self) -> bytes:
        """The binary form."""
        return _HEAD.pack(VERSION) + b"".join(_ENTRY.pack(e.tag, e.permissions, e.id) for e in self.entries)

    def _shown(self, entry: Entry) -> bool:
        """Whether the mode shows this entry."""
        if entry.tag == GROUP_OWNER:
            return self.minimal
        return entry.tag in _SHIFTS


def parse(value: bytes) -> Acl | None:
    """The ACL in ``value``; None for NOTHING.

    PosixError: EOPNOTSUPP for another version (as ext4), EINVAL for what is no valid ACL.
    """
    if len(value) < _HEAD.size:
        raise PosixError(errno.EINVAL)
    if _HEAD.unpack_from(value)[0] != VERSION:
        raise PosixError(errno.EOPNOTSUPP)
    if (len(value) - _HEAD.size) % _ENTRY.size:
        raise PosixError(errno.EINVAL)
    entries = tuple(
        Entry(tag, permissions, given if tag in _NAMED else NO_ID)
        for tag, permissions, given in _ENTRY.iter_unpack(value[_HEAD.size :])
    )
    if value == NOTHING:
        return None
    if not _valid(entries):
        raise PosixError(errno.EINVAL)
    return Acl(entries)


def _valid(entries: tuple[Entry, ...]) -> bool:
    """Each entry without a name exactly once (the mask: only needed with names), in the order of tags.

    As in posix_acl_valid of the kernel, names of one kind may come in any order.
    """
    tags = [entry.tag for entry in entries]
    if any(tag not in (*_SHIFTS, *_NAMED) for tag in tags) or any(entry.permissions & ~7 for entry in entries):
        return False
    if any(left > right or (left == right and left not in _NAMED) for left, right in pairwise(tags)):
        return False
    if any(tag not in tags for tag in (OWNER, GROUP_OWNER, OTHER)):
        return False
    if any(entry.tag in _NAMED and entry.id == NO_ID for entry in entries):
        return False
    return MASK in tags or not any(tag in tags for tag in _NAMED)
