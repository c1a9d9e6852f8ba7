"""Which chunks lie in which stripe, and which shares nodes hold that no stripe names: tables of the engine's store.

``within`` can be derived from the places of all chunks; stores that were made before it get it in slices (``index``), while
whatever is placed or doomed meanwhile is kept right by the store itself.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from hivefs.formats import records
from hivefs.metadata.engine_copies import moved_share
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId

_U64 = struct.Struct(">Q")
_DONE = "within"
SLICE = 256


class Contents:
    """Over an open store. Everything is synchronous and short."""

    def __init__(self, store: EngineStore) -> None:
        self._store = store
        self._after: bytes | None = None

    # ---- chunks of stripes ------------------------------------------------------------------------------------------

    @property
    def indexed(self) -> bool:
        """Whether ``names`` knows all chunks."""
        return self._store.info(_DONE) is True

    def index(self) -> None:
        """A slice of the work until ``indexed``; a crash in between begins it anew."""
        with self._store.writing():
            keys = self._store.keys("tree", b"c", self._after, SLICE)
            for key in keys:
                place = self._store.place(ChunkId(key[1:]))
                if place is not None:
                    self._store.put("within", place.stripe_id + key[1:])
            if len(keys) < SLICE:
                self._store.save_info(_DONE, True)
        if len(keys) == SLICE:
            self._after = keys[-1]  # not before they are in the store

    def names(self, stripe_id: StripeId) -> list[ChunkId]:
        """The chunks of a data stripe that are not doomed."""
        return [ChunkId(key[len(stripe_id) :]) for key in self._store.keys("within", stripe_id)]

    def forget_empty(self, stripe_ids: Collection[StripeId]) -> int:
        """Give up those of these data stripes in which nothing is counted alive: a head may name a stripe whose chunks were
        doomed, and who recovers from that head has nothing that would ever give it up. Returns how many there were.
        """
        count = 0
        with self._store.writing():
            for stripe_id in stripe_ids:
                if not self._store.live(stripe_id) and self._store.has_entry("tree", records.stripe_key(stripe_id)):
                    self._store.forget_stripe(stripe_id)
                    count += 1
        return count

    @staticmethod
    def moved_share(key: bytes) -> tuple[NodeId, ShareId] | None:
        """Node and share that a key of the table ``doomed`` speaks of, when it is a share that moved."""
        return moved_share(key)

    # ---- shares that nothing names ----------------------------------------------------------------------------------

    def note_unknown(self, node_id: NodeId, share_ids: Collection[ShareId], now_ns: int) -> None:
        """A node listed these, and nothing names them: remember since when that is so."""
        with self._store.writing():
            for share_id in share_ids:
                if not self._store.has_entry("unknown", node_id + share_id):
                    self._store.put("unknown", node_id + share_id, _U64.pack(now_ns))

    def unknown(self, node_id: NodeId) -> dict[ShareId, int]:
        """What was noted of a node and not named since, each with when it was noted first (ns)."""
        found = {}
        for key in self._store.keys("unknown", node_id):
            value = self._store.plain("unknown", key)
            if value is not None:
                found[ShareId(key[len(node_id) :])] = int(_U64.unpack(value)[0])
        return found

    def forget_unknown(self, node_id: NodeId, share_ids: Collection[ShareId]) -> None:
        """They are known after all, or are not there any more."""
        with self._store.writing():
            for share_id in share_ids:
                self._store.delete("unknown", node_id + share_id)

    def trash_unknown(self, node_id: NodeId, share_ids: Collection[ShareId]) -> list[ShareId]:
        """Queue for deletion those of these that are noted still; returns them. (What a stripe came to name since it was
        noted is not noted any more: save_stripe saw to it.)
        """
        gone = []
        with self._store.writing():
            for share_id in share_ids:
                if self._store.delete("unknown", node_id + share_id):
                    self._store.trash_share(node_id, share_id)
                    gone.append(share_id)
        return gone
