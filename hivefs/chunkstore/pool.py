"""The pool: one lasting conversation with every node of the hive that answers, and what is known of each.

A task for each conversation greets and measures free space now and then; a node with which there is none waits in a list
until it is dialled again (dialling.py). Nothing that is done some times a second looks at all nodes: times are looked at
when they are due. A node that is away for longer than is usual for it (``conduct``, maintenance/trust.py) is given up
(GONE): its shares count as lost and are made again elsewhere; when it returns it is ONLINE again and what it still holds
counts again where the stripe still names it.

Atomic between two checkpoints of trio: everything but ``_talk`` and what waits in ``run`` is synchronous.

A full disk under the book ends no conversation: what it does not take is written later, SAVED_AT_ONCE at each look.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import islice

import trio

from hivefs.chunkstore.clocks import Clocks
from hivefs.chunkstore.dialling import FIRST_PAUSE, LONGEST_PAUSE, Dialling, Slot
from hivefs.chunkstore.due import Due
from hivefs.chunkstore.listing import Listing
from hivefs.chunkstore.member import Member, Shelf
from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.ports import Conduct, NodeBook
from hivefs.chunkstore.shifts import Shifts
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.ring import Ring
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate, Evidence, RosterEntry, key_of_invitation
from hivefs.placement.field import Field
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy

log = logging.getLogger(__name__)

Dial = Callable[[RosterEntry], AbstractAsyncContextManager[NodeClient]]
"""Opens an authenticated conversation with a node at any of its addresses; raises HivefsError."""

STAT_EVERY = 15.0
PROBLEMS_BEFORE_SUSPECT = 3
LOOK_EVERY = 0.25
"""How often it is looked who is away for too long, in seconds."""
LOOK_LATE = 60.0
"""And how long after its time, at most."""
LISTED = 8
"""Nodes that are listed at a time."""
CLOCK_STEP_NS = 60 * 10**9
UNREADABLE = "its entry is damaged in this machine's store"
SAVED_AT_ONCE = 8
BUSY_SECONDS = 5.0
BUSY_LONGEST = 300.0
"""For so long at first, and at most, a node that said BUSY is given no shares."""


def _named(entry: RosterEntry, client: NodeClient) -> bool:
    """Whether the node's record names the way by which we speak with it. What is concluded from addresses rests on that
    (placement/evidence.py): a node that tells others is used again when it answers there.
    """
    told = entry.address
    return not client.way or client.way in (told.relays if client.relayed else told.reachable)


class Pool:
    """See the head of the file. ``clock`` gives nanoseconds since 1970."""

    def __init__(
        self,
        book: NodeBook,
        dial: Dial,
        clock: Callable[[], int],
        conduct: Conduct,
        on_connect: Callable[[NodeClient], Awaitable[None]],
    ) -> None:
        self._book = book
        self._dial = dial
        self._clock = clock
        self._conduct = conduct
        self._wall = clock()
        self._unsaved: deque[NodeId] = deque()
        self._refused: dict[NodeId, None] = {}
        """Nodes of which the disk did not take what was seen last."""
        self._on_connect = on_connect
        self.members: dict[NodeId, Member] = {}
        self.shelf = Shelf(book)
        self.met = Ring()
        """All that ever were in ``members``, to be looked through in slices."""
        self._held: dict[NodeId, Member] = {}
        """Those with which there is a conversation, or one is looked for."""
        self.by_state: dict[NodeState, dict[NodeId, None]] = {state: {} for state in NodeState}
        """The nodes in each state."""
        self._looks = Due()
        """When to look whether a node that is away is so for too long."""
        self._shifts = Shifts(self.members, self.met, self._unsaved)
        self.clocks = Clocks(lambda: len(self.by_state[NodeState.ONLINE]) + len(self.by_state[NodeState.OFFLINE]))
        self._undated: OrderedDict[NodeId, None] = OrderedDict()
        """Nodes that went or were given up while this machine's clock was not known to be right: since when is written once
        it is.
        """
        self._changed = trio.Event()
        self._dialling = Dialling(self._talk)
        self._cut: dict[NodeId, None] = {}
        """Revoked nodes, which are not dialled."""
        self._revoking = trio.Event()
        self.revoked: Callable[[bytes, bytes], bool] = lambda subject, invitation: False
        """Whether a node with that key, come by the invitation with that key (empty: the owner's), is revoked."""
        self.listing = Listing(self._as_listed, self._is_listed, self.members.__len__)
        self.on_dropped: Callable[[NodeId], None] = lambda node_id: None
        """Hears of a node that says that its disk has lost more shares."""

    # ---- what others ask --------------------------------------------------------------------------------------------

    def client(self, node_id: NodeId) -> NodeClient | None:
        """The conversation with a node, when there is one now."""
        member = self.members.get(node_id)
        return None if member is None else member.client

    def online(self) -> list[Member]:
        """Members that can be asked now."""
        members = (self.members[node_id] for node_id in self.by_state[NodeState.ONLINE])
        return [member for member in members if member.client is not None]

    def candidates(self, policy: Policy | None = None) -> Sequence[Candidate] | Field:
        """The members as placement sees them, with the authorities that are known by what evidence the policy asks for
        (default: any); only those that answer and behave are usable. Whom the policy allows, the selector decides. Costs as
        much as has changed since it was asked last; what is returned changes with the nodes. Those with which there is no
        conversation are not listed, but found when they are asked for by name.
        """
        weakest = Evidence.CLAIMED if policy is None else policy.evidence
        return self.listing.field(weakest, trio.current_time(), lambda: list(self.by_state[NodeState.ONLINE]))

    async def listed(self, policy: Policy) -> Sequence[Candidate] | Field:
        """``candidates``, with turns for others while what has changed is many."""
        await self.warm(policy.evidence)
        return self.candidates(policy)

    async def warm(self, weakest: Evidence) -> None:
        """List the nodes as ``candidates`` for such a policy wants them, with turns for others: later only changes are."""
        self.listing.begin(weakest, list(self.by_state[NodeState.ONLINE]))
        turns = Turns()
        while self.listing.look_again(now := trio.current_time()) or self.listing.some(weakest, now, LISTED):
            await turns.item()

    def candidate(self, node_id: NodeId, policy: Policy) -> Candidate:
        """One of them."""
        return self._as_listed(node_id, policy.evidence)

    def _is_listed(self, node_id: NodeId) -> bool | None:
        """Whether placement may look at it; None when it is not known."""
        member = self.members.get(node_id)
        return None if member is None else member.client is not None

    def _as_listed(self, node_id: NodeId, weakest: Evidence) -> Candidate:
        member = self.members[node_id]
        return Candidate(
            node_id,
            member.under(weakest) | {"outage": self._conduct.outage(node_id)},
            max(0, member.free_bytes - member.reserved),
            self._usable(member),
            self._conduct.weight(node_id),
            self._conduct.vetted(node_id),
        )

    def invited(self, key: bytes) -> int:
        """How many nodes came by the invitation with that key. Those that were not read yet are read for it, all at once:
        who can wait, waits for ``all_read`` before.
        """
        self._read_all_now()
        return self.shelf.invited[key]

    def crediting(self, vault: str) -> list[Member]:
        """The nodes that credit the vault with that id (in hex); as ``invited``."""
        self._read_all_now()
        return [self.members[node_id] for node_id in self.shelf.crediting.get(vault, ())]

    def _read_all_now(self) -> None:
        if self.shelf.unread:
            for member in self.members.values():
                member.read()

    async def all_read(self) -> None:
        """Return when what the entries of all nodes say is known: the first time they are read, with turns for others."""
        if not self.shelf.unread:
            return
        turns = Turns()
        for node_id in self.met.walk():
            self.members[node_id].read()
            await turns.item()

    def conduct_changed(self, node_id: NodeId) -> None:
        """Something else is known of what a node did."""
        if node_id in self.members:
            self.listing.changed(node_id)

    def takes(self, node_id: NodeId) -> bool:
        """Whether a node may be given a share now that it need not get."""
        member = self.members.get(node_id)
        return member is not None and self._usable(member) and self._conduct.vetted(node_id)

    def _usable(self, member: Member) -> bool:
        behaves = member.problems < PROBLEMS_BEFORE_SUSPECT and not self._conduct.suspended(member.node_id)
        return member.client is not None and behaves and not member.leaving and not self._busy(member)

    @staticmethod
    def _busy(member: Member) -> bool:
        return member.busy_until > trio.current_time()

    def answered_put(self, node_id: NodeId, busy: bool) -> None:
        """A node took a share, or said that it is busy (at the cap of its line, in its quiet hours): then it is given
        none for a while, twice as long each time, since every try costs it the bytes of a share.
        """
        member = self.members.get(node_id)
        if member is None:
            return
        if not busy:
            if member.busy_for:
                member.busy_for = member.busy_until = 0.0
                self.listing.changed(node_id)
        elif not self._busy(member):  # shares that were on their way together are one refusal
            member.busy_for = min(BUSY_LONGEST, 2 * member.busy_for or BUSY_SECONDS)
            member.busy_until = trio.current_time() + member.busy_for
            self.listing.changed(node_id)
            self.listing.later(node_id, member.busy_until)

    def reserve(self, node_id: NodeId, size: int) -> None:
        """Count bytes on their way to a node against its free space until its next report."""
        member = self.members.get(node_id)
        if member is not None:
            member.reserved += size
            self.listing.changed(node_id)

    def report(self, node_id: NodeId, problem: str) -> None:
        """A node gave a wrong answer. One log line per node and kind."""
        member = self.members.get(node_id)
        if member is None:
            return
        member.problems += 1
        self.listing.changed(node_id)
        if member.last_problem != problem:
            member.last_problem = problem
            log.warning("node %s: %s", node_id.hex()[:12], problem)

    @property
    def dates_hold(self) -> bool:
        """Whether since when nodes are given up, as the book has it, can be compared with this machine's clock: most nodes
        say the same time, and what follows a step of the clock is written.
        """
        return self.clocks.right and not (self._shifts.pending or self._unsaved or self._refused)

    def change(self) -> trio.Event:
        """An event that is set when the next node comes or goes."""
        return self._changed

    def touch(self) -> None:
        """Something else is thought of a node now: whoever waits for a change looks again."""
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- keeping conversations --------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep conversations with all nodes in the book until cancelled."""
        await self.meet_all()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dialling.run)
            nursery.start_soon(self._revoke)
            task_status.started()
            before, turns = trio.current_time(), Turns()
            while True:
                await trio.sleep(LOOK_EVERY)
                now = trio.current_time()
                if self._follow_clock(now - before):
                    await trio.lowlevel.checkpoint()  # the other writes a transaction, too
                self._tick(now - before)
                before = now
                for node_id in self._due(now):
                    self._look(node_id)
                    await turns.item()

    async def meet_all(self) -> None:
        """Take in all nodes of the book that are not known here: at the start, and when the book came from the hive."""
        turns = Turns()
        for node_id, row in self._book.node_rows():
            if node_id not in self.members:
                self._meet(node_id, row)
            await turns.item()

    def refresh(self, node_ids: Iterable[NodeId] | None = None) -> None:
        """Take in nodes (and new addresses) that the book learnt since: these, or all, however long that takes."""
        for found in self._book.nodes() if node_ids is None else self._book.nodes(node_ids):
            self._take(*found)

    def _take(self, node_id: NodeId, entry: RosterEntry, row: NodeRow) -> None:
        member = self.members.get(node_id)
        if member is None:
            self._meet(node_id, row).hear(entry)
            return
        known = member.says(entry)
        if known:
            return
        before = known is not None and member.leaving
        kept = member.entry if known is not None and member.held else None
        moved = kept is None or kept.address != entry.address
        member.hear(entry)
        if member.client is not None and member.scope is not None and not _named(entry, member.client):
            member.scope.cancel()
        self.weighed_anew([node_id])
        if node_id in self._cut or (moved and member.scope is None):  # it may have a new certificate, or be elsewhere
            self._cut.pop(node_id, None)
            member.pause = FIRST_PAUSE
            member.turn = self._dialling.add(node_id, 0.0, True)
        if known is not None and member.leaving != before:
            log.info("node %s %s", node_id.hex()[:12], "stays after all" if before else "leaves: its shares move")
            self._notify()

    def _meet(self, node_id: NodeId, row: NodeRow) -> Member:
        state = NodeState.OFFLINE if row.state == NodeState.ONLINE else row.state
        member = self.members[node_id] = Member(node_id, self.shelf, row)
        member.state = state
        if state != row.state:
            member.since_ns = 0
            self._unsaved.append(node_id)
        if not member.since_ns:
            self._undated[node_id] = None
        self.met.add(node_id)
        self._shifts.changed(node_id)
        self.by_state[state][node_id] = None
        if state == NodeState.OFFLINE:
            self._looks.put(node_id, 0.0)
        self._conduct.went(node_id)
        # Those that were there before this start come first.
        when = -1.0 if row.state == NodeState.ONLINE else 0.0
        member.turn = self._dialling.add(node_id, when, state != NodeState.GONE)
        return member

    def forget(self, node_id: NodeId) -> None:
        """The book does not know it any more (it is GONE, and there is no conversation with it)."""
        member = self.members.pop(node_id, None)
        if member is not None:
            self.met.forget(node_id)
            member.forgotten()
            if member.scope is not None:
                member.scope.cancel()
            self.by_state[member.state].pop(node_id, None)
            self._cut.pop(node_id, None)
            self._refused.pop(node_id, None)
            self._undated.pop(node_id, None)
            self._looks.drop(node_id)
            self.listing.forget(node_id)
            self._conduct.forget(node_id)

    def weighed_anew(self, node_ids: Iterable[NodeId]) -> None:
        """Something else is known of these nodes now."""
        for node_id in node_ids:
            member = self.members.get(node_id)
            if member is not None:
                member.weighed_anew()
                self.listing.changed(node_id)
        self._notify()

    def revocations_changed(self) -> None:
        """``revoked`` says something else now: conversations with revoked nodes end, and their shares count as lost. Nodes
        with which there is none are looked at in slices: until then they are away.
        """
        for node_id in list(self._cut):
            self.members[node_id].turn = self._dialling.add(node_id, 0.0, True)
        self._cut.clear()
        for member in list(self._held.values()):
            self._look_for_revoked(member.node_id)
        self._revoking.set()

    async def _revoke(self) -> None:
        while True:
            await self._revoking.wait()
            self._revoking = trio.Event()
            turns = Turns()
            for node_id in self.met.walk():
                if self._revoking.is_set():
                    break
                self._look_for_revoked(node_id)
                await turns.item()

    def _look_for_revoked(self, node_id: NodeId) -> None:
        member = self.members.get(node_id)
        if member is not None and self.revoked(node_id, member.invited):
            if member.scope is not None:
                member.scope.cancel()
            else:
                self._cut_off(member)

    def leave_relays(self) -> None:
        """End the conversations that go through relays, and those that are just begun, which may; nodes that have no other
        way are away then.
        """
        for member in list(self._held.values()):
            if member.scope is not None and (member.client is None or member.client.relayed):
                member.scope.cancel()

    def _cut_off(self, member: Member) -> None:
        if member.state != NodeState.GONE:
            log.warning("node %s was revoked by the hive's owner: its shares count as lost", member.node_id.hex()[:12])
            self._set(member, NodeState.GONE)
        member.refused = "the hive's owner revoked its membership"
        member.turn = 0
        self._cut[member.node_id] = None

    def _tick(self, seconds: float) -> None:
        self._conduct.tick(seconds, len(self.by_state[NodeState.ONLINE]), len(self.by_state[NodeState.OFFLINE]))

    def _due(self, now: float) -> Iterator[NodeId]:
        """Nodes that may be away for too long by now. Nobody is given up while the times since when do not follow a step of
        the clock yet.
        """
        while not self._shifts.pending and (node_id := self._looks.take(now)) is not None:
            yield node_id

    def _look(self, node_id: NodeId) -> None:
        member = self.members.get(node_id)
        if member is None or member.state != NodeState.OFFLINE:
            return
        limit = self._conduct.gone_after(node_id)
        # What passed before this process began is known by the clock alone.
        by_clock = bool(member.since_ns) and (self.clocks.right or member.dated)
        away = self._conduct.away(node_id, (self._wall - member.since_ns) / 1e9 if by_clock else 0.0)
        if away > limit:
            log.warning("node %s is gone: away for %.0f s", node_id.hex()[:12], limit)
            self._set(member, NodeState.GONE)
        else:  # it may count as away for longer all at once, see Conduct.away
            late = min(LOOK_LATE, limit / 16, (limit - away) / 2)
            self._looks.put(node_id, trio.current_time() + max(LOOK_EVERY, late))

    def _follow_clock(self, seconds: float) -> bool:
        """Whether something was written. A clock that was set, or a machine that slept, moves the times since when nodes
        are away or given up: nobody is away longer for that, and no old copy is forgotten (maintenance/old_copies.py). And
        who did not answer since the clock was known to be right is away since then for later starts too: otherwise that
        would begin anew with each start, and of an engine that is started every day no node would ever be gone.

        A clock that is set back was ahead before, or is behind now. Times from before this process stay then: moved along
        they could be too early by all that it was ahead, and what is given up would be forgotten (that they are too late
        only makes it wait). When it is set forward again they stay by as much.
        """
        now = self._clock()
        step = now - self._wall - int(seconds * 1e9)
        self._wall = now
        if abs(step) > CLOCK_STEP_NS:
            for node_id in self.clocks.stepped():
                client = self.client(node_id)
                if client is not None:
                    client.ahead_ns = 0
            self._shifts.stepped(step)
        self._shifts.some()
        self._date(now)
        late = [self._unsaved.popleft() for _ in range(min(SAVED_AT_ONCE, len(self._unsaved)))]
        known = (member for node_id in late if (member := self.members.get(node_id)) is not None)
        rows = {member.node_id: member.row for member in known if member.state != NodeState.ONLINE}
        refused = islice(self._refused, SAVED_AT_ONCE)
        rows |= {node_id: self.members[node_id].row for node_id in refused if node_id in self.members}
        if rows:
            self._save_seen(rows)
        return bool(rows)

    def _date(self, now: int) -> None:
        for node_id in list(islice(self._undated, SAVED_AT_ONCE)) if self.clocks.right else ():
            del self._undated[node_id]
            member = self.members.get(node_id)
            if member is not None:
                member.since_ns, member.dated = now, True
                self._shifts.changed(node_id)
                self._unsaved.append(node_id)

    def _save_seen(self, rows: dict[NodeId, NodeRow]) -> None:
        """What the disk does not take is written at a later look."""
        try:
            self._book.save_seen(rows)
        except DiskFull:
            self._refused |= dict.fromkeys(rows)
            return
        late = [node_id for node_id in rows if self._refused.pop(node_id, 0) is None]
        if late:
            self._notify()  # who heard of it before looked into the book, and it was not there

    def _set(self, member: Member, state: NodeState, free: int | None = None, capacity: int | None = None) -> None:
        self.listing.changed(member.node_id)
        row = member.row
        dated = state == NodeState.ONLINE or self.clocks.right
        new = NodeRow(
            state,
            row.since_ns if row.state == state else self._clock() if dated else 0,
            row.free_bytes if free is None else free,
            row.capacity if capacity is None else capacity,
        )
        if state != row.state:
            node_id = member.node_id
            self.by_state[row.state].pop(node_id, None)
            self.by_state[state][node_id] = None
            member.dated = True
            self._undated.pop(node_id, None)
            if not dated:
                self._undated[node_id] = None
            self._shifts.changed(node_id)
            if state == NodeState.OFFLINE:
                self._looks.put(node_id, 0.0)
            (self._conduct.came if state == NodeState.ONLINE else self._conduct.went)(node_id)
        if new != row:
            member.row = new
            self._save_seen({member.node_id: new})
        if state != row.state:
            self._notify()

    async def _talk(self, node_id: NodeId, number: int, slot: Slot) -> None:
        """Dial a node and have a conversation with it; it is dialled again afterwards."""
        member = self.members.get(node_id)
        if member is None or member.turn != number or member.scope is not None:
            slot.free()
            return
        if self.revoked(node_id, member.invited):
            slot.free()
            self._cut_off(member)
            return
        member.scope = trio.CancelScope()
        self._held[node_id] = member
        try:
            with member.scope:
                await self._once(member, slot)
        except HivefsError as error:
            if not error.transient and member.refused != str(error):
                member.refused = str(error)
                log.warning("%s", error)
        finally:
            slot.free()
            member.scope = None
            if self._held.get(node_id) is member:  # else another one of this name is, met after this was forgotten
                del self._held[node_id]
            self.clocks.lost(node_id)
            if member.client is not None:
                member.client = None
                log.info("node %s is offline", member.node_id.hex()[:12])
                self._set(member, NodeState.OFFLINE)
            member.let_go()
        if self.members.get(node_id) is member:
            recent = member.pause < LONGEST_PAUSE and member.state != NodeState.GONE
            member.turn = self._dialling.add(node_id, trio.current_time() + member.pause, recent)
            member.pause = min(self._dialling.longest, member.pause * 2)

    async def _once(self, member: Member, slot: Slot) -> None:
        entry = member.entry
        if entry is None:
            member.refused = UNREADABLE
            return
        async with self._dial(entry) as client:
            slot.free()
            member.pause = FIRST_PAUSE
            member.refused = ""
            greeted = client.greeted.node_membership
            if not self.revoked(greeted.subject, key_of_invitation(greeted)):
                await self._converse(member, client)

    async def _converse(self, member: Member, client: NodeClient) -> None:
        first, again = True, False
        while True:
            stat = await client.stat()
            if self.members.get(member.node_id) is not member:
                return  # it was forgotten while that answer was on its way
            member.reserved = 0
            client.ahead_ns = self.clocks.heard(member.node_id, stat.time_ns, self._clock())
            # Room that goes or comes back all at once may be a node that leaves or stays after all: its own entry says so.
            news = not first and (stat.free_bytes == 0) != (member.free_bytes == 0)
            entry = member.entry
            if entry is None or not _named(entry, client):
                return  # it told other addresses while we dialled
            if first:
                member.client = client
                member.problems = 0  # a new conversation, perhaps a mended node: it may prove itself
                log.info("node %s is online", member.node_id.hex()[:12])
            self._set(member, NodeState.ONLINE, stat.free_bytes, stat.capacity)
            if stat.dropped > member.dropped:
                self.on_dropped(member.node_id)
            member.dropped = stat.dropped
            if first or news or again:
                try:
                    await self._on_connect(client)
                    again = False
                except DiskFull as error:
                    again = True  # what it told was not written: it is asked once more, and reads go on meanwhile
                    log.debug("what node %s told waits: %s", member.node_id.hex()[:12], error)
                first = False
            with trio.move_on_after(STAT_EVERY):
                await client.wait_closed()
                return
