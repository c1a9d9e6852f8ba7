"""Requests of a client: dataclass <-> frame. Headers are strict CBOR (formats/strict.py), bulk is in the payload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hivefs.errors import Corrupt
from hivefs.formats import attestation, member, receipt, strict
from hivefs.model.ids import KEY_BYTES, MAX_SHARE_BYTES, ShareId
from hivefs.protocol.frames import MAX_IDS, MAX_PAYLOAD, VERSION, Frame, Kind

ID_BYTES = 32
MAX_ENTRY_BYTES = 2 * member.MAX_BYTES
"""A roster entry: a certificate and addresses."""


@dataclass(frozen=True, slots=True)
class Put:
    """Keep these bytes (1 to 2 MiB) until ``lease_ns`` (since 1970). Answered when they are on disk, with the lease
    granted.
    """

    share_id: ShareId
    lease_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Get:
    """``length`` bytes from ``offset`` (length 0: to the end). The answer has whole leaves and their Merkle path."""

    share_id: ShareId
    offset: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Have:
    """How long are these shares, 0 for those that are not there?"""

    share_ids: tuple[ShareId, ...]


@dataclass(frozen=True, slots=True)
class Delete:
    """Forget my lease on these shares. ``signature`` is the owner's over proofs.delete_message."""

    serial: int
    signature: bytes
    share_ids: tuple[ShareId, ...]


@dataclass(frozen=True, slots=True)
class Renew:
    """Keep these shares of mine until ``lease_ns`` at least."""

    lease_ns: int
    share_ids: tuple[ShareId, ...]


@dataclass(frozen=True, slots=True)
class HeadPut:
    """Keep this head (formats/head.py) of my vault."""

    head: bytes


@dataclass(frozen=True, slots=True)
class HeadsGet:
    """The heads of my vault, of devices whose key is after ``after`` (empty: from the first)."""

    after: bytes = b""


@dataclass(frozen=True, slots=True)
class RosterGet:
    """The roster entries of nodes whose key is after ``after`` (empty: from the first)."""

    after: bytes = b""


@dataclass(frozen=True, slots=True)
class RosterPut:
    """Roster entries (formats/member.py) that you may not know."""

    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Stat:
    """How much room is there?"""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class HiveStateGet:
    """Which revocation list do you have, and which members by invitation?"""


@dataclass(frozen=True, slots=True)
class MembersGet:
    """Certificates of members whose key is after ``after`` (empty: from the first): of those by invitation, or, for the
    hive's owner only, of ``everyone`` that you have heard of.
    """

    after: bytes = b""
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class MembersPut:
    """Certificates of members by invitation that you may not know. Of nodes only."""

    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RevokedGet:
    """The revocation list that you have, if there is one."""


@dataclass(frozen=True, slots=True)
class RevokedPut:
    """A revocation list (formats/revoked.py) that may be newer than yours."""

    revoked: bytes


@dataclass(frozen=True, slots=True)
class ReceiptGet:
    """Sign what you hold for me now, and put these 32 bytes of mine in, so that I know it is new."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class ReceiptPut:
    """The receipt that you gave me last (formats/receipt.py), with my signature."""

    receipt: bytes


@dataclass(frozen=True, slots=True)
class ListShares:
    """The shares that you hold for me, from the one after ``after`` on (empty: from the first)."""

    after: bytes = b""


@dataclass(frozen=True, slots=True)
class NewsGet:
    """What do your roster and the statements that you know come to?"""


@dataclass(frozen=True, slots=True)
class StatementsGet:
    """What nodes whose key is after ``after`` (empty: from the first) say of themselves (formats/attestation.py)."""

    after: bytes = b""


@dataclass(frozen=True, slots=True)
class StatementsPut:
    """Statements of nodes that you may not know."""

    statements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class RangesGet:
    """What do the 256 ranges of your roster come to, or those of the ``statements`` that you know?"""

    statements: bool


@dataclass(frozen=True, slots=True)
class RangeGet:
    """Roster entries, or ``statements``, of nodes whose key begins with the byte ``first`` and is after ``after`` (empty:
    from the first of them).
    """

    statements: bool
    first: int
    after: bytes = b""


Request: TypeAlias = (
    Put | Get | Have | Delete | Renew | HeadPut | HeadsGet | RosterGet | RosterPut | Stat | Ping
    | HiveStateGet | MembersGet | MembersPut | RevokedGet | RevokedPut | ReceiptGet | ReceiptPut | ListShares
    | NewsGet | StatementsGet | StatementsPut | RangesGet | RangeGet
)  # fmt: skip


def join_blobs(blobs: Sequence[bytes]) -> bytes:
    """u32 length and bytes of each."""
    return b"".join(len(blob).to_bytes(4, "big") + blob for blob in blobs)


def split_blobs(payload: bytes, longest: int) -> tuple[bytes, ...]:
    """The inverse of join_blobs; ValueError when it does not come out even or one is longer than ``longest``."""
    blobs = []
    at = 0
    while at < len(payload):
        length = int.from_bytes(payload[at : at + 4], "big")
        at += 4
        if not 0 < length <= longest or at + length > len(payload):
            raise ValueError("a list of blobs that does not come out even")
        blobs.append(payload[at : at + length])
        at += length
    return tuple(blobs)


def split_ids(payload: bytes) -> tuple[ShareId, ...]:
    """1 to 1024 share ids of 32 bytes."""
    count, rest = divmod(len(payload), ID_BYTES)
    if rest or not 1 <= count <= MAX_IDS:
        raise ValueError("not a list of share ids")
    return tuple(ShareId(payload[i : i + ID_BYTES]) for i in range(0, len(payload), ID_BYTES))


def _after(value: Any) -> bytes:
    data = strict.blob(value)
    if len(data) not in (0, KEY_BYTES):
        raise ValueError("a key or nothing expected")
    return data


def _put(items: list[Any], payload: bytes) -> Put:
    share_id, lease = items
    if not payload:
        raise ValueError("an empty share")
    return Put(ShareId(strict.blob(share_id, ID_BYTES)), strict.number(lease), payload)


def _get(items: list[Any], payload: bytes) -> Get:
    share_id, offset, length = items
    return Get(
        ShareId(strict.blob(share_id, ID_BYTES)),
        strict.number(offset, 0, MAX_SHARE_BYTES),
        strict.number(length, 0, MAX_SHARE_BYTES),
    )


def _delete(items: list[Any], payload: bytes) -> Delete:
    serial, signature = items
    return Delete(strict.number(serial, 1), strict.blob(signature, 64), split_ids(payload))


def _renew(items: list[Any], payload: bytes) -> Renew:
    (lease,) = items
    return Renew(strict.number(lease), split_ids(payload))


def _members_get(items: list[Any], payload: bytes) -> MembersGet:
    after, everyone = items
    return MembersGet(_after(after), strict.flag(everyone))


def _revoked_put(items: list[Any], payload: bytes) -> RevokedPut:
    if not payload:
        raise ValueError("an empty list")
    return RevokedPut(payload)


def _receipt_put(items: list[Any], payload: bytes) -> ReceiptPut:
    if not payload:
        raise ValueError("an empty receipt")
    return ReceiptPut(payload)


def _head_put(items: list[Any], payload: bytes) -> HeadPut:
    if not payload:
        raise ValueError("an empty head")
    return HeadPut(payload)


def _range_get(items: list[Any], payload: bytes) -> RangeGet:
    statements, first, after = items
    made = RangeGet(strict.flag(statements), strict.number(first, 0, 255), _after(after))
    if made.after and made.after[0] != made.first:
        raise ValueError("not in that range")
    return made


_READ: dict[Kind, tuple[str, Callable[[list[Any], bytes], Request]]] = {
    Kind.PUT: ("put", _put),
    Kind.GET: ("get", _get),
    Kind.HAVE: ("have", lambda items, payload: Have(split_ids(payload))),
    Kind.DELETE: ("delete", _delete),
    Kind.RENEW: ("renew", _renew),
    Kind.HEAD_PUT: ("head put", _head_put),
    Kind.HEADS_GET: ("heads get", lambda items, payload: HeadsGet(_after(items[0]))),
    Kind.ROSTER_GET: ("roster get", lambda items, payload: RosterGet(_after(items[0]))),
    Kind.ROSTER_PUT: ("roster put", lambda items, payload: RosterPut(split_blobs(payload, MAX_ENTRY_BYTES))),
    Kind.STAT: ("stat", lambda items, payload: Stat()),
    Kind.PING: ("ping", lambda items, payload: Ping()),
    Kind.HIVE_STATE: ("hive state get", lambda items, payload: HiveStateGet()),
    Kind.MEMBERS_GET: ("members get", _members_get),
    Kind.MEMBERS_PUT: ("members put", lambda items, payload: MembersPut(split_blobs(payload, member.MAX_BYTES))),
    Kind.REVOKED_GET: ("revoked get", lambda items, payload: RevokedGet()),
    Kind.REVOKED_PUT: ("revoked put", _revoked_put),
    Kind.RECEIPT_GET: ("receipt get", lambda items, payload: ReceiptGet(strict.blob(items[0], receipt.NONCE_BYTES))),
    Kind.RECEIPT_PUT: ("receipt put", _receipt_put),
    Kind.LIST: ("list", lambda items, payload: ListShares(_after(items[0]))),
    Kind.NEWS: ("news get", lambda items, payload: NewsGet()),
    Kind.STATEMENTS_GET: ("statements get", lambda items, payload: StatementsGet(_after(items[0]))),
    Kind.STATEMENTS_PUT: (
        "statements put",
        lambda items, payload: StatementsPut(split_blobs(payload, attestation.MAX_STATEMENT_BYTES)),
    ),
    Kind.RANGES_GET: ("ranges get", lambda items, payload: RangesGet(strict.flag(items[0]))),
    Kind.RANGE_GET: ("range get", _range_get),
}


def _written(request: Request) -> tuple[Kind, tuple[Any, ...], bytes]:
    match request:
        case Put(share_id, lease, data):
            return Kind.PUT, (share_id, lease), data
        case Get(share_id, offset, length):
            return Kind.GET, (share_id, offset, length), b""
        case Have(ids):
            return Kind.HAVE, (), b"".join(ids)
        case Delete(serial, signature, ids):
            return Kind.DELETE, (serial, signature), b"".join(ids)
        case Renew(lease, ids):
            return Kind.RENEW, (lease,), b"".join(ids)
        case HeadPut(data):
            return Kind.HEAD_PUT, (), data
        case HeadsGet(after):
            return Kind.HEADS_GET, (after,), b""
        case RosterGet(after):
            return Kind.ROSTER_GET, (after,), b""
        case RosterPut(entries):
            return Kind.ROSTER_PUT, (), join_blobs(entries)
        case Stat():
            return Kind.STAT, (), b""
        case Ping():
            return Kind.PING, (), b""
        case HiveStateGet():
            return Kind.HIVE_STATE, (), b""
        case MembersGet(after, everyone):
            return Kind.MEMBERS_GET, (after, everyone), b""
        case MembersPut(certificates):
            return Kind.MEMBERS_PUT, (), join_blobs(certificates)
        case RevokedGet():
            return Kind.REVOKED_GET, (), b""
        case RevokedPut(data):
            return Kind.REVOKED_PUT, (), data
        case ReceiptGet(nonce):
            return Kind.RECEIPT_GET, (nonce,), b""
        case ReceiptPut(data):
            return Kind.RECEIPT_PUT, (), data
        case ListShares(after):
            return Kind.LIST, (after,), b""
        case NewsGet():
            return Kind.NEWS, (), b""
        case StatementsGet(after):
            return Kind.STATEMENTS_GET, (after,), b""
        case StatementsPut(statements):
            return Kind.STATEMENTS_PUT, (), join_blobs(statements)
        case RangesGet(statements):
            return Kind.RANGES_GET, (statements,), b""
        case RangeGet(statements, first, after):
            return Kind.RANGE_GET, (statements, first, after), b""


def to_frame(request: Request, number: int) -> Frame:
    """The frame of a request under the request id ``number``."""
    kind, items, payload = _written(request)
    return Frame(kind, number, strict.encode(_READ[kind][0], VERSION, *items), payload)


def from_frame(frame: Frame) -> Request:
    """Raises Corrupt or UnknownVersion. Signatures and hashes are not checked here."""
    magic, build = _READ[frame.kind]
    what = f"a {magic} request"
    items = strict.items_of(what, magic, VERSION, frame.header)

    def header_of(request: Request) -> bytes:
        return strict.encode(magic, VERSION, *_written(request)[1])

    request = strict.exactly(what, frame.header, lambda: build(items, frame.payload), header_of)
    if frame.payload and not MAX_PAYLOAD[frame.kind]:
        raise Corrupt(what=what, reason="it has a payload")
    return request
