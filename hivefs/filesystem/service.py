"""What the engine asks of the drive: work to place, what was placed, what may be deleted, how far durability has come.

The mount serves this object on its control socket; in drain mode the engine uses it directly (it is a
maintenance.ports.Vault).

A crash between two steps is harmless because of the order: ``placed`` answers only after the commit, so the engine knows
that a chunk it was told is taken is named by the metadata on disk; released chunks are given out only after the store's
commit that released them, so that every snapshot from then on is without them. A disk that is full delays a commit:
``placed`` then waits, it does not take anything back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Any

import trio

from hivefs.errors import DiskFull, NotLoaded, PosixError
from hivefs.filesystem.courtesy import ALL, Courtesy
from hivefs.filesystem.durability import Watch
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Capacity
from hivefs.formats.records import extent_from_bytes
from hivefs.model.ids import ChunkId
from hivefs.model.inode import ChunkRef
from hivefs.model.staged import DirtySlot
from hivefs.model.stripe import Level

log = logging.getLogger(__name__)

_RETRY = 1.0
_SLICE = 200
_TELL_EVERY = 1.0
_WATCHES = 16


class VaultService:
    """See the head of the file. ``session`` is 16 random bytes of this process: generations are of one session."""

    def __init__(self, filesystem: Filesystem, session: bytes, courtesy: Courtesy | None = None) -> None:
        """Without ``courtesy`` nobody uses the drive, and all work is handed out."""
        self.session = session
        self._courtesy = courtesy
        self._fs = filesystem
        self._watches: dict[tuple[int, Level], Watch] = {}
        self._attached = 0

    async def dirty(self, limit: int, quiet_ns: int, skip: Collection[tuple[int, int]] = ()) -> list[DirtySlot]:
        """Oldest first, unmodified for ``quiet_ns`` (or dirty for ten times as long); committed extents only.

        With ``quiet_ns`` 0 (somebody waits) everything is committed first; otherwise users of the drive come first, and
        what is handed out at once is little.
        """
        overlay, most = self._fs.overlay, ALL
        if not quiet_ns and self._fs.commits.pending:
            await self._fs.commits.all()
        elif quiet_ns and self._courtesy is not None:
            most = self._courtesy.grant(overlay.bytes, len(overlay), overlay.oldest_ns)
        skipped = frozenset((ino, slot) for ino, slot in skip)
        assigned = self._fs.assigned
        try:
            await assigned.refresh()
        except NotLoaded:  # after a recovery: which policy a file has is not known, and nothing may be placed by another
            return []
        found = overlay.dirty(limit, most, quiet_ns, skipped, self._fs.clock())
        return [with_policy for work in found if (with_policy := self._with_policy(work)) is not None]

    def _with_policy(self, work: DirtySlot) -> DirtySlot | None:
        try:
            policy = self._fs.assigned.of(work.ino)
        except (NotLoaded, PosixError):
            return None
        return work if policy == work.policy else replace(work, policy=policy)

    async def policies_of_chunks(self, after: bytes, limit: int) -> tuple[bytes, list[tuple[ChunkId, str]]]:
        """For up to ``limit`` map records behind the key ``after`` (empty: from the first): the chunks in them, each with
        the name of its file's policy; and the key to go on after, empty when that was all. After a recovery, while not all
        is here, that is the end too.
        """
        assigned = self._fs.assigned
        found: list[tuple[ChunkId, str]] = []
        last = b""
        try:
            await assigned.refresh()
            for number, (key, value) in enumerate(self._fs.store.scan(b"m", after + b"\0" if after else b"")):
                if number == limit:
                    return last, found
                last = key
                chunk = None if value is None else extent_from_bytes(int.from_bytes(key[9:], "big"), value).chunk
                if chunk is not None:
                    with suppress(PosixError):  # the file goes this moment
                        found.append((chunk.chunk_id, assigned.of(int.from_bytes(key[1:9], "big"))))
        except NotLoaded:
            log.debug("which policies files have is not known yet")
        return b"", found

    async def policy_moves(self) -> int:
        """How often since this process began a rename may have given files another policy: when it grew, it is time to ask
        ``policies_of_chunks``.
        """
        return self._fs.assigned.moves

    async def calm(self) -> bool:
        """Whether nobody uses the drive right now: the time for work that can wait."""
        return self._courtesy is None or self._courtesy.calm

    async def attach(self) -> int:
        """An engine begins to work for this drive. The number returned makes its answers known from those of an engine
        that died: what that one said last and what was not read yet must not be taken any more.
        """
        self._attached += 1
        return self._attached

    async def placed(self, results: list[tuple[int, int, int, ChunkRef]], attached: int | None = None) -> list[bool]:
        """(ino, slot, generation, ref) each; True = taken, and that is durable on return. False: free the chunk."""
        if attached is not None and attached != self._attached:
            return [False] * len(results)
        taken: list[bool] = []
        for ino, slot, generation, ref in results:
            try:
                taken.append(self._fs.overlay.place(ino, slot, generation, ref))
            except PosixError:
                taken.append(False)
        if any(taken):
            await self._commit()
        return taken

    async def _commit(self) -> None:
        while True:
            try:
                await self._fs.commits.all(patient=True)
                return
            except DiskFull as error:
                log.warning("what was placed waits to be recorded: %s", error)
            await trio.sleep(_RETRY)

    async def released(self, after: int, limit: int) -> list[tuple[int, ChunkId]]:
        """Chunks that no file names any more, as (number, id) with number > ``after``; committed ones only."""
        return self._fs.store.released(after, limit)

    async def released_done(self, upto: int) -> None:
        """The engine has recorded all up to this number."""
        self._fs.store.released_done(upto)

    async def published(self, sequence: int) -> None:
        """A head with everything up to commit ``sequence`` is out."""
        store = self._fs.store
        store.publish(min(sequence, store.seq - 1))
        at: bytes | None = b""
        while at is not None:
            at = store.forget_changed(at, _SLICE)
            await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Commit everything now, and so that the caller's next snapshot shows it. Raises DiskFull, StoreDamaged."""
        if not self._fs.commits.settled:
            await self._fs.commits.all(settle=True)

    async def set_capacity(self, total: int, free: int) -> None:
        """Bytes of user data that the hive has room for."""
        self._fs.set_capacity(Capacity(total, free))

    async def status(self) -> dict[str, Any]:
        """Counts for ``hivefs status``: bytes, numbers, and commit sequences.

        ``committed`` is the last commit that changed something a checkpoint holds; the drive is published when
        ``published`` has reached it and nothing is dirty. ``yielding``: what is dirty waits for a pause in the drive's use.
        """
        fs = self._fs
        capacity = fs.capacity
        return {
            "dirty_bytes": fs.overlay.bytes,
            "dirty_slots": len(fs.overlay),
            "yielding": self._courtesy is not None and self._courtesy.yielding,
            "files": fs.store.inodes,
            "published": fs.store.published,
            "committed": fs.store.changed_seq,
            "uncommitted": fs.commits.pending,
            "stage_bytes": fs.stage.usage,
            "unreaped": len(fs.inodes.orphans),
            "hydrating": fs.store.hydrating,
            "capacity_total": None if capacity is None else capacity.total,
            "capacity_free": None if capacity is None else capacity.free,
        }

    async def durability(self, ino: int) -> Level:
        """How safe an inode is now. PosixError when it is not there."""
        return self._fs.durability.level(ino)

    async def durability_below(
        self, ino: int, level: Level, budget: int = _SLICE, report: Callable[[list[int]], Awaitable[None]] | None = None
    ) -> tuple[int, int]:
        """(inodes under and including ``ino``, those of them at ``level``); the turn is given up after every
        ``budget`` inodes. Cheap when asked again: see Watch. A million take minutes the first time: ``report`` is told
        every second how far it has come.
        """
        key = (ino, Level(level))
        watch = self._watches.pop(key, None) or Watch(self._fs.durability, ino, Level(level))
        told = trio.current_time()
        for number, _ in enumerate(watch.count(), 1):
            if not number % budget:
                await trio.lowlevel.checkpoint()
                self._fs.inodes.trim()
                if report is not None and trio.current_time() - told > _TELL_EVERY:
                    told = trio.current_time()
                    await report(list(watch.seen))
        self._watches[key] = watch
        if len(self._watches) > _WATCHES:
            del self._watches[next(iter(self._watches))]
        return watch.result

    async def placement(self, ino: int) -> list[dict[str, Any]]:
        """Stripes of a file: stripe (hex), needed, total, level, nodes (hex or None), chunks; for JSON."""
        return self._fs.durability.placement(ino)
