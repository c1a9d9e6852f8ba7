"""What the node answers to each request of a peer that has proved itself (protocol/node_side.Session).

Runs in trio; everything that touches the disk for longer than an index lookup goes into worker threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import trio

from hivefs import __version__
from hivefs.content import merkle
from hivefs.errors import DiskFull, HivefsError
from hivefs.formats import head as head_format
from hivefs.formats import member
from hivefs.model.head import Head
from hivefs.model.ids import ShareId, VaultId
from hivefs.model.node import Membership
from hivefs.node.batching import Batcher
from hivefs.node.leases import SKEW_NS, LeaseClock, grant
from hivefs.node.members import Members
from hivefs.node.receipts import Receipts
from hivefs.node.roster import Roster
from hivefs.node.space import Space
from hivefs.node.statements import Statements
from hivefs.node.store import PutJob, ReadJob, ShareStore
from hivefs.node.threads import in_thread
from hivefs.protocol import answers, requests
from hivefs.protocol.answers import Answer, NodeStat
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.node_side import Session

T = TypeVar("T")

MAX_DEVICES = 64
"""Devices of one vault whose heads a node keeps."""

PAGE_BYTES = 1 << 20
LISTED_ROWS = 1 << 16
"""Leases of all vaults that one listing looks at: some 50 ms."""

_BATCH_BYTES = 8 << 20
"""Of shares that are synced together: of small ones many, since a commit costs the same for all; of large ones as many
as do not keep the first of them waiting."""

_FEW = 64


@dataclass(frozen=True, slots=True)
class Planned:
    """The answer to a GET: ``part`` without its ``length`` bytes, and ``read(offset, length)`` of those."""

    part: answers.Part
    length: int
    read: Callable[[int, int], Awaitable[bytes]]


class Answerer:
    """One node's answers. ``clock`` gives ns since 1970. ``run`` must be running."""

    def __init__(
        self,
        store: ShareStore,
        membership: Membership,
        capacity: int,
        vault_quota: int,
        lease_clock: LeaseClock,
        clock: Callable[[], int],
    ) -> None:
        self.store = store
        self.membership = membership
        self.space = Space(store.index, capacity, vault_quota, store.free_on_disk)
        self.members = Members(store, membership.hive_key)
        self.roster = Roster(store, membership.hive_key, self.members)
        self.statements = Statements(store, self.roster)
        self.on_news: Callable[[], None] = lambda: None
        """Called after the roster or statements had news."""

        self.clock = clock
        self.lease_clock = lease_clock
        self._puts: Batcher[PutJob, int] = Batcher(
            self._put_many, lanes=2, most=64, weigh=lambda job: len(job.data), heaviest=_BATCH_BYTES
        )
        self._reads: Batcher[ReadJob, bytes] = Batcher(store.read_many, lanes=2, most=16)
        self.leaving = False
        """Take no new shares, and say that there is no room."""

        self.receipts: Receipts | None = None
        """None while this node cannot sign (in tests of the rest)."""

        self._collecting = trio.Lock()
        self._threads = trio.CapacityLimiter(2)

    def _put_many(self, jobs: Sequence[PutJob]) -> Sequence[int | Refusal]:
        return self.store.put_many(jobs, self.clock())

    async def run(self) -> None:
        """Serve the batches until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._puts.run)
            nursery.start_soon(self._reads.run)

    def certificate(self, subject: bytes) -> Membership | None:
        """The certificate that a client brought before."""
        data = self.store.index.certificate(subject)
        return None if data is None else member.member_from_bytes(data)

    async def welcome(self, session: Session) -> None:
        """Remember a client's certificate, so that its owner can come back with the recovery phrase alone. On a full disk
        that has to wait; the client may come in to read and to delete. The use of an invitation is remembered before
        anything else. Raises Refusal.
        """
        if session.membership.invitation is not None and await self._in_thread(
            partial(self.members.admit, session.membership, self.clock())
        ):
            self.members.tell()
        data = member.member_to_bytes(session.membership)
        if session.vault_id is not None and self.store.index.certificate(session.subject) != data:
            with contextlib.suppress(Refusal):
                await self._in_thread(partial(self._save_vault, session.subject, data))

    def _save_vault(self, subject: bytes, data: bytes) -> None:
        with self.store.lock, self.store.index.writing() as change:
            change.save_vault(subject, data)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work, limiter=self._threads)
        except DiskFull:
            raise Refusal(Code.FULL, "the disk of this node is full") from None

    def weight(self, request: requests.Request) -> int:
        """Bytes of memory that a request holds until it is answered."""
        match request:
            case requests.Put(_, _, data):
                return len(data)
            case requests.Get(share_id, _, length):
                size = self.store.index.size(share_id) or 0
                return min(size, length + 2 * merkle.LEAF_BYTES) if length else size
            case requests.HeadsGet() | requests.RosterGet() | requests.MembersGet() | requests.RevokedGet():
                return PAGE_BYTES
            case requests.StatementsGet() | requests.ListShares() | requests.RangeGet():
                return PAGE_BYTES
            case requests.RangesGet():
                return answers.RANGES * answers.SUM_BYTES
            case requests.StatementsPut(blobs) | requests.RosterPut(blobs) | requests.MembersPut(blobs):
                return sum(map(len, blobs))
            case requests.HeadPut(blob) | requests.RevokedPut(blob):
                return len(blob)
        return 0

    async def answer(self, session: Session, request: requests.Request) -> Answer:
        """The answer to a request that passed ``session.check``. Raises Refusal."""
        match request:
            case requests.Put():
                return await self._put(session.owner(), request)
            case requests.Get():
                planned = self.plan(request)
                return replace(planned.part, data=await planned.read(0, planned.length))
            case requests.Have(share_ids):
                if len(share_ids) <= _FEW:
                    return answers.Sizes(tuple(self.store.index.sizes(share_ids)))
                # A thousand lookups in an index larger than the memory may each wait for the disk.
                return answers.Sizes(tuple(await self._in_thread(partial(self.store.index.sizes, share_ids))))
            case requests.Delete(_, _, share_ids):
                owner = session.owner()
                leases = [(share_id, owner) for share_id in share_ids]
                return answers.Flags(tuple(await self._in_thread(partial(self.store.release, leases))))
            case requests.Renew(lease_ns, share_ids):
                return await self._renew(session.owner(), share_ids, lease_ns)
            case requests.HeadPut(data):
                await self._in_thread(partial(self._put_head, session.owner(), data))
                return answers.Done()
            case requests.HeadsGet(after):
                more, heads = self.store.index.heads(session.owner(), after, PAGE_BYTES)
                return answers.Page(more, tuple(heads))
            case requests.RosterGet(after):
                more, entries = self.roster.page(after, PAGE_BYTES)
                return answers.Page(more, tuple(entries))
            case requests.RosterPut(blobs):
                return answers.Taken(await self.take_roster(blobs, pushed=True))
            case requests.Stat():
                return self.stat()
            case requests.Ping():
                return answers.Done()
            case requests.ReceiptGet() | requests.ReceiptPut() | requests.ListShares():
                return await self._account(session, request)
            case _:
                return await self._hive(request)

    async def _account(
        self, session: Session, request: requests.ReceiptGet | requests.ReceiptPut | requests.ListShares
    ) -> Answer:
        """Requests about what is held for a vault."""
        vault, receipts = session.owner(), self.receipts
        if isinstance(request, requests.ListShares):
            ask = partial(self.store.index.listing, vault, request.after, answers.MAX_LISTED, LISTED_ROWS)
            reached, shares = await self._in_thread(ask)
            return answers.Listing(reached, tuple(shares))
        if receipts is None:
            raise Refusal(Code.BUSY, "this node gives no receipts now")
        if isinstance(request, requests.ReceiptGet):
            blobs = await self._in_thread(partial(receipts.issue, vault, session.subject, request.nonce))
            return answers.Page(False, tuple(blobs))
        taken = await self._in_thread(partial(receipts.take, vault, session.subject, request.receipt))
        return answers.Taken(int(taken))

    async def _hive(self, request: requests.Request) -> Answer:
        """Requests about who belongs."""
        members = self.members
        match request:
            case requests.HiveStateGet():
                return answers.HiveState(members.sequence, members.digest)
            case requests.MembersGet(after, everyone):
                ask = members.everyone if everyone else members.page
                more, blobs = await self._in_thread(partial(ask, after, PAGE_BYTES))
                return answers.Page(more, tuple(blobs))
            case requests.MembersPut(blobs):
                return answers.Taken(await self.take_members(blobs))
            case requests.RevokedGet():
                return answers.Page(False, tuple(members.revoked_page()))
            case requests.RevokedPut(blob):
                return answers.Taken(int(await self.take_revoked(blob)))
            case requests.NewsGet():
                roster = await self._in_thread(self.roster.sums)
                return answers.News(roster.whole, (await self._in_thread(self.statements.sums)).whole)
            case requests.RangesGet(statements):
                book: Roster | Statements = self.statements if statements else self.roster
                return answers.Ranges(tuple((await self._in_thread(book.sums)).ranges()))
            case requests.RangeGet(statements, first, after):
                book = self.statements if statements else self.roster
                ask_range = partial(book.page, after, PAGE_BYTES, bytes([first]))
                more, blobs = await self._in_thread(ask_range)
                return answers.Page(more, tuple(blobs))
            case requests.StatementsGet(after):
                more, blobs = await self._in_thread(partial(self.statements.page, after, PAGE_BYTES))
                return answers.Page(more, tuple(blobs))
            case requests.StatementsPut(blobs):
                return answers.Taken(await self.take_statements(blobs, pushed=True))
        raise AssertionError("all requests are answered")

    async def take_members(self, blobs: Sequence[bytes]) -> int:
        """Members that another node knows; how many were news. Raises Refusal when the disk is full."""
        count = await self._in_thread(partial(self.members.take, blobs, self.clock()))
        if count:
            self.members.tell()
        return count

    async def take_roster(self, blobs: Sequence[bytes], *, pushed: bool = False) -> int:
        """Roster entries; how many were news. Raises Refusal when the disk is full."""
        count = await self._in_thread(partial(self.roster.take, blobs, self.clock(), pushed=pushed))
        if count:
            self.on_news()
        return count

    async def take_statements(self, blobs: Sequence[bytes], *, pushed: bool = False) -> int:
        """What nodes say of themselves; how many were news. Raises Refusal when the disk is full."""
        count = await self._in_thread(partial(self.statements.take, blobs, self.clock(), pushed=pushed))
        if count:
            self.on_news()
        return count

    async def take_revoked(self, blob: bytes) -> bool:
        """A revocation list; whether it was newer. Conversations of the revoked end. Raises Refusal on a full disk."""
        changed = await self._in_thread(partial(self.members.take_revoked, blob))
        if changed:
            await self._in_thread(self.statements.revoked)
            self.members.tell(revoked_changed=True)
        return changed

    # ---- shares -----------------------------------------------------------------------------------------------------

    def _lease_end(self, wanted_ns: int) -> int:
        return grant(wanted_ns, max(self.clock(), self.lease_clock.now_ns))

    async def _put(self, vault: VaultId, request: requests.Put) -> answers.Kept:
        size = len(request.data)
        if self.leaving:
            raise Refusal(Code.FULL, "this node leaves and takes no new shares")
        if self.space.missing(size):
            await self._collect(size)
        with self.space.reserve(vault, size):
            job = PutJob(vault, request.share_id, self._lease_end(request.lease_ns), request.data)
            return answers.Kept(await self._puts.do(job))

    async def _collect(self, size: int) -> None:
        """Make room by forgetting shares whose leases ended, one request at a time."""
        async with self._collecting:
            wanted = self.space.missing(size)
            if wanted:
                before = self.lease_clock.now_ns - SKEW_NS
                await self._in_thread(partial(self.store.collect, before, wanted))

    def plan(self, request: requests.Get) -> Planned:
        """What will be answered to a GET, without the bytes. Raises Refusal."""
        share_id = request.share_id
        size = self.store.index.size(share_id)
        leaves = self.store.index.leaves(share_id)
        if size is None or leaves is None:
            raise Refusal(Code.MISSING, "this node does not hold that share")
        try:
            first, last = merkle.span(size, request.offset, request.length or size - request.offset)
        except ValueError:
            raise Refusal(Code.BAD_REQUEST, f"the range is not inside the share of {size} bytes") from None
        start, end = first * merkle.LEAF_BYTES, min(size, last * merkle.LEAF_BYTES)
        part = answers.Part(size, first, tuple(merkle.prove(leaves, first, last)), b"")

        async def read(offset: int, length: int) -> bytes:
            return await self._reads.do(ReadJob(share_id, start + offset, length))

        return Planned(part, end - start, read)

    async def _renew(self, vault: VaultId, share_ids: tuple[ShareId, ...], lease_ns: int) -> answers.Flags:
        until = self._lease_end(lease_ns)
        held = await self._in_thread(partial(self.store.renew, vault, share_ids, until))
        return answers.Flags(tuple(held))

    # ---- heads and state --------------------------------------------------------------------------------------------

    def _put_head(self, vault: VaultId, data: bytes) -> None:
        try:
            head = head_format.from_bytes(data)
        except HivefsError as error:
            raise Refusal(Code.BAD_REQUEST, str(error)) from None
        if not head_format.head_valid(head, vault):
            raise Refusal(Code.FORBIDDEN, "the head is not signed by a device of this vault")
        with self.store.lock, self.store.index.writing() as change:
            kept = change.head(vault, head.certificate.device)
            if kept == data:
                return
            if kept is None:
                if self.store.index.devices(vault) >= MAX_DEVICES:
                    raise Refusal(Code.QUOTA, f"this node keeps the heads of {MAX_DEVICES} devices of a vault")
            else:
                self._check_order(head_format.from_bytes(kept), head)
            change.save_head(vault, head.certificate.device, data)

    @staticmethod
    def _check_order(kept: Head, head: Head) -> None:
        if head.sequence < kept.sequence:
            raise Refusal(Code.STALE, f"head {kept.sequence} of this device is kept here, {head.sequence} is older")
        if head.sequence == kept.sequence:
            raise Refusal(Code.FORKED, f"another head {head.sequence} of this device is kept here")

    def stat(self) -> NodeStat:
        """Room and state."""
        free = 0 if self.leaving else self.space.free
        index = self.store.index
        return NodeStat(self.space.capacity, index.used, free, index.count, self.store.dropped, self.clock(), __version__)
