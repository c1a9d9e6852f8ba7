"""Heads and the metadata tree in a simulated hive (G3): what whoever lost this machine would find at the nodes.

The engine's own checkpoints run over the engine's book. Here the heads that nodes truly have are opened, their trees walked
over the shares that truly are on disks, and three things are asked for, by plain counts:

- whichever authorities that may be lost together withhold what they have, the newest head that is out is left;
- its tree can be read, also without them while none of its shares is destroyed;
- what it says of files is still so: a share that it names is not deleted because it lies elsewhere by now.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import trio

from hivefs.content import coding
from hivefs.crypto import keys
from hivefs.crypto.seal import RecordSealer, open_chunk
from hivefs.errors import HivefsError, NotEnoughShares
from hivefs.formats import head as head_format
from hivefs.formats import records
from hivefs.formats import stripe as stripe_format
from hivefs.maintenance.checkpoint import Checkpoint, Pages
from hivefs.maintenance.tree_reader import TreeReader
from hivefs.model.head import Head, Root
from hivefs.model.ids import DeviceId, NodeId, ShareId, StripeId
from hivefs.model.stripe import PageRef, Purpose, Stripe
from hivefs.testing.sim.nodes import OWNER_SEED, SimNode
from hivefs.testing.sim.truth import Kept, Violation

if TYPE_CHECKING:
    from hivefs.content.packing import Packed
    from hivefs.placement.policy import Policy
    from hivefs.testing.sim.engine import Life
    from hivefs.testing.sim.world import World

VAULT = keys.VaultKeys(OWNER_SEED)
DEVICE_SEED = bytes([9]) * 32
DEVICE = DeviceId(keys.public_key(DEVICE_SEED))
CERTIFICATE = head_format.sign_certificate(VAULT.owner_seed, DEVICE, 1, 1)
SOON = 12 * 3600.0
"""After so long a head says what was made again."""
PAUSE = 4 * 3600.0
"""Seconds from a change to the head with it. The engine takes 3 to 13, and looks once a second for what is to be deleted;
here it looks for that every three hours (engine.LOOK), so heads come later, as there.
"""


class _NoChanges:
    """The drive's own metadata: it has none here, the engine's book is what the tree holds."""

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        return iter(())


@contextmanager
def _snapshot() -> Iterator[_NoChanges]:
    yield _NoChanges()


class Heads:
    """For one world. ``book`` is what the newest head that is out says of stripes; ``pages`` are its stripes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sealer = RecordSealer(VAULT.head_key, random.Random("unused").randbytes)
        self.out: Head | None = None
        self.book: dict[StripeId, Stripe] = {}
        self.pages: set[StripeId] = set()
        self.recoveries = 0

    # ---- the engine's side ------------------------------------------------------------------------------------------

    def wire(self, life: Life, chance: random.Random) -> Callable[[], Any]:
        """The duty that makes checkpoints."""
        place = life.writer.place
        known: dict[StripeId, Kept] = {}

        async def announced(packed: Packed, purpose: Purpose, stripe_id: StripeId, policy: Policy | None = None) -> Stripe:
            if purpose == Purpose.METADATA:
                known[stripe_id] = self._world.files.know(packed, policy or life.policy)
                known[stripe_id].meta = True
                known[stripe_id].repair_at = len(known[stripe_id].share_ids) - 1
            return await place(packed, purpose, stripe_id, policy)

        def recorded(stripe_id: StripeId) -> None:
            kept = known.pop(stripe_id)
            kept.lost = False
            self._world.truth.placed(kept, stripe_id)
            self._world.truth.late(kept)
            life.repair.add(stripe_id)

        life.writer.place = announced  # type: ignore[method-assign]
        pages = Pages(VAULT, life.store, life.reader, life.writer, chance.randbytes)
        pages.on_recorded = recorded
        rules = life.wired.policies
        checkpoint = Checkpoint(
            VAULT,
            CERTIFICATE,
            DEVICE_SEED,
            bytes(32),
            life.store,
            pages,
            cast("Any", rules.keepers),
            rules.survives,
            life.clock,
            chance.randbytes,
        )
        life.wired.engine.checkpoint = checkpoint

        def reap(closed: int) -> None:
            self._world.soon(self.look)
            life.garbage.reap(closed)

        checkpoint.on_reap = reap
        checkpoint.sweep()

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(checkpoint.run, cast("Any", self._world.files), cast("Any", _snapshot))
                while True:
                    await life.store.dirty.wait()
                    life.store.dirty = trio.Event()
                    await trio.sleep(PAUSE)
                    checkpoint.poke()

        return run

    # ---- what is out there ------------------------------------------------------------------------------------------

    def holders(self, head: Head) -> list[SimNode]:
        """Nodes that keep this head or a newer one, whether they answer now or not."""
        nodes = [n for n in self._world.nodes.values() if not n.dead and n.head is not None]
        return [n for n in nodes if n.head is not None and n.head.sequence >= head.sequence]

    async def look(self) -> None:
        """A head was said to be out: no authorities that may be lost can withhold it, and its tree can be read."""
        heads = [n.head for n in self._world.nodes.values() if n.head is not None and not n.dead]
        head = max(heads, key=lambda h: h.sequence)
        self._nobody_withholds(head, 1, "is out")
        root = head_format.open_root(self._sealer, head)
        book, pages = await self._walk(root, frozenset())
        self.out, self.book, self.pages = head, book, pages

    def _nobody_withholds(self, head: Head, times: int, words: str) -> None:
        sets = [node.countries for node in self.holders(head)]
        names = sorted(frozenset[str]().union(*sets))
        for rule in self._world.policy.rules:
            for members in combinations(names, times * rule.lose):
                if rule.family == "jurisdiction" and all(not s.isdisjoint(members) for s in sets):
                    raise Violation(f"head {head.sequence} {words}, and {' and '.join(members)} can withhold it")

    async def check(self) -> None:
        """Every day: recover from what is there, with nobody withholding anything and without each jurisdiction."""
        world = self._world
        if self.out is None or world.life.store.dead:
            return
        if world.life.store.metadata_level().name == "GUARANTEED" and world.impaired_until < trio.current_time():
            self._nobody_withholds(self.out, 2, "is called guaranteed")
        root = head_format.open_root(self._sealer, self.out)
        pages = [world.truth.by_id[s] for s in self.pages]
        # A share that was made again a moment ago is not in a head yet.
        settled = all(trio.current_time() - kept.put_at > SOON for kept in pages)
        whole = settled and all(kept.left == len(kept.share_ids) for kept in pages)
        await self._walk(root, frozenset())
        for name in ("", *world.scenario.countries) if whole else ():
            await self._walk(root, frozenset({name}))
            self.recoveries += 1
        for stripe_id, stripe in self.book.items():
            kept = world.truth.by_id.get(stripe_id)
            if kept is None or kept.lost or world.truth.given_up(kept) or kept.left < kept.needed:
                continue
            named = [world.by_id[s.node].number if s.node is not None else 0 for s in stripe.shares]
            there = sum(1 for index, number in enumerate(named) if number in kept.intact[index])
            late = world.impaired_until > trio.current_time()
            if there < kept.needed and not late:
                raise Violation(f"by head {self.out.sequence} only {there} shares of stripe {kept.name} would be found")

    def deleted(self, node: SimNode, kept: Kept, share_id: ShareId) -> None:
        """A node was asked to forget a whole copy. The newest head must not send anybody there for it."""
        stripe = None if kept.stripe_id is None else self.book.get(kept.stripe_id)
        if stripe is not None and not kept.lost and not self._world.truth.given_up(kept):
            named: list[NodeId | None] = [share.node for share in stripe.shares if share.share_id == share_id]
            if node.node_id in named:
                raise Violation(
                    f"node {node.number} deletes a share of stripe {kept.name} that the newest head names there"
                )

    # ---- reading without the engine ---------------------------------------------------------------------------------

    async def _walk(self, root: Root, without: frozenset[str]) -> tuple[dict[StripeId, Stripe], set[StripeId]]:
        """Data stripes that a tree names, and the stripes that its pages lie in; read without the nodes under some
        authorities. With the authority "" each share must be where the tree says. Raises Violation.
        """

        async def fetch(ref: PageRef, stripe: Stripe) -> bytes:
            share = self._share(ref, stripe, without)
            sealed = share[ref.place.offset : ref.place.offset + ref.place.length]
            return open_chunk(ref.key, VAULT.vault_id, Purpose.METADATA, ref.length, ref.codec, sealed)

        reader, book, pages = TreeReader(fetch), dict[StripeId, Stripe](), set[StripeId]()
        try:
            async for leaf, _ in reader.walk(root):
                for key, value in leaf.records:
                    if key[:1] == records.stripe_key(b"")[:1]:
                        stripe = stripe_format.from_bytes(value)
                        book[stripe.stripe_id] = stripe
            async for stripe in reader.stripes(root):
                pages.add(stripe.stripe_id)
        except HivefsError as error:
            raise Violation(
                f"the newest tree cannot be read without {' and '.join(without) or 'anybody'}: {error}"
            ) from None
        return book, pages

    def _share(self, ref: PageRef, stripe: Stripe, without: frozenset[str]) -> bytes:
        """From the nodes that the tree itself names."""
        kept, by_id = self._world.truth.by_id[ref.place.stripe_id], self._world.by_id
        named = [(i, by_id[share.node]) for i, share in enumerate(stripe.shares) if share.node is not None]
        there = [i for i, n in named if n.number in kept.intact[i]]
        if "" in without and len(there) < len(stripe.shares):
            raise Violation(f"the newest tree names nodes for stripe {kept.name} that do not have its shares")
        there = [i for i, n in named if i in there and n.countries.isdisjoint(without)]
        if len(there) < kept.needed:
            raise NotEnoughShares(have=len(there), needed=kept.needed, stripe=str(kept.name), reason="a simulated recovery")
        if ref.place.index in there:
            return kept.data[ref.place.index]
        shares = [*kept.data, *coding.encode(kept.needed, len(kept.share_ids), kept.data)]
        found = {i: shares[i] for i in there[: kept.needed]}
        return coding.remake(kept.needed, len(kept.share_ids), found, [ref.place.index])[ref.place.index]
