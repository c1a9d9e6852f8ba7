"""Where chunks live: stripes of coded shares on nodes."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId


class Purpose(enum.IntEnum):
    """What the chunks of a stripe are for; bound into every seal."""

    DATA = 1
    METADATA = 2


class Level(enum.IntEnum):
    """The three durability levels a user sees (``name.lower()`` is the word shown)."""

    LOCAL = 0
    REMOTE = 1
    GUARANTEED = 2


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a sealed chunk lies: in data share ``index`` of the stripe, ``length`` bytes from ``offset``."""

    stripe_id: StripeId
    index: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Share:
    """One of the n coded pieces: its name (SHA-256), the root of its Merkle tree, and the node that acknowledged it.

    ``node`` is None while no node holds it (lost, or not placed yet). ``standing`` is the 16-byte digest of what was known
    of the node when the placement was proved (formats/standing.py); empty when it was not.
    """

    share_id: ShareId
    merkle_root: bytes
    node: NodeId | None
    standing: bytes = b""


@dataclass(frozen=True, slots=True)
class Stripe:
    """k data shares and n-k parity shares of ``share_bytes`` each. ``shares[i]`` is piece i; i < needed is data.

    With the standings of its shares, ``policy_hash`` (formats/policy.py) and ``placed_ns`` are the stripe's certificate:
    this placement was proved under that policy at that time (nanoseconds since 1970).
    """

    stripe_id: StripeId
    purpose: Purpose
    needed: int
    share_bytes: int
    shares: tuple[Share, ...]
    policy_hash: bytes = b""
    placed_ns: int = 0

    @property
    def total(self) -> int:
        """n, the number of shares of a healthy stripe."""
        return len(self.shares)


@dataclass(frozen=True, slots=True)
class PageRef:
    """A page of the metadata tree: where its sealed bytes lie, the key, and the length once opened."""

    place: ChunkPlace
    key: bytes
    length: int
    codec: int


__all__ = ["ChunkId", "ChunkPlace", "Level", "PageRef", "Purpose", "Share", "Stripe"]
