"""The engine's store in the simulator: it can die at a commit, and it opens the same record only once.

A year of a hive opens the same stripes and nodes some hundred million times. What was opened is kept until the record is
written again or a transaction is undone, so each record that was ever written is opened from its bytes once in each life.
Everything is in LMDB as ever, and a new life begins with nothing kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from hivefs.metadata.engine_copies import moved_share
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe


class Killed(BaseException):
    """The engine's process was ended by SIGKILL here. No HivefsError: nothing of the engine may catch it."""


class SimStore(EngineStore):
    """The engine's store, which dies at its ``dies_at``-th commit from now (before or after it), and then answers no
    more.
    """

    dead = False
    dies_at = 0
    dies_after = False
    commits = 0

    def __init__(self, *how: Any) -> None:
        self._opened_stripes: dict[StripeId, Stripe | None] = {}
        self._all_nodes: list[NodeId] | None = None
        self._pairs: dict[str, dict[NodeId, set[ShareId]]] = {}
        self._sorted: dict[str, list[NodeId]] = {}
        self.doomed = trio.Event()
        """Set when something waits for a head."""
        self.dirty = trio.Event()
        """Set when a checkpoint would find something new."""
        super().__init__(*how)

    @contextmanager
    def writing(self) -> Iterator[EngineStore]:
        if self.dead:
            raise Killed
        if self._write is not None:
            yield self
            return
        self.commits += 1
        dies = self.commits == self.dies_at
        try:
            with super().writing():
                yield self
                if dies and not self.dies_after:
                    self.dead = True
                    raise Killed
        except BaseException:  # Killed too: what was opened meanwhile is of no transaction; raised again
            self._forget()
            raise
        if dies:
            self.dead = True
            raise Killed

    # ---- opened once ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._opened_stripes.clear()
        self._all_nodes = None
        self._pairs.clear()
        self._sorted.clear()

    def _wrote(self, table: str, key: bytes) -> None:
        if table == "meta":
            self._opened_stripes.pop(StripeId(key), None)
        elif table == "tree" and key[:1] == b"s":
            self._opened_stripes.pop(StripeId(key[1:]), None)
        elif table == "tree" and key[:1] == b"n":
            self._all_nodes = None

    def put(self, table: str, key: bytes, value: bytes = b"") -> None:
        self._wrote(table, key)
        if table in self._pairs:
            self._add(table, key)
        if table == "doomed":
            self.doomed.set()
        if table in ("doomed", "changed", "moved"):
            self.dirty.set()
        super().put(table, key, value)

    def delete(self, table: str, key: bytes) -> bool:
        self._wrote(table, key)
        if table in self._pairs:
            self._take(table, key)
        return super().delete(table, key)

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        if stripe_id not in self._opened_stripes:
            self._opened_stripes[stripe_id] = super().stripe(stripe_id)
        return self._opened_stripes[stripe_id]

    def _stripes_of(self, table: str, prefix: bytes) -> Iterator[Stripe]:
        after: bytes | None = None
        while batch := self.keys(table, prefix, after, 256):
            for key in batch:
                stripe = self.stripe(StripeId(key[len(prefix) :]))
                if stripe is not None:
                    yield stripe
            after = batch[-1]

    def node_ids(self) -> list[NodeId]:
        if self._all_nodes is None:
            self._all_nodes = super().node_ids()
        return list(self._all_nodes)

    # ---- which shares are in the trash of a node, and which are its spares ------------------------------------------

    def _add(self, table: str, key: bytes) -> None:
        held = self._pairs[table].setdefault(NodeId(key[:32]), set())
        if not held:
            self._sorted.pop(table, None)
        held.add(ShareId(key[32:]))

    def _take(self, table: str, key: bytes) -> None:
        held = self._pairs[table].get(NodeId(key[:32]))
        if held is not None:
            held.discard(ShareId(key[32:]))
            if not held:
                del self._pairs[table][NodeId(key[:32])]
                self._sorted.pop(table, None)

    def _held(self, table: str) -> dict[NodeId, set[ShareId]]:
        if table not in self._pairs:
            self._pairs[table] = {}
            for key in self.keys(table):
                self._add(table, key)
        return self._pairs[table]

    def _nodes_in(self, table: str) -> list[NodeId]:
        held = self._held(table)
        if table not in self._sorted:
            self._sorted[table] = sorted(held)
        return list(self._sorted[table])

    def doomed_shares(self) -> set[tuple[NodeId, ShareId]]:
        """Shares that moved, whose old copies wait for a head."""
        return {share for key in self.keys("doomed") if (share := moved_share(key)) is not None}

    def has_trash(self, node_id: NodeId, share_id: ShareId) -> bool:
        return share_id in self._held("trash").get(node_id, ())

    def has_spare(self, node_id: NodeId, share_id: ShareId) -> bool:
        return share_id in self._held("spare").get(node_id, ())

    def spares_of(self, node_id: NodeId, after: ShareId | None, limit: int) -> list[tuple[ShareId, StripeId, int, int]]:
        return super().spares_of(node_id, after, limit) if node_id in self._held("spare") else []

    def trash_of(self, node_id: NodeId, limit: int) -> list[ShareId]:
        return super().trash_of(node_id, limit) if node_id in self._held("trash") else []
