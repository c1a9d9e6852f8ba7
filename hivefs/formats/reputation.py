"""One row of what is known of a node's conduct, as the engine keeps it: see docs/formats/reputation.md."""

from __future__ import annotations

from typing import Any, Final

from hivefs.formats import strict
from hivefs.placement.reputation import KEPT, MOST_OWED, Owed, Reputation

VERSION: Final = 1
_MAGIC: Final = "HVreputation"
_WHAT: Final = "what is known of a node"
_MOST: Final = 1 << 62


def to_bytes(row: Reputation) -> bytes:
    """Canonical CBOR."""
    return strict.encode(
        _MAGIC,
        VERSION,
        [row.first_seen_ns, row.updated_ns, row.good, row.bad, row.audits, row.suspended],
        [row.online_ms, row.known_ms, row.away_ms, row.doubted, [list(o) for o in row.outages]],
        [[o.stripe_id, o.index, o.strikes, o.since_s] for o in row.owed],
        row.sweep,
    )


def from_bytes(data: bytes) -> Reputation:
    """Raises Corrupt or UnknownVersion."""
    items = strict.items_of(_WHAT, _MAGIC, VERSION, data)
    return strict.exactly(_WHAT, data, lambda: _build(items), to_bytes)


def _build(items: list[Any]) -> Reputation:
    answers, times, owed, sweep = items
    first, updated, good, bad, audits, suspended = strict.items(answers, 6)
    online, known, away, doubted, outages = strict.items(times, 5)
    pairs = [strict.items(pair, 2) for pair in strict.items(outages, KEPT)]
    if len(strict.blob(sweep)) not in (0, 16):
        raise ValueError("wrong length")
    return Reputation(
        first_seen_ns=_number(first),
        updated_ns=_number(updated),
        good=_number(good),
        bad=_number(bad),
        audits=_number(audits),
        suspended=_flag(suspended),
        online_ms=_number(online),
        known_ms=_number(known),
        away_ms=_number(away),
        doubted=_flag(doubted),
        outages=tuple((strict.number(start), strict.number(length)) for start, length in pairs),
        owed=tuple(_owed(strict.items(entry, 4)) for entry in strict.items(owed, MOST_OWED)),
        sweep=sweep,
    )


def _number(value: Any) -> int:
    return strict.number(value, 0, _MOST)


def _owed(entry: list[Any]) -> Owed:
    stripe_id, index, strikes, since = entry
    return Owed(
        strict.blob(stripe_id, 16), strict.number(index, 0, 254), strict.number(strikes, 0, 255), strict.number(since)
    )


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError("bool expected")
    return value
