"""Pages of the metadata tree as bytes. See docs/formats/tree.md.

Columns (all keys, then all values) and not pairs: half the time to encode, and it compresses better.
"""

from __future__ import annotations

from typing import Any

from hivefs.errors import Corrupt
from hivefs.formats import strict
from hivefs.formats.stripe import (
    CERTIFIED,
    page_ref_from_items,
    page_ref_to_items,
    stripe_from_items,
    stripe_to_items,
    version_with,
)
from hivefs.model.ids import CHUNK_BYTES, StripeId
from hivefs.model.page import Child, InnerPage, LeafPage, Page
from hivefs.model.stripe import Purpose, Stripe

VERSION = 1
MAX_LEVEL = 31
MAX_KEY_BYTES = 255
MAX_RECORD_BYTES = CHUNK_BYTES - 1024
"""Key and value of one record together; such a record has a page to itself."""

_MAGIC = "HVpage"
_WHAT = "a page of the metadata tree"


def to_bytes(page: Page) -> bytes:
    """Canonical CBOR, at most 1 MiB for pages made by content/tree.py."""
    if isinstance(page, LeafPage):
        return strict.encode(_MAGIC, VERSION, 0, [key for key, _ in page.records], [value for _, value in page.records], [])
    return strict.encode(
        _MAGIC,
        version_with(page.stripes.values()),
        page.level,
        [child.first_key for child in page.children],
        [[child.records, *page_ref_to_items(child.ref)] for child in page.children],
        [stripe_to_items(page.stripes[stripe_id]) for stripe_id in sorted(page.stripes)],
    )


def from_bytes(data: bytes) -> Page:
    """Raises Corrupt or UnknownVersion. What the parent says of the page is checked by content/tree.check_page."""
    parts = strict.items_of_any(_WHAT, _MAGIC, (VERSION, CERTIFIED), data)

    def build() -> Page:
        level, keys, values, stripes = parts
        checked = _keys(strict.items(keys))
        if strict.number(level, 0, MAX_LEVEL) == 0:
            if strict.items(stripes, 0):
                raise ValueError("a leaf names no stripes")
            return LeafPage(tuple(zip(checked, map(strict.blob, strict.items(values)), strict=True)))
        return _inner(level, checked, strict.items(values), strict.items(stripes))

    return strict.exactly(_WHAT, data, build, to_bytes)


def _keys(keys: list[Any]) -> list[bytes]:
    if not keys:
        raise Corrupt(what=_WHAT, reason="it is empty")
    before = b""
    for key in keys:
        if not before < strict.blob(key) or len(key) > MAX_KEY_BYTES:
            raise Corrupt(what=_WHAT, reason="its keys are not in order")
        before = key
    return keys


def _inner(level: int, keys: list[bytes], values: list[Any], stripes: list[Any]) -> InnerPage:
    children = []
    for key, value in zip(keys, values, strict=True):
        records, *ref = strict.items(value, 8)
        children.append(Child(key, page_ref_from_items(ref), strict.number(records, 1)))
    table: dict[StripeId, Stripe] = {}
    for item in stripes:
        stripe = stripe_from_items(item)
        if stripe.purpose != Purpose.METADATA:
            raise Corrupt(what=_WHAT, reason="it names a stripe that is not for metadata")
        table[stripe.stripe_id] = stripe
    used = {child.ref.place.stripe_id for child in children}
    if not used >= table.keys() or len(used - table.keys()) > 1:
        raise Corrupt(what=_WHAT, reason="its stripes are not those of its children")
    return InnerPage(level, tuple(children), table)
