"""What is known of the conduct of very many nodes, a small block of bytes for each. Pure.

As objects of Python they would be half a kilobyte each; and when many that live long are replaced by others now and then,
the collector of garbage is not called for a long time (it counts what is made less what goes) and then looks at all that
came anew: 80 ms at once with 100 000 nodes. Bytes it does not look at. This is no format: it is never written anywhere
(formats/reputation.py is).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, MutableMapping
from typing import Final

from hivefs.model.ids import NodeId
from hivefs.placement.reputation import Owed, Reputation

_HEAD: Final = struct.Struct("<8q4B")
_OUTAGE: Final = struct.Struct("<qq")
_OWED: Final = struct.Struct("<16sBBq")
_SUSPENDED, _DOUBTED = 1, 2


def packed(row: Reputation) -> bytes:
    """All of a row."""
    flags = _SUSPENDED * row.suspended | _DOUBTED * row.doubted
    head = _HEAD.pack(
        row.first_seen_ns,
        row.updated_ns,
        row.good,
        row.bad,
        row.audits,
        row.online_ms,
        row.known_ms,
        row.away_ms,
        flags,
        len(row.outages),
        len(row.owed),
        len(row.sweep),
    )
    if not (row.outages or row.owed or row.sweep):
        return head
    outages = b"".join(_OUTAGE.pack(*outage) for outage in row.outages)
    owed = b"".join(_OWED.pack(o.stripe_id, o.index, o.strikes, o.since_s) for o in row.owed)
    return head + outages + owed + row.sweep


def unpacked(data: bytes) -> Reputation:
    """The row again."""
    first, updated, good, bad, audits, online, known, away, flags, outages, owed, sweep = _HEAD.unpack_from(data)
    at = _HEAD.size
    lengths: tuple[tuple[int, int], ...] = ()
    debts: tuple[Owed, ...] = ()
    if outages:
        lengths = tuple((begin, lasted) for begin, lasted in _OUTAGE.iter_unpack(data[at : at + outages * _OUTAGE.size]))
        at += outages * _OUTAGE.size
    if owed:
        debts = tuple(Owed(*entry) for entry in _OWED.iter_unpack(data[at : at + owed * _OWED.size]))
    return Reputation(
        first,
        updated,
        good,
        bad,
        audits,
        bool(flags & _SUSPENDED),
        online,
        known,
        away,
        bool(flags & _DOUBTED),
        lengths,
        debts,
        data[len(data) - sweep :],
    )


class Reputations(MutableMapping[NodeId, Reputation]):
    """Rows by node: each is unpacked when it is asked for."""

    def __init__(self) -> None:
        self._rows: dict[NodeId, bytes] = {}

    def __getitem__(self, node_id: NodeId) -> Reputation:
        return unpacked(self._rows[node_id])

    def get(self, node_id: NodeId, default: object = None) -> Reputation | None:  # type: ignore[override]
        """The row, or None."""
        data = self._rows.get(node_id)
        return None if data is None else unpacked(data)

    def __setitem__(self, node_id: NodeId, row: Reputation) -> None:
        self._rows[node_id] = packed(row)

    def __delitem__(self, node_id: NodeId) -> None:
        del self._rows[node_id]

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._rows

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
