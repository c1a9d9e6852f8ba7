"""Identifiers and fixed sizes that every room shares.

Identifiers are plain ``bytes`` (fast, hashable, ordered); the ``NewType`` names keep them apart for the type checker.
"""

from __future__ import annotations

from typing import Final, NewType

VaultId = NewType("VaultId", bytes)
"""16 bytes: BLAKE3 of the vault owner's public key, cut. Nodes see it."""

NodeId = NewType("NodeId", bytes)
"""32 bytes: the node's Ed25519 public key (its libp2p identity)."""

DeviceId = NewType("DeviceId", bytes)
"""32 bytes: the Ed25519 public key with which one device of a vault signs heads."""

ChunkId = NewType("ChunkId", bytes)
"""16 bytes: 48 bits of milliseconds, then 80 random bits, so that new ids sort last and pages stay shared."""

StripeId = NewType("StripeId", bytes)
"""16 bytes, made like a ChunkId. Never told to a node."""

ShareId = NewType("ShareId", bytes)
"""32 bytes: SHA-256 of the share's bytes; the digest of its CIDv1 (raw codec)."""

ID_BYTES: Final = 16
KEY_BYTES: Final = 32

CHUNK_BYTES: Final = 1 << 20
"""Most plaintext in one chunk; also the size of a slot, the grid on which a file is cut."""

SEGMENT_BYTES: Final = 32 << 10
"""Plaintext (after compression) under one AEAD tag inside a chunk."""

MAX_SHARE_BYTES: Final = 2 << 20
MAX_NAME_BYTES: Final = 255

ROOT_INO: Final = 1
INO_DEVICE_SHIFT: Final = 40
"""An inode number is (device number << 40) | counter, so that devices of one vault never make the same one."""


def sortable_id(now_ns: int, randomness: bytes) -> bytes:
    """A 16-byte id: 6 bytes of milliseconds since 1970 (big endian), then 10 random bytes."""
    if len(randomness) != 10:
        raise ValueError("10 random bytes are needed")
    return (now_ns // 1_000_000 & (1 << 48) - 1).to_bytes(6, "big") + randomness
