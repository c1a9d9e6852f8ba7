"""The engine's duties that move data and keep accounts, wired: one budget for all of them, and what status shows."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import trio

from hivefs.content.packing import Packed
from hivefs.errors import HivefsError
from hivefs.maintenance.budget import Budget
from hivefs.maintenance.evacuate import Evacuation
from hivefs.maintenance.moving import Moving
from hivefs.maintenance.rebalance import Rebalance
from hivefs.maintenance.rebalance_plan import Fill
from hivefs.maintenance.repack import Repack
from hivefs.maintenance.repack_plan import Target
from hivefs.metadata.engine_contents import Contents
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.stripe import Purpose, Stripe

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

NEARLY_FULL = 0.1
"""Below this part of the hive's room free, moving data to free some is worth more traffic."""


class EngineMoving:
    """See the head of the file. Made at the end of the engine's own construction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.budget = Budget(engine.home.vault.setting("maintenance_bytes_s"), self.calm, lambda: engine.reader.waiting)
        self.contents = Contents(engine.store)
        self.repack = Repack(
            engine.store,
            self.contents,
            engine.reader,
            engine.cache,
            self._place,
            self._belongs,
            self.budget,
            time.time_ns,
            os.urandom,
            engine.writer.new_id,
        )
        self.repack.held = self.held
        self.repack.full = self._nearly_full
        self.rebalance = Rebalance(
            engine.store, engine.reader, engine.writer, self._fills, self._takes, self._keeps, self.budget
        )
        self.rebalance.held = self.held
        self.evacuation = Evacuation(
            lambda: engine.checkpoint.tree.leveled(engine.checkpoint.root()), self._give_to_checkpoint
        )
        engine.repair.admit = self.budget.take
        engine.reader.current = self._current

    async def run(self) -> None:
        """All of them until cancelled; the whole book must be here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.repack.run)
            nursery.start_soon(self.evacuation.run)
            nursery.start_soon(self.rebalance.run)

    async def calm(self) -> bool:
        """Whether nobody uses the drive now."""
        vault = self._engine.vault
        try:
            return vault is None or await vault.calm()
        except HivefsError:
            return True  # it went this moment

    def held(self) -> str:
        """Why nothing may be moved or deleted now."""
        forked = self._engine.checkpoint.forked
        return "" if forked is None else str(forked)

    def _current(self, stripe: Stripe) -> Stripe | None:
        now = self._engine.store.stripe(stripe.stripe_id)
        # Pages of a tree that is being recovered lie in stripes that the book does not have yet.
        return now if now is not None or stripe.purpose == Purpose.DATA else stripe

    async def _place(self, packed: Packed, stripe_id: StripeId, target: Target) -> Stripe:
        return await self._engine.writer.place(packed, Purpose.DATA, stripe_id)

    def _belongs(self, stripe: Stripe) -> tuple[Target, str, int]:
        policy = self._engine.policy
        target = Target(policy.name, policy.needed, policy.total)
        if (stripe.needed, stripe.total) != (policy.needed, policy.total):
            return target, f"the code is {policy.needed}/{policy.total} now", 0
        return target, "", 0

    def _nearly_full(self) -> bool:
        capacity = self._engine.capacity()
        return capacity is not None and capacity[1] < capacity[0] * NEARLY_FULL

    def _fills(self) -> list[Fill]:
        """Nodes that answer and stay. What a node cannot take counts as used, whoever uses it."""
        return [
            Fill(m.node_id, m.row.capacity, max(0, m.row.capacity - m.row.free_bytes), 0)
            for m in self._engine.pool.online()
            if m.row.capacity and not m.leaving
        ]

    def _takes(self, node_id: NodeId) -> bool:
        return any(c.node_id == node_id and c.usable and c.vetted for c in self._engine.pool.candidates())

    def _keeps(self, before: Stripe, after: Stripe) -> bool:
        health = self._engine.store.health
        return health(after).level >= health(before).level

    def _give_to_checkpoint(self, stripe_ids: frozenset[StripeId]) -> None:
        self._engine.checkpoint.evacuate = stripe_ids

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``."""
        waiting = self.held() or self.budget.waiting_for
        both = Moving.together(self.repack.moving.status(waiting), self.rebalance.moving.status(waiting))
        return both | {"metadata_stripes_evacuated": self.evacuation.evacuated}
