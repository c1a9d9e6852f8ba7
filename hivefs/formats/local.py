"""Records as they lie in the mount's own store: an inode record carries two commit sequence numbers in front.

See docs/formats/metadata.md. The local bytes never leave the machine; a checkpoint holds the canonical record alone.
"""

from __future__ import annotations

import struct
from typing import Any

from hivefs.errors import Corrupt
from hivefs.formats.records import inode_fields, inode_to_bytes
from hivefs.model.inode import Inode

LOCAL_BYTES = 16
"""In front of the canonical inode record."""

_SEQUENCES = struct.Struct(">QQ")


def local_inode_to_bytes(inode: Inode, changed_seq: int, link_seq: int) -> bytes:
    """changed_seq, link_seq (commit numbers, 8 bytes each), canonical record."""
    return _SEQUENCES.pack(changed_seq, link_seq) + inode_to_bytes(inode)


def local_inode_fields(value: bytes) -> tuple[tuple[Any, ...], int, int]:
    """(fields of Inode in their order, changed_seq, link_seq). Raises Corrupt or UnknownVersion."""
    if len(value) < LOCAL_BYTES:
        raise Corrupt(what="an inode record", reason="it is too short")
    changed_seq, link_seq = _SEQUENCES.unpack_from(value)
    return inode_fields(value[LOCAL_BYTES:]), changed_seq, link_seq
