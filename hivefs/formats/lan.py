"""What a node tells its local network by mDNS (RFC 6762, 6763), version 1. See docs/formats/transport.md.

Not the hive: a tag that only who knows the hive's key can make or recognise, another one for every node. So a stranger
learns that a HiveFS node is here, and its peer id, but neither which hive it is nor that two nodes are of one hive; and a
stranger cannot make members dial it, since the tag is bound to the key that the transport proves.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

import blake3

from hivefs.model.ids import KEY_BYTES, NodeId

SERVICE = "_hivefs._tcp.local."
VERSION = 1
TAG_BYTES = 16
_CONTEXT = "hivefs/1 lan tag"


def tag(hive_key: bytes, node_id: NodeId) -> bytes:
    """16 bytes: BLAKE3 in key derivation mode of hive key || node key."""
    return blake3.blake3(hive_key + node_id, derive_key_context=_CONTEXT).digest(length=TAG_BYTES)


def to_properties(hive_key: bytes, node_id: NodeId) -> dict[str, str]:
    """The TXT record."""
    return {"v": str(VERSION), "k": node_id.hex(), "t": tag(hive_key, node_id).hex()}


def node_of(properties: Mapping[bytes, bytes | None], hive_key: bytes) -> NodeId | None:
    """The node that a TXT record speaks of, when it is of that hive; None for all else."""
    if properties.get(b"v") != str(VERSION).encode():
        return None
    try:
        key = bytes.fromhex((properties.get(b"k") or b"").decode("ascii"))
        said = bytes.fromhex((properties.get(b"t") or b"").decode("ascii"))
    except ValueError:
        return None
    if len(key) != KEY_BYTES or not hmac.compare_digest(said, tag(hive_key, NodeId(key))):
        return None
    return NodeId(key)
