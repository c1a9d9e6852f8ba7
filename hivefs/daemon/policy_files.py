"""Data whose file has another policy now: found by walking over the drive's metadata, given to repack to move.

A path got a policy, or a file was moved into or out of a place that has one. What new data is placed by, the drive says
(filesystem/assigned.py); this finds what was placed before. The walk goes over the places that have a policy of their own;
data of such a policy that no file there names belongs to the default. It is done again when the policies change and every
AGAIN seconds while some place has one, in steps in a worker thread, and stores nothing: after a crash it is done anew.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from hivefs.daemon.policy_walk import Snapshot, chunks_of, inode_at, stepped
from hivefs.errors import Corrupt, HivefsError, PathNotInDrive, UnknownVersion
from hivefs.formats import records
from hivefs.maintenance.checkpoint import SnapshotSource
from hivefs.maintenance.ports import Vault
from hivefs.maintenance.repack_plan import Target
from hivefs.model.ids import ChunkId
from hivefs.model.stripe import Purpose
from hivefs.placement.policies import Policies
from hivefs.placement.policy import DEFAULT

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

log = logging.getLogger(__name__)

AGAIN = 30.0
LOOK = 1.0
SLICE = 20
YOUNG_NS = 60 * 10**9
"""What was placed less than so long ago may be of a file that the walk could not see yet."""


def assigned_to(snapshot: Snapshot, names_key: bytes, paths: dict[str, str]) -> dict[int, str]:
    """Inodes of the paths that there are, with their policies."""
    found: dict[int, str] = {}
    for path, name in paths.items():
        try:
            found[inode_at(snapshot, names_key, path)] = name
        except PathNotInDrive:
            continue
    return found


def chunks_with_policy(snapshot: Snapshot, assigned: dict[int, str]) -> Iterator[tuple[str, ChunkId]]:
    """Every chunk of a file whose nearest parent with a policy is one of these. A file with several names belongs where its
    inode says; a damaged record is left out.
    """
    for top, name in assigned.items():
        waiting = [(top, 0)]
        while waiting:
            ino, parent = waiting.pop()
            try:
                value = snapshot.get(records.inode_key(ino))
                inode = None if value is None else records.inode_from_bytes(value)
            except (Corrupt, UnknownVersion):
                continue  # 'hivefs check' names it
            if inode is None:
                continue
            if stat.S_ISDIR(inode.mode):
                for _, found in snapshot.scan(records.dirent_prefix(ino)):
                    try:
                        child = 0 if found is None else records.dirent_from_bytes(found).ino
                    except (Corrupt, UnknownVersion):
                        continue  # 'hivefs check' names it
                    if child and child not in assigned:
                        waiting.append((child, ino))
            elif stat.S_ISREG(inode.mode) and (not parent or inode.nlink == 1 or inode.parent == parent):
                for chunk_id in chunks_of(snapshot, ino)[0]:
                    yield name, chunk_id


class PolicyFiles:
    """See the head of the file."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.waiting_for = ""
        self.asked = 0
        """Chunks that were given to repack so far."""

    async def run(self, vault: Vault, snapshot: SnapshotSource) -> None:
        """For one drive, until cancelled. The whole book must be here."""
        seen: Policies | None = None
        before = 0.0
        while True:
            policies = self._engine.policies
            due = bool(policies.set.paths) and trio.current_time() - before > AGAIN
            if (policies is not seen and (policies.set.paths or seen is not None)) or due:
                try:
                    if not (await vault.status())["hydrating"]:
                        await self.once(policies, snapshot)
                        seen, before, self.waiting_for = policies, trio.current_time(), ""
                except HivefsError as error:
                    self.waiting_for = str(error)
            elif seen is None:
                seen = policies
            await trio.sleep(LOOK)

    async def once(self, policies: Policies, snapshot: SnapshotSource) -> int:
        """Find what has to move and give it to repack; how many chunks."""
        engine = self._engine
        wanted: dict[str, list[ChunkId]] = {}
        right: set[ChunkId] = set()
        with snapshot() as opened:
            view: Snapshot = opened  # type: ignore[assignment]
            assigned = await trio.to_thread.run_sync(assigned_to, view, engine.keys.names_key, dict(policies.set.paths))
            async for batch in stepped(chunks_with_policy(view, assigned)):
                for number, (name, chunk_id) in enumerate(batch, 1):
                    place = engine.store.place(chunk_id)
                    stripe = None if place is None else engine.store.stripe(place.stripe_id)
                    right.add(chunk_id)
                    if stripe is not None and policies.name_of(stripe) != name:
                        wanted.setdefault(name, []).append(chunk_id)
                    if number % SLICE == 0:
                        await trio.lowlevel.checkpoint()
        now = engine.store.clock()
        for number, stripe in enumerate(engine.store.stripes(), 1):
            named = policies.name_of(stripe)
            if stripe.purpose == Purpose.DATA and named != DEFAULT and not 0 <= now - stripe.placed_ns < YOUNG_NS:
                for chunk_id in engine.moving.contents.names(stripe.stripe_id):
                    place = engine.store.place(chunk_id)
                    if chunk_id not in right and place is not None and place.stripe_id == stripe.stripe_id:
                        wanted.setdefault(DEFAULT, []).append(chunk_id)
            if number % SLICE == 0:
                await trio.sleep(0.001)
        for name, chunk_ids in wanted.items():
            policy = policies.named(name)
            target = Target(name, policy.needed, policy.total)
            engine.moving.repack.wish(chunk_ids, target, f"their files have policy {name} now")
            self.asked += len(chunk_ids)
            log.info("%d chunks move to policy %s", len(chunk_ids), name)
        return sum(map(len, wanted.values()))
