"""Stripe records: the code, the shares' names and the nodes that hold them. See docs/formats/stripe.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hivefs.errors import Corrupt
from hivefs.formats import strict
from hivefs.model.ids import ID_BYTES, KEY_BYTES, MAX_SHARE_BYTES, NodeId, ShareId, StripeId
from hivefs.model.stripe import ChunkPlace, PageRef, Purpose, Share, Stripe

_WHAT = "a stripe record"
_MAGIC = "HVstripe"
VERSION = 1
CERTIFIED = 2
"""The version in which shares have standings. A stripe without any is written as version 1, as ever."""

MAX_TOTAL = 255
STANDING_BYTES = 16


def stripe_to_items(stripe: Stripe) -> list[Any]:
    """The fields, for formats that hold stripes inside. Shares have four items when any has a standing, else three."""
    certified = _certified(stripe)
    return [
        stripe.stripe_id,
        int(stripe.purpose),
        stripe.needed,
        stripe.share_bytes,
        [
            [share.share_id, share.merkle_root, share.node, *((share.standing,) if certified else ())]
            for share in stripe.shares
        ],
        stripe.policy_hash,
        stripe.placed_ns,
    ]


def version_with(stripes: Iterable[Stripe]) -> int:
    """The version of a format that holds these stripes: CERTIFIED when one of them has a standing. So a release that does
    not know standings says that it does not know the version, and not that the bytes are damaged.
    """
    return CERTIFIED if any(map(_certified, stripes)) else VERSION


def _certified(stripe: Stripe) -> bool:
    return any(share.standing for share in stripe.shares)


def _share_from_items(value: Any) -> Share:
    if not isinstance(value, list) or len(value) not in (3, 4):
        raise ValueError("a share has three or four items")
    share_id, root, node = value[:3]
    standing = b"" if len(value) == 3 else strict.blob(value[3])
    if len(standing) not in (0, STANDING_BYTES):
        raise ValueError("a standing has 16 bytes")
    return Share(
        ShareId(strict.blob(share_id, 32)),
        strict.blob(root, 32),
        None if node is None else NodeId(strict.blob(node, KEY_BYTES)),
        standing,
    )


def stripe_from_items(value: Any) -> Stripe:
    """Raises ValueError or TypeError (turned into Corrupt by the format that calls)."""
    stripe_id, purpose, needed, share_bytes, shares, policy_hash, placed_ns = strict.items(value, 7)
    made = tuple(_share_from_items(item) for item in strict.items(shares, MAX_TOTAL))
    if not 1 <= strict.number(needed) <= len(made):
        raise ValueError("more shares needed than there are")
    return Stripe(
        StripeId(strict.blob(stripe_id, ID_BYTES)),
        Purpose(strict.number(purpose)),
        needed,
        strict.number(share_bytes, 1, MAX_SHARE_BYTES),
        made,
        strict.blob(policy_hash),
        strict.number(placed_ns),
    )


def to_bytes(stripe: Stripe) -> bytes:
    """Canonical CBOR."""
    return strict.encode(_MAGIC, version_with((stripe,)), stripe_to_items(stripe))


def from_bytes(data: bytes) -> Stripe:
    """Raises Corrupt or UnknownVersion."""
    parts = strict.items_of_any(_WHAT, _MAGIC, (VERSION, CERTIFIED), data)
    return strict.exactly(_WHAT, data, lambda: stripe_from_items(parts[0]), to_bytes)


def holders_from_bytes(data: bytes) -> tuple[int, tuple[NodeId | None, ...]]:
    """(needed, who has share i) of a stripe record and nothing else, in a sixth of the time: for looks through very many.
    That the bytes are what was written is for the seal around them to say; the form is not proved as from_bytes does.
    Raises Corrupt or UnknownVersion.
    """
    fields, *_ = strict.items_of_any(_WHAT, _MAGIC, (VERSION, CERTIFIED), data) or [None]
    try:
        needed, shares = strict.number(fields[2], 1, MAX_TOTAL), fields[4]
        return needed, tuple(share[2] for share in shares)
    except (TypeError, ValueError, IndexError, KeyError):
        raise Corrupt(what=_WHAT, reason="a field has a wrong type or value") from None


def page_ref_to_items(ref: PageRef) -> list[Any]:
    """The fields of a reference to a tree page."""
    place = ref.place
    return [place.stripe_id, place.index, place.offset, place.length, ref.key, ref.length, ref.codec]


def page_ref_from_items(value: Any) -> PageRef:
    """Raises ValueError or TypeError."""
    stripe_id, index, offset, length, key, plain, codec = strict.items(value, 7)
    place = ChunkPlace(
        StripeId(strict.blob(stripe_id, ID_BYTES)),
        strict.number(index, 0, MAX_TOTAL),
        strict.number(offset, 0, MAX_SHARE_BYTES),
        strict.number(length, 1, MAX_SHARE_BYTES),
    )
    return PageRef(place, strict.blob(key, KEY_BYTES), strict.number(plain, 0, 1 << 20), strict.number(codec, 0, 255))
