"""Bytes of the metadata journal: frames of changed rows, each with what the stage had not synced.

See docs/formats/journal.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from hivefs.crypto.seal import RECORD_OVERHEAD, RecordSealer
from hivefs.errors import Corrupt
from hivefs.model.staged import SegmentPiece

VERSION = 1
MAGIC = b"HVjrnl" + bytes([0, VERSION])
BLOCK = 4096
"""Frames begin at multiples of this: writing one never touches a block that holds an earlier one."""

MAX_BODY = 8 << 20

TABLES = ("tree", "staged", "changed", "released", "orphans", "info", "loaded")
"""The tables of the store by their number in a frame, from 1 on. The order is for ever; new ones are appended."""

NUMBERS = 0
PIECE = 255
_HEADER = struct.Struct(">8sQI")
_ITEM = struct.Struct(">BHI")
_NUMBERS = struct.Struct(">QQQQ")
_PLACE = struct.Struct(">QQ")
_PIECE = struct.Struct(">QI")
_GONE = 0xFFFFFFFF
_NOTHING = bytes(16)
_WHAT = "the journal"


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the store counts, as it is after the frame: see the table ``info`` in docs/formats/metadata.md."""

    counter: int
    inodes: int
    released: int
    changed: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One commit. ``rows``: (table, key, value as it is stored, None when deleted), a key of a table once."""

    numbers: Numbers
    rows: list[tuple[str, bytes, bytes | None]]
    pieces: list[SegmentPiece]


def row_to_bytes(table: int, key: bytes, value: bytes | None) -> bytes:
    """A row of the table with that number."""
    if value is None:
        return _ITEM.pack(table, len(key), _GONE) + key
    return _ITEM.pack(table, len(key), len(value)) + key + value


def body_to_bytes(numbers: Numbers, rows: Iterable[bytes], pieces: Iterable[SegmentPiece]) -> bytes:
    """The plain body of a frame; ``rows`` as row_to_bytes makes them."""
    head = _ITEM.pack(NUMBERS, 0, _NUMBERS.size) + _NUMBERS.pack(
        numbers.counter, numbers.inodes, numbers.released, numbers.changed
    )
    parts = [head, *rows]
    for piece in pieces:
        parts.append(_ITEM.pack(PIECE, _PIECE.size, len(piece.data)) + _PIECE.pack(piece.segment, piece.position))
        parts.append(piece.data)
    return b"".join(parts)


def body_from_bytes(body: bytes) -> Frame:
    """Raises Corrupt for anything that body_to_bytes does not make."""
    numbers: Numbers | None = None
    rows: list[tuple[str, bytes, bytes | None]] = []
    pieces: list[SegmentPiece] = []
    at = 0
    try:
        while at < len(body):
            table, key_length, length = _ITEM.unpack_from(body, at)
            at += _ITEM.size
            size = 0 if length == _GONE else length
            key, value = body[at : at + key_length], body[at + key_length : at + key_length + size]
            at += key_length + size
            if at > len(body) or (table == NUMBERS) != (numbers is None):
                raise ValueError
            if table == NUMBERS:
                if key:
                    raise ValueError
                numbers = Numbers(*_NUMBERS.unpack(value))
            elif table == PIECE:
                if length == _GONE:
                    raise ValueError
                segment, position = _PIECE.unpack(key)
                pieces.append(SegmentPiece(segment, position, value))
            elif pieces:  # rows come before the pieces
                raise ValueError
            else:
                rows.append((TABLES[table - 1], key, None if length == _GONE else value))
        if numbers is None:
            raise ValueError
    except (struct.error, ValueError, IndexError):
        raise Corrupt(what=_WHAT, reason="a frame makes no sense") from None
    return Frame(numbers, rows, pieces)


class FrameChain:
    """Seals and opens the frames of one round, in order: each is bound to its place, its number and the one before.

    ``sealer`` is that of the metadata key. A round begins at position 0 after every commit of the store.
    """

    def __init__(self, sealer: RecordSealer) -> None:
        self._sealer = sealer
        self.position = 0
        """Where the next frame begins."""
        self._before = _NOTHING

    def _context(self, number: int) -> bytes:
        return b"journal" + _PLACE.pack(self.position, number) + self._before

    def reset(self) -> None:
        """A new round."""
        self.position, self._before = 0, _NOTHING

    def seal(self, number: int, body: bytes) -> bytes:
        """The bytes of the next frame, a multiple of BLOCK; call ``follow`` once they are written."""
        sealed = self._sealer.seal(self._context(number), body)
        frame = _HEADER.pack(MAGIC, number, len(sealed)) + sealed
        return frame + bytes(-len(frame) % BLOCK)

    @staticmethod
    def length_of(header: bytes) -> tuple[int, int] | None:
        """(number, bytes of the frame with its padding) by its first HEADER_BYTES; None when there is no frame."""
        if len(header) < _HEADER.size:
            return None
        magic, number, sealed = _HEADER.unpack_from(header)
        if magic != MAGIC or not RECORD_OVERHEAD <= sealed <= MAX_BODY + RECORD_OVERHEAD:
            return None
        return number, -(-(_HEADER.size + sealed) // BLOCK) * BLOCK

    def open(self, number: int, frame: bytes) -> bytes:
        """The body of the next frame. Raises Corrupt: torn, of another round, place or number."""
        sealed = _HEADER.unpack_from(frame)[2]
        return self._sealer.open(self._context(number), frame[_HEADER.size : _HEADER.size + sealed])

    def follow(self, frame: bytes) -> None:
        """That frame is the last one now."""
        sealed = _HEADER.unpack_from(frame)[2]
        self._before = frame[_HEADER.size + sealed - 16 : _HEADER.size + sealed]
        self.position += len(frame)


HEADER_BYTES = _HEADER.size
