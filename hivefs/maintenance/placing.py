"""Placing: quiet dirty slots of the drive become sealed chunks in stripes on nodes.

One loop fetches work from the vault, builds each slot's plaintext (staged extents over the old chunk over zeros), seals
it under a fresh key and packs it; full stripes go to the writer, a few at a time. A stripe that does not fill is held
for ``LINGER`` seconds, so that small files copied one after the other share stripes.

Order matters for crashes: share acknowledged by nodes -> recorded and synced in the engine's store -> taken by the
mount and committed there -> settled here. A chunk that was recorded but not settled when the engine died is looked up in
the mount's metadata at the next start: named there, it lives; not named, it is doomed (``reconcile``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

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

log = logging.getLogger(__name__)

QUIET_NS = 700_000_000
LINGER = 2.5
BATCH = 256
BATCH_BYTES = 8 << 20
STRIPES_AT_ONCE = 3
IDLE = 0.5
STUCK = 10.0
"""Seconds until a slot is tried again whose base chunk could not be had."""


@dataclass(slots=True)
class Sealed:
    """A slot's chunk on its way into a stripe."""

    work: DirtySlot
    ref: ChunkRef
    data: bytes


@dataclass
class Progress:
    """What status shows. Bytes are plaintext."""

    placed_bytes: int = 0
    placed_chunks: int = 0
    placed_stripes: int = 0
    waiting_for: str = ""
    started: float = 0.0
    recent: list[tuple[float, int]] = field(default_factory=list)

    def note(self, size: int, chunks: int) -> None:
        """Count a placed stripe."""
        now = trio.current_time()
        self.placed_bytes += size
        self.placed_chunks += chunks
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
        self.progress = Progress()
        self.hurry = trio.Event()
        self.on_degraded: Callable[[StripeId], None] = lambda stripe_id: None

    def poke(self) -> None:
        """Someone waits: place everything now, quiet or not."""
        self.hurry.set()

    async def run(self, vault: Vault) -> None:
        """Place for one vault connection until cancelled; HivefsError of the vault passes out."""
        self._in_flight.clear()
        packer, held, since, hurried = Packer(self._writer.policy.needed), list[Sealed](), 0.0, False
        gate = trio.Semaphore(STRIPES_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                if self.hurry.is_set():
                    hurried = True
                    self.hurry = trio.Event()
                work = await vault.dirty(BATCH, 0 if hurried else QUIET_NS, self._not_now())
                idle = True
                for batch in _batches(work):
                    for sealed in await self._seal(batch):
                        idle = False
                        if packer.add(sealed.data) is None:
                            await gate.acquire()
                            nursery.start_soon(self._place, vault, packer, held, gate)
                            packer, held = Packer(self._writer.policy.needed), []
                            packer.add(sealed.data)
                        if not held:
                            since = trio.current_time()
                        held.append(sealed)
                if held and (trio.current_time() - since > LINGER or (hurried and idle)):
                    await gate.acquire()
                    nursery.start_soon(self._place, vault, packer, held, gate)
                    packer, held = Packer(self._writer.policy.needed), []
                if idle:
                    hurried = False
                if idle and not hurried:
                    with trio.move_on_after(IDLE):
                        await self.hurry.wait()

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

    async def _place(self, vault: Vault, packer: Packer, held: list[Sealed], gate: trio.Semaphore) -> None:
        try:
            packed = await trio.to_thread.run_sync(packer.pack, self._random)
            stripe = await self._until_placed(packed)
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
            self.progress.note(sum(s.ref.length for s in held), len(held))
            if any(share.node is None for share in stripe.shares):
                self.on_degraded(stripe.stripe_id)
        finally:
            for sealed in held:
                self._in_flight.pop((sealed.work.ino, sealed.work.slot), None)
            gate.release()

    async def _until_placed(self, packed: Packed) -> Stripe:
        """Place, again and again while the hive cannot take it: the data is safe in the stage meanwhile."""
        pause = 0.5
        while True:
            try:
                return await self._writer.place(packed, Purpose.DATA, self._writer.new_id())
            except HivefsError as error:
                if not error.transient:
                    log.warning("a stripe could not be placed: %s", error)
                self.progress.waiting_for = str(error)
            await trio.sleep(pause)
            pause = min(10.0, pause * 1.6)

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
