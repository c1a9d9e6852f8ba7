"""Answers of a node: dataclass <-> header and payload of an ANSWER frame. The request says which one is expected."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from hivefs.errors import Corrupt
from hivefs.formats import head, revoked, strict
from hivefs.model.ids import KEY_BYTES, MAX_SHARE_BYTES, ShareId
from hivefs.model.receipt import Listed
from hivefs.protocol.frames import VERSION, Frame, Kind
from hivefs.protocol.requests import MAX_ENTRY_BYTES, join_blobs, split_blobs

T = TypeVar("T")
MAX_PATH = 32
MAX_LISTED = 8192
"""Shares in one listing."""

RANGES = 256
SUM_BYTES = 32

_LISTED = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more to say (PING, HEAD_PUT)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """PUT: the share is on disk until ``lease_ns`` (since 1970)."""

    lease_ns: int


@dataclass(frozen=True, slots=True)
class Part:
    """GET: leaves from number ``first`` on of a share of ``size`` bytes, and the Merkle path of them."""

    size: int
    first: int
    path: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """HAVE: the size of each share asked for, 0 when it is not there."""

    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flags:
    """DELETE, RENEW: for each share whether it was one of the asker's."""

    flags: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """HEADS_GET, ROSTER_GET, MEMBERS_GET, REVOKED_GET, STATEMENTS_GET, RANGE_GET, RECEIPT_GET: some blobs; ``more``
    when there are others after the last one.
    """

    more: bool
    blobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """ROSTER_PUT, MEMBERS_PUT, REVOKED_PUT, STATEMENTS_PUT, RECEIPT_PUT: how many entries were news."""

    count: int


@dataclass(frozen=True, slots=True)
class NodeStat:
    """STAT: bytes that the node offers, that shares use, that are free for new ones; how many shares it keeps and how
    many it had to drop since its start because they were damaged; its clock (ns since 1970) and its version.
    """

    capacity: int
    used: int
    free_bytes: int
    shares: int
    dropped: int
    time_ns: int
    version: str


@dataclass(frozen=True, slots=True)
class HiveState:
    """HIVE_STATE: the number of the revocation list (0: none), and 32 bytes that are the same for the same set of members
    by invitation.
    """

    revoked: int
    members: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """LIST: shares of the asker in the order of their ids. ``reached`` is the id after which to ask on; empty: that
    was all. (A node looks at so many rows for one answer, so it may reach far and list little.)
    """

    reached: bytes
    shares: tuple[Listed, ...]


@dataclass(frozen=True, slots=True)
class News:
    """NEWS: 32 bytes each that are the same for the same roster, and for the same statements of nodes."""

    roster: bytes
    statements: bytes


@dataclass(frozen=True, slots=True)
class Ranges:
    """RANGES_GET: of each range of keys, by their first byte, 32 bytes that are the same for the same entries in it. All of
    them together, by XOR, are what NEWS tells.
    """

    sums: tuple[bytes, ...]


Answer = Done | Kept | Part | Sizes | Flags | Page | Taken | NodeStat | HiveState | Listing | News | Ranges


def _items(answer: Answer) -> tuple[str, tuple[Any, ...], bytes]:
    match answer:
        case Done():
            return "done", (), b""
        case Kept(lease):
            return "kept", (lease,), b""
        case Part(size, first, path, data):
            return "part", (size, first, list(path)), data
        case Sizes(sizes):
            return "sizes", (), b"".join(size.to_bytes(4, "big") for size in sizes)
        case Flags(flags):
            return "flags", (), bytes(flags)
        case Page(more, blobs):
            return "page", (more,), join_blobs(blobs)
        case Taken(count):
            return "taken", (count,), b""
        case NodeStat():
            s = answer
            return "stat", (s.capacity, s.used, s.free_bytes, s.shares, s.dropped, s.time_ns, s.version), b""
        case HiveState(number, members):
            return "hive state", (number, members), b""
        case Listing(reached, shares):
            rows = (s.share_id + _LISTED.pack(s.lease_ns, s.size) for s in shares)
            return "listing", (reached,), b"".join(rows)
        case News(roster, statements):
            return "news", (roster, statements), b""
        case Ranges(sums):
            return "ranges", (), b"".join(sums)


def to_frame(answer: Answer, number: int) -> Frame:
    """The frame that answers request ``number``."""
    magic, items, payload = _items(answer)
    return Frame(Kind.ANSWER, number, strict.encode(magic, VERSION, *items), payload)


def _part(items: list[Any], payload: bytes) -> Part:
    size, first, path = items
    return Part(
        strict.number(size, 1, MAX_SHARE_BYTES),
        strict.number(first, 0, MAX_SHARE_BYTES),
        tuple(strict.blob(step, 32) for step in strict.items(path, MAX_PATH)),
        payload,
    )


def _sizes(items: list[Any], payload: bytes) -> Sizes:
    if len(payload) % 4:
        raise ValueError("not a list of sizes")
    sizes = tuple(int.from_bytes(payload[i : i + 4], "big") for i in range(0, len(payload), 4))
    return Sizes(tuple(strict.number(size, 0, MAX_SHARE_BYTES) for size in sizes))


def _flags(items: list[Any], payload: bytes) -> Flags:
    if payload.strip(b"\x00\x01"):
        raise ValueError("not a list of flags")
    return Flags(tuple(map(bool, payload)))


def _page(items: list[Any], payload: bytes) -> Page:
    (more,) = items
    if type(more) is not bool:
        raise TypeError("bool expected")
    blobs = split_blobs(payload, max(head.MAX_BYTES, MAX_ENTRY_BYTES, revoked.MAX_BYTES))
    if more and not blobs:
        raise ValueError("an empty page that is not the last")
    return Page(more, blobs)


def _listing(items: list[Any], payload: bytes) -> Listing:
    (reached,) = items
    row = KEY_BYTES + _LISTED.size
    if len(payload) % row or len(payload) > MAX_LISTED * row or len(strict.blob(reached)) not in (0, KEY_BYTES):
        raise ValueError("not a listing")
    shares = []
    for i in range(0, len(payload), row):
        lease, size = _LISTED.unpack_from(payload, i + KEY_BYTES)
        number = strict.number(lease), strict.number(size, 1, MAX_SHARE_BYTES)
        shares.append(Listed(ShareId(payload[i : i + KEY_BYTES]), *number))
    ids = [share.share_id for share in shares]
    if any(a >= b for a, b in pairwise(ids)) or (ids and reached and ids[-1] > reached):
        raise ValueError("a listing out of order")
    return Listing(reached, tuple(shares))


def _stat(items: list[Any], payload: bytes) -> NodeStat:
    *numbers, version = items
    capacity, used, free, shares, dropped, time_ns = (strict.number(n) for n in numbers)
    return NodeStat(capacity, used, free, shares, dropped, time_ns, strict.text(version, 64))


def _ranges(items: list[Any], payload: bytes) -> Ranges:
    if len(payload) != RANGES * SUM_BYTES:
        raise ValueError("not the sums of all ranges")
    return Ranges(tuple(payload[at : at + SUM_BYTES] for at in range(0, len(payload), SUM_BYTES)))


_READ: dict[type[Any], tuple[str, Callable[[list[Any], bytes], Any]]] = {
    Done: ("done", lambda items, payload: Done()),
    Kept: ("kept", lambda items, payload: Kept(strict.number(items[0]))),
    Part: ("part", _part),
    Sizes: ("sizes", _sizes),
    Flags: ("flags", _flags),
    Page: ("page", _page),
    Taken: ("taken", lambda items, payload: Taken(strict.number(items[0]))),
    NodeStat: ("stat", _stat),
    Listing: ("listing", _listing),
    HiveState: ("hive state", lambda items, payload: HiveState(strict.number(items[0]), strict.blob(items[1], 32))),
    News: ("news", lambda items, payload: News(strict.blob(items[0], 32), strict.blob(items[1], 32))),
    Ranges: ("ranges", _ranges),
}


def from_frame(expected: type[T], frame: Frame) -> T:
    """The answer of the type expected; Corrupt or UnknownVersion when it is something else."""
    magic, build = _READ[expected]
    what = "a node's answer"
    items = strict.items_of(what, magic, VERSION, frame.header)

    def header_of(answer: T) -> bytes:
        return strict.encode(magic, VERSION, *_items(answer)[1])  # type: ignore[arg-type]

    answer: T = strict.exactly(what, frame.header, lambda: build(items, frame.payload), header_of)
    if frame.payload and expected in (Done, Kept, Taken, NodeStat, HiveState, News):
        raise Corrupt(what=what, reason="it has a payload")
    return answer
