"""CBOR (RFC 8949) decoding that accepts one encoding per value.

Every CBOR format of HiveFS is an array whose first item is the magic text and whose second is the version. A decoder
takes the array apart, builds the noun, encodes it again and compares: bytes that are not exactly what we would have
written (other types, extra items, non-shortest numbers, duplicate or unsorted keys) are refused as damaged, so that a
signature or a hash covers one meaning only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import cbor2

from hivefs.errors import Corrupt, UnknownVersion

T = TypeVar("T")


def encode(magic: str, version: int, *items: Any) -> bytes:
    """The canonical bytes of [magic, version, *items]."""
    return cbor2.dumps([magic, version, *items], canonical=True)


def items_of(what: str, magic: str, version: int, data: bytes) -> list[Any]:
    """The items after magic and version. Raises Corrupt or UnknownVersion."""
    try:
        value = cbor2.loads(data)
    except (cbor2.CBORError, ValueError, EOFError, TypeError, OverflowError, RecursionError, MemoryError):
        raise Corrupt(what=what, reason="it is not CBOR") from None
    if not isinstance(value, list) or len(value) < 2 or value[0] != magic or type(value[1]) is not int:
        raise Corrupt(what=what, reason="it does not begin with its magic")
    if value[1] != version:
        raise UnknownVersion(what=what, version=value[1])
    return value[2:]


def items_of_any(what: str, magic: str, versions: tuple[int, ...], data: bytes) -> list[Any]:
    """The same for a format of which several versions are read; ``exactly`` holds each to its own form."""
    try:
        return items_of(what, magic, versions[0], data)
    except UnknownVersion as error:
        if error.version not in versions:
            raise
        return items_of(what, magic, error.version, data)


def exactly(what: str, data: bytes, build: Callable[[], T], to_bytes: Callable[[T], bytes]) -> T:
    """``build()``, provided that it encodes to exactly ``data``; any mistake in the parts becomes Corrupt."""
    try:
        value = build()
        same = to_bytes(value) == data
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise Corrupt(what=what, reason=f"a field has a wrong type or value ({type(error).__name__})") from None
    if not same:
        raise Corrupt(what=what, reason="it is not in canonical form")
    return value


def blob(value: Any, length: int | None = None) -> bytes:
    """``value`` if it is bytes (of that length), else TypeError/ValueError."""
    if type(value) is not bytes:
        raise TypeError("bytes expected")
    if length is not None and len(value) != length:
        raise ValueError("wrong length")
    return value


def number(value: Any, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """``value`` if it is an int within bounds."""
    if type(value) is not int:
        raise TypeError("int expected")
    if not low <= value <= high:
        raise ValueError("out of range")
    return value


def flag(value: Any) -> bool:
    """``value`` if it is a bool."""
    if type(value) is not bool:
        raise TypeError("bool expected")
    return value


def text(value: Any, longest: int = 1024) -> str:
    """``value`` if it is a str of at most ``longest`` characters."""
    if type(value) is not str:
        raise TypeError("str expected")
    if len(value) > longest:
        raise ValueError("too long")
    return value


def items(value: Any, most: int = 1 << 16) -> list[Any]:
    """``value`` if it is a list of at most ``most`` items."""
    if type(value) is not list:
        raise TypeError("list expected")
    if len(value) > most:
        raise ValueError("too many")
    return value
