"""The reader: a data share of a stripe, from the cache, from its node, or rebuilt from any k others.

The code is systematic, so one chunk needs one request to one node. When that node is away, wrong or late, k others are
asked at once (a hedged request, Dean and Barroso 2013) and whichever way ends first wins. Late is a node that is silent
for longer than it mostly is (patience.py), not one whose share takes long to come over a slow line. Requests for the same
share join (single flight). Every share is checked against its name before it is used: a wrong one is reported and counts as
missing.
"""

from __future__ import annotations

import enum
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.conversation import Early
from hivefs.chunkstore.patience import CEILING, IN_ALL
from hivefs.chunkstore.pool import Pool
from hivefs.chunkstore.ports import ShareClient
from hivefs.content import coding
from hivefs.content.merkle import LEAF_BYTES
from hivefs.errors import Corrupt, HivefsError, NodeBusy, NotEnoughShares, ShareMissing
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe

log = logging.getLogger(__name__)

DEADLINE = 20.0
GET_TIMEOUT = 15.0
LOOK = 0.05
"""Seconds between two looks whether a request has left this machine."""


class Answer(enum.Enum):
    """What became of a request for a share. SILENT: late, refused, or the conversation ended meanwhile."""

    RIGHT = enum.auto()
    WRONG = enum.auto()
    SILENT = enum.auto()
    BUSY = enum.auto()
    AWAY = enum.auto()


@dataclass(eq=False, slots=True)
class _Flight:
    """A share on its way. ``wanted`` is set when somebody waits for it, and not only may read it soon."""

    done: trio.Event = field(default_factory=trio.Event)
    wanted: trio.Event = field(default_factory=trio.Event)


class Reader:
    """Gets shares. ``on_bad(stripe, index, reason)`` is told of a share that its node gave back damaged or does not have,
    ``on_good`` of a node that gave one (or a range of it) that was right.
    """

    def __init__(
        self,
        pool: Pool,
        cache: Cache,
        on_bad: Callable[[Stripe, int, str], None],
        deadline: float = DEADLINE,
        on_good: Callable[[NodeId], None] = lambda node_id: None,
    ) -> None:
        self._pool = pool
        self._on_good = on_good
        self._cache = cache
        self._on_bad = on_bad
        self.deadline = deadline
        self._flights: dict[tuple[StripeId, int], _Flight] = {}
        self.fetched_bytes = 0
        self.current: Callable[[Stripe], Stripe | None] = lambda stripe: stripe
        """A stripe as it is now; None when it was given up, because its chunks were moved."""
        self._parts = 0

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a read now (not only may read soon)."""
        return self._parts > 0 or any(flight.wanted.is_set() for flight in self._flights.values())

    async def data_share(self, stripe: Stripe, index: int, *, silent: bool = False, ahead: bool = False) -> bytes:
        """A whole data share (index < k), checked. With ``silent`` its node was waited for already: others are asked at
        once. With ``ahead`` nobody waits for it yet: its node gets more time. Raises NotEnoughShares after the deadline.
        """
        key = (stripe.stripe_id, index)
        while (flight := self._flights.get(key)) is not None:
            if not ahead:
                flight.wanted.set()
            await flight.done.wait()
        cached = self.cached(stripe, index)
        if cached is not None:
            return cached
        flight = self._flights[key] = _Flight()
        if not ahead:
            flight.wanted.set()
        try:
            data = await self._hedged(stripe, index, silent, flight.wanted)
            self._cache.put(stripe.stripe_id, index, data)
            return data
        finally:
            self._flights.pop(key).done.set()

    async def bring(
        self, stripe: Stripe, index: int, *, check: bool = False, silent: bool = False, ahead: bool = False
    ) -> bytes | None:
        """Have a data share in the cache; returns it when the cache cannot keep it (the disk is full). What somebody else
        brings just now is waited for; what lies there already is read, and brought again if it is damaged, only with
        ``check``. ``silent``, ``ahead`` and errors: as data_share.
        """
        flight = self._flights.get((stripe.stripe_id, index))
        if flight is not None:
            if not ahead:
                flight.wanted.set()
            await flight.done.wait()
            check = False
        if check or not self._cache.has(stripe.stripe_id, index):
            data = await self.data_share(stripe, index, silent=silent, ahead=ahead)
            return None if self._cache.has(stripe.stripe_id, index) else data
        return None

    def cached(self, stripe: Stripe, index: int) -> bytes | None:
        """A data share from the cache, checked; None when it is not there."""
        data = self._cache.get(stripe.stripe_id, index)
        if data is None:
            return None
        if hashlib.sha256(data).digest() == stripe.shares[index].share_id:
            return data
        self._cache.remove(stripe.stripe_id, index)
        return None

    async def _hedged(self, stripe: Stripe, index: int, silent: bool, wanted: trio.Event) -> bytes:
        result: list[bytes] = []
        moved = False
        with trio.move_on_after(self.deadline):
            while not (result or moved):
                changed = self._pool.change()
                await self._attempt(stripe, index, result, silent, wanted)
                if not result:
                    now = self.current(stripe)
                    moved, stripe = now is None, now or stripe
                if not (result or moved):
                    # Not enough nodes now: try again as soon as one comes back, or in a while.
                    with trio.move_on_after(1.0):
                        await changed.wait()
        if not result:
            have = sum(1 for s in stripe.shares if s.node is not None and self._pool.client(s.node) is not None)
            raise NotEnoughShares(
                have=have,
                needed=stripe.needed,
                stripe=stripe.stripe_id.hex()[:12],
                reason="its chunks were moved" if moved else f"waited {self.deadline:.0f} s",
            )
        return result[0]

    async def _attempt(self, stripe: Stripe, index: int, result: list[bytes], silent: bool, wanted: trio.Event) -> None:
        """One try of both ways; leaves the share in ``result``, or nothing."""
        async with trio.open_nursery() as nursery:
            failed = trio.Event()
            holder = stripe.shares[index].node
            client = None if holder is None else self._pool.client(holder)
            asked = trio.current_time()

            async def direct() -> None:
                data = await self.one(stripe, index)
                if data is None:
                    failed.set()
                    wanted.set()
                else:
                    result.append(data)
                    nursery.cancel_scope.cancel()

            async def rebuilt() -> None:
                if not silent:
                    # A share that nobody waits for yet may take its time: asking k others for it slows down those that
                    # somebody does wait for.
                    with trio.move_on_after(CEILING):
                        await wanted.wait()
                    await self._late(client, failed, asked, stripe.shares[index].share_id)
                shares = await self.some(stripe, stripe.needed, without={index})
                if len(shares) >= stripe.needed:
                    made = await trio.to_thread.run_sync(coding.remake, stripe.needed, stripe.total, shares, [index])
                    if hashlib.sha256(made[index]).digest() != stripe.shares[index].share_id:
                        log.error("stripe %s: its shares decode to something else", stripe.stripe_id.hex()[:12])
                        return
                    result.append(made[index])
                    if client is not None and not failed.is_set():
                        left, gone = client.departed(stripe.shares[index].share_id, asked)
                        if gone and client.moved < left < trio.current_time() - LOOK:
                            client.patience.waited_in_vain()
                    nursery.cancel_scope.cancel()

            nursery.start_soon(direct)
            if stripe.total > 1:
                nursery.start_soon(rebuilt)

    @staticmethod
    async def _late(client: ShareClient | None, done: trio.Event, asked: float, share_id: ShareId) -> None:
        """Return when ``done`` is set, or the node of ``client``, asked for that share at that time or later, is silent for
        too long. What it could not hear yet, because our own uploads fill the line, counts as asked when it has left.
        """
        seen = False
        while client is not None:
            now = trio.current_time()
            left, gone = client.departed(share_id, asked)
            due = min(max(left, client.moved) + client.patience.limit, left + IN_ALL)
            if now >= due:
                return
            # When it left is known as exactly as it is looked at.
            with trio.move_on_at(due if gone and seen else min(due, now + LOOK)):
                await done.wait()
                return
            seen = gone

    async def one(
        self, stripe: Stripe, index: int, offset: int = 0, length: int | None = None, early: Early | None = None
    ) -> bytes | None:
        """One share (or a range of it) from the node that should hold it, or None (away, late, missing or wrong)."""
        answer, data = await self.ask(stripe, index, offset, length, early)
        node = stripe.shares[index].node
        if answer is Answer.RIGHT and node is not None:
            self._on_good(node)
        return data

    async def ask(
        self, stripe: Stripe, index: int, offset: int = 0, length: int | None = None, early: Early | None = None
    ) -> tuple[Answer, bytes | None]:
        """The same, and what kind of answer it was. Reads and audits both go through here, so that no node can tell one
        from the other.
        """
        share = stripe.shares[index]
        client = None if share.node is None else self._pool.client(share.node)
        if share.node is None or client is None:
            return Answer.AWAY, None
        root = share.merkle_root
        try:
            # Proved by the Merkle root (BLAKE3), which costs a fifth of hashing it all with SHA-256.
            data = await client.get(share.share_id, offset, length, merkle_root=root, timeout=GET_TIMEOUT, early=early)
        except (Corrupt, ShareMissing) as error:
            self._pool.report(share.node, f"a share that it should hold is bad: {error}")
            self._on_bad(stripe, index, str(error))
            return Answer.WRONG, None
        except NodeBusy:
            return Answer.BUSY, None
        except HivefsError:
            return Answer.SILENT, None  # away or late: others are asked
        self.fetched_bytes += len(data)
        return Answer.RIGHT, data

    def coming(self, stripe: Stripe, index: int) -> bool:
        """Whether a data share is in the cache, perhaps damaged, or on its way there."""
        return (stripe.stripe_id, index) in self._flights or self._cache.has(stripe.stripe_id, index)

    async def part(self, stripe: Stripe, index: int, offset: int, length: int) -> bytes | None:
        """A range of a data share from its node, long before the whole share could be here. None when the node is away,
        wrong, or silent for longer than is borne of it: others can only help with whole shares.

        It is given back as soon as its last byte is here, which may be before the proof of its leaves: whoever cannot open
        it asks for the whole share.
        """
        found: list[bytes] = []
        holder = stripe.shares[index].node
        client = None if holder is None else self._pool.client(holder)
        skip = offset % LEAF_BYTES
        early = Early(skip + length)
        asked = trio.current_time()

        async def ask() -> None:
            data = await self.one(stripe, index, offset, length, early)
            if data is not None:
                found.append(data)
            nursery.cancel_scope.cancel()

        async def take_early() -> None:
            await early.done.wait()
            found.append(early.data[skip:])
            self.fetched_bytes += len(early.data)
            nursery.cancel_scope.cancel()

        self._parts += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(take_early)
                await self._late(client, trio.Event(), asked, stripe.shares[index].share_id)
                nursery.cancel_scope.cancel()
        finally:
            self._parts -= 1
        return found[0] if found else None

    async def some(self, stripe: Stripe, count: int, without: set[int]) -> dict[int, bytes]:
        """At least ``count`` shares by number if they can be had, those in ``without`` not; fewer if not."""
        found: dict[int, bytes] = {}
        left = [i for i in range(stripe.total) if i not in without]
        for i in list(left):
            if i < stripe.needed and len(found) < count and (data := self.cached(stripe, i)) is not None:
                found[i] = data
                left.remove(i)
        left = [i for i in left if stripe.shares[i].node is not None]
        left.sort(key=lambda i: self._pool.client(stripe.shares[i].node or NodeId(b"")) is None)
        pending: set[int] = set()
        late: set[int] = set()
        wake = trio.Event()

        async def get(index: int) -> None:
            data = await self.one(stripe, index)
            if data is not None:
                found[index] = data
            pending.discard(index)
            wake.set()

        async def watch(index: int, asked: float) -> None:
            """A node that is late counts no more, so that another one is asked."""
            share = stripe.shares[index]
            client = self._pool.client(share.node or NodeId(b""))
            await self._late(client, trio.Event(), asked, share.share_id)
            late.add(index)
            wake.set()

        async with trio.open_nursery() as nursery:
            while len(found) < count and (left or pending):
                while left and len(found) + len(pending - late) < count:
                    index = left.pop(0)
                    pending.add(index)
                    nursery.start_soon(get, index)
                    nursery.start_soon(watch, index, trio.current_time())
                wake = trio.Event()
                await wake.wait()
            nursery.cancel_scope.cancel()
        return found
