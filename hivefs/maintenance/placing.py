"""Placing: quiet dirty slots of the drive become sealed chunks in stripes on nodes.

One loop fetches work from the vault, builds each slot's plaintext (staged extents over the old chunk over zeros), seals
it under a fresh key and packs it; full stripes go to the writer, a few at a time. A stripe that does not fill is held
for ``LINGER`` seconds, so that small files copied one after the other share stripes.

Chunks of different policies never share a stripe: each policy has a *lane* of its own. One that cannot be placed now (no
node in a third country) keeps what it has and sets its other slots aside, so that it does not hold up the rest.

Order matters for crashes: share acknowledged by nodes -> recorded and synced in the engine's store -> taken by the
mount and committed there -> settled here. A chunk that was recorded but not settled when the engine died is looked up in
the mount's metadata at the next start: named there, it lives; not named, it is doomed (``reconcile``). A full disk ends
``run`` with all that is on its way; whoever runs it again begins as after a crash, with ``reconcile``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from hivefs.chunkstore import steps
from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.ports import Random
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import Writer
from hivefs.content.packing import Packed, Packer
from hivefs.crypto.seal import open_chunk, seal_chunk
from hivefs.errors import HivefsError
from hivefs.formats.records import extent_from_bytes, map_key
from hivefs.maintenance.ports import StageSource, State, Vault
from hivefs.model.ids import CHUNK_BYTES, ChunkId, StripeId, VaultId, sortable_id
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import DirtySlot
from hivefs.model.stripe import ChunkPlace, Purpose, Stripe
from hivefs.placement.policy import DEFAULT, Policy

log = logging.getLogger(__name__)

QUIET_NS = 700_000_000
LINGER = 2.5
BATCH = 256
BATCH_BYTES = 8 << 20
STRIPES_AT_ONCE = 3
IDLE = 0.5
GIVE_UP = 60.0
"""Seconds after which the slots of a stripe that cannot be placed are looked at anew."""
STUCK = 10.0
"""Seconds until a slot is tried again whose base chunk could not be had."""


@dataclass(slots=True)
class Sealed:
    """A slot's chunk on its way into a stripe."""

    work: DirtySlot
    ref: ChunkRef
    data: bytes


@dataclass
class Lane:
    """The stripe of one policy that is being filled (with the policy as it was when that began), and those on their way."""

    policy: Policy | None = None
    packer: Packer = field(default_factory=lambda: Packer(1))
    held: list[Sealed] = field(default_factory=list)
    since: float = 0.0
    flying: int = 0
    failing: bool = False
    aside: set[tuple[int, int]] = field(default_factory=set)
    as_of: int = 0


@dataclass
class Progress:
    """What status shows. Bytes are plaintext."""

    placed_bytes: int = 0
    placed_stripes: int = 0
    waiting_for: str = ""
    started: float = 0.0
    recent: list[tuple[float, int]] = field(default_factory=list)

    def note(self, size: int) -> None:
        """Count a placed stripe."""
        now = trio.current_time()
        self.placed_bytes += size
        self.placed_stripes += 1
        self.waiting_for = ""
        self.recent = [(t, b) for t, b in self.recent if t > now - 30] + [(now, size)]

    def rate(self) -> float:
        """Plaintext bytes per second over the last 30 s."""
        now = trio.current_time()
        recent = [(t, b) for t, b in self.recent if t > now - 30]
        if not recent:
            return 0.0
        return sum(b for _, b in recent) / max(1.0, now - recent[0][0] + 1.0)


class Placing:
    """See the head of the file."""

    def __init__(
        self,
        vault_id: VaultId,
        stage: StageSource,
        state: State,
        writer: Writer,
        reader: Reader,
        cache: Cache,
        locate: Callable[[ChunkId], Awaitable[tuple[ChunkPlace, Stripe]]],
        clock: Callable[[], int],
        random: Random,
    ) -> None:
        self._vault_id = vault_id
        self._stage = stage
        self._state = state
        self._writer = writer
        self._reader = reader
        self._cache = cache
        self._locate = locate
        self._clock = clock
        self._random = random
        self._in_flight: dict[tuple[int, int], int] = {}
        self._stuck: dict[tuple[int, int], float] = {}
        self._lanes: dict[str, Lane] = {}
        self._landed = trio.Event()
        self.progress = Progress()
        self.hurry = trio.Event()
        self.on_recorded: Callable[[StripeId], None] = lambda stripe_id: None
        self.on_taken: Callable[[], None] = lambda: None
        """The drive names new chunks now: it released those before them."""
        self.on_empty: Callable[[], None] = lambda: None
        """Called when the last of what was in flight has been placed, or given up, after somebody waited for it."""
        self.as_of: Callable[[], int] = lambda: 0
        """How often policies, or those of files, were seen to be others."""
        self.on_late: Callable[[], None] = lambda: None
        """What was taken was on its way as they changed: it may lie by a policy of before."""
        self._round = 0
        self._awaited = False

    @property
    def in_flight(self) -> int:
        """Slots whose chunks are in a stripe that is being filled or on its way."""
        return len(self._in_flight)

    def poke(self) -> None:
        """Someone waits: place everything now, quiet or not."""
        self._awaited = True
        self.hurry.set()

    async def run(self, vault: Vault) -> None:
        """Place for one vault connection until cancelled; HivefsError of the vault passes out."""
        self._in_flight.clear()
        self._lanes.clear()
        hurried = False
        async with trio.open_nursery() as nursery:
            while True:
                if self.hurry.is_set():
                    hurried = True
                    self.hurry = trio.Event()
                self._round = self.as_of()
                work = await vault.dirty(BATCH, 0 if hurried else QUIET_NS, self._not_now())
                idle = True
                for batch in _batches([slot for slot in work if self._open(slot)]):
                    for sealed in await self._seal(batch):
                        idle = False
                        await self._fill(nursery, vault, sealed)
                for name, lane in list(self._lanes.items()):
                    if lane.held and (trio.current_time() - lane.since > LINGER or (hurried and idle)):
                        await self._launch(nursery, vault, name)
                if idle:
                    hurried = False
                if idle and not hurried:
                    with trio.move_on_after(IDLE):
                        await self.hurry.wait()

    # ---- lanes ------------------------------------------------------------------------------------------------------

    def _open(self, work: DirtySlot) -> bool:
        """Whether the policy of a slot can be placed by now; a slot whose policy cannot is set aside for a while."""
        lane = self._lanes.setdefault(work.policy, Lane())
        if lane.failing and lane.flying:
            self._stuck[(work.ino, work.slot)] = trio.current_time() + STUCK
            lane.aside.add((work.ino, work.slot))
            return False
        if lane.policy is None:
            try:
                lane.policy = self._state.policies.named(work.policy)
            except HivefsError as error:
                self.progress.waiting_for = f"policy {work.policy}: {error}"
                self._stuck[(work.ino, work.slot)] = trio.current_time() + STUCK
                return False
            lane.packer, lane.held, lane.as_of = Packer(lane.policy.needed), [], self._round
        return True

    async def _fill(self, nursery: trio.Nursery, vault: Vault, sealed: Sealed) -> None:
        name = sealed.work.policy
        if not self._open(sealed.work):
            self._in_flight.pop((sealed.work.ino, sealed.work.slot), None)
            return
        if self._lanes[name].packer.add(sealed.data) is None:
            await self._launch(nursery, vault, name)
            if not self._open(sealed.work):
                self._in_flight.pop((sealed.work.ino, sealed.work.slot), None)
                return
            self._lanes[name].packer.add(sealed.data)
        lane = self._lanes[name]
        if not lane.held:
            lane.since = trio.current_time()
        lane.held.append(sealed)

    async def _launch(self, nursery: trio.Nursery, vault: Vault, name: str) -> None:
        """Send the filled stripe of a lane on its way, once fewer than STRIPES_AT_ONCE are (failing ones not counted)."""
        lane = self._lanes[name]
        while sum(one.flying for one in self._lanes.values() if not one.failing) >= STRIPES_AT_ONCE:
            await self._landed.wait()
        policy, packer, held, as_of = lane.policy, lane.packer, lane.held, lane.as_of
        lane.policy, lane.held = None, []
        lane.flying += 1
        if policy is not None:
            nursery.start_soon(self._place, vault, name, policy, packer, held, as_of)

    def _tell(self) -> None:
        """Something landed, or failed: who waits in ``_launch`` looks again."""
        self._landed.set()
        self._landed = trio.Event()

    def _not_now(self) -> list[tuple[int, int]]:
        """Slots that are on their way, and those whose older part could not be read a moment ago."""
        now = trio.current_time()
        self._stuck = {key: until for key, until in self._stuck.items() if until > now}
        return [*self._in_flight, *self._stuck]

    # ---- sealing ----------------------------------------------------------------------------------------------------

    async def _seal(self, batch: list[DirtySlot]) -> list[Sealed]:
        plains: list[tuple[DirtySlot, bytes]] = []
        for work in batch:
            try:
                plain = await self._plain(work)
            except HivefsError as error:
                self.progress.waiting_for = f"an older part of a changed file: {error}"
                self._stuck[(work.ino, work.slot)] = trio.current_time() + STUCK
                continue
            if plain is not None:
                plains.append((work, plain))
                self._in_flight[(work.ino, work.slot)] = work.generation
        return await trio.to_thread.run_sync(self._seal_all, plains) if plains else []

    def _seal_all(self, plains: list[tuple[DirtySlot, bytes]]) -> list[Sealed]:
        """In a worker thread."""
        made = []
        for work, plain in plains:
            key = self._random(32)
            data, codec = seal_chunk(key, self._vault_id, Purpose.DATA, plain)
            chunk_id = ChunkId(sortable_id(self._clock(), self._random(10)))
            made.append(Sealed(work, ChunkRef(chunk_id, key, len(plain), codec), data))
        return made

    async def _plain(self, work: DirtySlot) -> bytes | None:
        """The plaintext of a slot as it was offered, or None when it changed meanwhile."""
        extents = [e for e in work.extents if e.start < work.length]
        if len(extents) == 1 and extents[0].start == 0 and extents[0].length >= work.length:
            return self._stage.read(work.ino, work.slot, extents[0], 0, work.length)
        buffer = bytearray(work.length)
        covered = sum(min(e.length, work.length - e.start) for e in extents)
        if work.base is not None and covered < work.length:
            old = await self.old_chunk(work.base)
            keep = min(len(old), work.length)
            buffer[:keep] = old[:keep]
        for extent in extents:
            end = min(extent.start + extent.length, work.length)
            data = self._stage.read(work.ino, work.slot, extent, extent.start, end - extent.start)
            if data is None:
                return None
            buffer[extent.start : end] = data
        return bytes(buffer)

    async def old_chunk(self, ref: ChunkRef) -> bytes:
        """The plaintext of a placed chunk, from the cache or the nodes."""
        place, stripe = await self._locate(ref.chunk_id)
        share = await self._reader.data_share(stripe, place.index)
        sealed = memoryview(share)[place.offset : place.offset + place.length]
        return open_chunk(ref.key, self._vault_id, Purpose.DATA, ref.length, ref.codec, sealed)

    # ---- placing ----------------------------------------------------------------------------------------------------

    async def _place(self, vault: Vault, name: str, policy: Policy, packer: Packer, held: list[Sealed], as_of: int) -> None:
        lane = self._lanes[name]
        try:
            packed = await trio.to_thread.run_sync(packer.pack, self._random)
            stripe = await self._until_placed(packed, name, policy, lane)
            if stripe is None:
                return
            steps.recording()
            with self._state.writing():
                self._state.save_stripe(stripe)
                for sealed, (index, offset) in zip(held, packed.places, strict=True):
                    place = ChunkPlace(stripe.stripe_id, index, offset, len(sealed.data))
                    self._state.save_place(sealed.ref.chunk_id, place, sealed.work.ino, sealed.work.slot)
            await trio.to_thread.run_sync(self._keep_cached, stripe.stripe_id, packed)
            results = [(s.work.ino, s.work.slot, s.work.generation, s.ref) for s in held]
            taken = await vault.placed(results)
            with self._state.writing():
                for sealed, good in zip(held, taken, strict=True):
                    self._state.settle(sealed.ref.chunk_id, good)
            self.on_taken()
            if as_of != self.as_of():
                self.on_late()
            self.progress.note(sum(s.ref.length for s in held))
            # Also when all have a node: policies or nodes may have changed while it was on its way.
            self.on_recorded(stripe.stripe_id)
        finally:
            for sealed in held:
                self._in_flight.pop((sealed.work.ino, sealed.work.slot), None)
            lane.flying -= 1
            lane.failing = lane.failing and lane.flying > 0
            if not lane.failing:
                for key in lane.aside:
                    self._stuck.pop(key, None)
                lane.aside.clear()
            self._tell()
            if self._awaited and not self._in_flight:
                self._awaited = False
                self.on_empty()

    async def _until_placed(self, packed: Packed, name: str, policy: Policy, lane: Lane) -> Stripe | None:
        """Place, again and again while the hive cannot take it: the data is safe in the stage meanwhile. None when its
        slots are to be offered anew: the policy is another now, or it took so long that the files may have another one.
        """
        pause, began = 0.5, trio.current_time()
        while True:
            try:
                stripe = await self._writer.place(packed, Purpose.DATA, self._writer.new_id(), policy)
            except HivefsError as error:
                if not error.transient:
                    log.warning("a stripe could not be placed: %s", error)
                self.progress.waiting_for = str(error) if name == DEFAULT else f"policy {name}: {error}"
                lane.failing = True
                self._tell()
            else:
                lane.failing = False
                return stripe
            await trio.sleep(pause)
            pause = min(10.0, pause * 1.6)
            try:
                same = self._state.policies.named(name) == policy
            except HivefsError:
                same = False
            if not same or trio.current_time() - began > GIVE_UP:
                return None

    def _keep_cached(self, stripe_id: StripeId, packed: Packed) -> None:
        """In a worker thread: the drive reads these shares from here from now on."""
        used = {index for index, _ in packed.places}
        for index in used:
            self._cache.put(stripe_id, index, packed.data[index])

    def reconcile(self, look: Callable[[bytes], bytes | None]) -> int:
        """Settle what was offered before a crash; ``look`` reads a map record by key. Returns how many were doomed."""
        doomed = 0
        with self._state.writing():
            for chunk_id, ino, slot in self._state.offers():
                value = look(map_key(ino, slot))
                extent = None if value is None else extent_from_bytes(slot, value)
                named = extent is not None and extent.chunk is not None and extent.chunk.chunk_id == chunk_id
                self._state.settle(chunk_id, named)
                doomed += not named
        return doomed


def _batches(work: list[DirtySlot]) -> list[list[DirtySlot]]:
    """Cut into runs of at most BATCH_BYTES, so that memory stays bounded."""
    batches: list[list[DirtySlot]] = []
    size = CHUNK_BYTES * 1024
    for item in work:
        if size + item.length > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(item)
        size += item.length
    return batches
