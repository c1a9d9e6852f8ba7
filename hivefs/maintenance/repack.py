"""Repacking: sealed chunks move as they are out of stripes that are half dead, or not as they should be, into new ones.

Only the place in the engine's book changes; files name chunks, not places (docs/decisions/0003). The order of things makes
a crash at any point leave either the old place or the new one, and nothing behind:

1. The chunks are read and put into a new stripe; its shares are in the trash until it is recorded (chunkstore/claims.py).
2. When all its shares are acknowledged, and it is worth at least what the old ones were, the new stripe
   is recorded; then, some at a time, a place switches and the chunk is doomed in the old stripe, in one transaction. What a
   file gave up meanwhile does not switch.
3. A head that names the new stripe goes out; only then the old stripes lose their chunks, and with the last one their
   shares (maintenance/garbage.py).

So whoever reads by the old place finds it there until the next checkpoint is out, and asks again then (Reader.current).
What to move is decided in repack_plan.py.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Final, Protocol

import trio
import trio.lowlevel

from hivefs.chunkstore import steps
from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.ports import Random
from hivefs.chunkstore.reader import Reader
from hivefs.content import coding
from hivefs.content.packing import Packed, Packer
from hivefs.errors import Corrupt, DiskFull, HivefsError, NotEnoughShares
from hivefs.maintenance.budget import Budget
from hivefs.maintenance.moving import Moving
from hivefs.maintenance.ports import State
from hivefs.maintenance.repack_plan import FRESH, PRICE, PRICE_WHEN_FULL, Job, Load, Target, may_pay, plan
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import ChunkPlace, Purpose, Stripe

log = logging.getLogger(__name__)

FIRST_PASS: Final = 30.0
PASS_EVERY: Final = 900.0
YOUNG_NS: Final = 600 * 10**9
"""A stripe that was placed a moment ago may fall empty by itself: files that are written often are."""
PLACES: Final = 64
"""Places that are read, or switched, without letting others go on."""

GIVEN_UP: Final = 1
"""Stripes whose shares are put into the trash in one transaction."""

MOST_LOADS: Final = 2048
"""Loads that one pass keeps in memory; the rest is found by the next."""
RETRY: Final = 30.0


class Contents(Protocol):
    """Which chunks lie in a stripe (metadata/engine_contents.py)."""

    @property
    def indexed(self) -> bool: ...
    def index(self) -> None: ...
    def names(self, stripe_id: StripeId) -> list[ChunkId]: ...
    def forget_empty(self, stripe_ids: Collection[StripeId]) -> int: ...


Place = Callable[[Packed, StripeId, Target], Awaitable[Stripe]]
"""Places a stripe by the policy of a target. Raises HivefsError."""

Belongs = Callable[[Stripe], tuple[Target | None, str, int]]
"""Where the chunks of a stripe belong (None: that is not known now, and they stay), why they must go there (empty: they
need not), and how many shares are out of policy.
"""


def _remade(stripe: Stripe, found: dict[int, bytes], wanted: list[int]) -> dict[int, bytes]:
    """In a worker thread. Raises NotEnoughShares, Corrupt."""
    made = coding.remake(stripe.needed, stripe.total, found, wanted)
    for index, data in made.items():
        if hashlib.sha256(data).digest() != stripe.shares[index].share_id:
            raise Corrupt(what=f"stripe {stripe.stripe_id.hex()[:12]}", reason="its shares decode to something else")
    return made


class Repack:
    """See the head of the file. ``run`` needs the whole book (after hydration)."""

    def __init__(
        self,
        state: State,
        contents: Contents,
        reader: Reader,
        cache: Cache,
        place: Place,
        belongs: Belongs,
        budget: Budget,
        clock: Callable[[], int],
        random: Random,
        new_id: Callable[[], StripeId],
    ) -> None:
        self._state = state
        self._contents = contents
        self._reader = reader
        self._cache = cache
        self._place = place
        self._belongs = belongs
        self._budget = budget
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._wishes: dict[tuple[StripeId, Target, str], set[ChunkId]] = {}
        self._poked = trio.Event()
        self._changed = (-1, 0)
        self._looked_ns = -1
        self.young_ns = YOUNG_NS
        self.moving = Moving()
        self.held: Callable[[], str] = lambda: ""
        """Why nothing may be moved now; empty when it may."""
        self.full: Callable[[], bool] = lambda: False
        """Whether the hive is nearly full, so that room is worth more."""
        self.on_recorded: Callable[[StripeId], None] = lambda stripe_id: None
        self.on_full: Callable[[], None] = lambda: None
        """The disk is full, and wishes that were taken may be forgotten: whoever wishes is to look again."""
        self.on_wished: Callable[[], None] = lambda: None
        """Of what was wished some is done, or lies somewhere else by now: whoever wishes is to look again soon."""
        self._taken = self._lost = False
        """Whether the last look took wishes, and whether something of them was not where it had been."""
        self.more_is_left = False

    def poke(self) -> None:
        """Something changed that may call for moving: look soon."""
        self._poked.set()

    def wish(self, chunk_ids: Collection[ChunkId], target: Target, reason: str) -> None:
        """These chunks belong to another policy now, because of what ``reason`` says in words. Forgotten at the end of the
        process: whoever wishes finds them again.
        """
        for chunk_id in chunk_ids:
            place = self._state.place(chunk_id)
            if place is not None:
                self._wishes.setdefault((place.stripe_id, target, reason), set()).add(chunk_id)
        self._poked.set()

    async def run(self) -> None:
        """Look and move until cancelled."""
        with trio.move_on_after(FIRST_PASS):
            await self._poked.wait()
        while True:
            while not self._contents.indexed:
                self._contents.index()
                await trio.sleep(0.01)
            asked, self._poked = self._poked.is_set(), trio.Event()
            try:
                jobs = await self.look() if asked or self.more_is_left or self._may_differ() else []
                went = await self.work(jobs)
            except DiskFull as error:
                self.moving.waiting_for = str(error)
                self._poked.set()  # what was not moved is looked for again
                self.on_full()
                raise
            if self.more_is_left and went:
                continue
            with trio.move_on_after(PASS_EVERY if went == len(jobs) else RETRY):
                await self._poked.wait()

    def _may_differ(self) -> bool:
        """Whether a look can find what the last one did not: something changed since, or was too young then."""
        now = self._clock()
        if self._state.sequence != self._changed[0]:
            self._changed = (self._state.sequence, now)
        return bool(self._wishes) or not self._changed[1] + self.young_ns < self._looked_ns <= now

    async def work(self, jobs: list[Job]) -> int:
        """Do these jobs, one after the other; how many were done. What fails is left to the next look."""
        self.moving.plan([(job.reason, job.sent) for job in jobs])
        went, lost, self._lost = 0, self._lost, False
        for job in jobs:
            while words := self.held():
                self.moving.waiting_for = words
                await trio.sleep(RETRY)
            try:
                if await self.move(job):
                    went += 1
                else:
                    lost = True
            except DiskFull:
                raise
            except HivefsError as error:
                self.moving.drop(job.reason, job.sent)
                if self.moving.waiting_for != str(error):
                    log.info("moving waits: %s", error)
                self.moving.waiting_for = str(error)
        if lost or (went and self._taken):
            self.on_wished()
        return went

    # ---- looking ----------------------------------------------------------------------------------------------------

    async def look(self) -> list[Job]:
        """All stripes, in slices: the jobs that are worth it, or that must be."""
        self._looked_ns = self._clock()
        price = PRICE_WHEN_FULL if self.full() else PRICE
        best: list[tuple[tuple[int, int, int], StripeId, Load]] = []
        empty: list[StripeId] = []
        count = 0
        self.more_is_left = False
        wishes, self._wishes = self._wishes, {}
        self._taken = bool(wishes)
        turns = Turns()
        for stripe in self._state.stripes():
            await turns.item()
            if stripe.purpose == Purpose.METADATA:
                break  # data comes first, and pages are evacuate.py's
            if not self._state.live(stripe.stripe_id):
                empty.append(stripe.stripe_id)
                continue
            load = await self._load(stripe, price)
            if load is not None:
                count += 1
                # The least is kept: what is far out of policy first, then what has the least data.
                key = (load.out if load.reason else -1, -load.alive, -count)
                (heapq.heappush if len(best) < MOST_LOADS else heapq.heappushpop)(best, (key, stripe.stripe_id, load))
        self.more_is_left = count > MOST_LOADS
        wished: dict[StripeId, set[ChunkId]] = {}
        loads: list[Load] = []
        for (stripe_id, target, reason), chunk_ids in wishes.items():
            chunks = tuple((c, p) for c, p in await self._chunks(stripe_id) if c in chunk_ids)
            loads.append(Load(stripe_id, target, chunks, 0, reason))
            if len(chunks) < len(chunk_ids):
                there = {c for c, _ in chunks}
                self._lost = self._lost or any(self._state.place(c) is not None for c in chunk_ids - there)
            wished.setdefault(stripe_id, set()).update(chunk_ids)
        for _, stripe_id, load in best:
            # What is wished elsewhere goes there at once, not first to where its stripe as a whole belongs.
            gone = wished.get(stripe_id)
            if gone is None:
                loads.append(load)
            elif load.reason:
                loads.append(replace(load, chunks=tuple((c, p) for c, p in load.chunks if c not in gone)))
        for start in range(0, len(empty), GIVEN_UP):
            if self._contents.forget_empty(empty[start : start + GIVEN_UP]) and not start:
                log.info("stripes with nothing alive in them are given up: at most %d", len(empty))
            await turns.over()
        return plan(loads, price)

    async def _chunks(self, stripe_id: StripeId) -> list[tuple[ChunkId, ChunkPlace]]:
        """The chunks of a stripe with their places."""
        found, turns = [], Turns()
        for chunk_id in self._contents.names(stripe_id):
            place = self._state.place(chunk_id)
            if place is not None and place.stripe_id == stripe_id:
                found.append((chunk_id, place))
            await turns.item()
        return found

    async def _load(self, stripe: Stripe, price: float) -> Load | None:
        """All living chunks of a stripe that may be worth moving."""
        target, reason, out = self._belongs(stripe)
        if target is None:
            return None
        if not reason and 0 <= self._clock() - stripe.placed_ns < self.young_ns:
            return None
        chunks = tuple(await self._chunks(stripe.stripe_id))
        alive = sum(place.length for _, place in chunks)
        if not chunks or not (reason or may_pay(alive, stripe.needed, stripe.share_bytes, price)):
            return None
        return Load(stripe.stripe_id, target, chunks, stripe.total * stripe.share_bytes, reason, out)

    # ---- moving -----------------------------------------------------------------------------------------------------

    async def move(self, job: Job) -> bool:
        """One job; False when nothing of it was there to move any more. HivefsError when it cannot be done now."""
        packer = Packer(job.target.needed)
        moved: list[tuple[ChunkId, ChunkPlace]] = []
        warm = False
        worth = []
        for load in job.loads:
            stripe = self._state.stripe(load.stripe_id)
            if stripe is None:
                continue
            worth.append(self._state.health(stripe).level)
            pieces = await self._read(stripe, load.chunks)
            warm = warm or any(self._cache.has(stripe.stripe_id, place.index) for _, place, _ in pieces)
            for chunk_id, place, sealed in pieces:
                # All of a job fits. With a chunk less, others may lie so that one does not: it stays until the next look.
                if packer.add(sealed) is not None:
                    moved.append((chunk_id, place))
        if not moved:
            self.moving.drop(job.reason, job.sent)
            return False
        packed = await trio.to_thread.run_sync(packer.pack, self._random, False, FRESH)
        await self._budget.take(job.target.total * packed.share_bytes)
        stripe = await self._place(packed, self._new_id(), job.target)
        level = self._state.health(stripe).level
        if any(share.node is None for share in stripe.shares) or level < max(worth):
            # Its shares are in the trash and go from there.
            raise NotEnoughShares(
                have=sum(share.node is not None for share in stripe.shares),
                needed=stripe.total,
                stripe="(moved data)",
                reason="what is moved must be as safe at once as it was",
            )
        if not await self._switch(stripe, packed, moved):
            self.moving.drop(job.reason, job.sent)
            return False
        self.moving.done(job.reason, job.sent, job.freed)
        if warm:
            await trio.to_thread.run_sync(self._keep_cached, stripe.stripe_id, packed)
        return True

    async def _switch(self, stripe: Stripe, packed: Packed, moved: list[tuple[ChunkId, ChunkPlace]]) -> int:
        """Record the new stripe and switch the places; how many were still as they were. Some at a time: each place
        is right before and after, and a stripe in which nothing lives yet, because we died, is given up by the next
        look.
        """
        switches = [
            (chunk_id, before, ChunkPlace(stripe.stripe_id, index, offset, before.length))
            for (chunk_id, before), (index, offset) in zip(moved, packed.places, strict=True)
        ]
        self._record(stripe)
        count = 0
        for start in range(0, len(switches), PLACES):
            with self._state.writing():
                count += sum(self._state.move_place(*switch) for switch in switches[start : start + PLACES])
            await trio.lowlevel.checkpoint()
        if not count:
            with self._state.writing():
                self._state.forget_stripe(stripe.stripe_id)
        return count

    def _record(self, stripe: Stripe) -> None:
        steps.recording()
        with self._state.writing():
            self._state.save_stripe(stripe)
        self.on_recorded(stripe.stripe_id)

    async def _read(
        self, stripe: Stripe, chunks: Collection[tuple[ChunkId, ChunkPlace]]
    ) -> list[tuple[ChunkId, ChunkPlace, bytes]]:
        """The sealed bytes of those chunks that still lie there, checked. Raises NotEnoughShares."""
        current = [(c, p) for c, p in chunks if self._state.place(c) == p]
        shares: dict[int, bytes] = {}
        for index in sorted({place.index for _, place in current}):
            await self._budget.take(stripe.share_bytes)
            data = self._reader.cached(stripe, index) or await self._reader.one(stripe, index)
            if data is not None:
                shares[index] = data
        lost = sorted({place.index for _, place in current} - shares.keys())
        if lost:
            await self._budget.take(stripe.needed * stripe.share_bytes)
            found = shares | await self._reader.some(stripe, stripe.needed - len(shares), set(shares) | set(lost))
            if len(found) < stripe.needed:
                raise NotEnoughShares(
                    have=len(found),
                    needed=stripe.needed,
                    stripe=stripe.stripe_id.hex()[:12],
                    reason="it cannot be read now",
                )
            shares |= await trio.to_thread.run_sync(_remade, stripe, found, lost)
        return [(c, p, shares[p.index][p.offset : p.offset + p.length]) for c, p in current]

    def _keep_cached(self, stripe_id: StripeId, packed: Packed) -> None:
        for index in {index for index, _ in packed.places}:
            self._cache.put(stripe_id, index, packed.data[index])
