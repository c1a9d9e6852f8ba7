"""Leases: nodes promised to keep shares until a time; they are renewed when a quarter of it has passed.

That goes on while this machine's disk is full, however long: when it was done is remembered then, and written once there is
room. A crash before that has the leases renewed once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from hivefs.chunkstore.writer import LEASE_NS
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.stripe import Stripe

log = logging.getLogger(__name__)

BATCH = 256
EVERY = 3600.0


class Renewer(Protocol):
    """One conversation, as renewing uses it."""

    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]: ...


class Leases:
    """Renews all shares at a node once a quarter of a lease; when a node was last done is kept in the store. A vault that
    was recovered knows nothing of that, and its machine may have been lost long ago: it renews all within an hour of having
    its book back.
    """

    def __init__(
        self,
        state: State,
        online: Callable[[], Iterable[tuple[NodeId, Renewer]]],
        clock: Callable[[], int],
        on_bad: Callable[[Stripe, int, str], None],
    ) -> None:
        self._on_bad = on_bad
        self._state = state
        self._online = online
        self._clock = clock
        self.waiting: set[NodeId] = set()
        """Nodes whose renewal is due and did not succeed yet."""
        self._unwritten: dict[NodeId, int] = {}
        """When nodes were done, where the disk did not take that yet."""

    def forget(self, node_id: NodeId) -> None:
        """It is not known any more."""
        self.waiting.discard(node_id)
        self._unwritten.pop(node_id, None)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            for node_id, when in list(self._unwritten.items()):
                if not self._note(node_id, when):
                    break
            for node_id, client in list(self._online()):
                last = self._unwritten.get(node_id, self._state.info(_name(node_id)))
                now = self._clock()
                came_back = self._state.info("hydrating")
                if came_back is True:
                    continue  # the book is not here yet
                if last is None and came_back is None:
                    # All that is there was placed under a full lease after this first look, or just before it.
                    self._note(node_id, now)
                elif last is None or not 0 <= now - int(last) <= LEASE_NS // 4:  # also when the clock was ahead then
                    self.waiting.add(node_id)
                    try:
                        await self._renew(node_id, client, now + LEASE_NS)
                    except HivefsError as error:
                        log.info("renewing leases at node %s waits: %s", node_id.hex()[:12], error)
                        continue
                    self._note(node_id, now)
                    self.waiting.discard(node_id)
            await trio.sleep(EVERY)

    def _note(self, node_id: NodeId, when: int) -> bool:
        """A node was done at that time; whether that is written."""
        self._unwritten[node_id] = when
        try:
            with self._state.writing():
                self._state.save_info(_name(node_id), when)
        except DiskFull as error:
            log.debug("when leases at node %s were renewed is written later: %s", node_id.hex()[:12], error)
            return False
        del self._unwritten[node_id]
        return True

    async def _renew(self, node_id: NodeId, client: Renewer, until: int) -> None:
        """Renew all at one node. What it says it does not hold is missing: repair hears of it."""
        batch: list[tuple[Stripe, int]] = []
        turns = Turns()
        for stripe_id in self._state.each_on(node_id):
            await turns.item()
            stripe = self._state.stripe(stripe_id)
            if stripe is not None:
                batch += [(stripe, i) for i, share in enumerate(stripe.shares) if share.node == node_id]
            if len(batch) >= BATCH:
                await self._renew_batch(client, batch, until)
                batch = []
        if batch:
            await self._renew_batch(client, batch, until)

    async def _renew_batch(self, client: Renewer, batch: list[tuple[Stripe, int]], until: int) -> None:
        held = await client.renew([stripe.shares[index].share_id for stripe, index in batch], until)
        for (stripe, index), good in zip(batch, held, strict=True):
            if not good:
                self._on_bad(stripe, index, "the node does not hold it")
                await trio.lowlevel.checkpoint()  # each is a transaction


def _name(node_id: NodeId) -> str:
    return "renewed-" + node_id.hex()
