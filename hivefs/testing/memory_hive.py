"""A hive in memory: nodes that speak as NodeClient does, without streams. For tests of what the engine decides and does.

Nodes can be stopped, started again, wiped, filled, and made to corrupt what they give back. Shares are checked against
their names as a real node and a real client do.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import trio

from hivefs.chunkstore.conversation import Early
from hivefs.chunkstore.patience import Patience
from hivefs.crypto import keys
from hivefs.errors import ConnectionLost, Corrupt, HeadStale, NodeBusy, NodeFull, PeerUnreachable, ShareMissing
from hivefs.formats import head as head_format
from hivefs.formats import receipt as receipt_format
from hivefs.formats.attestation import statement_to_bytes
from hivefs.formats.member import entry_to_bytes, sign_address, sign_member
from hivefs.formats.revoked import revocations_from_bytes
from hivefs.model.attestation import Statement
from hivefs.model.head import Head
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import CREDITS_MARK, LEAVING_MARK, Attribute, Membership, Role, RosterEntry
from hivefs.model.receipt import Listed, Receipt
from hivefs.node.sums import Sums
from hivefs.protocol.answers import HiveState, Listing, News, NodeStat

HIVE_SEED = bytes([7]) * 32

PATIENCE = 60.0
"""Silence that is borne of a node in memory, in seconds: only the machine can be slow here, and that is no reason to ask
others. (Late nodes: tests/chunkstore/test_reader_late.py.)
"""


@dataclass
class MemoryNode:
    """One node. ``up`` is whether it answers; ``rotten`` shares come back damaged; while ``busy`` it refuses shares,
    and counts how many it ``refused``; ``leaving_s`` is since when it leaves; ``also`` is what the owner says of it
    beside country and operator. An ``old`` one knows no receipts and ends the conversation when it is asked for one;
    ``clock_ns`` is what its clock says (None: the machine's), ``credits`` the vault that it credits, ``dropped`` how
    many shares it says that its disk has lost, ``grants_ns`` for how long it keeps shares at most (by ``now``).
    """

    number: int
    country: str
    operator: str
    capacity: int = 1 << 30
    up: bool = True
    shares: dict[ShareId, bytes] = field(default_factory=dict)
    heads: dict[bytes, Head] = field(default_factory=dict)
    rotten: set[ShareId] = field(default_factory=set)
    puts: int = 0
    leaving_s: int = 0
    also: tuple[Attribute, ...] = ()
    epoch: int = 1
    busy: bool = False
    refused: int = 0
    stopped: trio.Event = field(default_factory=trio.Event)
    leases: dict[ShareId, int] = field(default_factory=dict)
    receipts: int = 0
    agreed: list[Receipt] = field(default_factory=list)
    old: bool = False
    clock_ns: int | None = None
    credits: str = ""
    dropped: int = 0
    grants_ns: int | None = None
    now: Callable[[], int] = time.time_ns

    def lease(self, share_id: ShareId, wanted_ns: int) -> int:
        """Until when it keeps a share that is wanted until then (ns since 1970)."""
        until = wanted_ns if self.grants_ns is None else min(wanted_ns, self.now() + self.grants_ns)
        self.leases[share_id] = max(until, self.leases.get(share_id, until))
        return self.leases[share_id]

    @property
    def seed(self) -> bytes:
        """Its Ed25519 seed."""
        return self.number.to_bytes(32, "big")

    @property
    def node_id(self) -> NodeId:
        """Its public key."""
        return NodeId(keys.public_key(self.seed))

    @property
    def used(self) -> int:
        """Bytes of shares."""
        return sum(map(len, self.shares.values()))

    def entry(self) -> RosterEntry:
        """Its roster entry, signed."""
        said = (
            Attribute("country", self.country),
            Attribute("operator", self.operator),
            Attribute("operator_country", self.country),
            *self.also,
        )
        member = sign_member(HIVE_SEED, Membership(b"", self.node_id, Role.NODE, said, 1, 0, self.epoch))
        told: tuple[str, ...] = (f"/ip4/127.0.0.1/tcp/{self.number}",)
        if self.leaving_s:
            told = (*told, LEAVING_MARK + str(self.leaving_s))
        if self.credits:
            told = (*told, CREDITS_MARK + self.credits)
        return RosterEntry(member, sign_address(self.seed, told, max(1, self.leaving_s)))

    def stop(self) -> None:
        """It does not answer any more; conversations break."""
        self.up = False
        self.stopped.set()

    def start(self) -> None:
        """It answers again."""
        self.up = True
        self.stopped = trio.Event()


class MemoryClient:
    """A conversation with a MemoryNode (the methods of chunkstore.NodeClient)."""

    def __init__(self, hive: MemoryHive, node: MemoryNode) -> None:
        self._hive = hive
        self._node = node
        self._stopped = node.stopped
        self.node_id = node.node_id
        self.peer = node.node_id.hex()[:12]
        self.patience = Patience(PATIENCE)
        self.moved = 0.0
        self.relayed = False
        self.way = ""
        self.ahead_ns = 0
        self.greeted = SimpleNamespace(hive_key=keys.public_key(HIVE_SEED), node_key=node.node_id, membership=None)
        self.greeted.node_membership = node.entry().membership

    def departed(self, share_id: ShareId, asked: float) -> tuple[float, bool]:
        """There is no line on which a request could wait."""
        return asked, True

    async def _answer(self) -> None:
        await trio.sleep(self._hive.delay)
        if self._stopped.is_set() or not self._node.up:
            raise ConnectionLost(peer=str(self._node.number), reason="it is down")

    async def put(self, share_id: ShareId, data: bytes, lease_ns: int, *, timeout: float = 30) -> int:
        """Keep a share."""
        await self._answer()
        if hashlib.sha256(data).digest() != share_id:
            raise Corrupt(what="a share", reason="its hash is wrong")
        if self._node.busy:
            self._node.refused += 1
            raise NodeBusy(peer=str(self._node.number), reason="its line is full")
        if self._node.leaving_s or self._node.used + len(data) > self._node.capacity:
            raise NodeFull(peer=str(self._node.number), reason="full")
        self._node.shares[share_id] = data
        until = self._node.lease(share_id, lease_ns)
        self._node.rotten.discard(share_id)
        self._node.puts += 1
        return min(lease_ns, until)

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
        """A share or a range of it, checked, and never early."""
        self._hive.asked.append((self._node.number, share_id, offset, length))
        await self._answer()
        data = self._node.shares.get(share_id)
        if data is None:
            raise ShareMissing(peer=str(self._node.number), share=share_id.hex()[:12])
        if share_id in self._node.rotten or hashlib.sha256(data).digest() != share_id:
            raise Corrupt(what="a share", reason="its hash is wrong")
        return data[offset:] if length is None else data[offset : offset + length]

    async def have(self, share_ids: Sequence[ShareId], *, timeout: float = 30) -> list[int]:
        """Sizes."""
        await self._answer()
        return [len(self._node.shares.get(s, b"")) for s in share_ids]

    async def delete(self, share_ids: Sequence[ShareId], *, timeout: float = 30) -> list[bool]:
        """Forget shares."""
        await self._answer()
        return [self._node.shares.pop(s, None) is not None for s in share_ids]

    async def renew(self, share_ids: Sequence[ShareId], lease_ns: int, *, timeout: float = 30) -> list[bool]:
        """Prolong leases."""
        await self._answer()
        for share_id in share_ids:
            if share_id in self._node.shares:
                self._node.lease(share_id, lease_ns)
        return [s in self._node.shares for s in share_ids]

    def _know(self) -> None:
        if self._node.old:
            self._stopped.set()
            if self._node.stopped is self._stopped:
                self._node.stopped = trio.Event()
            raise ConnectionLost(peer=self.peer, reason="the node ended the conversation")

    async def get_receipt(self, nonce: bytes, *, timeout: float = 30) -> tuple[Receipt, Receipt | None]:
        """Signed with its key; all shares are the one vault's."""
        await self._answer()
        self._know()
        node = self._node
        node.receipts += 1
        now = time.time_ns() if node.clock_ns is None else node.clock_ns
        made = Receipt(node.node_id, self._hive.owner, node.receipts, now, nonce, len(node.shares), node.used)
        signed = receipt_format.sign_receipt(made, lambda message: keys.sign(node.seed, message))
        return signed, node.agreed[-1] if node.agreed else None

    async def agree(self, receipt: Receipt, *, timeout: float = 30) -> Receipt:
        """Keep it, with a countersignature of zeros."""
        await self._answer()
        made = replace(receipt, counter=bytes(64))
        self._node.agreed.append(made)
        return made

    async def list_shares(self, after: bytes = b"", *, timeout: float = 30) -> Listing:
        """Three at a time, so that paging is used."""
        await self._answer()
        self._know()
        ids = [s for s in sorted(self._node.shares) if s > after]
        page = tuple(Listed(s, self._node.leases.get(s, 0), len(self._node.shares[s])) for s in ids[:3])
        return Listing(b"" if len(ids) <= 3 else page[-1].share_id, page)

    async def put_head(self, head: bytes, *, timeout: float = 30) -> None:
        """Keep the newest of each device."""
        await self._answer()
        new = head_format.from_bytes(head)
        old = self._node.heads.get(new.certificate.device)
        if old is not None and old.sequence > new.sequence:
            raise HeadStale(peer=str(self._node.number), sequence=new.sequence, device="")
        self._node.heads[new.certificate.device] = new

    async def get_heads(self, *, timeout: float = 30) -> list[Head]:
        """All heads."""
        await self._answer()
        return list(self._node.heads.values())

    async def get_roster(self, *, timeout: float = 30) -> list[RosterEntry]:
        """All nodes of the hive."""
        await self._answer()
        return [node.entry() for node in self._hive.nodes]

    async def put_roster(self, entries: Sequence[RosterEntry], *, timeout: float = 30) -> int:
        """Nothing is new to it."""
        await self._answer()
        return 0

    async def hive_state(self, *, timeout: float = 30) -> HiveState:
        """Only revocations are known here."""
        await self._answer()
        data = self._hive.revoked
        return HiveState(0 if data is None else revocations_from_bytes(data).sequence, bytes(32))

    async def get_revoked(self, *, timeout: float = 30) -> bytes | None:
        """The hive's list."""
        await self._answer()
        return self._hive.revoked

    async def put_revoked(self, revoked: bytes, *, timeout: float = 30) -> bool:
        """All nodes have it at once."""
        await self._answer()
        self._hive.revoked = revoked
        return True

    async def news(self, *, timeout: float = 30) -> News:
        """Digests of all entries and statements."""
        await self._answer()
        return News((await self._sums(False)).whole, (await self._sums(True)).whole)

    async def get_statements(self, take: Callable[[list[Statement]], Awaitable[object]], *, timeout: float = 30) -> None:
        """What nodes say of themselves."""
        await self._answer()
        await take(list(self._hive.statements))

    async def _sums(self, statements: bool) -> Sums:
        sums = Sums()
        if statements:
            for said in self._hive.statements:
                sums.change(said.node_id, statement_to_bytes(said))
        else:
            for entry in await self.get_roster():
                sums.change(entry.membership.subject, entry_to_bytes(entry))
        return sums

    async def ranges(self, statements: bool, *, timeout: float = 30) -> list[bytes]:
        """Of all entries, or statements."""
        return (await self._sums(statements)).ranges()

    async def get_roster_range(
        self, first: int, take: Callable[[list[RosterEntry]], Awaitable[object]], *, timeout: float = 30
    ) -> int:
        """Entries of that range."""
        found = [entry for entry in await self.get_roster() if entry.membership.subject[0] == first]
        self._hive.ranges_given.append((False, first))
        await take(found)
        return sum(len(entry_to_bytes(entry)) for entry in found)

    async def get_statement_range(
        self, first: int, take: Callable[[list[Statement]], Awaitable[object]], *, timeout: float = 30
    ) -> int:
        """Statements of that range."""
        await self._answer()
        found = [said for said in self._hive.statements if said.node_id[0] == first]
        self._hive.ranges_given.append((True, first))
        await take(found)
        return sum(len(statement_to_bytes(said)) for said in found)

    async def stat(self, *, timeout: float = 30) -> NodeStat:
        """Room."""
        await self._answer()
        return self._hive.stat(self._node)

    async def ping(self, *, timeout: float = 30) -> None:
        """A sign of life."""
        await self._answer()

    async def wait_closed(self) -> None:
        """Wait until the node ends this conversation, or has ended it: it may be back by now."""
        await self._stopped.wait()


class MemoryHive:
    """Nodes by number, two per country by default. ``delay`` in seconds before every answer."""

    def __init__(self, countries: Sequence[str] = ("DE", "FR", "CH", "IS"), per_country: int = 2) -> None:
        self.nodes = [
            MemoryNode(i + 1, country, f"operator-{i + 1}")
            for i, country in enumerate(c for c in countries for _ in range(per_country))
        ]
        self.delay = 0.0
        self.owner = bytes(32)
        self.revoked: bytes | None = None
        self.statements: list[Statement] = []
        self.ranges_given: list[tuple[bool, int]] = []
        """(Statements or roster, first byte) of each range that was fetched."""
        self.asked: list[tuple[int, ShareId, int, int | None]] = []
        """Every GET so far: node, share, offset, length."""

    def by_id(self, node_id: NodeId) -> MemoryNode:
        """The node with that key."""
        return next(node for node in self.nodes if node.node_id == node_id)

    def stat(self, node: MemoryNode) -> NodeStat:
        """What a node says of its room."""
        free = 0 if node.leaving_s else max(0, node.capacity - node.used)
        return NodeStat(
            capacity=node.capacity,
            used=node.used,
            free_bytes=free,
            shares=len(node.shares),
            dropped=node.dropped,
            time_ns=time.time_ns() if node.clock_ns is None else node.clock_ns,
            version="memory",
        )

    @asynccontextmanager
    async def dial(self, entry: RosterEntry) -> AsyncIterator[MemoryClient]:
        """The Dial of chunkstore.pool."""
        node = self.by_id(NodeId(entry.membership.subject))
        if not node.up:
            raise PeerUnreachable(address=str(node.number), reason="it is down")
        yield MemoryClient(self, node)
