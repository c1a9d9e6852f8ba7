"""A table of networks as it is kept on one machine. See docs/formats/registry.md."""

from __future__ import annotations

import struct
import sys
from array import array

import cbor2

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import strict
from hivefs.placement.evidence import Origin
from hivefs.placement.registry import MAX_ROWS, MAX_TEXT, Ranges, Registry

VERSION = 1
MAX_BYTES = 256 << 20
_MAGIC = b"HVregistry"
_HEAD = struct.Struct(">10sBII")
_WHAT = "the table of networks"
_PARTS = ((0, "I"), (0, "I"), (0, "I"), (1, "Q"), (1, "Q"), (1, "I"))
"""Of version 4, then of version 6: firsts, lasts, numbers of origins."""


def registry_to_bytes(made: Registry) -> bytes:
    """Head, arrays (big endian), origins."""
    parts = [_HEAD.pack(_MAGIC, VERSION, len(made.v4.starts), len(made.v6.starts))]
    for ranges in (made.v4, made.v6):
        parts += [_swapped(numbers).tobytes() for numbers in (ranges.starts, ranges.ends, ranges.origins)]
    return b"".join(parts) + cbor2.dumps([[o.country, o.asn, o.hoster] for o in made.origins], canonical=True)


def registry_from_bytes(data: bytes) -> Registry:
    """Raises Corrupt or UnknownVersion."""
    if len(data) < _HEAD.size or data[: len(_MAGIC)] != _MAGIC:
        raise Corrupt(what=_WHAT, reason="it does not begin with its magic")
    _, version, *counts = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UnknownVersion(what=_WHAT, version=version)
    if max(counts) > MAX_ROWS:
        raise Corrupt(what=_WHAT, reason="it has too many networks")
    arrays = []
    at = _HEAD.size
    for which, code in _PARTS:
        numbers = array(code)
        size = counts[which] * numbers.itemsize
        if at + size > len(data):
            raise Corrupt(what=_WHAT, reason="it is cut off")
        numbers.frombytes(data[at : at + size])
        arrays.append(_swapped(numbers))
        at += size
    made = Registry(_origins(data[at:]), Ranges(*arrays[:3]), Ranges(*arrays[3:]))
    for ranges in (made.v4, made.v6):
        _check(ranges, len(made.origins))
    return made


def _origins(data: bytes) -> list[Origin]:
    try:
        items = cbor2.loads(data)
        made = [
            Origin(strict.text(country, 2), strict.text(asn, 10), strict.text(hoster, MAX_TEXT))
            for country, asn, hoster in (strict.items(item, 3) for item in strict.items(items, MAX_ROWS * 2))
        ]
        same = cbor2.dumps([[o.country, o.asn, o.hoster] for o in made], canonical=True) == data
    except (cbor2.CBORError, ValueError, EOFError, TypeError, OverflowError, RecursionError, MemoryError):
        raise Corrupt(what=_WHAT, reason="its origins have a wrong form") from None
    if not same:
        raise Corrupt(what=_WHAT, reason="it is not in canonical form")
    return made


def _check(ranges: Ranges, origins: int) -> None:
    before = -1
    for first, last in zip(ranges.starts, ranges.ends, strict=True):
        if not before < first <= last:
            raise Corrupt(what=_WHAT, reason="its networks are not in order")
        before = last
    if max(ranges.origins, default=-1) >= origins:
        raise Corrupt(what=_WHAT, reason="a network has an origin that is not there")


def _swapped(numbers: array[int]) -> array[int]:
    """Big endian in bytes, the machine's own in memory."""
    if sys.byteorder == "big":
        return numbers
    copy = numbers[:]
    copy.byteswap()
    return copy
