"""Checking chunks, stripes and shares: the part of ``hivefs check`` that looks beyond one machine.

The other part, names and inodes and maps, is filesystem/check.py. Findings are *problems* (something is wrong or lost)
or *notices* (something is being put right by itself, such as a stripe that waits for repair).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from hivefs.chunkstore.reader import Reader
from hivefs.errors import HivefsError
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId
from hivefs.model.stripe import Level, Stripe
from hivefs.placement.health import State as StripeState

HAVE_BATCH = 512
SLICE = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is a fixed word for programs, ``detail`` a sentence for people (ids only, never names)."""

    kind: str
    detail: str
    problem: bool


class Haver(Protocol):
    """One conversation, as the check uses it: sizes of shares by position, 0 where the node has none."""

    peer: str

    async def have(self, share_ids: list[ShareId]) -> list[int]: ...


Report = Callable[[str, int, int], None]
"""Called with what is done, how far, and of how many."""


class HiveCheck:
    """``on_bad`` hears of shares found missing or damaged, so that repair begins."""

    def __init__(
        self,
        state: State,
        reader: Reader,
        online: Callable[[], Iterable[tuple[NodeId, Haver]]],
        on_bad: Callable[[Stripe, int, str], None],
    ) -> None:
        self._state = state
        self._reader = reader
        self._online = online
        self._on_bad = on_bad
        self.findings: list[Finding] = []

    def found(self, kind: str, detail: str, problem: bool = True) -> None:
        self.findings.append(Finding(kind, detail, problem))

    async def nodes(
        self, node_ids: Iterable[NodeId], count: int, damaged_of: Callable[[NodeId], list[str]], report: Report
    ) -> None:
        """What this machine keeps of each node can be read."""
        turns = Turns()
        for number, node_id in enumerate(node_ids):
            for words in damaged_of(node_id):
                self.found("node-damaged", f"node {node_id.hex()}: {words}")
            if number % SLICE == 0:
                report("nodes", number, count)
            await turns.item()

    async def chunks(
        self, named: Collection[ChunkId], report: Report, again: Callable[[], Awaitable[Collection[ChunkId]]]
    ) -> None:
        """Every chunk that a file names is in a known stripe, inside its share, and counted there.

        Files change meanwhile: what seems wrong is a finding only if files ``again`` name the same chunk.
        """
        suspects = await self._wrong_chunks(named, report)
        if suspects:
            still = set(await again())
            for chunk_id, (kind, detail) in (await self._wrong_chunks(set(suspects) & still, report)).items():
                self.found(kind, f"chunk {chunk_id.hex()} {detail}")

    async def _wrong_chunks(self, named: Collection[ChunkId], report: Report) -> dict[ChunkId, tuple[str, str]]:
        wrong: dict[ChunkId, tuple[str, str]] = {}
        alive: dict[StripeId, set[ChunkId]] = {}
        turns = Turns()
        for number, chunk_id in enumerate(named):
            place = self._state.place(chunk_id)
            stripe = None if place is None else self._state.stripe(place.stripe_id)
            if place is None or stripe is None:
                wrong[chunk_id] = ("chunk-unknown", "is named by a file but no stripe holds it")
            elif place.index >= stripe.needed or place.offset + place.length > stripe.share_bytes:
                wrong[chunk_id] = ("chunk-place", "lies outside its stripe")
            else:
                alive.setdefault(place.stripe_id, set()).add(chunk_id)
            await turns.item()
            if number % SLICE == 0:
                report("chunks", number, len(named))
        for stripe_id, chunk_ids in alive.items():
            if self._state.live(stripe_id) < len(chunk_ids):
                wrong.update((c, ("live-count", "is in a stripe that counts fewer than it holds")) for c in chunk_ids)
            await turns.item()
        return wrong

    async def stripes(self, report: Report) -> None:
        """Every stripe as its record and the nodes' answers have it."""
        held = await self._ask_nodes(report)
        total, turns = 0, Turns()
        for total, stripe in enumerate(self._state.stripes(), 1):
            for index, share in enumerate(stripe.shares):
                if share.node is None or share.node not in held:
                    continue
                size = held[share.node].get(share.share_id)
                if size is not None and size != stripe.share_bytes:
                    await self._suspect(stripe, index)
            self._judge(stripe)
            await turns.item()
            if total % SLICE == 0:
                report("stripes", total, 0)
        report("stripes", total, total)

    async def _suspect(self, stripe: Stripe, index: int) -> None:
        """A node's answer does not fit. While we asked, repair and deletion went on: only what is still recorded so, and
        is answered so again, is a finding.
        """
        share = stripe.shares[index]
        now = self._state.stripe(stripe.stripe_id)
        client = dict(self._online()).get(share.node) if share.node is not None else None
        if now is None or now.shares[index].node != share.node or client is None:
            return
        try:
            size = (await client.have([share.share_id]))[0]
        except HivefsError:
            return
        if size == stripe.share_bytes or self._state.stripe(stripe.stripe_id) != now:
            return
        what = f"has {size} bytes instead of {stripe.share_bytes}" if size else "is missing"
        name = f"share {index} of stripe {stripe.stripe_id.hex()}"
        self.found("share-missing", f"{name} {what} at node {client.peer}")
        self._on_bad(stripe, index, "missing")

    def _judge(self, stripe: Stripe) -> None:
        health = self._state.health(stripe)
        name = stripe.stripe_id.hex()
        if health.state == StripeState.LOST:
            self.found("stripe-lost", f"stripe {name} has {health.counted} of the {stripe.needed} shares it needs")
        elif health.state != StripeState.HEALTHY:
            when = "repair waits until fewer are left" if health.waits else "repair is queued"
            detail = f"stripe {name} is {health.state.value}: {health.counted} of {stripe.total} shares, {when}"
            self.found("stripe-" + health.state.value, detail, problem=False)
        elif health.level != Level.GUARANTEED:
            self.found("stripe-unproved", f"stripe {name}: {health.words}", problem=False)

    async def _ask_nodes(self, report: Report) -> dict[NodeId, dict[ShareId, int]]:
        held: dict[NodeId, dict[ShareId, int]] = {}
        online = list(self._online())
        for number, (node_id, client) in enumerate(online):
            report("nodes", number, len(online))
            sizes: dict[ShareId, int] = {}
            try:
                async for batch in self._shares_at(node_id):
                    answer = await client.have(batch)
                    sizes.update(zip(batch, answer, strict=True))
            except HivefsError as error:
                self.found("node-silent", f"node {node_id.hex()[:12]} stopped answering: {error}", problem=False)
                continue
            held[node_id] = sizes
        report("nodes", len(online), len(online))
        return held

    async def _shares_at(self, node_id: NodeId):  # type: ignore[no-untyped-def]
        batch: list[ShareId] = []
        turns = Turns()
        for stripe_id in self._state.each_on(node_id):
            await turns.item()
            stripe = self._state.stripe(stripe_id)
            if stripe is not None:
                batch += [share.share_id for share in stripe.shares if share.node == node_id]
            if len(batch) >= HAVE_BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    async def data(self, report: Report) -> None:
        """Read every share that a node holds and verify it; and that the shares of each stripe fit together."""
        total = self._state.count("live")
        for number, stripe in enumerate(self._state.stripes()):
            report("data", number, total)
            await self._read_all(stripe)
        report("data", total, total)

    async def _read_all(self, stripe: Stripe) -> None:
        good = 0
        bad: list[int] = []

        async def read(index: int) -> None:
            nonlocal good
            data = await self._reader.one(stripe, index)
            if data is not None and hashlib.sha256(data).digest() == stripe.shares[index].share_id:  # its name, too
                good += 1
            else:
                bad.append(index)

        async with trio.open_nursery() as nursery:
            for index, share in enumerate(stripe.shares):
                if share.node is not None:
                    nursery.start_soon(read, index)
        name = stripe.stripe_id.hex()
        for index in bad:
            now = self._state.stripe(stripe.stripe_id)
            damaged = now is not None and now.shares[index].node is None
            if damaged:
                self.found("share-damaged", f"share {index} of stripe {name} was damaged or missing; it is made again")
            else:
                self.found("share-unread", f"share {index} of stripe {name} could not be read now", problem=False)
        if good < stripe.needed:
            self.found("stripe-unreadable", f"only {good} of the {stripe.needed} needed shares of stripe {name} are good")
