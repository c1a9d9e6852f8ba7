"""Accounts: whether a receipt counts, what differs, what may be deleted, and what a vault is entitled to. Pure.

The invariant is: the leases of this vault at all nodes are the shares that its book names, and those on their way.
Node by node the difference has two sides. *Missing* is what the book names and the node does not list: repair makes
it again. *Unknown* is what the node lists and nothing names: left by a client that was lost between two heads, or by
a deletion that a node never heard of. It costs room until its lease ends, and may be deleted sooner only when nobody
can need it (``deletable``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hivefs.model.ids import NodeId
from hivefs.model.receipt import Receipt

DAY_NS: Final = 86_400 * 10**9
SEEN_NS: Final = 3 * DAY_NS
"""For so long a share must have been unknown, by this machine's clock, in looks of this engine."""
UNRENEWED_NS: Final = 40 * DAY_NS
"""For so long its lease must not have been renewed. Every engine renews each of its leases once a quarter of their 120 days
has passed, so a share that anybody's book names was renewed since; ten days more are for nodes that were away.
"""
CLOCKS_NS: Final = DAY_NS
"""How far the clocks of the node and of this machine may be apart for any of this to count."""


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of this vault's shares at one node. Times are nanoseconds since 1970, by this machine's clock,
    but for ``told_ns``, which the node's receipt says. ``transit`` are shares that the node may or may not have:
    waiting to be deleted, or for a head. ``silent`` is the version of a node that gives no receipts.
    """

    node_id: NodeId
    looked_ns: int = 0
    told_ns: int = 0
    number: int = 0
    leases: int = 0
    size: int = 0
    book: int = 0
    book_size: int = 0
    transit: int = 0
    missing: int = 0
    unknown: int = 0
    deleted: int = 0
    agreed: bool = False
    problem: str = ""
    silent: str = ""

    @property
    def balanced(self) -> bool:
        """Whether the node's receipt and the book say the same, but for what is on its way."""
        exact = self.leases == self.book and self.size == self.book_size
        return not self.problem and not self.missing and not self.unknown and (exact or self.transit > 0)


def refuse(receipt: Receipt, last: Receipt | None) -> str:
    """Why a receipt that its node did sign, with our nonce, does not count all the same; empty when it does."""
    if last is not None and receipt.sequence <= last.sequence:
        return f"receipt {receipt.sequence} is stale: {last.sequence} was given before"
    return ""


def clocks_agree(told_ns: int, now_ns: int) -> bool:
    """Whether two clocks that know nothing of each other say about the same, so that neither can be far wrong."""
    return abs(told_ns - now_ns) <= CLOCKS_NS


def deletable(first_seen_ns: int, lease_end_ns: int, lease_ns: int, now_ns: int) -> bool:
    """Whether an unknown share has been unknown, and its lease (granted for ``lease_ns``) not renewed, for long
    enough. A lease end that the node put further away makes it younger, never older.
    """
    renewed_ns = lease_end_ns - lease_ns
    return now_ns - first_seen_ns >= SEEN_NS and now_ns - renewed_ns >= UNRENEWED_NS


@dataclass(frozen=True, slots=True)
class Contribution:
    """A node whose operator credits this vault: bytes that it offers, and its measured availability."""

    capacity: int
    availability: float


def entitlement(contributions: Iterable[Contribution], expansion: float) -> int:
    """Bytes of data that a vault may keep for what it contributes: what is there of it on average, over what a byte of data
    takes in shares.
    """
    return int(sum(c.capacity * min(1.0, max(0.0, c.availability)) for c in contributions) / max(1.0, expansion))
