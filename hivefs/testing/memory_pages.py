"""The pages of a metadata tree in memory: sealed, packed and coded as in a hive, but on no node.

``shares`` may be changed by a test, to play a node that damages, swaps or rolls back what it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

import trio

from hivefs.content import coding
from hivefs.content.merkle import merkle_root
from hivefs.content.packing import FULL_SHARE, Packer
from hivefs.crypto.seal import open_chunk, seal_chunk
from hivefs.errors import Corrupt
from hivefs.maintenance.tree_reader import TreeReader, root_spot
from hivefs.model.head import Root
from hivefs.model.ids import KEY_BYTES, NodeId, ShareId, StripeId, VaultId
from hivefs.model.stripe import ChunkPlace, PageRef, Purpose, Share, Stripe

VAULT = VaultId(b"v" * 16)


class MemoryPages:
    """Both ports of CheckpointTree: ``fetch`` and ``begin``. Randomness comes from ``seed``.

    ``capacity`` bytes fit into a data share: a small one makes many stripes. ``fetched`` and ``added`` record the pages
    in the order of reading and writing.
    """

    def __init__(self, needed: int = 3, total: int = 5, capacity: int = FULL_SHARE, seed: int = 1) -> None:
        self.random = Random(seed)
        self.needed = needed
        self.total = total
        self.capacity = capacity
        self.shares: dict[StripeId, list[bytes]] = {}
        self.stripes: dict[StripeId, Stripe] = {}
        self.fetched: list[PageRef] = []
        self.added: list[PageRef] = []
        self.before_place: Callable[[], None] = lambda: None

    async def fetch(self, ref: PageRef, stripe: Stripe, /) -> bytes:
        """Open a page out of its data share; the stripe must describe that share as it is."""
        await trio.lowlevel.checkpoint()
        place = ref.place
        if stripe.stripe_id != place.stripe_id:
            raise ValueError("the wrong stripe was handed over")
        self.fetched.append(ref)
        if place.index >= stripe.needed:
            raise Corrupt(what="a page", reason="its place is not in a data share")
        share = self.shares[place.stripe_id][place.index]
        sealed = share[place.offset : place.offset + place.length]
        return open_chunk(ref.key, VAULT, Purpose.METADATA, ref.length, ref.codec, sealed)

    def begin(self) -> MemoryStripe:
        """An empty stripe."""
        return MemoryStripe(self)

    def moved(self, stripe_id: StripeId) -> Stripe:
        """The stripe as it is described after a repair: the same shares on other nodes."""
        old = self.stripes[stripe_id]
        shares = tuple(Share(s.share_id, s.merkle_root, NodeId(self.random.randbytes(32))) for s in old.shares)
        new = Stripe(stripe_id, old.purpose, old.needed, old.share_bytes, shares, old.policy_hash, old.placed_ns + 1)
        self.stripes[stripe_id] = new
        return new


class MemoryStripe:
    """A stripe that is being filled; it is in ``stripes`` of its store once it is placed."""

    def __init__(self, store: MemoryPages) -> None:
        self._store = store
        self._packer = Packer(store.needed, store.capacity)
        self.stripe_id = StripeId(store.random.randbytes(16))

    def add(self, page: bytes) -> PageRef | None:
        """Seal and give a place. ValueError for a page that would not even fit into an empty stripe."""
        key = self._store.random.randbytes(KEY_BYTES)
        sealed, codec = seal_chunk(key, VAULT, Purpose.METADATA, page)
        place = self._packer.add(sealed)
        if place is None:
            return None
        ref = PageRef(ChunkPlace(self.stripe_id, *place, len(sealed)), key, len(page), codec)
        self._store.added.append(ref)
        return ref

    async def place(self) -> Stripe:
        """Code the stripe and keep its shares."""
        await trio.lowlevel.checkpoint()
        store = self._store
        store.before_place()
        packed = self._packer.pack(store.random.randbytes, keep_places=True)
        shares = [*packed.data, *coding.encode(store.needed, store.total, packed.data)]
        described = tuple(
            Share(ShareId(hashlib.sha256(s).digest()), merkle_root(s), NodeId(store.random.randbytes(32))) for s in shares
        )
        stripe = Stripe(
            self.stripe_id, Purpose.METADATA, store.needed, packed.share_bytes, described, b"p" * 32, len(store.stripes)
        )
        store.shares[self.stripe_id] = shares
        store.stripes[self.stripe_id] = stripe
        return stripe


async def shape(tree: TreeReader, root: Root) -> list[list[bytes]]:
    """The first keys of all pages, level by level from the root: what does not depend on where pages are stored."""
    top = root_spot(root)
    levels = [] if top is None else [[top]]
    while levels and levels[-1][0].level:
        levels.append([child for spot in levels[-1] for child in await tree.children(spot)])
    return [[spot.first_key or b"" for spot in level] for level in levels]


async def contents(tree: TreeReader, root: Root) -> dict[bytes, bytes]:
    """All records. Raises AssertionError when the ranges of the leaves leave gaps or the progress is wrong."""
    found: dict[bytes, bytes] = {}
    end: bytes | None = b""
    async for leaf, done in tree.walk(root):
        found.update(leaf.records)
        if leaf.low != end or done != len(found):
            raise AssertionError("the leaves do not follow one another")
        end = leaf.high
    if end is not None or len(found) != root.records:
        raise AssertionError("the leaves do not cover everything")
    return found


async def live(tree: TreeReader, root: Root) -> set[PageRef]:
    """All pages of a tree."""
    return {ref async for ref, _ in tree.pages(root)}


async def leaves_of(tree: TreeReader, root: Root) -> set[PageRef]:
    """The leaves of a tree."""
    top = root_spot(root)
    level = [] if top is None else [top]
    while level and level[0].level:
        level = [child for spot in level for child in await tree.children(spot)]
    return {spot.link.ref for spot in level}
