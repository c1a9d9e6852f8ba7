"""Pages of the metadata tree, as they are once opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from hivefs.model.ids import StripeId
from hivefs.model.stripe import PageRef, Stripe

Record: TypeAlias = tuple[bytes, bytes]
"""(key, value) of the tree: keys as in formats/records.py, values canonical record bytes."""


@dataclass(frozen=True, slots=True)
class Child:
    """How an inner page names a page below it. ``records`` counts the records of all leaves under it (at least 1)."""

    first_key: bytes
    ref: PageRef
    records: int


@dataclass(frozen=True, slots=True)
class LeafPage:
    """Records in ascending order of key, at least one. Level 0."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class InnerPage:
    """Children in ascending order of first key, at least one; all of level ``level - 1``.

    ``stripes`` describes the stripes that the children lie in, except the one that this page lies in itself: that one
    was still being filled when the page was written, and whoever reads the page knows it, having just read from it.
    """

    level: int
    children: tuple[Child, ...]
    stripes: Mapping[StripeId, Stripe]


Page: TypeAlias = LeafPage | InnerPage
