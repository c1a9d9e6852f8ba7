"""The ledger: receipts of all nodes against the engine's own book; differences are found, shown and mended.

Once an hour, and when it says that damaged shares had to go, each node is asked for a receipt, which is checked,
countersigned and given back. When it does not say exactly what the book says, the node lists our shares. What is missing
there is asked for once more (RENEW says what it holds) and goes to repair. What nothing names is noted, and deleted with
great care, in this order:

1. It is noted in the store's table ``unknown`` with the time. ``save_stripe`` takes the note away when a stripe names it.
2. In a later look, at least three days after, the node still lists it, and the book, read from its beginning *after* the
   note was made, does not name it; nor does the trash, a share that waits for a head, a running placement (claims), or
   anybody in ``needed``. Its lease was not renewed for forty days. The node's clock and ours agree within a day.
3. Nothing holds: this machine's head is the newest that this node and at least half of all nodes know of, and it is out.
4. In one transaction, without await since the last of these checks, the note becomes trash, if it is still there. The trash
   is emptied as ever (garbage.py): a claim that comes now keeps the pair from it, or is refused while it is being deleted.

So a share that anybody names before, during or after any of these steps either has no note, or has no trash.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import astuple, fields, replace
from typing import Any, Final, Protocol

import trio
import trio.lowlevel

from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.ports import Random
from hivefs.chunkstore.writer import LEASE_NS
from hivefs.errors import ConnectionLost, Corrupt, HivefsError, Refused, UnknownVersion
from hivefs.formats.receipt import receipt_from_bytes, receipt_to_bytes
from hivefs.maintenance.accounts import Account, clocks_agree, deletable, refuse
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.head import Head
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.receipt import Listed, Receipt
from hivefs.model.stripe import Stripe
from hivefs.protocol.answers import Listing, NodeStat

log = logging.getLogger(__name__)

FIRST: Final = 20.0
LOOK: Final = 60.0
EVERY_NS: Final = 3600 * 10**9
HURRY_NS: Final = 60 * 10**9
"""A node whose own disk lost shares is accounted with at once, but not more often than this."""
AGAIN_NS: Final = 86_400 * 10**9
"""When a node that gives no receipts is asked again."""
LOST_TWICE: Final = 2
SLICE: Final = 128
AT_A_TIME: Final = 8
"""Nodes that are accounted with side by side: one that takes all of its time does not hold the others up."""
DEADLINE: Final = 900.0
"""Seconds for one node, all in all."""
SPARE_ROWS: Final = 65_536
"""Rows that a node may list beyond the leases of its receipt: what is put meanwhile, and what expires."""
MOST_ROWS: Final = 1 << 24
MOST_EMPTY: Final = 4096
"""Answers without a row: a node looks through 65 536 rows of others for each."""
MOST_UNKNOWN: Final = 65_536
"""Shares that nothing names of which one look remembers the ids. The others are counted, and come when these are gone."""
MOST_NOTED: Final = 1024
"""New notes in one transaction, and so in one look."""
MOST_DELETED: Final = 256
"""Unknown shares that are deleted at one node in one look: a mistake would be noticed before it is complete."""
NONCE_BYTES: Final = 32


class Teller(Protocol):
    """One conversation, as the ledger uses it (chunkstore/node_client.py)."""

    async def stat(self) -> NodeStat: ...
    async def get_receipt(self, nonce: bytes) -> tuple[Receipt, Receipt | None]: ...
    async def agree(self, receipt: Receipt) -> Receipt: ...
    async def list_shares(self, after: bytes = b"") -> Listing: ...
    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]: ...
    async def get_heads(self) -> list[Head]: ...


class Notes(Protocol):
    """Shares that nothing names (metadata/engine_contents.py)."""

    def note_unknown(self, node_id: NodeId, share_ids: Collection[ShareId], now_ns: int) -> None: ...
    def unknown(self, node_id: NodeId) -> dict[ShareId, int]: ...
    def forget_unknown(self, node_id: NodeId, share_ids: Collection[ShareId]) -> None: ...
    def trash_unknown(self, node_id: NodeId, share_ids: Collection[ShareId]) -> list[ShareId]: ...
    def moved_share(self, key: bytes) -> tuple[NodeId, ShareId] | None: ...


class Ledger:
    """See the head of the file. ``settled`` says in words why nothing may be deleted now, empty when it may; ``compare``
    takes the heads that a node keeps. ``run`` needs the whole book.
    """

    def __init__(
        self,
        state: State,
        notes: Notes,
        claims: Claims,
        online: Callable[[], Iterable[tuple[NodeId, Teller]]],
        settled: Callable[[], str],
        compare: Callable[[Iterable[Head]], None],
        clock: Callable[[], int],
        random: Random,
        on_bad: Callable[[Stripe, int, str], None],
        on_problem: Callable[[NodeId, str], None],
    ) -> None:
        self._state = state
        self._notes = notes
        self._claims = claims
        self._online = online
        self._settled = settled
        self._compare = compare
        self._clock = clock
        self._random = random
        self._on_bad = on_bad
        self._on_problem = on_problem
        self._lost: dict[NodeId, int] = {}
        self._hurried: set[NodeId] = set()
        self._news = trio.Event()
        self.needed: list[Callable[[NodeId, ShareId], bool]] = []
        """Others who may still need a share that no stripe names."""

    async def run(self) -> None:
        """Ask until cancelled."""
        await trio.sleep(FIRST)
        while True:
            self._news = trio.Event()
            await self.look()
            with trio.move_on_after(LOOK):
                await self._news.wait()

    def hurry(self, node_id: NodeId) -> None:
        """This node says that it had to drop shares which were damaged: which ones is seen by accounting with it."""
        self._hurried.add(node_id)
        self._news.set()

    async def look(self) -> None:
        """Account with all whose time has come, some at a time."""
        slots = trio.CapacityLimiter(AT_A_TIME)

        async def one(node_id: NodeId, client: Teller) -> None:
            async with slots:
                hurried = node_id in self._hurried
                self._hurried.discard(node_id)
                try:
                    await self.account(node_id, client)
                except BaseException:  # a full disk, or another one's in this nursery: it is to be asked soon, as before
                    self._hurried |= {node_id} if hurried else set()
                    raise

        async with trio.open_nursery() as nursery:
            for node_id, client in list(self._online()):
                if self._due(node_id):
                    nursery.start_soon(one, node_id, client)

    def _due(self, node_id: NodeId) -> bool:
        every = HURRY_NS if node_id in self._hurried else EVERY_NS
        return not 0 <= self._clock() - self.row(node_id).looked_ns < every

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def row(self, node_id: NodeId) -> Account:
        """What was found last at a node."""
        kept = self._state.info("ledger-" + node_id.hex())
        return Account(node_id) if kept is None else Account(node_id, *kept[: len(fields(Account)) - 1])

    def _save(self, row: Account) -> None:
        with self._state.writing():
            self._state.save_info("ledger-" + row.node_id.hex(), list(astuple(row)[1:]))

    def receipt(self, node_id: NodeId) -> Receipt | None:
        """The last receipt of a node that counted."""
        kept = self._state.info("receipt-" + node_id.hex())
        return None if kept is None else receipt_from_bytes(kept)

    # ---- one node ---------------------------------------------------------------------------------------------------

    async def account(self, node_id: NodeId, client: Teller) -> Account:
        """Ask one node, compare, mend. What goes wrong is in the row that is kept and given back."""
        row = replace(self.row(node_id), deleted=0)
        try:
            with trio.fail_after(DEADLINE):
                row = await self._account(row, client)
        except trio.TooSlowError:
            row = replace(row, problem=f"refused: it was not done in {DEADLINE:g} seconds", agreed=False)
            self._on_problem(node_id, row.problem)
        except (Corrupt, UnknownVersion) as error:
            # Forged, replayed or damaged: whoever signed what is no receipt of this node for us.
            row = replace(row, problem=f"refused: {error}", agreed=False)
            self._on_problem(node_id, row.problem)
        except HivefsError as error:
            row = replace(row, problem=str(error))
        row = replace(row, looked_ns=self._clock())
        self._save(row)
        return row

    async def _account(self, row: Account, client: Teller) -> Account:
        node_id = row.node_id
        version = (await client.stat()).version
        if row.silent and row.silent == version and 0 <= self._clock() - row.looked_ns < AGAIN_NS:
            return row
        given = await self._receipt(node_id, client)
        if given is None:
            silent = version if self._lost[node_id] >= LOST_TWICE else ""
            return replace(row, silent=silent, problem="it gives no receipts" if silent else "")
        last = self.receipt(node_id)
        if last is None or (given[1] is not None and given[1].sequence > last.sequence):
            last = given[1]  # after a recovery the node brings back what we agreed to
        receipt = given[0]
        row = replace(row, silent="")
        if words := refuse(receipt, last):
            self._on_problem(node_id, f"refused: {words}")
            return replace(row, problem=f"refused: {words}", agreed=False)
        agreed = await client.agree(receipt)
        with self._state.writing():
            self._state.save_info("receipt-" + node_id.hex(), receipt_to_bytes(agreed))
        row = replace(
            row,
            told_ns=receipt.time_ns,
            number=receipt.sequence,
            leases=receipt.leases,
            size=receipt.size,
            agreed=True,
            problem="",
        )
        book, book_size = await self._shares_at(node_id)
        transit = await self._in_transit(node_id)
        row = replace(row, book=len(book), book_size=book_size, transit=len(transit))
        if (row.leases, row.size) == (row.book, row.book_size) and not self._notes.unknown(node_id):
            return replace(row, missing=0, unknown=0)
        listed, more = await self._listed(client, receipt.leases, book)
        missing = await self._missing(client, node_id, [s for s in book if s not in listed])
        transit |= await self._in_transit(node_id)
        return await self._unknown(replace(row, missing=missing), client, listed, book.keys() | transit, more)

    async def _receipt(self, node_id: NodeId, client: Teller) -> tuple[Receipt, Receipt | None] | None:
        """None from a node that does not know what a receipt is: it ends the conversation, or says that it was asked
        badly.
        """
        try:
            given = await client.get_receipt(self._random(NONCE_BYTES))
        except (ConnectionLost, Refused):
            self._lost[node_id] = self._lost.get(node_id, 0) + 1
            return None
        self._lost.pop(node_id, None)
        return given

    async def _shares_at(self, node_id: NodeId) -> tuple[dict[ShareId, tuple[StripeId, int]], int]:
        """What the book names at a node, and its bytes. What is recorded meanwhile may be in it: the node then lists it,
        and says so in its next receipt.
        """
        found: dict[ShareId, tuple[StripeId, int]] = {}
        size, turns = 0, Turns()
        for stripe_id in self._state.each_on(node_id):
            stripe = self._state.stripe(stripe_id)
            if stripe is not None:
                here = {s.share_id: (stripe_id, i) for i, s in enumerate(stripe.shares) if s.node == node_id}
                size += len(here) * stripe.share_bytes
                found |= here
            await turns.item()
        return found, size

    async def _in_transit(self, node_id: NodeId) -> set[ShareId]:
        """Shares that are to be deleted at a node, or wait for a head to be. What joins them while this looks was
        named by a stripe until then, so there is no note of it.
        """
        found: set[ShareId] = set()
        for table, mine in (("trash", node_id), ("doomed", b"")):
            after: bytes | None = None
            while keys := self._state.keys(table, mine, after, SLICE):
                for key in keys:
                    share = self._notes.moved_share(key) if table == "doomed" else (node_id, ShareId(key[len(node_id) :]))
                    if share is not None and share[0] == node_id:
                        found.add(share[1])
                after = keys[-1]
                await trio.sleep(0.001)
        return found

    @staticmethod
    async def _listed(client: Teller, leases: int, book: Collection[ShareId]) -> tuple[dict[ShareId, Listed], int]:
        """What the node lists: all that the book names, and of what it does not name the first MOST_UNKNOWN; and how many
        more there were. Raises Corrupt when it lists much more than the leases it signed, or its list has no end.
        """
        found: dict[ShareId, Listed] = {}
        rows = empty = others = more = 0
        after = b""
        while True:
            listing = await client.list_shares(after)
            rows += len(listing.shares)
            empty += not listing.shares
            if rows > min(leases + SPARE_ROWS, MOST_ROWS) or empty > MOST_EMPTY:
                raise Corrupt(what="its listing", reason=f"it signed {leases} leases, and its list has no end")
            for share in listing.shares:
                if share.share_id not in book:
                    others += 1
                    if others > MOST_UNKNOWN:
                        more += 1
                        continue
                found[share.share_id] = share
            if not listing.reached:
                return found, more
            after = listing.reached

    # ---- mending ----------------------------------------------------------------------------------------------------

    async def _missing(self, client: Teller, node_id: NodeId, share_ids: list[ShareId]) -> int:
        """Ask for these once more; repair hears of what is not there. How many are not."""
        if not share_ids:
            return 0
        book, _ = await self._shares_at(node_id)  # some may have moved while the node listed
        wanted = [share_id for share_id in share_ids if share_id in book]
        held = await client.renew(wanted, self._clock() + LEASE_NS) if wanted else []
        gone = [share_id for share_id, there in zip(wanted, held, strict=True) if not there]
        for share_id in gone:
            stripe_id, index = book[share_id]
            stripe = self._state.stripe(stripe_id)
            if stripe is None or stripe.shares[index].node != node_id:
                continue  # it moved while the others were looked at
            self._on_bad(stripe, index, "the node does not list it")
            await trio.lowlevel.checkpoint()  # each is a transaction, and a node that was wiped misses all of its shares
        if gone:
            log.warning("node %s does not hold %d shares of this vault: repair", node_id.hex()[:12], len(gone))
        return len(gone)

    async def _unknown(
        self, row: Account, client: Teller, listed: dict[ShareId, Listed], book: Collection[ShareId], more: int
    ) -> Account:
        node_id, now = row.node_id, self._clock()
        over = [s for s in self._notes.unknown(node_id) if s not in listed or s in book]
        for at in range(0, len(over), MOST_NOTED):
            self._notes.forget_unknown(node_id, over[at : at + MOST_NOTED])
            await trio.lowlevel.checkpoint()
        # No checkpoint from here on until ``old`` is known: what a stripe names meanwhile could get its note back, and
        # ``noted`` would still say that it is an old one.
        noted = self._notes.unknown(node_id)
        known = {s for s in listed if s in book or self._is_needed(node_id, s)}
        unknown = listed.keys() - known
        self._notes.forget_unknown(node_id, [s for s in noted if s in known])
        self._notes.note_unknown(node_id, [s for s in listed if s in unknown and s not in noted][:MOST_NOTED], now)
        old = [s for s in unknown if s in noted and deletable(noted[s], listed[s].lease_ns, LEASE_NS, now)]
        deleted: list[ShareId] = []
        if old and clocks_agree(row.told_ns, now):
            self._compare(await client.get_heads())
            # No checkpoint of trio from here on.
            words = self._settled()
            if words:
                log.info("%d shares at node %s that nothing names stay: %s", len(old), node_id.hex()[:12], words)
            else:
                still = [s for s in old if not self._is_needed(node_id, s)][:MOST_DELETED]
                deleted = self._notes.trash_unknown(node_id, still)
        if deleted:
            log.warning(
                "node %s: %d shares that nothing has named for days, nor renewed for %d days, are deleted, %s the first",
                node_id.hex()[:12],
                len(deleted),
                min((now - listed[s].lease_ns + LEASE_NS) // 86_400_000_000_000 for s in deleted),
                deleted[0].hex()[:12],
            )
        return replace(row, unknown=len(unknown) + more - len(deleted), deleted=len(deleted))

    def _is_needed(self, node_id: NodeId, share_id: ShareId) -> bool:
        if self._claims.claimed(node_id, share_id) or self._state.has_trash(node_id, share_id):
            return True
        return any(needs(node_id, share_id) for needs in self.needed)

    # ---- showing ----------------------------------------------------------------------------------------------------

    def told(self, node_id: NodeId) -> dict[str, Any]:
        """One node, plain values."""
        row = self.row(node_id)
        return {
            "id": node_id.hex(),
            "looked_ns": row.looked_ns,
            "told_ns": row.told_ns,
            "receipt": row.number,
            "countersigned": row.agreed,
            "leases": row.leases,
            "bytes": row.size,
            "book_shares": row.book,
            "book_bytes": row.book_size,
            "in_transit": row.transit,
            "missing": row.missing,
            "unknown": row.unknown,
            "balanced": row.balanced,
            "problem": row.problem,
        }
