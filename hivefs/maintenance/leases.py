"""Leases: nodes promised to keep shares until a time; they are renewed when a quarter of it has passed.

For how long is what was asked for, or less if the node says less: to a share that is put it answers until when it keeps
it, and after a renewal some of what was renewed is looked up in its listing. A node that gives less is asked sooner. One
that gives less than LEAST_LEASE_NS is given no shares (writer.py). One at which renewed leases are as short as that is told
of, and counts as having answered wrongly each time: so it comes out of trust, and its shares move while they are there.
That is concluded only while this machine's clock is known to be right.

That goes on while this machine's disk is full, however long: when it was done is remembered then, and written once there is
room. A crash before that has the leases renewed once more.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import trio

from hivefs.chunkstore.ports import Random
from hivefs.chunkstore.writer import HOUR_NS, LEASE_NS, LEAST_LEASE_NS, too_short
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.stripe import Stripe
from hivefs.protocol.answers import Listing

log = logging.getLogger(__name__)

BATCH = 256
EVERY = 3600.0
STEP_NS: Final = 60 * 10**9
LOOKED_UP: Final = 256
"""Renewed leases that are looked up afterwards: neighbours by their ids, from a random one on, so in one page mostly."""


class Renewer(Protocol):
    """One conversation, as renewing uses it."""

    ahead_ns: int

    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]: ...
    async def list_shares(self, after: bytes = b"") -> Listing: ...


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
        random: Random = bytes,
    ) -> None:
        self._on_bad = on_bad
        self._state = state
        self._online = online
        self._clock = clock
        self._random = random
        self.lists: Callable[[NodeId], bool] = lambda node_id: False
        """Whether that node knows what a listing is (an older one ends the conversation)."""
        self.right: Callable[[], bool] = lambda: True
        """Whether this machine's clock is known to be about right."""
        self.on_absurd: Callable[[NodeId, str], None] = lambda node_id, words: None
        """Hears of a node at which leases are of no use, each time that is seen, and why."""
        self._granted: dict[NodeId, int] = {}
        """For how long nodes keep shares (ns), where that is less than LEASE_NS and the disk did not take it yet."""
        self.waiting: set[NodeId] = set()
        """Nodes whose renewal is due and did not succeed yet."""
        self._unwritten: dict[NodeId, int] = {}
        """When nodes were done, where the disk did not take that yet."""

    def forget(self, node_id: NodeId) -> None:
        """It is not known any more."""
        self.waiting.discard(node_id)
        self._unwritten.pop(node_id, None)
        self._granted.pop(node_id, None)

    def granted(self, node_id: NodeId) -> int:
        """For how long that node keeps shares, as far as it is known to be less than LEASE_NS (ns; may be below 0)."""
        kept = self._granted.get(node_id, self._state.info(_granted(node_id)))
        return min(LEASE_NS, kept) if isinstance(kept, int) else LEASE_NS

    def short(self, node_id: NodeId, granted_ns: int) -> None:
        """It said that it keeps a share for so long only. Whole hours count, so that the same is not news again."""
        granted_ns = granted_ns // HOUR_NS * HOUR_NS
        if granted_ns < self.granted(node_id):
            log.warning("node %s keeps shares for %.1f days only: they are renewed sooner", *_days(node_id, granted_ns))
            self._keep(node_id, granted_ns)

    def _keep(self, node_id: NodeId, granted_ns: int) -> bool:
        return self._write(self._granted, node_id, _granted(node_id), granted_ns)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            for node_id, when in list(self._unwritten.items()):
                if not self._note(node_id, when):
                    break
            for node_id, granted in list(self._granted.items()):
                if not self._keep(node_id, granted):
                    break
            for node_id, client in list(self._online()):
                last = self._unwritten.get(node_id, self._state.info(_name(node_id)))
                now, begun = self._clock(), trio.current_time()
                came_back = self._state.info("hydrating")
                if came_back is True:
                    continue  # the book is not here yet
                if last is None and came_back is None:
                    # All that is there was placed under a full lease after this first look, or just before it.
                    self._note(node_id, now)
                elif last is None or not 0 <= now - int(last) <= self.granted(node_id) // 4:  # it was ahead then, too
                    self.waiting.add(node_id)
                    try:
                        some = await self._renew(node_id, client, now + LEASE_NS)
                        await self._look_up(node_id, client, some, now, begun)
                    except HivefsError as error:
                        log.info("renewing leases at node %s waits: %s", node_id.hex()[:12], error)
                        continue
                    self._note(node_id, now)
                    self.waiting.discard(node_id)
            await trio.sleep(EVERY)

    def _note(self, node_id: NodeId, when: int) -> bool:
        """A node was done at that time; whether that is written."""
        return self._write(self._unwritten, node_id, _name(node_id), when)

    def _write(self, waiting: dict[NodeId, int], node_id: NodeId, name: str, value: int) -> bool:
        waiting[node_id] = value
        try:
            with self._state.writing():
                self._state.save_info(name, value)
        except DiskFull as error:
            log.debug("what is known of leases at node %s is written later: %s", node_id.hex()[:12], error)
            return False
        waiting.pop(node_id, None)
        return True

    async def _renew(self, node_id: NodeId, client: Renewer, until: int) -> list[ShareId]:
        """Renew all at one node; some that were, in the order of their ids. What it says it does not hold is missing:
        repair hears of it.
        """
        batch: list[tuple[Stripe, int]] = []
        some = _Neighbours(self._random(32))
        turns = Turns()
        for stripe_id in self._state.each_on(node_id):
            await turns.item()
            stripe = self._state.stripe(stripe_id)
            if stripe is not None:
                batch += [(stripe, i) for i, share in enumerate(stripe.shares) if share.node == node_id]
            if len(batch) >= BATCH:
                await self._renew_batch(client, batch, until, some)
                batch = []
        if batch:
            await self._renew_batch(client, batch, until, some)
        return some.ids

    async def _look_up(self, node_id: NodeId, client: Renewer, renewed: list[ShareId], now: int, begun: float) -> None:
        """For how long the node says that it keeps what was renewed since ``now``, which was ``begun`` by trio's clock.
        Raises what the node says.
        """
        if not renewed or not self.lists(node_id):
            if self.granted(node_id) <= 0:  # the record of it is damaged: until something is said, it grants the least
                self._keep(node_id, LEAST_LEASE_NS)
            return
        first = int.from_bytes(renewed[0], "big")
        listing = await client.list_shares((first - 1).to_bytes(32, "big") if first else b"")
        if abs(self._clock() - now - int((trio.current_time() - begun) * 1e9)) > STEP_NS:
            return  # this machine's clock was set meanwhile: what was asked for was by another one
        wanted = set(renewed)
        ends = [share.lease_ns - client.ahead_ns for share in listing.shares if share.share_id in wanted]
        if not ends:
            return  # others of this vault lie between; or it does not list them, which the ledger sees
        granted = min(LEASE_NS, min(ends) - now)
        if granted < LEASE_NS or self.granted(node_id) < LEASE_NS:
            self._keep(node_id, granted)
        if granted < LEAST_LEASE_NS and self.right():
            self.on_absurd(node_id, too_short(granted))

    async def _renew_batch(self, client: Renewer, batch: list[tuple[Stripe, int]], until: int, some: _Neighbours) -> None:
        held = await client.renew([stripe.shares[index].share_id for stripe, index in batch], until)
        for (stripe, index), good in zip(batch, held, strict=True):
            if good:
                some.add(stripe.shares[index].share_id)
            else:
                self._on_bad(stripe, index, "the node does not hold it")
                await trio.lowlevel.checkpoint()  # each is a transaction


class _Neighbours:
    """The first LOOKED_UP ids that are not below ``start``; when none is, the first of all."""

    def __init__(self, start: bytes) -> None:
        self._start = start
        self._above: list[ShareId] = []
        self._first: list[ShareId] = []

    def add(self, share_id: ShareId) -> None:
        """One more."""
        kept = self._above if share_id >= self._start else self._first
        if len(kept) < LOOKED_UP or share_id < kept[-1]:
            insort(kept, share_id)
            del kept[LOOKED_UP:]

    @property
    def ids(self) -> list[ShareId]:
        """Them, in order."""
        return self._above or self._first


def _days(node_id: NodeId, granted_ns: int) -> tuple[str, float]:
    return node_id.hex()[:12], granted_ns / (86_400 * 10**9)


def _granted(node_id: NodeId) -> str:
    return "granted-" + node_id.hex()


def _name(node_id: NodeId) -> str:
    return "renewed-" + node_id.hex()
