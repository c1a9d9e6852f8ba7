"""Whether every page that an LMDB file refers to is in the file, found by walking its trees.

LMDB counts a page as used from the moment a transaction takes it. A page that is taken at the end of the file and given
back in the same transaction is never written: the meta page then names a last page beyond the end of a file that is
whole. A file that was cut short looks the same from outside. The difference is whether anything still refers to what is
missing, and that is only asked when the file is shorter than its meta page says (LMDB 0.9: mdb.c, MDB_page, MDB_node).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MAGIC = 0xBEEFC0DE
_NOTHING = (1 << 64) - 1
_HEAD = struct.Struct("=QHHHH")
"""Page: number, padding, flags, then where the free space between pointers and nodes begins and ends."""
_OVERFLOW_COUNT = struct.Struct("=I")
_META = struct.Struct("=II16x")
_TREE = struct.Struct("=IHHQQQQQ")
"""Padding, flags, depth, counts of branch, leaf and overflow pages and of entries, root page."""
_META_END = struct.Struct("=QQ")
_NODE = struct.Struct("=HHHH")
_BRANCH, _LEAF, _LEAF2 = 1, 2, 32
_BIG, _TREE_DATA = 1, 2
_DEEPEST = 64


class _Missing(Exception):
    """A page is referred to that is not there, or is not what it should be."""


def is_whole(path: Path, page_bytes: int) -> bool:
    """Whether all that the newest meta page of ``path`` leads to lies within the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for root in _roots(data, page_bytes):
                _walk(data, page_bytes, root, _DEEPEST)
        except (_Missing, struct.error):
            return False
    return True


def _roots(data: mmap.mmap, page_bytes: int) -> list[int]:
    """The roots of the list of free pages and of the main tree, as the newer of the two meta pages has them."""
    newest: tuple[int, list[int]] = (-1, [])
    for page in (0, 1):
        at = page * page_bytes + _HEAD.size
        if _META.unpack_from(data, at)[0] != _MAGIC:
            continue
        at += _META.size
        roots = [_TREE.unpack_from(data, at + number * _TREE.size)[-1] for number in (0, 1)]
        newest = max(newest, (_META_END.unpack_from(data, at + 2 * _TREE.size)[1], roots))
    if not newest[1]:
        raise _Missing
    return newest[1]


def _walk(data: mmap.mmap, page_bytes: int, number: int, deepest: int) -> None:
    if number == _NOTHING:
        return
    start = number * page_bytes
    if start + page_bytes > len(data) or not deepest:
        raise _Missing
    own, _, flags, lower, _ = _HEAD.unpack_from(data, start)
    if own != number or not flags & (_BRANCH | _LEAF):
        raise _Missing
    if flags & _LEAF2:
        return
    for at in struct.unpack_from(f"={(lower - _HEAD.size) // 2}H", data, start + _HEAD.size):
        low, high, kind, key_bytes = _NODE.unpack_from(data, start + at)
        value = start + at + _NODE.size + key_bytes
        if flags & _BRANCH:
            _walk(data, page_bytes, low | high << 16 | kind << 32, deepest - 1)
        elif kind & _BIG:
            (first,) = struct.unpack_from("=Q", data, value)
            (count,) = _OVERFLOW_COUNT.unpack_from(data, first * page_bytes + _HEAD.size - _OVERFLOW_COUNT.size)
            if (first + count) * page_bytes > len(data):
                raise _Missing
        elif kind & _TREE_DATA:
            _walk(data, page_bytes, _TREE.unpack_from(data, value)[-1], deepest - 1)
