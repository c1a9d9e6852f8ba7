"""The messages of libp2p's circuit relay v2, and the two protocols that carry them.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md, "Complete Protobuf". Each message is a protobuf
behind its length as a varint, at most 4 KiB here:

    HopMessage   1 type (0 reserve, 1 connect, 2 status)   2 peer   3 reservation   4 limit   5 status
    StopMessage  1 type (0 connect, 1 status)              2 peer   3 limit         4 status
    Peer         1 id (a binary peer id)   2 address, repeated
    Reservation  1 expire (seconds since 1970)   2 address, repeated   3 voucher
    Limit        1 duration (seconds)   2 data (bytes each way)

py-libp2p has generated code for them, inside a package that loads all of its relay, its DHT and its swarm (60 MB).
Vouchers and signed records are neither made nor looked at: the relays of a hive ask a node who belongs (relay.py).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from libp2p.utils.varint import encode_uvarint

from hivefs.errors import BadAddress

from .addresses import key_from_binary_peer_id, peer_id_from_key, split_address
from .stream import Stream

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MOST_BYTES: Final = 4096
LONGEST_VARINT: Final = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_NUMBER: Final = (1 << 64) - 1


class Status(enum.IntEnum):
    """Of the specification."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


MEANING: Final[dict[int, str]] = {
    Status.RESERVATION_REFUSED: "the relay takes no reservation of it",
    Status.RESOURCE_LIMIT_EXCEEDED: "the relay is full",
    Status.PERMISSION_DENIED: "the relay does not know it as a node of its hive",
    Status.CONNECTION_FAILED: "the relay does not reach it",
    Status.NO_RESERVATION: "it has no reservation at the relay",
}


class Hop(enum.IntEnum):
    """Types of a HopMessage."""

    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class Stop(enum.IntEnum):
    """Types of a StopMessage."""

    CONNECT = 0
    STATUS = 1


class BadMessage(ValueError):
    """What came is no message of this protocol."""


@dataclass(frozen=True, slots=True)
class Message:
    """A HopMessage or a StopMessage, as far as it is used. ``kind`` is a Hop or a Stop, ``peer`` a binary peer id,
    ``expire`` seconds since 1970, ``duration`` seconds and ``data`` bytes (0: no limit); status -1 was not said.
    """

    kind: int
    peer: bytes = b""
    expire: int = 0
    duration: int = 0
    data: int = 0
    status: int = -1


def _number(field: int, value: int) -> bytes:
    return bytes(encode_uvarint(field << 3 | _VARINT) + encode_uvarint(value))


def _part(field: int, value: bytes) -> bytes:
    return bytes(encode_uvarint(field << 3 | _BYTES) + encode_uvarint(len(value))) + value


def to_bytes(message: Message, hop: bool) -> bytes:
    """With its length before it."""
    limit_field, status_field = (4, 5) if hop else (3, 4)
    body = _number(1, message.kind)
    if message.peer:
        body += _part(2, _part(1, message.peer))
    if message.expire:
        body += _part(3, _number(1, message.expire))
    if message.duration or message.data:
        body += _part(limit_field, _number(1, message.duration) + _number(2, message.data))
    if message.status >= 0:
        body += _number(status_field, message.status)
    return bytes(encode_uvarint(len(body))) + body


def from_bytes(body: bytes, hop: bool) -> Message:
    """Of the bytes behind the length. Raises BadMessage. Fields that are not known are passed over, of a field that comes
    twice the last counts, as protobuf has it.
    """
    fields = _fields(body)
    limit_field, status_field = (4, 5) if hop else (3, 4)
    kind = fields.get(1)
    if not isinstance(kind, int):
        raise BadMessage("it has no type")
    limit = _fields(_inner(fields, limit_field))
    status = fields.get(status_field, -1)
    if not isinstance(status, int):
        raise BadMessage("its status is no number")
    return Message(
        kind,
        _inner(_fields(_inner(fields, 2)), 1),
        _small(_fields(_inner(fields, 3)), 1) if hop else 0,
        _small(limit, 1),
        _small(limit, 2),
        status,
    )


def _inner(fields: dict[int, int | bytes], field: int) -> bytes:
    value = fields.get(field, b"")
    if not isinstance(value, bytes):
        raise BadMessage(f"field {field} has another type")
    return value


def _small(fields: dict[int, int | bytes], field: int) -> int:
    value = fields.get(field, 0)
    if not isinstance(value, int):
        raise BadMessage(f"field {field} has another type")
    return value


def _fields(body: bytes) -> dict[int, int | bytes]:
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(body, at)
            found[tag >> 3] = number
            continue
        if kind == _BYTES:
            size, at = _varint(body, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise BadMessage("it is no protobuf")
        if size > len(body) - at:
            raise BadMessage("it is cut off")
        if kind == _BYTES:
            found[tag >> 3] = body[at : at + size]
        at += size
    return found


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(LONGEST_VARINT):
        if at + place >= len(body):
            raise BadMessage("it is cut off")
        byte = body[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if value > _MOST_NUMBER:
                break
            return value, at + place + 1
    raise BadMessage("a number in it is too long")


async def send(stream: Stream, message: Message, hop: bool) -> None:
    """Raises ConnectionLost, PeerTimeout."""
    await stream.send_all(to_bytes(message, hop))


async def receive(stream: Stream, hop: bool) -> Message:
    """One message and not a byte of what follows it, which is the circuit's. Raises BadMessage, ConnectionLost,
    PeerTimeout.
    """
    size = shift = 0
    for _ in range(3):  # MOST_BYTES needs two
        byte = (await _exactly(stream, 1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        raise BadMessage("it is too long")
    if size > MOST_BYTES:
        raise BadMessage("it is too long")
    return from_bytes(await _exactly(stream, size), hop)


async def _exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise BadMessage("it is cut off")
        data += more
    return data


def key_of(peer: bytes) -> bytes:
    """The Ed25519 key in a binary peer id. Raises BadMessage for anything else."""
    try:
        return key_from_binary_peer_id(peer)
    except BadAddress:
        raise BadMessage("it names no peer with an Ed25519 key") from None


def circuit_address(relay: str, key: bytes) -> str:
    """Where a peer is behind a relay, as libp2p writes it. ``relay`` is a full address. Raises BadAddress."""
    split_address(relay)
    return f"{relay}/p2p-circuit/p2p/{peer_id_from_key(key)}"
