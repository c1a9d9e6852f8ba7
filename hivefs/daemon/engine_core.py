"""The engine, wired: stores, conversations with nodes, and one loop per duty. Started by daemon/engine.py.

Nothing here decides anything: the rooms do. What is here is who knows whom, and what happens when the drive (the mount
process) comes and goes: with a mount the engine works for it over its control socket; without one it takes the lock of
the metadata itself and goes on until everything is placed and published, then it ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import trio

from hivefs.chunkstore.ahead import Ahead
from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.claims import Claims, Pair
from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.pool import Dial, Pool
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.source import Piece
from hivefs.chunkstore.writer import Writer
from hivefs.crypto.keys import VaultKeys, derive
from hivefs.daemon import registry_file
from hivefs.daemon.engine_capacity import HiveCapacity
from hivefs.daemon.engine_moving import EngineMoving
from hivefs.daemon.engine_news import News
from hivefs.daemon.engine_policies import EnginePolicies
from hivefs.daemon.engine_queues import queues
from hivefs.daemon.engine_roster import Learning
from hivefs.daemon.engine_told import node_status
from hivefs.daemon.home import Home, Secrets
from hivefs.daemon.thinker import Thinker
from hivefs.errors import Corrupt, DiskFull, HivefsError, NotEnoughShares
from hivefs.formats import head as head_format
from hivefs.formats import records
from hivefs.formats.policy import TEXT_KEY
from hivefs.formats.revoked import newer, revocations_from_bytes, revocations_to_bytes, revocations_valid
from hivefs.maintenance.audit import Audit
from hivefs.maintenance.bad_shares import BadShares
from hivefs.maintenance.checkpoint import EVERY, Checkpoint, Pages, SnapshotSource
from hivefs.maintenance.definitions import Definitions
from hivefs.maintenance.evidence import Evidence
from hivefs.maintenance.forgetting import Forgetting
from hivefs.maintenance.full_disk import FullDisk
from hivefs.maintenance.garbage import Garbage
from hivefs.maintenance.hydration import EngineHydration
from hivefs.maintenance.leases import Leases
from hivefs.maintenance.old_copies import OldCopies
from hivefs.maintenance.placing import Placing
from hivefs.maintenance.ports import Vault
from hivefs.maintenance.repair import Repair
from hivefs.maintenance.round_trips import RoundTrips
from hivefs.maintenance.spares import Spares
from hivefs.maintenance.trust import Trust
from hivefs.maintenance.turns import Turns
from hivefs.metadata.damaged import EVIDENCE, Record
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import ChunkId, NodeId
from hivefs.model.node import Membership, RosterEntry
from hivefs.model.stripe import ChunkPlace, Stripe
from hivefs.placement.health import NodeState, NodeView
from hivefs.placement.policies import Policies
from hivefs.stage.reader import StageReader

log = logging.getLogger(__name__)

CAPACITY_EVERY = 2.0
EVICT_EVERY = 10.0
MOST_TOLD = 256
"""Nodes of which status tells one by one."""
MOST_PART = 320 << 10
"""Sealed bytes that are brought before the rest of their share; more is brought as the share that it mostly is."""


class Engine:
    """All duties of one vault. ``dial`` opens a conversation with a node."""

    def __init__(self, home: Home, secrets: Secrets, dial: Dial) -> None:
        self.home = home
        self.keys: VaultKeys = secrets.keys()
        self.policy = home.policy()
        setting = home.vault.setting
        self.store = EngineStore(home.engine, self.keys.engine_key, self.policy)
        self.disk = FullDisk(self.store.probe)
        self.store.on_full = self.disk.note
        self.store.damaged.on_found = self._set_aside
        self.cache = Cache(home.cache, setting("cache_bytes"))
        self.trust = Trust(self.store, time.time_ns, float(setting("node_gone_after_s")), later=True)
        self.ready = trio.Event()
        """Set when it has read what it knows of nodes. Until then nobody is dialled, and nothing is placed."""
        self.pool = Pool(self.store, dial, time.time_ns, self.trust, self._greeted)
        self.trust.on_changed = self.pool.conduct_changed
        self.trust.on_suspended = lambda node_id: self.pool.touch()
        self.evidence = Evidence(self.store, time.time_ns, self.pool.weighed_anew)
        self.round_trips = RoundTrips(self.store, self.online, self.evidence.country, self.evidence.weigh)
        self.evidence.refuted = self.round_trips.refuted
        self.evidence.registry = registry_file.load(self.store)
        self.learning = Learning(self)
        self.news = News(self.hear, self.evidence)
        self.reader = Reader(self.pool, self.cache, self._bad, float(setting("read_deadline_s")), self.trust.read)
        self.claims = claims = Claims(self._intend)
        self.thinker = Thinker()
        self.rules = EnginePolicies(self)
        secret = derive(self.keys.engine_key, "node sets")
        self.old_copies = OldCopies(self.store, time.time_ns, lambda: self.pool.dates_hold)
        self.writer = Writer(self.pool, self.policy, time.time_ns, os.urandom, claims, secret, self.old_copies.of)
        self.writer.think = self.thinker
        self.stage = StageReader(home.stage, self.keys.stage_key)
        self.repair = Repair(self.store, self.reader, self.writer, self.node_view, self.pool.change)
        self.repair.on_bad = self.trust.failed
        self.repair.keep = self.disk.keep
        self.bad_shares = BadShares(self.repair.bad_share)
        self.spares = Spares(
            self.store, self.reader, self.trust, self.node_view, self.online, time.time_ns, os.urandom, claims
        )
        self.repair.take_back, self.repair.leave = self.spares.take_back, self.spares.leave
        self.spares.on_taken_back = self.repair.add
        self.audit = Audit(self.store, self.reader, self.trust, self.online, self._bad, os.urandom)
        self.forgetting = Forgetting(
            self.store,
            lambda: self.pool.by_state[NodeState.GONE],
            self._forgot,
            time.time_ns,
            lambda: self.pool.dates_hold,
        )
        self.garbage = Garbage(self.store, claims, self.online)
        self.definitions = Definitions(self.store)
        self.leases = Leases(self.store, self.online, time.time_ns, self._bad, os.urandom)
        self.leases.right, self.leases.on_absurd = lambda: self.pool.clocks.right, self._keeps_nothing
        self.writer.on_short = self.leases.short
        self.placing = Placing(
            self.keys.vault_id,
            self.stage,
            self.store,
            self.writer,
            self.reader,
            self.cache,
            self.locate,
            time.time_ns,
            os.urandom,
        )
        self.placing.on_recorded = self.repair.add
        self.placing.on_taken = self.garbage.look
        self.pages = Pages(self.keys, self.store, self.reader, self.writer, os.urandom)
        self.pages.on_recorded = self.repair.add
        self.checkpoint = Checkpoint(
            self.keys,
            home.vault.certificate,
            secrets.device_seed,
            home.vault.hive_key,
            self.store,
            self.pages,
            self.rules.keepers,
            self.rules.survives,
            time.time_ns,
            os.urandom,
        )
        self.placing.on_empty = self.checkpoint.poke
        self._hurried = float("-inf")
        self.checkpoint.on_reap = self.garbage.reap
        self.garbage.on_deleted = self.repair.deleted
        self.garbage.held = lambda: self.checkpoint.forked is not None
        self.hydration = EngineHydration(self.store, self.checkpoint.tree, self.checkpoint.root)
        self.pool.revoked = self.covers_keys
        kept = self.store.info("revoked")
        self.revoked = revocations_from_bytes(kept) if isinstance(kept, bytes) else None
        self.vault: Vault | None = None
        self.ahead = Ahead(self._bring)
        self.moving = EngineMoving(self)
        self.placing.as_of = lambda: self.moving.reassign.changes
        self.placing.on_late = self.moving.reassign.ask_again
        self.room = HiveCapacity(self)

    def close(self) -> None:
        """Close the stores."""
        self.store.close()

    # ---- small ports ------------------------------------------------------------------------------------------------

    def online(self) -> Iterable[tuple[NodeId, NodeClient]]:
        """Nodes that can be asked now."""
        return [(m.node_id, m.client) for m in self.pool.online() if m.client is not None]

    @property
    def policies(self) -> Policies:
        """The policies in force."""
        return self.store.policies

    async def set_policies(self, text: str) -> None:
        """Put a text into force, empty for none. Raises BadPolicy."""
        await self.rules.set(text)

    @property
    def levels(self) -> dict[str, int]:
        """Bytes of data (with padding) at each level, as counted last."""
        return self.rules.levels

    def node_view(self, node_id: NodeId) -> NodeView | None:
        """A node as repair sees it: one that is out of trust is left as one that leaves."""
        view = self.store.node_view(node_id)
        return replace(view, leaving=True) if view is not None and self.trust.suspended(node_id) else view

    def _set_aside(self, node_id: NodeId, record: Record) -> None:
        log.warning("node %s: %s", node_id.hex()[:12], record.words)
        evidence: Evidence | None = getattr(self, "evidence", None)  # what is met before that begins with weighing all
        if record in EVIDENCE and evidence is not None:
            evidence.again()

    def _keeps_nothing(self, node_id: NodeId, words: str) -> None:
        self.pool.report(node_id, words)
        self.trust.failed(node_id)

    def _bad(self, stripe: Stripe, index: int, reason: str) -> None:
        self.bad_shares.take(stripe, index, reason)

    def _intend(self, pairs: Collection[Pair]) -> None:
        with self.store.writing():
            for node_id, share_id in pairs:
                self.store.trash_share(node_id, share_id)

    async def _greeted(self, client: NodeClient) -> None:
        """A conversation began: learn the node's roster, see what heads it has, and give it the newest."""
        self.evidence.answered(client.node_id, client.way, client.relayed)
        await self.compare_revoked(client)
        await self.news.greeted(client)
        self.checkpoint.compare(await client.get_heads())
        head = self.checkpoint.head()
        if not self.rules.may_keep(client.node_id):
            return
        if head is not None and not (self.checkpoint.forked is not None and self.checkpoint.forked.data["own"]):
            await client.put_head(head_format.to_bytes(head))

    # ---- who does not belong any more -------------------------------------------------------------------------------

    def covers(self, membership: Membership) -> bool:
        """Whether the hive's owner revoked this membership, as far as this vault has heard."""
        return self.revoked is not None and self.revoked.covers(membership)

    def covers_keys(self, subject: bytes, invitation: bytes) -> bool:
        """The same for the keys of a member and of the invitation by which it came (empty: the owner let it in)."""
        return self.revoked is not None and self.revoked.covers_keys(subject, invitation)

    async def compare_revoked(self, client: NodeClient) -> None:
        """Take the node's revocation list when it is newer than ours, give it ours when that is newer."""
        theirs, ours = (await client.hive_state()).revoked, self.revoked
        if ours is not None and theirs < ours.sequence:
            await client.put_revoked(revocations_to_bytes(ours))
        elif theirs and (ours is None or theirs > ours.sequence):
            data = await client.get_revoked()
            if data is not None:
                self.take_revoked(data)

    def take_revoked(self, data: bytes) -> bool:
        """Keep a revocation list if the hive's owner signed it and it is newer than ours; whether it was. Raises Corrupt,
        UnknownVersion.
        """
        made = revocations_from_bytes(data)
        if not newer(made, self.revoked) or not revocations_valid(made, self.home.vault.hive_key):
            return False
        with self.store.writing():
            self.store.save_info("revoked", data)
        self.revoked = made
        log.info("revocation list %d was taken", made.sequence)
        self.pool.revocations_changed()
        return True

    def _forgot(self, node_id: NodeId) -> None:
        self.pool.forget(node_id)
        self.leases.forget(node_id)
        self.round_trips.forget(node_id)

    def learn(self, entries: Iterable[RosterEntry]) -> int:
        """Take in a few roster entries whose signatures hold; how many were new."""
        return self.learning.now(entries)

    async def hear(self, entries: Iterable[RosterEntry]) -> int:
        """The same for any number of them."""
        return await self.learning.hear(entries)

    # ---- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The duties that need no drive, until cancelled, once ``ready``. Each is kept (maintenance/full_disk.py), but for
        those that write nothing or put off what a full disk does not take (pool, trust).
        """
        keep = self.disk.keep
        with suppress(DiskFull):  # what is not forgotten now is forgotten before the next checkpoint
            self.checkpoint.sweep()
        await self.trust.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.disk.run)
            await nursery.start(self.pool.run)
            await self._warm()
            nursery.start_soon(self.thinker.run)
            nursery.start_soon(self.rules.codes.run)
            nursery.start_soon(self._after_hydration)
            nursery.start_soon(self.ahead.run)
            nursery.start_soon(keep, "bad shares", self.bad_shares.run)
            nursery.start_soon(keep, "evidence", self.evidence.run)
            nursery.start_soon(keep, "round trips", self.round_trips.run)
            nursery.start_soon(keep, "leases", self.leases.run)
            nursery.start_soon(self.trust.run)
            nursery.start_soon(self._evict)
            nursery.start_soon(self.rules.measure)
            nursery.start_soon(self.room.run)
            self.ready.set()
            await trio.sleep_forever()

    async def _warm(self) -> None:
        """List the nodes for the policies in force, which with very many is long for the first stripe to wait."""
        if not self.rules.problem():
            written = self.policies.set
            for weakest in {policy.evidence for policy in (*written.policies.values(), written.metadata())}:
                await self.pool.warm(weakest)

    async def _after_hydration(self) -> None:
        """Repair and deletion need the whole book: after a recovery it is loaded first."""
        keep = self.disk.keep
        await keep("book", self._load_book)
        await self.rules.readable()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "policies", self.rules.run)
            nursery.start_soon(keep, "repair", self.repair.run)
            nursery.start_soon(keep, "audit", self.audit.run)
            nursery.start_soon(keep, "spares", self.spares.run)
            nursery.start_soon(keep, "garbage", self.garbage.empty_trash)
            nursery.start_soon(keep, "definitions", self.definitions.run)
            nursery.start_soon(keep, "forgetting", self.forgetting.run)
            nursery.start_soon(self.moving.run)

    async def _load_book(self) -> None:
        if not self.hydration.done.is_set():
            await self.hydration.run()
            await self.pool.meet_all()  # rosters that name them are no news any more
        self.evidence.reload()
        await self.evidence.weigh_all()

    async def _evict(self) -> None:
        while True:
            await trio.sleep(EVICT_EVERY)
            self.stage.trim()
            if self.cache.usage > self.cache.budget:
                await trio.to_thread.run_sync(self.cache.evict)

    async def serve_vault(self, vault: Vault, snapshot: SnapshotSource) -> None:
        """Work for one drive until it goes (HivefsError passes out, possibly in a group) or this is cancelled. A full disk
        is no reason to end.
        """
        keep = self.disk.keep
        try:
            async with trio.open_nursery() as nursery:
                attached = trio.Event()
                nursery.start_soon(keep, "placing", self._place_for, vault, snapshot, attached)
                await attached.wait()
                self.vault = vault
                nursery.start_soon(self._report_capacity, vault)
                await self.hydration.books.wait()
                await self.rules.readable()
                nursery.start_soon(keep, "checkpoint", self.checkpoint.run, vault, snapshot)
                await self.hydration.done.wait()
                nursery.start_soon(keep, "released", self.garbage.take_released, vault)
                nursery.start_soon(keep, "reassign", self.moving.reassign.run, vault)
        finally:
            self.vault = None

    async def _place_for(self, vault: Vault, snapshot: SnapshotSource, attached: trio.Event) -> None:
        """What was offered before is looked up in what the drive has committed: an engine that died did not hear whether it
        was taken, nor did a placing that ended because the disk was full. After a recovery nothing is placed before the
        policies are here.
        """
        await vault.attach()  # the answers of those before are not taken any more
        await vault.flush()
        with snapshot() as committed:
            self.placing.reconcile(committed.get)
        attached.set()
        while True:
            try:
                await self.hydration.ensure(records.policy_key(TEXT_KEY))
                break
            except HivefsError as error:
                self.placing.progress.waiting_for = f"the policies: {error}"
                await trio.sleep(1.0)
        if problem := self.rules.problem():
            self.placing.progress.waiting_for = f"policies that can be read: {problem}"
            await self.rules.readable()
            self.placing.progress.waiting_for = ""
        await self.placing.run(vault)

    def hurry(self) -> None:
        """Somebody waits (and says so every second): place now, and make a checkpoint as soon as nothing is on its way any
        more. One on the way is of use to who waits for something else; every few seconds is often enough for that.
        """
        self.placing.poke()
        now = trio.current_time()
        if not self.placing.in_flight or now - self._hurried >= EVERY:
            self._hurried = now
            self.checkpoint.poke()

    async def drained(self, vault: Vault) -> None:
        """Return when the drive's data is placed and published (used when no mount runs)."""
        while True:
            self.hurry()
            status = await vault.status()
            done = not (status["dirty_slots"] or status["uncommitted"])
            if done and status["published"] >= status["committed"]:
                return
            await trio.sleep(0.5)

    async def _report_capacity(self, vault: Vault) -> None:
        last: tuple[int, int] | None = None
        while True:
            report = self.capacity()
            if report is not None and report != last:
                await vault.set_capacity(*report)
                last = report
            await trio.sleep(CAPACITY_EVERY)

    def capacity(self) -> tuple[int, int] | None:
        """(total, free) bytes of user data as counted last; None while too few nodes were ever seen to say."""
        return self.room.now()

    # ---- what the mount and the command line ask ----------------------------------------------------------------------

    async def locate(self, chunk_id: ChunkId) -> tuple[ChunkPlace, Stripe]:
        """Where a chunk lies; loads the book's page first when it is not here yet. Raises Corrupt."""
        await self.hydration.ensure(records.chunk_key(chunk_id))
        place = self.store.place(chunk_id)
        if place is not None:
            await self.hydration.ensure(records.stripe_key(place.stripe_id))
            stripe = self.store.stripe(place.stripe_id)
            if stripe is not None:
                return place, stripe
        raise Corrupt(what="the engine's book", reason=f"chunk {chunk_id.hex()} is not in it")

    async def fetch(
        self, chunk_id: ChunkId, following: Sequence[ChunkId], span: tuple[int, int] | None = None
    ) -> Piece | None:
        """Bring the share that holds a chunk into the cache, and then those of ``following``. See chunkstore.source.Fetch
        for ``span`` and for what is given back.
        """
        while True:
            place, stripe = await self.locate(chunk_id)
            try:
                return await self._fetch(chunk_id, place, stripe, following, span)
            except NotEnoughShares:
                if self.store.place(chunk_id) == place:
                    raise  # else it was moved meanwhile

    async def _fetch(
        self,
        chunk_id: ChunkId,
        place: ChunkPlace,
        stripe: Stripe,
        following: Sequence[ChunkId],
        span: tuple[int, int] | None,
    ) -> Piece | None:
        silent = False
        if span is not None and _short(span, place.length) and not self.reader.coming(stripe, place.index):
            offset, length = span
            part = await self.reader.part(stripe, place.index, place.offset + offset, length)
            if part is not None:
                # Only now, because the first bytes of all of them would stand before the ones that are waited for.
                self.ahead.want([chunk_id, *following])
                return Piece(offset, part)
            silent = True
        self.ahead.want(following)
        share = await self.reader.bring(stripe, place.index, check=True, silent=silent)
        return None if share is None else Piece(0, share[place.offset : place.offset + place.length])

    async def _bring(self, chunk_id: ChunkId) -> bool:
        place, stripe = await self.locate(chunk_id)
        coming = self.reader.coming(stripe, place.index)
        await self.reader.bring(stripe, place.index, ahead=True)
        return not coming

    async def load_page(self, key: bytes) -> tuple[bytes, bytes | None, list[tuple[bytes, bytes]]]:
        """The page of the last checkpoint that holds ``key``, for a drive that was recovered."""
        leaf = await self.checkpoint.tree.load(self.checkpoint.root(), key)
        return leaf.low, leaf.high, list(leaf.records)

    async def told(self) -> dict[str, Any]:
        """``status`` of now, with turns for others between nodes."""
        if self.ready.is_set():
            await self.rules.measured()
        nodes, turns = [], Turns()
        for node_id in list(islice(self.pool.members, MOST_TOLD)):
            if node_id in self.pool.members:  # it may be forgotten meanwhile
                nodes.append(node_status(self, node_id))
            await turns.item()
        return self.status(nodes)

    async def told_nodes(self, after: NodeId | None, most: int) -> list[dict[str, Any]]:
        """The next nodes of the book in the order of their ids, with all that status says of each."""
        found, turns = [], Turns()
        for node_id in self.store.each_node(after):
            if node_id in self.pool.members:
                found.append(node_status(self, node_id))
                if len(found) >= most:
                    break
            await turns.item()
        return found

    def status(self, nodes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Counts for ``hivefs status``; of very many nodes the first are told one by one, the others in numbers."""
        rate = self.placing.progress.rate()
        capacity = self.capacity()
        return {
            "nodes": [node_status(self, n) for n in islice(self.pool.members, MOST_TOLD)] if nodes is None else nodes,
            "nodes_in_state": {state.name.lower(): len(there) for state, there in self.pool.by_state.items()},
            "code": {"needed": self.policy.needed, "total": self.policy.total},
            "stripes": self.store.count("live"),
            "levels": self.levels,
            "repair": {
                "queue": self.repair.queue,
                "repaired": self.repair.repaired,
                "cancelled": self.repair.cancelled,
                "later": self.rules.later,
                "waiting_for": self.repair.waiting_for,
                "waiting_for_copies": self.repair.waiting_for_copies,
                "risked": self.repair.risked,
            },
            "disk": self.disk.status(),
            "damaged": self.store.damaged.told(MOST_TOLD),
            "moving": self.moving.status(),
            "placing": {
                "bytes": self.placing.progress.placed_bytes,
                "stripes": self.placing.progress.placed_stripes,
                "rate": round(rate),
                "waiting_for": self.placing.progress.waiting_for,
            },
            "checkpoint": {
                "published_ns": self.checkpoint.published_ns,
                "sequence": getattr(self.checkpoint.head(), "sequence", 0),
                "waiting_for": self.checkpoint.waiting_for,
                "level": self.store.metadata_level().name.lower(),
                "forked": "" if self.checkpoint.forked is None else str(self.checkpoint.forked),
            },
            "trash": self.store.count("trash"),
            "policies": self.rules.status(),
            "queues": queues(self),
            "audit": self.audit.status(),
            "spares": self.spares.status(),
            "clock_doubted": self.pool.clocks.doubted,
            "starting": not self.ready.is_set(),
            "hydrating": not self.hydration.done.is_set(),
            "cache_bytes": self.cache.usage,
            "capacity": None if capacity is None else {"total": capacity[0], "free": capacity[1]},
            "pid": os.getpid(),
            "draining": self.vault is not None and not hasattr(self.vault, "_client"),
        }


def _short(span: tuple[int, int], length: int) -> bool:
    """Whether a span lies inside of a sealed chunk of ``length`` bytes and is short enough to be brought by itself."""
    return 0 <= span[0] < span[0] + span[1] <= length and span[1] <= MOST_PART


@asynccontextmanager
async def opening(home: Home, secrets: Secrets, dial: Dial) -> AsyncIterator[Engine]:
    """An engine with its stores open, which begins with its next turn and will be ``ready``."""
    engine = Engine(home, secrets, dial)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            yield engine
            nursery.cancel_scope.cancel()
    finally:
        engine.close()


@asynccontextmanager
async def opened(home: Home, secrets: Secrets, dial: Dial) -> AsyncIterator[Engine]:
    """An engine with its stores open and its duties running."""
    async with opening(home, secrets, dial) as engine:
        await engine.ready.wait()
        yield engine
