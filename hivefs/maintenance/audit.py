"""Audits: each node is asked now and then for a random piece of a random share, with its Merkle path.

The request is what a read of some segments of a chunk sends (chunkstore/reader.py), at the same offsets and of the same
sizes, so a node cannot keep what audits ask for and lose what reads need. What follows a read (the whole share, behind it)
does not follow an audit, but then the node has answered already.

**How much is found.** PER_DAY audits of a node, each of a share drawn anew from all of its shares, are SAMPLES in SEVEN
days: whoever lost one share in a hundred is found with 1 - 0.99^459 = 99 % in that time, one who lost a tenth within 16
hours (44 samples). A node with few shares is asked less often, twice as many times a day as it has shares. Above 261 nodes
the rate is bounded for all together (MOST_PER_DAY), so a thousand nodes need 27 days for the same.

**How much it costs.** MEAN_BYTES and MOST_BYTES are what comes back for one audit, in whole leaves (test_audit.py adds
them up): 8 MiB a day from one node, 17 MiB at the very most, and 2.2 GiB a day from all together. The engine's budget may
make it slower, and audits wait while somebody uses the drive.

**What follows.** A wrong or missing share is repaired and counts against the node. After SEVERAL of them all of its shares
are looked at: HAVE first, then a piece of each. Silence is no lie: the same share is asked for again, and only the third
time in a row it counts as missing. A node that is busy each time has BUSY_S.

Times between two audits are drawn from the exponential distribution, which remembers nothing: a restart of the engine
changes no rate, so when the next one is due is not stored. What a node owes and how far a sweep came is.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import trio
import trio.lowlevel

from hivefs.chunkstore.reader import Answer, Reader
from hivefs.content.merkle import LEAF_BYTES
from hivefs.crypto.seal import TAG_BYTES
from hivefs.errors import HivefsError
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import SEGMENT_BYTES, NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe

log = logging.getLogger(__name__)

SAMPLES: Final = 459
SEVEN: Final = 7
PER_DAY: Final = 66
LEAST_PER_DAY: Final = 4
MOST_PER_DAY: Final = 17_280
DAY: Final = 86_400.0
UNIT: Final = SEGMENT_BYTES + TAG_BYTES
SEGMENTS: Final = (1, 1, 2, 4)
"""How many segments are asked for: reads of 4 to 32 KiB, of 64 and of 128 KiB (the most that the kernel asks for)."""
MEAN_BYTES: Final = 128 << 10
MOST_BYTES: Final = 256 << 10
SEVERAL: Final = 3
STRIKES: Final = 3
STRIKE_EVERY: Final = 60.0
BUSY_S: Final = 2 * DAY
DRAWN: Final = 64
SLICE: Final = 128
HAVE_BATCH: Final = 128
LOOK_EVERY: Final = 1.0


class Haver(Protocol):
    """One conversation: sizes of shares by position, 0 where the node has none."""

    async def have(self, share_ids: list[ShareId]) -> list[int]: ...


class Shares(Protocol):
    """Which shares a node should hold (metadata/engine_store.py)."""

    def stripe(self, stripe_id: StripeId) -> Stripe | None: ...

    def keys(self, table: str, prefix: bytes = ..., after: bytes | None = ..., limit: int = ...) -> list[bytes]: ...


def where(size: int, draw: Callable[[int], int]) -> tuple[int, int]:
    """(offset, length) in a share of ``size`` bytes, as a read of some segments of a chunk that begins with the share.
    ``draw(n)`` gives a number below n. Every byte of the share is about as likely as any other.
    """
    count = SEGMENTS[draw(len(SEGMENTS))]
    first = draw(size) // UNIT
    first = min(first, max(0, -(-size // UNIT) - count))
    return first * UNIT, min((first + count) * UNIT, size) - first * UNIT


def per_day(shares: int, nodes: int) -> float:
    """Audits a day of a node with so many shares, in a hive of which so many nodes hold any."""
    return min(float(PER_DAY), max(LEAST_PER_DAY, 2.0 * shares), MOST_PER_DAY / max(1, nodes))


@dataclass
class Reservoir:
    """``DRAWN`` of all items that go by, each set of them equally likely (Vitter 1985, algorithm R)."""

    draw: Callable[[int], int]
    seen: int = 0
    items: list[StripeId] = field(default_factory=list)

    def add(self, item: StripeId) -> None:
        """One goes by."""
        self.seen += 1
        if len(self.items) < DRAWN:
            self.items.append(item)
        elif (place := self.draw(self.seen)) < DRAWN:
            self.items[place] = item


@dataclass
class _Node:
    """``next`` is when it is asked again, in trio's time; ``sample`` are stripes to ask for, used from the end."""

    next: float
    shares: int = PER_DAY
    sample: list[StripeId] = field(default_factory=list)
    asked_again: float = 0.0


async def _at_once(size: int, urgent: bool) -> None:
    await trio.lowlevel.checkpoint()


class Audit:
    """See the head of the file. ``on_bad(stripe, index, reason)`` has a share made again; it tells trust of it."""

    def __init__(
        self,
        shares: Shares,
        reader: Reader,
        trust: Trust,
        online: Callable[[], Iterable[tuple[NodeId, Haver]]],
        on_bad: Callable[[Stripe, int, str], None],
        random: Callable[[int], bytes],
    ) -> None:
        self._shares = shares
        self._reader = reader
        self._trust = trust
        self._online = online
        self._on_bad = on_bad
        self._random = random
        self._nodes: dict[NodeId, _Node] = {}
        self._failures: Counter[NodeId] = Counter()
        self.admit: Callable[[int, bool], Awaitable[None]] = _at_once
        """Waits until so many bytes may be fetched (maintenance/budget.py)."""
        self.counts: Counter[str] = Counter()
        trust.on_failed = self._failed

    def _draw(self, below: int) -> int:
        return int.from_bytes(self._random(8), "big") % below

    def _pause(self, rate: float) -> float:
        """Seconds until the next audit at that many a day."""
        uniform = (self._draw(1 << 53) + 1) / (1 << 53)
        return -math.log(uniform) * DAY / rate

    def _failed(self, node_id: NodeId) -> None:
        self._failures[node_id] += 1
        if self._failures[node_id] >= SEVERAL and not self._trust.row(node_id).sweep:
            log.warning("node %s failed several times: all its shares are looked at", node_id.hex()[:12])
            self._failures[node_id] = 0
            self._trust.sweep(node_id, bytes(16))

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``."""
        return {
            **{name: self.counts[name] for name in ("passed", "failed", "silent", "busy", "bytes")},
            "owed": self._trust.owed,
            "sweeps": self._trust.sweeps,
            "suspended": self._trust.suspended_nodes,
            "cut_off": self._trust.cut_off,
        }

    # ---- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Audit until cancelled."""
        while True:
            for node_id, client in list(self._online()):
                await self.look(node_id, client)
            await trio.sleep(LOOK_EVERY)

    async def look(self, node_id: NodeId, client: Haver) -> None:
        """What is due at this node now: what it owes, a piece of a sweep, or an audit."""
        now = trio.current_time()
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = _Node(now + self._pause(per_day(PER_DAY, len(self._nodes) + 1)))
        row = self._trust.row(node_id)
        if row.owed and now - node.asked_again >= STRIKE_EVERY:
            node.asked_again = now
            for owed in row.owed:
                await self._audit_stripe(node_id, StripeId(owed.stripe_id), owed.index)
        elif row.sweep and not row.owed:
            await self._sweep(node_id, client, row.sweep)
        elif node.next <= now:
            await self.audit(node_id)
            node.next = trio.current_time() + self._pause(per_day(node.shares, len(self._nodes)))

    async def audit(self, node_id: NodeId) -> Answer | None:
        """One audit of a random share; None when the node has none."""
        node = self._nodes.setdefault(node_id, _Node(0.0))
        if not node.sample:
            await self._take_sample(node_id, node)
        while node.sample:
            stripe_id = node.sample.pop()
            answer = await self._audit_stripe(node_id, stripe_id)
            if answer is not None:
                return answer
        return None

    async def _take_sample(self, node_id: NodeId, node: _Node) -> None:
        reservoir = Reservoir(self._draw)
        after: bytes | None = None
        while keys := self._shares.keys("bynode", node_id, after, SLICE):
            for key in keys:
                reservoir.add(StripeId(key[32:]))
            after = keys[-1]
            await trio.lowlevel.checkpoint()
        node.shares = reservoir.seen
        count = len(reservoir.items)
        if reservoir.seen <= DRAWN:  # drawn with replacement: each audit is of any of all shares
            node.sample = [reservoir.items[self._draw(count)] for _ in range(count)]
        else:
            node.sample = [reservoir.items[i] for i in sorted(range(count), key=lambda _: self._draw(1 << 60))]

    async def _audit_stripe(self, node_id: NodeId, stripe_id: StripeId, index: int | None = None) -> Answer | None:
        """Ask for a piece of the share of that stripe; None when the node need not hold it any more."""
        stripe = self._shares.stripe(stripe_id)
        held = [] if stripe is None else [i for i, s in enumerate(stripe.shares) if s.node == node_id]
        if stripe is None or not held or (index is not None and index not in held):
            if index is not None:
                self._trust.settled(node_id, stripe_id, index)
            return None
        chosen = held[0] if index is None else index
        offset, length = where(stripe.share_bytes, self._draw)
        first = offset // LEAF_BYTES * LEAF_BYTES
        size = min(stripe.share_bytes, -(-(offset + length) // LEAF_BYTES) * LEAF_BYTES) - first
        await self.admit(size, False)
        answer, _ = await self._reader.ask(stripe, chosen, offset, length)
        self._judge(node_id, stripe, chosen, answer, size)
        return answer

    def _judge(self, node_id: NodeId, stripe: Stripe, index: int, answer: Answer, size: int) -> None:
        if answer is Answer.RIGHT:
            self.counts["passed"] += 1
            self.counts["bytes"] += size
            self._trust.passed(node_id)
            self._trust.settled(node_id, stripe.stripe_id, index)
        elif answer is Answer.WRONG:  # the reader said so to repair, and repair to trust
            self.counts["failed"] += 1
            self._trust.settled(node_id, stripe.stripe_id, index)
        elif answer is not Answer.AWAY and not self._trust.cut_off:
            strike = answer is Answer.SILENT
            self.counts["silent" if strike else "busy"] += 1
            owed = self._trust.silent(node_id, stripe.stripe_id, index, strike)
            if owed.strikes >= STRIKES or (not strike and self._trust.owed_since(owed) > BUSY_S):
                self.counts["failed"] += 1
                self._trust.settled(node_id, stripe.stripe_id, index)
                self._on_bad(stripe, index, "the node does not answer for it")

    # ---- all shares of one node -------------------------------------------------------------------------------------

    async def _sweep(self, node_id: NodeId, client: Haver, after: bytes) -> None:
        """The next shares after a stripe id: which of them the node says that it has, then a piece of each of those. A
        silence ends this; it is gone on with when the node has answered for that share, or had its strikes.
        """
        keys = [] if self._trust.suspended(node_id) else self._shares.keys("bynode", node_id, node_id + after, HAVE_BATCH)
        if not keys:  # or all of them move away anyway, and are read for that
            self._trust.sweep(node_id, b"")
            self._failures[node_id] = 0
            return
        batch = self._batch(node_id, keys)
        try:
            sizes = await client.have([stripe.shares[index].share_id for stripe, index in batch])
        except HivefsError as error:
            log.info("looking at all shares of node %s waits: %s", node_id.hex()[:12], error)
            return
        for (stripe, index), size in zip(batch, sizes, strict=True):
            if size != stripe.share_bytes:
                self.counts["failed"] += 1
                self._on_bad(stripe, index, "the node does not have it")
            elif await self._audit_stripe(node_id, stripe.stripe_id, index) in (Answer.SILENT, Answer.BUSY, Answer.AWAY):
                return
            if self._trust.suspended(node_id):
                break
            self._trust.sweep(node_id, stripe.stripe_id)
        if not self._trust.suspended(node_id):
            self._trust.sweep(node_id, keys[-1][32:])

    def _batch(self, node_id: NodeId, keys: Sequence[bytes]) -> list[tuple[Stripe, int]]:
        batch = []
        for key in keys:
            stripe = self._shares.stripe(StripeId(key[32:]))
            if stripe is not None:
                batch += [(stripe, i) for i, share in enumerate(stripe.shares) if share.node == node_id]
        return batch
