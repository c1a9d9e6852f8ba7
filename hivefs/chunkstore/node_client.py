"""What can be asked of one node, checked: shares by their hash, heads and roster entries by their signatures.

How requests travel is in conversation.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from hivefs.chunkstore.conversation import READ_BYTES, Conversation, Early
from hivefs.chunkstore.patience import Patience
from hivefs.content import merkle
from hivefs.crypto.keys import vault_id_of
from hivefs.errors import ConnectionLost, Corrupt, PeerTimeout, Refused
from hivefs.formats import attestation, member
from hivefs.formats import head as head_format
from hivefs.formats import receipt as receipt_format
from hivefs.model.attestation import Statement
from hivefs.model.head import Head
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import Membership, Role, RosterEntry
from hivefs.model.receipt import Receipt
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.answers import HiveState, Listing, News, NodeStat
from hivefs.protocol.client_side import ClientHandshake, Credentials, Greeted, credentials
from hivefs.protocol.frames import PROTOCOL, Frame, FrameDecoder, Kind, ProtocolViolation
from hivefs.protocol.proofs import delete_message
from hivefs.protocol.stream import ByteStream

LOGIN_TIMEOUT = 10.0
DEFAULT_TIMEOUT = 30.0
T = TypeVar("T")

MAX_ROSTER = 20_000
"""Nodes in a hive; a roster that is longer is not believed."""

MAX_STATEMENT_BYTES = 1 << 28
"""Statements of all nodes of a hive, some hundred bytes each; more are not taken from one node at a time."""

MAX_MEMBERS = 200_000
"""Members of a hive; a list that is longer is not believed."""

__all__ = ["PROTOCOL", "Credentials", "NodeClient", "NodeStat", "converse", "credentials", "login"]


class NodeClient:
    """A conversation after its greeting; ``run`` must be running for calls to end.

    Every call takes ``timeout`` (seconds, for all of it) and raises PeerTimeout after it, ConnectionLost when the stream
    is lost, Corrupt when the answer is wrong, and Refused, ShareMissing, NodeFull, NodeBusy, HeadStale or HeadForked for
    what the node says (``error.code`` is a failures.Code).
    """

    def __init__(self, stream: ByteStream, credentials: Credentials, greeted: Greeted) -> None:
        self._me = credentials
        self.greeted = greeted
        self.node_id = NodeId(greeted.node_key)
        self.peer = greeted.node_key.hex()[:12]
        self.relayed = False
        """It goes through a relay: how long an answer takes says nothing of how far the node is."""
        self.way = ""
        """The address that was dialled, of the relay when it goes through one; empty when who dialled did not say."""
        self.ahead_ns = 0
        """By how much the node's clock is ahead of ours, where that is more than a day: leases go by it. One that is asked
        for by a clock that is months behind would have ended already; by one that is ahead it would last for longer than
        old copies count (maintenance/old_copies.py). Set by whoever asks for STAT (clocks.py).
        """
        self.vault_id = vault_id_of(credentials.subject) if greeted.membership.roles & Role.CLIENT else None
        self._conversation = Conversation(stream, self.peer)
        self._ask = self._conversation.ask
        self._serial = 0

    # ---- shares -----------------------------------------------------------------------------------------------------

    async def put(self, share_id: ShareId, data: bytes, lease_ns: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Keep a share (1 byte to 2 MiB) until ``lease_ns`` (since 1970, by our clock). When this returns it is on the
        node's disk. Returns until when it counts: what was asked for, or less if the node says less.
        """
        ahead = self.ahead_ns
        request = requests.Put(share_id, lease_ns + ahead, data)
        kept = await self._ask(request, answers.Kept, timeout, "to a share sent", share=share_id.hex()[:12])
        return min(lease_ns, kept.lease_ns - ahead)

    async def get(
        self,
        share_id: ShareId,
        offset: int = 0,
        length: int | None = None,
        *,
        merkle_root: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        early: Early | None = None,
    ) -> bytes:
        """A share or a range of it, proved by ``merkle_root`` if that is given (then only the range travels) and by the
        share's id if not. ``length`` None means to the end; ``early`` gets the first bytes of the range's first leaf,
        without proof. Raises Corrupt when the node's bytes are not the share's.
        """
        if length == 0:
            raise ValueError("an empty range")
        ranged = merkle_root is not None
        asked = requests.Get(share_id, offset, length or 0) if ranged else requests.Get(share_id)
        what, name = "a request for a share", share_id.hex()[:12]
        part = await self._ask(asked, answers.Part, timeout, what, early=early, share=name)
        start = part.first * merkle.LEAF_BYTES
        end = part.size if length is None else offset + length
        if not start <= offset < end <= start + len(part.data):
            raise Corrupt(what=f"the answer of node {self.peer}", reason="it is not the range that was asked for")
        if merkle_root is not None:
            merkle.check(merkle_root, part.size, part.first, part.data, part.path)
        elif len(part.data) != part.size or hashlib.sha256(part.data).digest() != share_id:
            raise Corrupt(what=f"a share of node {self.peer}", reason="its hash is wrong")
        if offset == start and end == start + len(part.data):
            return part.data
        return part.data[offset - start : end - start]

    async def have(self, share_ids: Sequence[ShareId], *, timeout: float = DEFAULT_TIMEOUT) -> list[int]:
        """The size of each share, 0 where the node does not have it. (A claim; ``get`` a range to be sure.)"""
        sizes: list[int] = []
        for ids in _batches(share_ids):
            answer = await self._ask(requests.Have(ids), answers.Sizes, timeout, "a question")
            self._same_count(len(answer.sizes), len(ids))
            sizes += answer.sizes
        return sizes

    async def delete(self, share_ids: Sequence[ShareId], *, timeout: float = DEFAULT_TIMEOUT) -> list[bool]:
        """Give up our leases on shares; for each whether the node held it for us."""
        held: list[bool] = []
        for ids in _batches(share_ids):
            # Serial and place in the queue are taken without a checkpoint in between, so serials grow on the wire.
            self._serial += 1
            message = delete_message(self.node_id, self._me.subject, self.greeted.nonce, self._serial, ids)
            request = requests.Delete(self._serial, self._me.sign(message), ids)
            answer = await self._ask(request, answers.Flags, timeout, "a deletion")
            self._same_count(len(answer.flags), len(ids))
            held += answer.flags
        return held

    async def renew(self, share_ids: Sequence[ShareId], lease_ns: int, *, timeout: float = DEFAULT_TIMEOUT) -> list[bool]:
        """Prolong our leases to ``lease_ns`` (since 1970, by our clock; never shortens); for each share whether the node
        holds it for us. It does not say until when: ``list_shares`` does.
        """
        held: list[bool] = []
        for ids in _batches(share_ids):
            answer = await self._ask(requests.Renew(lease_ns + self.ahead_ns, ids), answers.Flags, timeout, "a renewal")
            self._same_count(len(answer.flags), len(ids))
            held += answer.flags
        return held

    # ---- heads, roster, the node itself -----------------------------------------------------------------------------

    async def put_head(self, head: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Keep a head (formats/head.py) of our vault. HeadStale when the node has a newer one of that device, HeadForked
        when it has another one with the same sequence.
        """
        made = head_format.from_bytes(head)
        device = made.certificate.device.hex()[:12]
        await self._ask(requests.HeadPut(head), answers.Done, timeout, "a head", sequence=made.sequence, device=device)

    async def get_heads(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[Head]:
        """Newest and previous head of every device of our vault, signatures checked, in the order of device keys. Raises
        Corrupt when the node gives back anything else.
        """
        heads: list[Head] = []
        after = b""
        more = self.vault_id is not None
        while more and self.vault_id is not None:
            page = await self._ask(requests.HeadsGet(after), answers.Page, timeout, "a question for heads")
            before = after
            for blob in page.blobs:
                head = head_format.from_bytes(blob)
                device = head.certificate.device
                if not head_format.head_valid(head, self.vault_id) or device <= before or device < after:
                    raise Corrupt(what=f"a head from node {self.peer}", reason="it is not one of this vault's")
                after = device
                heads.append(head)
            more = page.more
        return heads

    async def get_roster(self, *, timeout: float = DEFAULT_TIMEOUT) -> list[RosterEntry]:
        """The nodes that this node knows of, itself included. Check each with member.entry_valid before use. Raises
        Corrupt when what comes is not a roster.
        """
        entries: list[RosterEntry] = []
        after = b""
        more = True
        while more:
            page = await self._ask(requests.RosterGet(after), answers.Page, timeout, "a question for the roster")
            for blob in page.blobs:
                entry = member.entry_from_bytes(blob)
                if entry.membership.subject <= after or len(entries) >= MAX_ROSTER:
                    raise Corrupt(what=f"the roster of node {self.peer}", reason="it is out of order or has no end")
                after = entry.membership.subject
                entries.append(entry)
            more = page.more
        return entries

    async def put_roster(self, entries: Sequence[RosterEntry], *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Tell the node of other nodes; how many entries were news to it."""
        taken = 0
        blobs_of = [member.entry_to_bytes(entry) for entry in entries]
        for blobs in _blob_batches(blobs_of, frames.MAX_PAYLOAD[Kind.ROSTER_PUT]):
            taken += (await self._ask(requests.RosterPut(blobs), answers.Taken, timeout, "a roster")).count
        return taken

    async def hive_state(self, *, timeout: float = DEFAULT_TIMEOUT) -> HiveState:
        """The number of the node's revocation list, and what its set of members by invitation comes to."""
        return await self._ask(requests.HiveStateGet(), HiveState, timeout, "a question for who belongs")

    async def get_revoked(self, *, timeout: float = DEFAULT_TIMEOUT) -> bytes | None:
        """The node's revocation list (formats/revoked.py), not checked; None when it has none."""
        page = await self._ask(requests.RevokedGet(), answers.Page, timeout, "a question for the revoked")
        return page.blobs[0] if page.blobs else None

    async def put_revoked(self, revoked: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> bool:
        """Give the node a revocation list; whether it was news."""
        return bool((await self._ask(requests.RevokedPut(revoked), answers.Taken, timeout, "a revocation list")).count)

    async def get_members(self, *, everyone: bool = False, timeout: float = DEFAULT_TIMEOUT) -> list[Membership]:
        """Certificates of members by invitation (for nodes), or of ``everyone`` (for the hive's owner). Check each with
        member.member_valid before use. Raises Corrupt.
        """
        found: list[Membership] = []
        more = True
        while more:
            after = found[-1].subject if found else b""
            request = requests.MembersGet(after, everyone)
            page = await self._ask(request, answers.Page, timeout, "a question for the members")
            for blob in page.blobs:
                made = member.member_from_bytes(blob)
                if made.subject <= after or len(found) >= MAX_MEMBERS:
                    raise Corrupt(what=f"the members of node {self.peer}", reason="they are out of order or have no end")
                after = made.subject
                found.append(made)
            more = page.more
        return found

    async def put_members(self, certificates: Sequence[bytes], *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Tell the node of members by invitation; how many were news."""
        taken = 0
        for blobs in _blob_batches(certificates, frames.MAX_PAYLOAD[Kind.MEMBERS_PUT]):
            taken += (await self._ask(requests.MembersPut(blobs), answers.Taken, timeout, "members")).count
        return taken

    async def get_receipt(self, nonce: bytes, *, timeout: float = DEFAULT_TIMEOUT) -> tuple[Receipt, Receipt | None]:
        """A new receipt for what the node holds for us, and the last one that both have signed. The node signed both, and
        the new one has our nonce (32 bytes); otherwise this raises Corrupt. An older node ends the conversation.
        """
        page = await self._ask(requests.ReceiptGet(nonce), answers.Page, timeout, "a question for a receipt")
        found = [receipt_format.receipt_from_bytes(blob) for blob in page.blobs]
        new, agreed = found[0] if found else None, found[1] if len(found) > 1 else None
        if new is None or not self._ours(new) or new.nonce != nonce or not receipt_format.receipt_valid(new):
            raise Corrupt(
                what=f"the receipt of node {self.peer}", reason="it is not the one that was asked for, signed by it"
            )
        if agreed is not None and not (self._ours(agreed) and receipt_format.counter_valid(agreed)):
            raise Corrupt(what=f"the old receipt of node {self.peer}", reason="it was not signed by both")
        return new, agreed

    def _ours(self, receipt: Receipt) -> bool:
        return receipt.node_id == self.node_id and receipt.owner == self._me.subject

    async def agree(self, receipt: Receipt, *, timeout: float = DEFAULT_TIMEOUT) -> Receipt:
        """Countersign a receipt of this node and give it back; returns it with both signatures."""
        made = receipt_format.countersign(receipt, self._me.sign)
        data = receipt_format.receipt_to_bytes(made)
        await self._ask(requests.ReceiptPut(data), answers.Taken, timeout, "a receipt")
        return made

    async def list_shares(self, after: bytes = b"", *, timeout: float = DEFAULT_TIMEOUT) -> Listing:
        """Some of the shares that the node holds for us, and where to go on (answers.Listing). Raises Corrupt when the node
        gets no further. An older node ends the conversation.
        """
        listing = await self._ask(requests.ListShares(after), Listing, timeout, "a question for our shares")
        ids = [share.share_id for share in listing.shares]
        if (ids and ids[0] <= after) or (listing.reached and listing.reached <= after):
            raise Corrupt(what=f"the listing of node {self.peer}", reason="it is out of order or has no end")
        return listing

    async def news(self, *, timeout: float = DEFAULT_TIMEOUT) -> News:
        """What the node's roster and statements come to. One of before there were statements ends the conversation."""
        return await self._ask(requests.NewsGet(), News, timeout, "a question for news")

    async def get_statements(
        self, take: Callable[[list[Statement]], Awaitable[object]], *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Give ``take`` what nodes say of themselves, as far as this node heard, an answer at a time. Check each with
        attestation.statement_valid before use. Raises Corrupt, maybe after some were given.
        """
        after, count, size = b"", 0, 0
        more = True
        while more:
            page = await self._ask(requests.StatementsGet(after), answers.Page, timeout, "a question for statements")
            found: list[Statement] = []
            for blob in page.blobs:
                made = attestation.statement_from_bytes(blob)
                count += 1
                size += len(blob)
                if made.node_id <= after or count > MAX_ROSTER or size > MAX_STATEMENT_BYTES:
                    raise Corrupt(what=f"the statements of node {self.peer}", reason="they are out of order or have no end")
                after = made.node_id
                found.append(made)
            await take(found)
            more = page.more

    async def ranges(self, statements: bool, *, timeout: float = DEFAULT_TIMEOUT) -> Sequence[bytes]:
        """What each of the 256 ranges of the node's roster, or of its statements, comes to. A node of before there were
        ranges ends the conversation.
        """
        return (await self._ask(requests.RangesGet(statements), answers.Ranges, timeout, "a question for ranges")).sums

    async def get_roster_range(
        self, first: int, take: Callable[[list[RosterEntry]], Awaitable[object]], *, timeout: float = DEFAULT_TIMEOUT
    ) -> int:
        """Give ``take`` the roster entries of nodes whose key begins with that byte, an answer at a time; bytes in all. As
        ``get_roster`` for the rest.
        """
        return await self._get_range(False, first, member.entry_from_bytes, lambda e: e.membership.subject, take, timeout)

    async def get_statement_range(
        self, first: int, take: Callable[[list[Statement]], Awaitable[object]], *, timeout: float = DEFAULT_TIMEOUT
    ) -> int:
        """The same for statements, as ``get_statements``."""
        return await self._get_range(True, first, attestation.statement_from_bytes, lambda s: s.node_id, take, timeout)

    async def _get_range(
        self,
        statements: bool,
        first: int,
        decode: Callable[[bytes], T],
        key_of: Callable[[T], bytes],
        take: Callable[[list[T]], Awaitable[object]],
        timeout: float,
    ) -> int:
        after, count, size = b"", 0, 0
        more = True
        while more:
            request = requests.RangeGet(statements, first, after)
            page = await self._ask(request, answers.Page, timeout, "a question for a range")
            found: list[T] = []
            for blob in page.blobs:
                made = decode(blob)
                key = key_of(made)
                count += 1
                size += len(blob)
                if key[0] != first or key <= after or count > MAX_ROSTER or size > MAX_STATEMENT_BYTES:
                    raise Corrupt(what=f"a range of node {self.peer}", reason="it is out of order or has no end")
                after = key
                found.append(made)
            if page.more and not found:
                raise Corrupt(what=f"a range of node {self.peer}", reason="it has no end")
            await take(found)
            more = page.more
        return size

    async def put_statements(self, statements: Sequence[bytes], *, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Tell the node what nodes say of themselves; how many were news."""
        taken = 0
        for blobs in _blob_batches(statements, frames.MAX_PAYLOAD[Kind.STATEMENTS_PUT]):
            taken += (await self._ask(requests.StatementsPut(blobs), answers.Taken, timeout, "statements")).count
        return taken

    async def stat(self, *, timeout: float = DEFAULT_TIMEOUT) -> NodeStat:
        """Room and state of the node."""
        return await self._ask(requests.Stat(), NodeStat, timeout, "a question for its state")

    async def ping(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """A sign of life."""
        await self._ask(requests.Ping(), answers.Done, timeout, "a ping")

    # ---- the conversation -------------------------------------------------------------------------------------------

    @property
    def patience(self) -> Patience:
        """How long this node's silence is borne."""
        return self._conversation.patience

    @property
    def moved(self) -> float:
        """When bytes of a share last came from the node, in trio's time; 0 when none did."""
        return self._conversation.moved

    def departed(self, share_id: ShareId, asked: float) -> tuple[float, bool]:
        """Of a request for a share, asked for at ``asked`` (trio's time) or later: when it left this machine, and True;
        while it stands behind our own uploads, when those last moved, and False.
        """
        return self._conversation.departed(share_id, asked)

    async def wait_closed(self) -> None:
        """Wait until the stream is lost, by whomever."""
        await self._conversation.wait_closed()

    @property
    def closed(self) -> bool:
        """Nothing works any more on this conversation."""
        return self._conversation.closed

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Send and receive until the stream is lost (returns) or cancelled; resets the stream in the end."""
        await self._conversation.run(task_status=task_status)

    def _same_count(self, got: int, asked: int) -> None:
        if got != asked:
            raise Corrupt(what=f"the answer of node {self.peer}", reason="it has not one item for each share")


def _batches(share_ids: Sequence[ShareId]) -> list[tuple[ShareId, ...]]:
    return [tuple(share_ids[i : i + frames.MAX_IDS]) for i in range(0, len(share_ids), frames.MAX_IDS)]


def _blob_batches(blobs: Sequence[bytes], most: int) -> list[tuple[bytes, ...]]:
    batches: list[list[bytes]] = []
    size = 0
    for blob in blobs:
        if not batches or size + 4 + len(blob) > most:
            batches.append([])
            size = 0
        batches[-1].append(blob)
        size += 4 + len(blob)
    return [tuple(batch) for batch in batches]


async def login(stream: ByteStream, credentials: Credentials, now_ns: int, *, timeout: float = LOGIN_TIMEOUT) -> NodeClient:
    """Greet over a fresh stream of PROTOCOL. Raises Refused when the node does not want us or is not what it should be
    (``code`` NOT_MEMBER), PeerTimeout, ConnectionLost. The stream is reset when this raises.
    """
    peer = stream.peer_key.hex()[:12]
    handshake = ClientHandshake(credentials, stream.peer_key)
    decoder = FrameDecoder(handshake.accept)
    outgoing: Frame | None = handshake.hello()
    try:
        with trio.fail_after(timeout):
            while outgoing is not None:
                await stream.send_all(frames.to_bytes(outgoing))
                decoder.accept = handshake.accept
                while (frame := decoder.next_frame()) is None:
                    data = await stream.receive_some(min(READ_BYTES, decoder.wanted))
                    if not data:
                        raise ConnectionLost(peer=peer, reason="the node ended the conversation")
                    decoder.feed(data)
                outgoing = handshake.receive(frame, now_ns)
    except BaseException as error:  # cancellation too: a stream that is half greeted is of no use to anyone
        with trio.CancelScope(shield=True):
            await stream.reset()
        if isinstance(error, trio.TooSlowError):
            raise PeerTimeout(peer=peer, what="a greeting", seconds=f"{timeout:g}") from None
        if isinstance(error, ProtocolViolation | Corrupt):
            raise Refused(peer=peer, reason=f"it broke the protocol: {error}", code=failures.Code.BAD_REQUEST) from None
        raise
    if handshake.greeted is None:
        raise AssertionError("the greeting ended without a welcome")
    return NodeClient(stream, credentials, handshake.greeted)


@asynccontextmanager
async def converse(
    stream: ByteStream, credentials: Credentials, now_ns: int, *, timeout: float = LOGIN_TIMEOUT
) -> AsyncIterator[NodeClient]:
    """A conversation for as long as the block runs. Errors of the block pass out as they are, not in a group."""
    client = await login(stream, credentials, now_ns, timeout=timeout)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            yield client
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
