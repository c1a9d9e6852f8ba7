"""Is an LMDB file that ends before its last page whole?

Often it is: a transaction that takes new pages at the end and gives them up again never writes them (LMDB calls them
loose), but the header counts them, and the list of free pages names them. So such a file is whole if every page it does
not hold is in that list. LMDB shows the list to nobody, so it is read here from the file itself.

The layout (mdb.c of LMDB 0.9: MDB_page, MDB_meta, MDB_db, MDB_node, MDB_IDL), in the byte order of the machine:

* every page: number:8, pad:2, flags:2, lower:2, upper:2 (at an overflow page: how many pages:4); then a sorted table of
  2-byte offsets of its nodes, up to ``lower``.
* pages 0 and 1 hold the headers of the transactions with even and odd numbers: magic:4, version:4, address:8, size:8,
  the tree of free pages, the main tree, last page:8, transaction:8. A tree: pad:4, flags:2, depth:2, counts:32, root:8.
* a node: 32 bits of size (low half first), flags:2, key size:2, key, value. In a branch, size and flags are the number of a
  page. A value with flag 1 is the number of the overflow page that holds it.
* a value of the tree of free pages: a count, then so many page numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import lmdb

MAGIC: Final = 0xBEEF_C0DE
NO_PAGE: Final = (1 << 64) - 1
BRANCH: Final = 1
ELSEWHERE: Final = 1
DEEPEST: Final = 32
TRIES: Final = 100

_PAGE = struct.Struct("=QHHHH")
_META = struct.Struct("=II8x8x 40xQ 40xQ QQ")
_NODE = struct.Struct("=HHHH")
_NUMBER = struct.Struct("=Q")


class _Cut(Exception):
    """A page that is needed is not there, or is none."""


def is_whole(path: Path, environment: lmdb.Environment) -> bool:
    """Whether ``path`` (data.mdb of this environment) holds every page that is in use.

    A transaction is held open meanwhile, so that a writer in another process leaves alone what is read.
    """
    for _ in range(TRIES):
        with environment.begin() as transaction, path.open("rb") as file:
            pages = _Pages(file, path.stat().st_size, environment.stat()["psize"])
            try:
                meta = pages.meta(transaction.id())
                if meta is None:
                    continue  # the writer has committed twice since the transaction began
                root, last = meta
                free = {number for number in pages.free(root, DEEPEST) if pages.count <= number <= last}
                return len(free) >= last + 1 - pages.count
            except (_Cut, struct.error):
                return False
    return False


class _Pages:
    """Pages of ``size`` bytes in a file of ``length`` bytes; ``count`` of them are there."""

    def __init__(self, file: BinaryIO, length: int, size: int) -> None:
        self._file = file
        self._size = size
        self.count = length // size

    def _read(self, number: int, count: int = 1) -> bytes:
        if number + count > self.count:
            raise _Cut
        self._file.seek(number * self._size)
        return self._file.read(count * self._size)

    def meta(self, transaction: int) -> tuple[int, int] | None:
        """Root of the tree of free pages and last page as of a transaction; None when it is not in the file any more."""
        data = self._read(transaction & 1)
        magic, _, root, _, last, number = _META.unpack_from(data, _PAGE.size)
        if magic != MAGIC:
            raise _Cut
        return (root, last) if number == transaction else None

    def free(self, number: int, depth: int) -> Iterator[int]:
        """Every page that the tree below ``number`` names as free."""
        if number == NO_PAGE:
            return
        data = self._read(number)
        own, _, flags, lower, _ = _PAGE.unpack_from(data)
        if own != number or not depth:
            raise _Cut
        for (offset,) in struct.iter_unpack("=H", data[_PAGE.size : lower]):
            low, high, node_flags, key_bytes = _NODE.unpack_from(data, offset)
            if flags & BRANCH:
                yield from self.free(low | high << 16 | node_flags << 32, depth - 1)
                continue
            start, length = offset + _NODE.size + key_bytes, low | high << 16
            value = self._overflow(data, start, length) if node_flags & ELSEWHERE else data[start : start + length]
            (count,) = _NUMBER.unpack_from(value)
            yield from struct.unpack_from(f"={count}Q", value, _NUMBER.size)

    def _overflow(self, data: bytes, start: int, length: int) -> bytes:
        (number,) = _NUMBER.unpack_from(data, start)
        pages = -(-(_PAGE.size + length) // self._size)
        return self._read(number, pages)[_PAGE.size : _PAGE.size + length]
