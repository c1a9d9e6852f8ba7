"""What a node measured on one day: see docs/formats/node.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hivefs.formats import strict

VERSION = 1
_MAGIC = "HVmeter"
UNKNOWN, VAULT, NODE = 0, 1, 2
PEERS = {UNKNOWN: "unknown", VAULT: "vault", NODE: "node"}
"""Kinds of peers: those that have not logged in (greetings), clients, other nodes."""


@dataclass(slots=True)
class Traffic:
    """With one kind of peer: bytes of frames that came and went, requests by kind of frame, refusals by code."""

    bytes_in: int = 0
    bytes_out: int = 0
    requests: Counter[int] = field(default_factory=Counter)
    refusals: Counter[int] = field(default_factory=Counter)

    def add(self, other: Traffic) -> None:
        """Sum up."""
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        self.requests.update(other.requests)
        self.refusals.update(other.refusals)


Day = dict[int, Traffic]
"""By kind of peer."""


def add(day: Day, other: Day) -> None:
    """Sum up two days."""
    for peer, traffic in other.items():
        day.setdefault(peer, Traffic()).add(traffic)


def to_bytes(day: Day) -> bytes:
    """Canonical CBOR; peers, kinds and codes in their order, without those that never were."""
    rows = [[peer, t.bytes_in, t.bytes_out, _pairs(t.requests), _pairs(t.refusals)] for peer, t in sorted(day.items())]
    return strict.encode(_MAGIC, VERSION, rows)


def _pairs(counts: Counter[int]) -> list[list[int]]:
    return [[int(key), count] for key, count in sorted(counts.items()) if count]


def from_bytes(data: bytes) -> Day:
    """Raises Corrupt or UnknownVersion."""
    what = "a day of the meter"
    items = strict.items_of(what, _MAGIC, VERSION, data)
    return strict.exactly(what, data, lambda: _day(items), to_bytes)


def _day(items: list[Any]) -> Day:
    (rows,) = items
    day: Day = {}
    for peer, bytes_in, bytes_out, asked, refused in (strict.items(row, 5) for row in strict.items(rows, len(PEERS))):
        day[strict.number(peer, 0, 255)] = Traffic(
            strict.number(bytes_in), strict.number(bytes_out), _counts(asked), _counts(refused)
        )
    return day


def _counts(pairs: Any) -> Counter[int]:
    return Counter(
        {strict.number(k, 0, 255): strict.number(n) for k, n in (strict.items(p, 2) for p in strict.items(pairs))}
    )
