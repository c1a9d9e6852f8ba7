"""A node as the simulator has it: shares with leases, and every way in which a node can be bad."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import trio

from hivefs.chunkstore.conversation import Early
from hivefs.chunkstore.patience import Patience
from hivefs.content.merkle import merkle_root as root_of
from hivefs.crypto import keys
from hivefs.errors import ConnectionLost, Corrupt, HeadStale, NodeFull, PeerTimeout, ShareMissing
from hivefs.formats import head as head_format
from hivefs.formats.member import sign_address, sign_member
from hivefs.formats.receipt import countersign, sign_receipt
from hivefs.model.head import Head
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import Attribute, Membership, Role, RosterEntry
from hivefs.model.receipt import Listed, Receipt
from hivefs.node.leases import GRACE_NS, SKEW_NS, LeaseClock, grant
from hivefs.protocol.answers import Listing, NodeStat

if TYPE_CHECKING:
    from hivefs.testing.sim.truth import Truth

HIVE_SEED = bytes([7]) * 32
OWNER_SEED = bytes([8]) * 32
OWNER = keys.public_key(OWNER_SEED)
BEGIN_NS = 1_800_000_000 * 10**9
DAY = 86_400.0
DAY_NS = 86_400 * 10**9


@dataclass(eq=False, slots=True)
class Held:
    """What a node has of a share: the bytes (perhaps not those any more), and until when it promised to keep them."""

    data: bytes
    lease_ns: int


@dataclass(eq=False)
class SimNode:
    """``number`` names it for ever. ``drops``: it takes shares, says that it has them, and has not. ``flips``: what it
    gives is altered. ``slow`` in seconds before every answer; ``skew_ns`` is how far its clock is off.
    """

    number: int
    country: str
    operator: str
    operator_country: str
    capacity: int
    began: float
    up: bool = True
    dead: bool = False
    cut: bool = False
    drops: bool = False
    flips: bool = False
    slow: float = 0.05
    skew_ns: int = 0
    shares: dict[ShareId, Held] = field(default_factory=dict)
    pretended: set[ShareId] = field(default_factory=set)
    used: int = 0
    lease_clock: LeaseClock | None = None
    receipts: int = 0
    agreed: Receipt | None = None
    head: Head | None = None

    def __post_init__(self) -> None:
        self.seed = hashlib.sha256(b"simulated node %d" % self.number).digest()
        self.node_id = NodeId(keys.public_key(self.seed))

    @property
    def reachable(self) -> bool:
        """It answers."""
        return self.up and not self.cut and not self.dead

    @cached_property
    def countries(self) -> frozenset[str]:
        """The jurisdictions over it, as they truly are."""
        return frozenset({self.country, self.operator_country})

    def attributes(self) -> tuple[Attribute, ...]:
        """What its certificate says."""
        return (
            Attribute("country", self.country),
            Attribute("operator", self.operator),
            Attribute("operator_country", self.operator_country),
        )

    def entry(self) -> RosterEntry:
        """Its roster entry, signed."""
        return self._entry

    @cached_property
    def _entry(self) -> RosterEntry:
        """Signed once: all nodes are told to each life of the engine."""
        member = sign_member(HIVE_SEED, Membership(b"", self.node_id, Role.NODE, self.attributes(), 1, 0, 1))
        return RosterEntry(member, sign_address(self.seed, (f"/ip4/127.0.0.1/tcp/{self.number % 60_000 + 1}",), 1))

    def time(self, now_ns: int, running_ns: int) -> int:
        """The time that its leases go by."""
        if self.lease_clock is None:
            self.lease_clock = LeaseClock(0, now_ns + self.skew_ns, running_ns)
        return self.lease_clock.observe(now_ns + self.skew_ns, running_ns)

    def collectable(self, now_ns: int, running_ns: int) -> list[ShareId]:
        """Shares whose lease ended so long ago that the node may forget them."""
        clock = self.time(now_ns, running_ns)
        return [s for s, held in self.shares.items() if held.lease_ns + SKEW_NS + GRACE_NS < clock]


class SimClient:
    """A conversation with a SimNode, as the engine's duties use it (chunkstore/node_client.py)."""

    def __init__(self, node: SimNode, truth: Truth, clock: Callable[[], int]) -> None:
        self.node = node
        self.node_id = node.node_id
        self.peer = str(node.number)
        self.patience = Patience()
        self.moved = 0.0
        self.relayed = False
        self.way = ""
        self.ahead_ns = 0
        self._truth = truth
        self._clock = clock

    def time_ns(self) -> int:
        """The node's clock."""
        return self._clock() + self.node.skew_ns

    def departed(self, share_id: ShareId, asked: float) -> tuple[float, bool]:
        """Requests leave at once here."""
        return asked, True

    async def _answer(self, timeout: float) -> None:
        """The way there and back; the node may go meanwhile."""
        if self.node.slow >= timeout:
            await trio.sleep(timeout)
            raise PeerTimeout(peer=self.peer, what="a request", seconds=f"{timeout:g}")
        await trio.sleep(self.node.slow)
        if not self.node.reachable:
            raise ConnectionLost(peer=self.peer, reason="it is down")

    async def put(self, share_id: ShareId, data: bytes, lease_ns: int, *, timeout: float = 30) -> int:
        """Keep a share; the bytes are there before the answer is."""
        await self._answer(timeout)
        if hashlib.sha256(data).digest() != share_id:
            raise Corrupt(what="a share", reason="its hash is wrong")
        node = self.node
        if node.used + len(data) > node.capacity:
            raise NodeFull(peer=self.peer, reason="full")
        self._truth.traffic.put(len(data))
        until = grant(lease_ns + self.ahead_ns, node.time(self._clock(), self._running()))
        if node.drops:
            node.pretended.add(share_id)
            self._truth.pretended(node, share_id)
        else:
            if share_id not in node.shares:
                node.used += len(data)
            node.shares[share_id] = Held(data, until)
            if node.flips:
                self._truth.pretended(node, share_id)
            else:
                self._truth.stored(node, share_id)
        await self._answer(timeout)
        return min(lease_ns, until - self.ahead_ns)

    @staticmethod
    def _running() -> int:
        return round(trio.current_time() * 1e9)

    async def get(
        self,
        share_id: ShareId,
        offset: int = 0,
        length: int | None = None,
        *,
        merkle_root: bytes | None = None,
        timeout: float = 30,
        early: Early | None = None,
    ) -> bytes:
        """A share, checked as a client does."""
        asked = trio.current_time()
        await self._answer(timeout)
        held = self.node.shares.get(share_id)
        if held is None:
            raise ShareMissing(peer=self.peer, share=share_id.hex()[:12])
        data = bytes([held.data[0] ^ 1]) + held.data[1:] if self.node.flips else held.data
        self._truth.traffic.get(len(data))
        self.moved = trio.current_time()
        self.patience.answered(self.moved - asked)
        if hashlib.sha256(data).digest() != share_id or (merkle_root is not None and root_of(data) != merkle_root):
            raise Corrupt(what="a share", reason="its hash is wrong")
        return data[offset:] if length is None else data[offset : offset + length]

    def _has(self, share_id: ShareId) -> bool:
        return share_id in self.node.shares or share_id in self.node.pretended

    async def have(self, share_ids: Sequence[ShareId], *, timeout: float = 30) -> list[int]:
        """Sizes, as the node claims them."""
        await self._answer(timeout)
        return [len(self._truth.find(s)[0].data[0]) if self._has(s) else 0 for s in share_ids]

    async def delete(self, share_ids: Sequence[ShareId], *, timeout: float = 30) -> list[bool]:
        """Forget shares."""
        await self._answer(timeout)
        answer = [self._has(s) for s in share_ids]
        for share_id in share_ids:
            held = self.node.shares.pop(share_id, None)
            if held is not None:
                self.node.used -= len(held.data)
            self.node.pretended.discard(share_id)
            self._truth.deleted(self.node, share_id)
        await self._answer(timeout)
        return answer

    # ---- accounts ---------------------------------------------------------------------------------------------------

    async def stat(self, *, timeout: float = 30) -> NodeStat:
        """Room, and the node's clock."""
        await self._answer(timeout)
        node = self.node
        free = max(0, node.capacity - node.used)
        return NodeStat(node.capacity, node.used, free, len(node.shares), 0, self.time_ns(), "simulated")

    async def get_receipt(self, nonce: bytes, *, timeout: float = 30) -> tuple[Receipt, Receipt | None]:
        """What the node says that it holds, signed; and what was agreed last."""
        await self._answer(timeout)
        node, now = self.node, self.time_ns()
        node.receipts = max(node.receipts + 1, now)
        held = self._all()
        size = sum(share.size for share in held)
        made = Receipt(node.node_id, OWNER, node.receipts, now, nonce, len(held), size)
        return sign_receipt(made, partial(keys.sign, node.seed)), node.agreed

    async def agree(self, receipt: Receipt, *, timeout: float = 30) -> Receipt:
        """Countersign it and give it back."""
        await self._answer(timeout)
        self.node.agreed = countersign(receipt, partial(keys.sign, OWNER_SEED))
        return self.node.agreed

    async def list_shares(self, after: bytes = b"", *, timeout: float = 30) -> Listing:
        """All at once."""
        await self._answer(timeout)
        return Listing(b"", tuple(share for share in self._all() if share.share_id > after))

    async def put_head(self, head: bytes, *, timeout: float = 30) -> None:
        """Keep the newest."""
        await self._answer(timeout)
        new, old = head_format.from_bytes(head), self.node.head
        if old is not None and old.sequence > new.sequence:
            raise HeadStale(peer=self.peer, sequence=new.sequence, device="")
        self.node.head = new

    async def get_heads(self, *, timeout: float = 30) -> list[Head]:
        """The newest that it was given."""
        await self._answer(timeout)
        return [] if self.node.head is None else [self.node.head]

    def _all(self) -> list[Listed]:
        """What the node claims to hold."""
        node = self.node
        claimed = {s: Held(self._truth.find(s)[0].data[0], 0) for s in node.pretended} | node.shares
        return [Listed(s, held.lease_ns, len(held.data)) for s, held in sorted(claimed.items())]

    async def renew(self, share_ids: Sequence[ShareId], lease_ns: int, *, timeout: float = 30) -> list[bool]:
        """Prolong leases."""
        await self._answer(timeout)
        until = grant(lease_ns + self.ahead_ns, self.node.time(self._clock(), self._running()))
        for share_id in share_ids:
            held = self.node.shares.get(share_id)
            if held is not None:
                held.lease_ns = max(held.lease_ns, until)
        return [self._has(s) for s in share_ids]
