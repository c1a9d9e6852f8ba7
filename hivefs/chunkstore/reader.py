"""The reader: a data share of a stripe, from the cache, from its node, or rebuilt from any k others.

The code is systematic, so one chunk needs one request to one node. When that node is away, wrong or late, k others are
asked at once (a hedged request, Dean and Barroso 2013) and whichever way ends first wins. Requests for the same share
join (single flight). Every share is checked against its name before it is used: a wrong one is reported and counts as
missing.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable

import trio

from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.pool import Pool
from hivefs.content import coding
from hivefs.errors import Corrupt, HivefsError, NotEnoughShares, ShareMissing
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.stripe import Stripe

log = logging.getLogger(__name__)

DEADLINE = 20.0
HEDGE_AFTER = 0.4
GET_TIMEOUT = 15.0


class Reader:
    """Gets shares. ``on_bad(stripe, index)`` is told of a share that its node gave back damaged or does not have."""

    def __init__(
        self,
        pool: Pool,
        cache: Cache,
        on_bad: Callable[[Stripe, int, str], None],
        deadline: float = DEADLINE,
        hedge_after: float = HEDGE_AFTER,
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._on_bad = on_bad
        self.deadline = deadline
        self._hedge_after = hedge_after
        self._flights: dict[tuple[StripeId, int], trio.Event] = {}
        self.fetched_bytes = 0

    async def data_share(self, stripe: Stripe, index: int) -> bytes:
        """A whole data share (index < k), checked. Raises NotEnoughShares after the deadline."""
        key = (stripe.stripe_id, index)
        while (flight := self._flights.get(key)) is not None:
            await flight.wait()
        cached = self._cached(stripe, index)
        if cached is not None:
            return cached
        self._flights[key] = trio.Event()
        try:
            data = await self._hedged(stripe, index)
            self._cache.put(stripe.stripe_id, index, data)
            return data
        finally:
            self._flights.pop(key).set()

    async def bring(self, stripe: Stripe, index: int, *, check: bool = False) -> bytes | None:
        """Have a data share in the cache; returns it when the cache cannot keep it (the disk is full). What somebody else
        brings just now is waited for; what lies there already is read, and brought again if it is damaged, only with
        ``check``. Raises as data_share does.
        """
        flight = self._flights.get((stripe.stripe_id, index))
        if flight is not None:
            await flight.wait()
            check = False
        if check or not self._cache.has(stripe.stripe_id, index):
            data = await self.data_share(stripe, index)
            return None if self._cache.has(stripe.stripe_id, index) else data
        return None

    def _cached(self, stripe: Stripe, index: int) -> bytes | None:
        data = self._cache.get(stripe.stripe_id, index)
        if data is None:
            return None
        if hashlib.sha256(data).digest() == stripe.shares[index].share_id:
            return data
        self._cache.remove(stripe.stripe_id, index)
        return None

    async def _hedged(self, stripe: Stripe, index: int) -> bytes:
        result: list[bytes] = []
        with trio.move_on_after(self.deadline):
            while not result:
                changed = self._pool.change()
                await self._attempt(stripe, index, result)
                if not result:
                    # Not enough nodes now: try again as soon as one comes back, or in a while.
                    with trio.move_on_after(1.0):
                        await changed.wait()
        if not result:
            have = sum(1 for s in stripe.shares if s.node is not None and self._pool.client(s.node) is not None)
            raise NotEnoughShares(
                have=have,
                needed=stripe.needed,
                stripe=stripe.stripe_id.hex()[:12],
                reason=f"waited {self.deadline:.0f} s",
            )
        return result[0]

    async def _attempt(self, stripe: Stripe, index: int, result: list[bytes]) -> None:
        """One try of both ways; leaves the share in ``result``, or nothing."""
        async with trio.open_nursery() as nursery:
            failed = trio.Event()

            async def direct() -> None:
                data = await self.one(stripe, index)
                if data is None:
                    failed.set()
                else:
                    result.append(data)
                    nursery.cancel_scope.cancel()

            async def rebuilt() -> None:
                with trio.move_on_after(self._hedge_after):
                    await failed.wait()
                shares = await self.some(stripe, stripe.needed, without={index})
                if len(shares) >= stripe.needed:
                    made = await trio.to_thread.run_sync(coding.remake, stripe.needed, stripe.total, shares, [index])
                    if hashlib.sha256(made[index]).digest() != stripe.shares[index].share_id:
                        log.error("stripe %s: its shares decode to something else", stripe.stripe_id.hex()[:12])
                        return
                    result.append(made[index])
                    nursery.cancel_scope.cancel()

            nursery.start_soon(direct)
            if stripe.total > 1:
                nursery.start_soon(rebuilt)

    async def one(self, stripe: Stripe, index: int) -> bytes | None:
        """One share from the node that should hold it, or None (away, late, missing or wrong)."""
        share = stripe.shares[index]
        client = None if share.node is None else self._pool.client(share.node)
        if share.node is None or client is None:
            return None
        try:
            # Proved by the Merkle root (BLAKE3), which costs a fifth of hashing it all with SHA-256.
            data = await client.get(share.share_id, merkle_root=share.merkle_root, timeout=GET_TIMEOUT)
        except (Corrupt, ShareMissing) as error:
            self._pool.report(share.node, f"a share that it should hold is bad: {error}")
            self._on_bad(stripe, index, str(error))
            return None
        except HivefsError:
            return None  # away, late or busy: others are asked
        self.fetched_bytes += len(data)
        return data

    async def some(self, stripe: Stripe, count: int, without: set[int]) -> dict[int, bytes]:
        """At least ``count`` shares by number if they can be had, those in ``without`` not; fewer if not."""
        found: dict[int, bytes] = {}
        left = [i for i in range(stripe.total) if i not in without]
        for i in list(left):
            if i < stripe.needed and len(found) < count and (data := self._cached(stripe, i)) is not None:
                found[i] = data
                left.remove(i)
        left = [i for i in left if stripe.shares[i].node is not None]
        left.sort(key=lambda i: self._pool.client(stripe.shares[i].node or NodeId(b"")) is None)
        running = 0
        wake = trio.Event()

        async def get(index: int) -> None:
            nonlocal running, wake
            data = await self.one(stripe, index)
            if data is not None:
                found[index] = data
            running -= 1
            wake.set()

        async with trio.open_nursery() as nursery:
            while len(found) < count and (left or running):
                while left and running + len(found) < count:
                    running += 1
                    nursery.start_soon(get, left.pop(0))
                wake = trio.Event()
                late = math.inf if not left else self._hedge_after * 2
                with trio.move_on_after(late) as waited:
                    await wake.wait()
                if waited.cancelled_caught and left:
                    running += 1
                    nursery.start_soon(get, left.pop(0))
            nursery.cancel_scope.cancel()
        return found
