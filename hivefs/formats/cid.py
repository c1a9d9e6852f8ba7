"""The CID of a share: what IPFS and libp2p programs call the same bytes. See docs/formats/stripe.md.

A share id is the SHA-256 of the share's bytes, so its CID (version 1, raw codec) is that id behind four constant bytes,
and the other way round. Nothing has to be hashed again, and no bytes are needed to name a share.
"""

from __future__ import annotations

import base64
import binascii

from hivefs.errors import Corrupt
from hivefs.model.ids import ShareId

PREFIX = bytes((0x01, 0x55, 0x12, 0x20))
"""CID version 1, codec raw, multihash sha2-256, 32 bytes of digest: each a varint of one byte."""

_CHARACTERS = 1 + 58
"""The multibase letter and 36 bytes in base32 without padding."""

_PADDING = "======"


def cid_to_text(share_id: ShareId) -> str:
    """The CID of a share as text: ``b`` and lower-case base32 (``bafkrei...``), 59 characters."""
    if len(share_id) != 32:
        raise ValueError("a share id has 32 bytes")
    return "b" + base64.b32encode(PREFIX + share_id).decode("ascii").rstrip("=").lower()


def cid_from_text(text: str) -> ShareId:
    """The share that a CID names. Raises Corrupt for anything but the one form that `cid_to_text` gives."""
    raw = b""
    if len(text) == _CHARACTERS and text.startswith("b") and text == text.lower():
        try:
            raw = base64.b32decode(text[1:].upper() + _PADDING)
        except (binascii.Error, ValueError):
            raw = b""
    if len(raw) == len(PREFIX) + 32 and raw.startswith(PREFIX):
        share_id = ShareId(raw[len(PREFIX) :])
        if cid_to_text(share_id) == text:  # the last character has bits to spare
            return share_id
    raise Corrupt(what="the CID of a share", reason="it is not a CIDv1 in base32 with codec raw and SHA-256")
