"""Checkpoints: everything that changed goes into the metadata tree, and a signed head with the nodes points to it.

The order of things makes a head never name what is not there, and never forget what it still names:

1. In one step without await: the engine's sequence is closed, and snapshots of the mount's metadata and of the engine's
   own are opened. Chunks that the former names were recorded by the engine before the mount could name them, and chunks
   doomed up to the closed sequence were released by the mount before the snapshot.
2. The tree is updated, BATCH changes at a time in the order of their keys, so that memory does not grow with what
   changed; new pages are sealed, packed, placed as metadata stripes and recorded. Trees between two batches are never
   named by a head.
3. The head is signed, saved here, and put to the nodes. It counts as published when at least two nodes have acknowledged
   it that no coalition of authorities which may be lost is over together (placement/heads.py).
4. The mount is told (durability ``remote`` begins here), and what was doomed up to the closed sequence is reaped.

A crash between 2 and 4 leaves stripes that no tree names: their ids are noted in ``making`` before they are placed and
forgotten at the next start.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from typing import Protocol, TypeAlias

import trio
import trio.lowlevel

from hivefs.chunkstore import steps
from hivefs.chunkstore.ports import Random
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import Writer
from hivefs.content.packing import Packer
from hivefs.crypto.keys import VaultKeys
from hivefs.crypto.seal import RecordSealer, open_chunk, seal_chunk
from hivefs.errors import DiskFull, HivefsError, NotEnoughShares, VaultForked
from hivefs.formats import head as head_format
from hivefs.maintenance.checkpoint_tree import CheckpointTree
from hivefs.maintenance.ports import State, Vault
from hivefs.maintenance.turns import Turns
from hivefs.model.head import DeviceCertificate, Head, Root
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.stripe import ChunkPlace, Level, PageRef, Purpose, Stripe
from hivefs.placement.heads import KEPT, REMEMBERED
from hivefs.placement.policy import Policy

log = logging.getLogger(__name__)

EVERY = 3.0
BUSY_PAUSE = 0.5
MOST_LATE = 10.0
"""Seconds that a checkpoint waits for a pause in the use of the drive."""

BATCH = 8192
"""Changed records that one edit of the tree takes. (All at once, the engine stood at 474 MiB after a million new files; so,
at 223: docs/performance.md.)
"""

SETTLED = 128
"""Changes that are taken off the list in one transaction when a tree has them."""

EMPTY_ROOT = Root(None, 0, 0)


class Snapshot(Protocol):
    """A committed state of the mount's metadata (metadata/snapshot.py)."""

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]: ...
    def get(self, key: bytes) -> bytes | None: ...


SnapshotSource: TypeAlias = Callable[[], AbstractContextManager[Snapshot]]
"""Opens the newest commit, and lets go of it."""


class HeadKeeper(Protocol):
    """One conversation, as publishing uses it."""

    async def put_head(self, head: bytes) -> None: ...


class Pages:
    """Fetches pages of the tree and places new ones: the ports of CheckpointTree."""

    def __init__(self, keys: VaultKeys, state: State, reader: Reader, writer: Writer, random: Random) -> None:
        self.vault_id = keys.vault_id
        self._state = state
        self._reader = reader
        self._writer = writer
        self.random = random
        self.new_id = writer.new_id
        self.made: list[StripeId] = []
        self.on_recorded: Callable[[StripeId], None] = lambda stripe_id: None

    async def fetch(self, ref: PageRef, stripe: Stripe) -> bytes:
        """The plaintext of a page. The stripe as the engine knows it now wins over the one in the parent page."""
        now = self._state.stripe(stripe.stripe_id) or stripe
        share = await self._reader.data_share(now, ref.place.index)
        sealed = memoryview(share)[ref.place.offset : ref.place.offset + ref.place.length]
        return open_chunk(ref.key, self.vault_id, Purpose.METADATA, ref.length, ref.codec, sealed)

    def begin(self) -> _Filling:
        """An empty stripe for pages. Raises PolicyInfeasible, TooFewNodes when no code can be placed by the policy."""
        return _Filling(self, self._state.policies.metadata())

    async def placed(self, filling: _Filling) -> Stripe:
        """Place what was filled in. All its pages are live until they are dropped."""
        packed = await trio.to_thread.run_sync(filling.packer.pack, self.random, True)
        with self._state.writing():
            # Noted first: should we die between placing and naming it, the next start forgets it.
            self.made.append(filling.stripe_id)
            self._state.save_info("making", [bytes(s) for s in self.made])
        stripe = await self._writer.place(packed, Purpose.METADATA, filling.stripe_id, filling.policy)
        steps.recording()
        with self._state.writing():
            self._state.save_stripe(stripe)
            self._state.add_live(stripe.stripe_id, len(filling.packer))
        self.on_recorded(stripe.stripe_id)
        return stripe


class _Filling:
    """A metadata stripe being filled (the port PageStripe of maintenance/checkpoint_tree.py)."""

    def __init__(self, pages: Pages, policy: Policy) -> None:
        self._pages = pages
        self.policy = policy
        self.packer = Packer(policy.needed)
        self._stripe_id = pages.new_id()

    @property
    def stripe_id(self) -> StripeId:
        """Its name from the beginning."""
        return self._stripe_id

    def add(self, page: bytes) -> PageRef | None:
        """Seal a page and give it its place; None when the stripe is full."""
        key = self._pages.random(32)
        sealed, codec = seal_chunk(key, self._pages.vault_id, Purpose.METADATA, page)
        place = self.packer.add(sealed)
        if place is None:
            return None
        return PageRef(ChunkPlace(self._stripe_id, *place, len(sealed)), key, len(page), codec)

    async def place(self) -> Stripe:
        """Code and place."""
        return await self._pages.placed(self)


class Checkpoint:
    """See the head of the file. ``online`` gives nodes that can be asked and may keep the head; ``survives`` says whether a
    replica at one of these nodes is left when so many times the authorities that may be lost are taken away.
    """

    def __init__(
        self,
        keys: VaultKeys,
        certificate: DeviceCertificate,
        device_seed: bytes,
        hive_key: bytes,
        state: State,
        pages: Pages,
        online: Callable[[], Iterable[tuple[NodeId, HeadKeeper]]],
        survives: Callable[[Collection[NodeId], int], bool],
        clock: Callable[[], int],
        random: Random,
    ) -> None:
        self._keys = keys
        self._certificate = certificate
        self._device_seed = device_seed
        self._hive_key = hive_key
        self._state = state
        self._pages = pages
        self._tree = CheckpointTree(pages.fetch, pages.begin)
        self._online = online
        self._survives = survives
        self._clock = clock
        self._sealer = RecordSealer(keys.head_key, random)
        self.waiting_for = ""
        self.published_ns = 0
        self.wanted = trio.Event()
        self.on_reap: Callable[[int], None] = lambda sequence: None
        self.forked: VaultForked | None = None
        self.evacuate: frozenset[StripeId] = frozenset()
        """Metadata stripes whose pages the next checkpoint writes elsewhere, whether anything else changed or not."""
        self._refused: dict[NodeId, str] = {}
        self._reap_upto: int | None = None

    # ---- the present state ------------------------------------------------------------------------------------------

    def root(self) -> Root:
        """The tree of the last checkpoint."""
        data = self._state.info("root")
        return EMPTY_ROOT if data is None else head_format.root_from_bytes(data)

    def head(self) -> Head | None:
        """The last head that this device signed."""
        data = self._state.info("head")
        return None if data is None else head_format.from_bytes(data)

    def poke(self) -> None:
        """Someone waits: make a checkpoint now."""
        self.wanted.set()

    @property
    def tree(self) -> CheckpointTree:
        """For reading (hydration) beside the loop."""
        return self._tree

    def compare(self, heads: Iterable[Head]) -> None:
        """What a node keeps of our vault (signatures checked), held against what we know: sets ``forked`` for a head of
        another device that our tree does not contain, or a newer or another one of this very device.

        The first means that two machines work on one vault: each would delete what only the other's tree names. The
        second means that this machine's state is an old copy: its heads would in the end be taken for the newest.
        """
        own, seen = self.head(), dict(self.root().seen)
        for head in heads:
            device, number, sequence = head.certificate.device, head.certificate.number, head.sequence
            if device == self._certificate.device:
                mine = 0 if own is None else own.sequence
                bad = sequence > mine or (sequence == mine and head != own)
            else:
                bad = number == self._certificate.number or sequence > seen.get(number, 0)
            if bad:
                old_copy = device == self._certificate.device
                if self.forked is None or (old_copy and not self.forked.data["own"]):
                    self.forked = VaultForked(device=number, sequence=sequence, own=old_copy)
                    log.error("%s", self.forked)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """At the start of the engine: remember when the last head came out, and forget stripes that a crash left between
        being placed and being named.
        """
        head = self.head()
        if head is not None and self._state.info("head_out") is True:
            self.published_ns = head.time_ns
        self._forget_made()

    def _forget_made(self) -> None:
        """Stripes that were placed for a tree that did not come to be: a crash left them, or a disk that was too full to
        forget them at once.
        """
        making = self._state.info("making") or []
        if making:
            with self._state.writing():
                for stripe_id in making:
                    self._state.forget_stripe(StripeId(stripe_id))
                self._state.save_info("making", [])

    async def run(self, vault: Vault, snapshot: SnapshotSource) -> None:
        """A checkpoint every few seconds in which something changed, until cancelled; while the drive is in use only
        every MOST_LATE seconds, unless somebody waits.
        """
        late = 0.0
        while True:
            hurried = self.wanted.is_set()
            if not hurried and late < MOST_LATE and not await vault.calm():
                late += BUSY_PAUSE
                with trio.move_on_after(BUSY_PAUSE):
                    await self.wanted.wait()
                continue
            late = 0.0
            if hurried:
                self.wanted = trio.Event()
                await vault.flush()
            try:
                await self.once(vault, snapshot)
                self.waiting_for = ""
            except HivefsError as error:
                if not error.transient:
                    log.warning("no checkpoint: %s", error)
                self.waiting_for = str(error)
                if isinstance(error, DiskFull):
                    raise
            await self.spread_head()
            await self.measure()
            with trio.move_on_after(EVERY):
                await self.wanted.wait()

    async def once(self, vault: Vault, snapshot: SnapshotSource) -> bool:
        """One checkpoint if anything changed, else False. HivefsError when it cannot be placed.

        Pages that the new tree does not name are kept until the head after it is out, for whoever reads the one before.
        """
        if self.forked is not None and self.forked.data["own"]:
            raise self.forked
        self._forget_made()
        if self._reap_upto is not None:
            self._reap(self._reap_upto)
        evacuate, self.evacuate = self.evacuate, frozenset()
        try:
            return await self._once(vault, snapshot, evacuate)
        except DiskFull:
            self.evacuate |= evacuate
            raise

    async def _once(self, vault: Vault, snapshot: SnapshotSource, evacuate: frozenset[StripeId]) -> bool:
        idle = not evacuate and not any(self._state.count(table) for table in ("changed", "moved"))
        if idle and self._state.info("head_out") is True:
            with snapshot() as theirs:
                if next(theirs.changes(), None) is None:
                    return False
        with self._state.writing():
            closed = self._state.next_sequence()
        replaced = self._state.moved()
        self._pages.made = []
        try:
            with snapshot() as theirs, self._state.changes() as ours:
                root, dropped, upto = await self._edit(theirs.changes(), ours, replaced, evacuate)
        except BaseException:  # cancellation too: no tree will name these stripes; raised again
            with self._state.writing():
                for stripe_id in self._pages.made:
                    self._state.forget_stripe(stripe_id)
                self._state.save_info("making", [])
            raise
        await self._publish(root, dropped, closed, replaced)
        if upto:
            await vault.published(upto)
        self._reap(closed)
        return True

    def _reap(self, closed: int) -> None:
        """A head with everything up to that sequence is out. On a full disk this raises DiskFull, and is done again before
        the next checkpoint.
        """
        self._reap_upto = closed
        self.on_reap(closed)
        self._reap_upto = None

    async def _edit(
        self,
        theirs: Iterator[tuple[bytes, bytes | None, int]],
        ours: Iterator[tuple[bytes, bytes | None]],
        replaced: dict[StripeId, Stripe],
        evacuate: frozenset[StripeId],
    ) -> tuple[Root, list[PageRef], int]:
        """The new root, the pages it does not name any more, and the newest commit among ``theirs``."""
        upto = 0

        def unnumbered() -> Iterator[tuple[bytes, bytes | None]]:
            nonlocal upto
            for key, value, sequence in theirs:
                upto = max(upto, sequence)
                yield key, value

        changes = heapq.merge(unnumbered(), ours, key=itemgetter(0))
        first = list(islice(changes, BATCH))
        root, dropped = await self._tree.update(self.root(), first, replaced=replaced, evacuate=evacuate)
        while batch := list(islice(changes, BATCH)):
            root, more = await self._tree.update(root, batch)
            dropped += more
        return root, dropped, upto

    async def _publish(self, root: Root, dropped: list[PageRef], closed: int, described: dict[StripeId, Stripe]) -> None:
        before = self.head()
        number = 1 if before is None else before.sequence + 1
        seen = dict(root.seen) | {self._certificate.number: number}
        root = replace(root, seen=tuple(sorted(seen.items())), hive_key=self._hive_key)
        sealed = head_format.seal_root(self._sealer, self._certificate.device, number, root)
        now = self._clock()
        head = head_format.sign_head(self._device_seed, self._certificate, number, before, now, sealed)
        with self._state.writing():
            self._state.save_info("root", head_format.root_to_bytes(root))
            self._state.save_info("head", head_format.to_bytes(head))
            self._state.save_info("head_out", False)
            self._state.save_info("making", [])
            for ref in dropped:
                self._state.doom_page(ref.place.stripe_id, ref.key[:8])
            self._state.moved_done(described)
            last = self._state.published(closed, None, SETTLED)
        while last is not None:
            await trio.lowlevel.checkpoint()
            with self._state.writing():
                last = self._state.published(closed, last, SETTLED)
        await self.send_head()

    async def send_head(self) -> None:
        """Put the newest head to all nodes that answer. Raises NotEnoughShares when too few acknowledged it."""
        head = self.head()
        if head is None:
            return
        holders = await self._put_head(head, ())
        if len(holders) < 2 or not self._survives(holders, KEPT):
            reason = "it must lie where no authorities that may be lost can withhold it together"
            raise NotEnoughShares(have=len(holders), needed=2, stripe="(the head)", reason=reason)
        self.published_ns = self._clock()
        with self._state.writing():
            self._state.save_info("head_out", True)
            self._state.save_info("head_holders", [bytes(n) for n in holders])

    async def spread_head(self) -> None:
        """Put the published head to nodes that have come since, while too few have it."""
        head = self.head()
        if head is None or self._state.info("head_out") is not True:
            return
        holders = self._holders()
        if self._enough(holders):
            return
        more = await self._put_head(head, holders)
        if more and self.head() == head:
            with self._state.writing():
                self._state.save_info("head_holders", [bytes(n) for n in (*holders, *more)])

    async def _put_head(self, head: Head, but: Collection[NodeId]) -> list[NodeId]:
        """Those of the nodes that answer, ``but`` some, that have taken it."""
        data = head_format.to_bytes(head)
        holders: list[NodeId] = []

        async def put(node_id: NodeId, client: HeadKeeper) -> None:
            try:
                await client.put_head(data)
                holders.append(node_id)
                self._refused.pop(node_id, None)
            except HivefsError as error:
                if self._refused.get(node_id) != str(error):  # it is asked again every few seconds
                    self._refused[node_id] = str(error)
                    log.info("node %s did not take the head: %s", node_id.hex()[:12], error)

        async with trio.open_nursery() as nursery:
            for node_id, client in self._online():
                if node_id not in but:
                    nursery.start_soon(put, node_id, client)
        return holders

    def _holders(self) -> list[NodeId]:
        """The nodes that took the published head."""
        return [NodeId(n) for n in self._state.info("head_holders") or []]

    def _enough(self, holders: list[NodeId]) -> bool:
        """Whether these nodes give a head the level ``guaranteed``."""
        return self._survives(holders, REMEMBERED)

    async def measure(self) -> Level:
        """The level of the metadata: its stripes, and the head at nodes of which no 2f authorities can take all."""
        level = Level.LOCAL
        if self._state.info("head_out") is True:
            level = Level.GUARANTEED
            if not self._enough(self._holders()):
                level = Level.REMOTE
            turns = Turns()
            for stripe in self._state.metadata_stripes():
                level = min(level, self._state.health(stripe).level)
                await turns.item()
        if self._state.info("metadata_level") != int(level):
            with self._state.writing():
                self._state.save_info("metadata_level", int(level))
        return level
