"""What always holds in the engine's book, whatever moved, died or was deleted."""

from __future__ import annotations

from collections import Counter

from hivefs.metadata.engine_copies import moved_share
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import Purpose


def check_book(store: EngineStore) -> None:
    """Counts fit what they count, places lead to stripes, nothing that is named waits to be deleted."""
    stripes = {stripe.stripe_id: stripe for stripe in store.stripes()}
    within: Counter[bytes] = Counter()
    for key in store.keys("tree", b"c"):
        place = store.place(ChunkId(key[1:]))
        assert place is not None and place.stripe_id in stripes, "a chunk lies in no stripe"
        stripe = stripes[place.stripe_id]
        assert place.index < stripe.needed and place.offset + place.length <= stripe.share_bytes
        assert store.has_entry("within", place.stripe_id + key[1:]), "a chunk is not known to its stripe"
        within[place.stripe_id] += 1
    assert store.count("within") == sum(within.values()), "a stripe knows a chunk that is elsewhere"
    waiting: Counter[bytes] = Counter()
    for key in store.keys("doomed"):
        if moved_share(key) is None:
            waiting[key[9:25]] += 1
    for stripe_id, stripe in stripes.items():
        if stripe.purpose == Purpose.DATA:
            assert store.live(stripe_id) == within[stripe_id] + waiting[stripe_id], "a stripe's count is wrong"
    named = {(s.node, s.share_id) for stripe in stripes.values() for s in stripe.shares if s.node is not None}
    by_node = {(key[:32], StripeId(key[32:])) for key in store.keys("bynode")}
    assert by_node == {(s.node, i) for i, stripe in stripes.items() for s in stripe.shares if s.node is not None}
    for table in ("trash", "unknown"):
        rows = {(key[:32], key[32:]) for key in store.keys(table)}
        assert not rows & named, f"what a stripe names is in {table}"
