"""How long the data file of an LMDB environment must be: up to the last page that holds something.

LMDB's own count of pages is no measure. What a transaction takes at the end of the file and gives back before it commits
is never written, only noted as free: after a commit that made and removed a few files, the data file is some pages shorter
than the count, and whole. So where the two differ, the free pages are read from the file itself: the tree of LMDB's
database 0, whose values are lists of page numbers (lmdb 0.9, mdb.c: MDB_meta, MDB_page, MDB_node; 64-bit, as built).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_META = struct.Struct("<IIQQ")
_DB = struct.Struct("<IHHQQQQQ")
_META_END = struct.Struct("<QQ")
_PAGE = struct.Struct("<QHHHH")
_OVERFLOW = struct.Struct("<QHHI")
_NODE = struct.Struct("<HHHH")
_U64 = struct.Struct("<Q")
_MAGIC = 0xBEEFC0DE
_NO_PAGE = (1 << 64) - 1
_BRANCH, _LEAF, _OVERFLOWING = 0x01, 0x02, 0x04
_BIG = 0x01


class UnreadablePages(Exception):
    """A page that should be there is not one, or lies beyond the end of the file."""


def needed_pages(fd: int, page_bytes: int, transaction: int) -> int | None:
    """How many pages the file must have for the state after that transaction; None when it is not in the file any more
    (a process that writes was faster). Raises UnreadablePages, OSError.
    """
    for slot in (0, 1):
        meta = os.pread(fd, 256, slot * page_bytes + _PAGE.size)
        if len(meta) < 256:
            raise UnreadablePages
        at = _META.size
        root = _DB.unpack_from(meta, at)[7]
        last, number = _META_END.unpack_from(meta, at + 2 * _DB.size)
        if _META.unpack_from(meta)[0] == _MAGIC and number == transaction:
            free = set(_free_pages(fd, page_bytes, root)) if root != _NO_PAGE else set()
            while last in free:
                last -= 1
            return int(last) + 1
    return None


def _read(fd: int, page_bytes: int, number: int, count: int = 1) -> bytes:
    if (number + count) * page_bytes > os.fstat(fd).st_size:
        raise UnreadablePages
    data = os.pread(fd, count * page_bytes, number * page_bytes)
    if len(data) < count * page_bytes or _U64.unpack_from(data)[0] != number:
        raise UnreadablePages
    return data


def _free_pages(fd: int, page_bytes: int, root: int) -> Iterator[int]:
    waiting = [root]
    seen: set[int] = set()
    while waiting:
        number = waiting.pop()
        if number in seen:
            raise UnreadablePages
        seen.add(number)
        page = _read(fd, page_bytes, number)
        _, _, flags, lower, _ = _PAGE.unpack_from(page)
        if not flags & (_BRANCH | _LEAF) or not _PAGE.size <= lower <= page_bytes:
            raise UnreadablePages
        for at in struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size):
            if at + _NODE.size > page_bytes:
                raise UnreadablePages
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
            if flags & _BRANCH:
                waiting.append(low | high << 16 | node_flags << 32)
                continue
            start = at + _NODE.size + key_bytes
            if node_flags & _BIG:
                yield from _numbers(_big(fd, page_bytes, page[start : start + 8]), low | high << 16)
            else:
                yield from _numbers(page[start:], low | high << 16)


def _big(fd: int, page_bytes: int, pointer: bytes) -> bytes:
    number = _U64.unpack(pointer)[0]
    count = _OVERFLOW.unpack_from(_read(fd, page_bytes, number))[3]
    return _read(fd, page_bytes, number, count)[_PAGE.size :]


def _numbers(value: bytes, length: int) -> tuple[int, ...]:
    """A list of page numbers: how many, then each."""
    if len(value) < length or length < 8:
        raise UnreadablePages
    (count,) = _U64.unpack_from(value)
    if 8 * (count + 1) > length:
        raise UnreadablePages
    return struct.unpack_from(f"<{count}Q", value, 8)
