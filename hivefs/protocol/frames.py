"""Frames: how the conversation of a client and a node is cut. See docs/formats/protocol.md.

    u32 length of what follows | u8 kind | u32 request id | u16 header length | header (CBOR) | payload

Big endian. Lengths are hostile until checked: the decoder looks at the eleven bytes before a frame's body as soon as
they are there and refuses what its kind may not have, so a peer can make it hold what it really sent of one permitted
frame and no more. Nothing is allocated for a length that was only announced.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from hivefs.formats import attestation, head, member, receipt, revoked
from hivefs.model.ids import MAX_SHARE_BYTES

PROTOCOL: Final = "/hivefs/node/1"
VERSION: Final = 1

MAX_FRAME_BYTES: Final = MAX_SHARE_BYTES + 4096
"""The most that a frame's length field may say."""

MAX_HEADER_BYTES: Final = 2048
MAX_IDS: Final = 1024
"""Share ids in one HAVE, DELETE or RENEW."""

_PREFIX = struct.Struct(">IBIH")
_AFTER_LENGTH = _PREFIX.size - 4
PREFIX_BYTES: Final = _PREFIX.size


class Kind(enum.IntEnum):
    """What a frame is. Below 16: both ways or about the conversation itself; from 16 on: requests of a client."""

    HELLO = 1
    CHALLENGE = 2
    LOGIN = 3
    WELCOME = 4
    ANSWER = 5
    FAILURE = 6
    CANCEL = 7
    PUT = 16
    GET = 17
    HAVE = 18
    DELETE = 19
    RENEW = 20
    HEAD_PUT = 21
    HEADS_GET = 22
    ROSTER_GET = 23
    ROSTER_PUT = 24
    STAT = 25
    PING = 26
    HIVE_STATE = 27
    MEMBERS_GET = 28
    MEMBERS_PUT = 29
    REVOKED_GET = 30
    REVOKED_PUT = 31
    RECEIPT_GET = 32
    RECEIPT_PUT = 33
    LIST = 34
    NEWS = 40
    STATEMENTS_GET = 41
    STATEMENTS_PUT = 42
    RANGES_GET = 43
    RANGE_GET = 44


MAX_PAYLOAD: Final[dict[Kind, int]] = {
    Kind.HELLO: 0,
    Kind.CHALLENGE: 0,
    Kind.LOGIN: member.MAX_BYTES,
    Kind.WELCOME: 2 * member.MAX_BYTES + 64,
    Kind.ANSWER: MAX_SHARE_BYTES,
    Kind.FAILURE: 0,
    Kind.CANCEL: 0,
    Kind.PUT: MAX_SHARE_BYTES,
    Kind.GET: 0,
    Kind.HAVE: 32 * MAX_IDS,
    Kind.DELETE: 32 * MAX_IDS,
    Kind.RENEW: 32 * MAX_IDS,
    Kind.HEAD_PUT: head.MAX_BYTES,
    Kind.HEADS_GET: 0,
    Kind.ROSTER_GET: 0,
    Kind.ROSTER_PUT: 512 << 10,
    Kind.STAT: 0,
    Kind.PING: 0,
    Kind.HIVE_STATE: 0,
    Kind.MEMBERS_GET: 0,
    Kind.MEMBERS_PUT: 512 << 10,
    Kind.REVOKED_GET: 0,
    Kind.REVOKED_PUT: revoked.MAX_BYTES,
    Kind.RECEIPT_GET: 0,
    Kind.RECEIPT_PUT: receipt.MAX_BYTES,
    Kind.LIST: 0,
    Kind.NEWS: 0,
    Kind.STATEMENTS_GET: 0,
    Kind.STATEMENTS_PUT: 4 * attestation.MAX_STATEMENT_BYTES,
    Kind.RANGES_GET: 0,
    Kind.RANGE_GET: 0,
}
"""Payload bytes that a frame of each kind may have."""

REQUESTS: Final = frozenset(kind for kind in Kind if kind >= 16)
FROM_CLIENT: Final = REQUESTS | {Kind.CANCEL}
FROM_NODE: Final = frozenset({Kind.ANSWER, Kind.FAILURE})


_LARGE: Final = 64 << 10
_SMALL_PIECE: Final = 4 << 10


class ProtocolViolation(Exception):
    """The other end sent what no HiveFS sends; the conversation must end. The text says what it was."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. ``request`` is the id that the client chose for a request, and that its answer repeats."""

    kind: Kind
    request: int
    header: bytes = b""
    payload: bytes = b""


def head_of(frame: Frame, payload: int | None = None) -> bytes:
    """All of a frame but its payload, which a sender can send without copying it, or in pieces of ``payload`` bytes in all
    that are not in the frame. ValueError over the limits.
    """
    size = len(frame.payload) if payload is None else payload
    if len(frame.header) > MAX_HEADER_BYTES or size > MAX_PAYLOAD[frame.kind]:
        raise ValueError(f"a {frame.kind.name} frame is too long")
    length = _AFTER_LENGTH + len(frame.header) + size
    return _PREFIX.pack(length, frame.kind, frame.request, len(frame.header)) + frame.header


def to_bytes(frame: Frame) -> bytes:
    """The whole frame."""
    return head_of(frame) + frame.payload


class FrameDecoder:
    """Bytes in, frames out. ``accept`` are the kinds that may come; it can be changed between frames.

    A large frame is kept in the pieces in which it came and joined once, when it is complete: growing one buffer and
    cutting the payload out of it costs two copies of every share more.
    """

    def __init__(self, accept: Collection[Kind]) -> None:
        self.accept = accept
        self._buffer = bytearray()
        self._pieces: list[bytes | bytearray] = []  # instead of the buffer, while a large frame is coming
        self._in_pieces = 0
        self._kind = Kind.PING
        self._request = 0
        self._header = 0
        self._total = 0

    @property
    def buffered(self) -> int:
        """Bytes held."""
        return self._in_pieces or len(self._buffer)

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return bool(self._in_pieces or self._buffer)

    @property
    def request(self) -> int:
        """The request id of the frame that has begun, 0 while its prefix is not complete."""
        return self._request if self._total else 0

    def start_of_payload(self, count: int) -> bytes | None:
        """The first bytes of the payload of the ANSWER that has begun, as soon as there are so many."""
        start = PREFIX_BYTES + self._header
        if not self._total or self._kind != Kind.ANSWER or min(self.buffered, self._total) < start + count:
            return None
        with memoryview(self._front(start + count) if self._in_pieces else self._buffer) as view:
            return bytes(view[start : start + count])

    @property
    def wanted(self) -> int:
        """How many bytes complete the current frame (or its prefix)."""
        return (self._total or PREFIX_BYTES) - self.buffered

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes from the wire; they are not to be changed afterwards. Costs least when next_frame is called after
        each piece.
        """
        if not self._in_pieces:
            self._buffer += data
            return
        self._in_pieces += len(data)
        if len(data) >= _SMALL_PIECE:
            self._pieces.append(data)
            return
        # One who sends byte by byte must not make us keep an object for each of them.
        last = self._pieces[-1]
        if type(last) is bytearray and len(last) < _LARGE:
            last += data
        else:
            self._pieces.append(bytearray(data))

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more was fed. ProtocolViolation when it cannot become one."""
        if not self._total:
            if len(self._buffer) < PREFIX_BYTES:
                return None
            self._read_prefix()
            if len(self._buffer) < self._total > _LARGE:
                self._pieces, self._in_pieces = [self._buffer], len(self._buffer)
                self._buffer = bytearray()
        if self.buffered < self._total:
            return None
        if self._in_pieces:
            return self._join()
        start = PREFIX_BYTES + self._header
        with memoryview(self._buffer) as view:
            frame = Frame(self._kind, self._request, bytes(view[PREFIX_BYTES:start]), bytes(view[start : self._total]))
        del self._buffer[: self._total]
        self._total = 0
        return frame

    def _join(self) -> Frame:
        """The large frame, out of its pieces."""
        start = PREFIX_BYTES + self._header
        self._front(start)
        first = memoryview(self._pieces[0])
        header, parts, left = bytes(first[PREFIX_BYTES:start]), list[memoryview](), self._total
        for piece in self._pieces:
            view = memoryview(piece)
            parts.append(view[:left])
            self._buffer += view[left:]
            left -= min(left, len(view))
        parts[0] = parts[0][start:]
        frame = Frame(self._kind, self._request, header, b"".join(parts))
        self._pieces, self._in_pieces, self._total = [], 0, 0
        return frame

    def _front(self, count: int) -> bytes | bytearray:
        """The first piece, with at least ``count`` bytes (so many are there)."""
        number, size = 0, 0
        while size < count:
            size += len(self._pieces[number])
            number += 1
        if number > 1:
            self._pieces[:number] = [b"".join(self._pieces[:number])]
        return self._pieces[0]

    def _read_prefix(self) -> None:
        length, number, request, header = _PREFIX.unpack_from(self._buffer)
        if not _AFTER_LENGTH <= length <= MAX_FRAME_BYTES:
            raise ProtocolViolation(f"a frame of {length} bytes")
        try:
            kind = Kind(number)
        except ValueError:
            raise ProtocolViolation(f"a frame of unknown kind {number}") from None
        if kind not in self.accept:
            raise ProtocolViolation(f"a {kind.name} frame out of place")
        payload = length - _AFTER_LENGTH - header
        if header > MAX_HEADER_BYTES or payload < 0 or payload > MAX_PAYLOAD[kind]:
            raise ProtocolViolation(f"a {kind.name} frame with {header} bytes of header in {length}")
        self._kind, self._request, self._header = kind, request, header
        self._total = 4 + length
