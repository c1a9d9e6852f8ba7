"""Standings: what was known of a node, with its evidence, when a placement was proved. See docs/formats/standing.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from hivefs.formats import strict
from hivefs.model.node import Attribute, Evidence

VERSION = 1
DIGEST_BYTES = 16
MAX_ATTRIBUTES = 64
MAX_TEXT = 256

_MAGIC = "HVstanding"
_WHAT = "what was known of a node"


def to_bytes(attributes: Iterable[Attribute]) -> bytes:
    """Canonical CBOR; the same attributes give the same bytes in whatever order and however often they are said. ValueError
    for more attributes or longer ones than ``from_bytes`` takes: what is kept can be read.
    """
    items = sorted({(a.name, a.value, int(a.evidence)) for a in attributes})
    if len(items) > MAX_ATTRIBUTES or any(max(len(name), len(value)) > MAX_TEXT for name, value, _ in items):
        raise ValueError(f"a standing has at most {MAX_ATTRIBUTES} attributes of {MAX_TEXT} characters")
    return strict.encode(_MAGIC, VERSION, [list(item) for item in items])


def from_bytes(data: bytes) -> tuple[Attribute, ...]:
    """Sorted by name, value and evidence. Raises Corrupt or UnknownVersion."""
    parts = strict.items_of(_WHAT, _MAGIC, VERSION, data)

    def build() -> tuple[Attribute, ...]:
        (items,) = parts
        return tuple(map(_attribute, strict.items(items, MAX_ATTRIBUTES)))

    return strict.exactly(_WHAT, data, build, to_bytes)


def _attribute(value: Any) -> Attribute:
    name, said, evidence = strict.items(value, 3)
    return Attribute(strict.text(name, MAX_TEXT), strict.text(said, MAX_TEXT), Evidence(strict.number(evidence)))


@lru_cache(maxsize=16_384)
def digest(attributes: tuple[Attribute, ...]) -> bytes:
    """16 bytes that name a standing: the first of the SHA-256 of its bytes."""
    return hashlib.sha256(to_bytes(attributes)).digest()[:DIGEST_BYTES]
