"""The engine's book for one look through all of it, in a process of its own (daemon/looking.py).

Reading record by record, a transaction each, costs more than what is read. So there is one read transaction at a time,
until ``renew``: pages that it shows cannot be used again by the engine meanwhile, so that is called every second or so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from hivefs.formats import records
from hivefs.formats import stripe as stripe_format
from hivefs.metadata.engine_reader import EngineReader
from hivefs.model.ids import ChunkId, NodeId, StripeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeRow, NodeView
from hivefs.placement.policy import Policy

REMEMBERED = 16_384
"""Nodes of which the view is remembered; some two kilobytes each."""

Holders = tuple[int, tuple[NodeId | None, ...]]
"""How many shares a stripe needs, and who has each of them."""


class SteadyReader(EngineReader):
    """See the head of the file. Nodes are seen as they are when they are first asked for."""

    def __init__(self, path: Path, key: bytes, default: Policy) -> None:
        super().__init__(path, key, default)
        self._txn: lmdb.Transaction = self._env.begin()
        self._remembered: dict[NodeId, NodeView | None] = {}
        self._rows: dict[NodeId, NodeRow | None] = {}
        self._ids: dict[NodeId, NodeId] = {}

    def renew(self) -> None:
        """See the newest state from now on."""
        self._txn.abort()
        self._txn = self._env.begin()
        self._moved_copies = None
        self._remembered.clear()
        self._rows.clear()

    def close(self) -> None:
        self._txn.abort()
        super().close()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        yield self._txn

    def _get(self, table: str, key: bytes) -> bytes | None:
        db = self._table(table)
        value = None if db is None else self._txn.get(key, db=db)
        return None if value is None else bytes(value)

    def node_view(self, node_id: NodeId) -> NodeView | None:
        if node_id not in self._remembered:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
                self._views.clear()
            self._remembered[node_id] = super().node_view(node_id)
        return self._remembered[node_id]

    def node_row(self, node_id: NodeId) -> NodeRow | None:
        if node_id not in self._rows:
            if len(self._rows) >= REMEMBERED:
                self._rows.clear()
            self._rows[node_id] = super().node_row(node_id)
        return self._rows[node_id]

    def old_copies(self, stripe: Stripe) -> set[tuple[int, NodeId]]:
        if not self.count("copies"):  # mostly
            left = self._copies().get(stripe.stripe_id, ())
            return {(i, n) for i, share in enumerate(stripe.shares) for s, n in left if share.share_id == s}
        return super().old_copies(stripe)

    def stripe_id_of(self, chunk_id: ChunkId) -> StripeId | None:
        """The stripe that a chunk lies in, when that is known."""
        place = self.place(chunk_id)
        return None if place is None else place.stripe_id

    def knows(self, stripe_id: StripeId) -> bool:
        """Whether there is such a stripe."""
        return self.has_entry("tree", records.stripe_key(stripe_id)) or self.has_entry("meta", stripe_id)

    def holders(self, stripe_id: StripeId) -> Holders | None:
        """Who has the shares of a stripe. Raises Corrupt, UnknownVersion."""
        value = self._load("tree", records.stripe_key(stripe_id)) or self._load("meta", stripe_id)
        return None if value is None else self._held(value)

    def metadata_holders(self) -> Iterator[tuple[StripeId, Holders]]:
        """The same of all stripes with pages of the metadata tree, with their names."""
        after: bytes | None = None
        while batch := self.keys("meta", after=after, limit=256):
            for key in batch:
                value = self._load("meta", key)
                if value is not None:
                    yield StripeId(key), self._held(value)
            after = batch[-1]

    def _held(self, value: bytes) -> Holders:
        needed, nodes = stripe_format.holders_from_bytes(value)
        ids = self._ids
        return needed, tuple(None if n is None else ids.setdefault(n, n) for n in nodes)
