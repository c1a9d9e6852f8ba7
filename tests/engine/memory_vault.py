"""A drive in memory for the engine's tests: slots of plaintext, a map, and the record changes of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from hivefs.formats.records import extent_to_bytes, map_key
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef, MapExtent, SlotKind
from hivefs.model.staged import DirtySlot, StagedExtent


class MemoryVault:
    """Implements maintenance.ports.Vault and StageSource, and gives snapshots."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], bytes] = {}
        self.generations: dict[tuple[int, int], int] = {}
        self.map: dict[tuple[int, int], ChunkRef] = {}
        self.dirty_slots: dict[tuple[int, int], None] = {}
        self.queue: dict[int, ChunkId] = {}
        self.counter = 0
        self.sequence = 1
        self.published_sequence = 0
        self.changed: dict[bytes, int] = {}
        self.capacity: tuple[int, int] | None = None
        self.moves = 0
        self.refuse: set[tuple[int, int]] = set()
        self.policies: dict[int, str] = {}

    # ---- the user ---------------------------------------------------------------------------------------------------

    def write(self, ino: int, slot: int, data: bytes) -> None:
        key = (ino, slot)
        self.slots[key] = data
        self.generations[key] = self.generations.get(key, 0) + 1
        self.dirty_slots[key] = None

    def delete(self, ino: int, slot: int) -> None:
        key = (ino, slot)
        self.slots.pop(key, None)
        self.dirty_slots.pop(key, None)
        self._release(self.map.pop(key, None))
        self._change(map_key(ino, slot))

    def _release(self, ref: ChunkRef | None) -> None:
        if ref is not None:
            self.counter += 1
            self.queue[self.counter] = ref.chunk_id

    def _change(self, key: bytes) -> None:
        self.sequence += 1
        self.changed[key] = self.sequence

    # ---- Vault ------------------------------------------------------------------------------------------------------

    async def dirty(self, limit: int, quiet_ns: int, skip: Collection[tuple[int, int]]) -> list[DirtySlot]:
        skipped = {(i, s) for i, s in skip}
        work = []
        for ino, slot in list(self.dirty_slots):
            if (ino, slot) in skipped or len(work) == limit:
                continue
            data = self.slots[(ino, slot)]
            extent = StagedExtent(0, len(data), 0, 0, 0, len(data))
            base = self.map.get((ino, slot))
            work.append(
                DirtySlot(
                    ino, slot, self.generations[(ino, slot)], len(data), (extent,), base, self.policies.get(ino, "default")
                )
            )
        return work

    def read(self, ino: int, slot: int, extent: StagedExtent, start: int, length: int) -> bytes | None:
        return self.slots[(ino, slot)][start : start + length]

    async def placed(self, results: list[tuple[int, int, int, ChunkRef]]) -> list[bool]:
        taken = []
        for ino, slot, generation, ref in results:
            key = (ino, slot)
            good = self.generations.get(key) == generation and key in self.dirty_slots and key not in self.refuse
            if good:
                self._release(self.map.get(key))
                self.map[key] = ref
                del self.dirty_slots[key]
                self._change(map_key(ino, slot))
            taken.append(good)
        return taken

    async def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]:
        return [(n, c) for n, c in sorted(self.queue.items()) if n > after][:limit]

    async def released_done(self, upto: int) -> None:
        self.queue = {n: c for n, c in self.queue.items() if n > upto}

    async def published(self, sequence: int) -> None:
        self.published_sequence = max(self.published_sequence, sequence)
        self.changed = {k: s for k, s in self.changed.items() if s > sequence}

    async def attach(self) -> int:
        return 1

    async def flush(self) -> None:
        return

    async def policies_of_chunks(self, after: bytes, limit: int) -> tuple[bytes, list[tuple[ChunkId, str]]]:
        keys = sorted(key for key in self.map if map_key(*key) > after)
        found = [(self.map[key].chunk_id, self.policies.get(key[0], "default")) for key in keys[:limit]]
        return (map_key(*keys[limit - 1]) if len(keys) > limit else b""), found

    async def calm(self) -> bool:
        return True

    async def policy_moves(self) -> int:
        return self.moves

    async def set_capacity(self, total: int, free: int) -> None:
        self.capacity = (total, free)

    async def status(self) -> dict[str, Any]:
        committed = max(self.changed.values(), default=self.published_sequence)
        return {
            "dirty_slots": len(self.dirty_slots),
            "published": self.published_sequence,
            "committed": committed,
            "hydrating": False,
        }

    # ---- snapshots --------------------------------------------------------------------------------------------------

    def value(self, key: bytes) -> bytes | None:
        ino, slot = int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")
        ref = self.map.get((ino, slot))
        return None if ref is None else extent_to_bytes(MapExtent(slot, 1, SlotKind.CHUNK, ref))

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        for key, sequence in sorted(self.changed.items()):
            yield key, self.value(key), sequence

    @contextmanager
    def snapshot(self) -> Iterator[Frozen]:
        yield Frozen(list(self.changes()), {map_key(*key): self.value(map_key(*key)) for key in self.map})


class Frozen:
    """The changes as they were."""

    def __init__(self, changes: list[tuple[bytes, bytes | None, int]], maps: dict[bytes, bytes | None]) -> None:
        self._changes = changes
        self._maps = maps

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        return iter(self._changes)

    def get(self, key: bytes) -> bytes | None:
        """A record of the map. It has no names: what walks over them finds nothing."""
        return self._maps.get(key)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]:
        return iter(())

    def staged(self) -> Iterator[tuple[int, int, bytes | None]]:
        return iter(())
