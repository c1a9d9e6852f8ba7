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

import heapq
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from itertools import islice

import trio

from hivefs.chunkstore.clocks import Clocks
from hivefs.chunkstore.dialling import FIRST_PAUSE, LONGEST_PAUSE, Dialling, Slot
from hivefs.chunkstore.listing import Listing
from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.ports import Conduct, NodeBook
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate, Evidence, Membership, RosterEntry
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import Weighed
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
SHIFTED = 256
LISTED = 8
"""Nodes that are listed at a time."""
CLOCK_STEP_NS = 60 * 10**9
SAVED_AT_ONCE = 16
BUSY_SECONDS = 5.0
BUSY_LONGEST = 300.0
"""For so long at first, and at most, a node that said BUSY is given no shares."""


@dataclass(slots=True)
class Member:
    """One node of the hive, as this process sees it. ``problems`` counts answers that were wrong (damaged shares),
    ``dropped`` is how many shares it said that its own disk had lost.
    """

    node_id: NodeId
    entry: RosterEntry
    row: NodeRow
    authorities: dict[str, frozenset[str]]
    weighed: Weighed = field(default_factory=lambda: Weighed(()))
    client: NodeClient | None = None
    reserved: int = 0
    problems: int = 0
    dropped: int = 0
    last_problem: str = ""
    refused: str = ""
    busy_until: float = 0.0
    busy_for: float = 0.0
    scope: trio.CancelScope | None = field(default=None, repr=False)
    pause: float = FIRST_PAUSE
    turn: int = 0
    """The number of its entry among those that wait to be dialled."""
    dated: bool = False
    """Whether this process itself saw since when it is as it is."""

    def under(self, weakest: Evidence) -> dict[str, frozenset[str]]:
        """The authorities over it, counting what is known by such evidence or better."""
        return self.authorities if weakest == Evidence.CLAIMED else authorities(self.weighed.attributes, weakest)

    @property
    def leaving(self) -> bool:
        """It says that it leaves: its shares are read, and moved elsewhere; it takes none."""
        return bool(self.entry.address.leaving_s)


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
        self._unsaved: deque[Member] = deque()
        self._refused: dict[NodeId, None] = {}
        """Nodes of which the disk did not take what was seen last."""
        self._on_connect = on_connect
        self.members: dict[NodeId, Member] = {}
        self.by_state: dict[NodeState, dict[NodeId, None]] = {state: {} for state in NodeState}
        """The nodes in each state."""
        self._looks: list[tuple[float, NodeId]] = []
        self._look_at: dict[NodeId, float] = {}
        """When to look whether a node that is away is so for too long."""
        self._shifts: list[tuple[int, int, dict[NodeId, None]]] = []
        """By how much the clock stepped, for times that this process saw and for those from before it, and of which nodes
        the times do not say so yet.
        """
        self._set_back = 0
        """By how much it was set back, in all, without moving times from before this process."""
        self.clocks = Clocks(lambda: len(self.by_state[NodeState.ONLINE]) + len(self.by_state[NodeState.OFFLINE]))
        self._undated: dict[NodeId, None] = {}
        """Nodes that went or were given up while this machine's clock was not known to be right: since when is written once
        it is.
        """
        self._changed = trio.Event()
        self._dialling = Dialling(self._talk)
        self._cut: dict[NodeId, None] = {}
        """Revoked nodes, which are not dialled."""
        self.revoked: Callable[[Membership], bool] = lambda membership: False
        self.listing = Listing(self._as_listed)
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
        """All members as placement sees them, with the authorities that are known by what evidence the policy asks for
        (default: any); only those that answer and behave are usable. Whom the policy allows, the selector decides. Costs as
        much as has changed since it was asked last; what is returned changes with the nodes.
        """
        weakest = Evidence.CLAIMED if policy is None else policy.evidence
        return self.listing.field(weakest, trio.current_time(), lambda: list(self.members))

    async def warm(self, weakest: Evidence) -> None:
        """List all nodes as ``candidates`` for such a policy wants them, with turns for others: later only changes are."""
        self.listing.begin(weakest, list(self.members))
        turns = Turns()
        while self.listing.some(weakest, trio.current_time(), LISTED):
            await turns.item()

    def candidate(self, node_id: NodeId, policy: Policy) -> Candidate:
        """One of them."""
        return self._as_listed(node_id, policy.evidence)

    def _as_listed(self, node_id: NodeId, weakest: Evidence) -> Candidate:
        member = self.members[node_id]
        return Candidate(
            node_id,
            member.under(weakest) | {"outage": self._conduct.outage(node_id)},
            max(0, member.row.free_bytes - member.reserved),
            self._usable(member),
            self._conduct.weight(node_id),
            self._conduct.vetted(node_id),
        )

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
        turns = Turns()
        for found in self._book.nodes():
            self._take(*found)
            await turns.item()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dialling.run)
            task_status.started()
            before = trio.current_time()
            while True:
                await trio.sleep(LOOK_EVERY)
                now = trio.current_time()
                self._follow(now - before)
                before = now
                for node_id in self._due(now):
                    self._look(node_id)
                    await turns.item()

    def refresh(self, node_ids: Iterable[NodeId] | None = None) -> None:
        """Take in nodes (and new addresses) that the book learnt since: these, or all, however long that takes."""
        for found in self._book.nodes() if node_ids is None else self._book.nodes(node_ids):
            self._take(*found)

    def _take(self, node_id: NodeId, entry: RosterEntry, row: NodeRow) -> None:
        member = self.members.get(node_id)
        if member is None:
            weighed = self._book.weighed(node_id)
            made = authorities(weighed.attributes)
            state = NodeState.OFFLINE if row.state == NodeState.ONLINE else row.state
            member = Member(node_id, entry, replace(row, state=state), made, weighed)
            if state != row.state:
                member.row = replace(member.row, since_ns=0)
                self._unsaved.append(member)
            if not member.row.since_ns:
                self._undated[node_id] = None
            self.members[node_id] = member
            self.by_state[state][node_id] = None
            if state == NodeState.OFFLINE:
                self._look_then(node_id, 0.0)
            self._conduct.went(node_id)
            self.listing.changed(node_id)
            # Those that were there before this start come first.
            when = -1.0 if row.state == NodeState.ONLINE else 0.0
            member.turn = self._dialling.add(node_id, when, state != NodeState.GONE)
        elif member.entry != entry:
            before, moved = member.leaving, member.entry.address != entry.address
            member.entry = entry
            if member.client is not None and member.scope is not None and not _named(entry, member.client):
                member.scope.cancel()
            self.weighed_anew([node_id])
            if node_id in self._cut or (moved and member.scope is None):  # it may have a new certificate, or be elsewhere
                self._cut.pop(node_id, None)
                member.pause = FIRST_PAUSE
                member.turn = self._dialling.add(node_id, 0.0, True)
            if member.leaving != before:
                log.info("node %s %s", node_id.hex()[:12], "stays after all" if before else "leaves: its shares move")
                self._notify()

    def forget(self, node_id: NodeId) -> None:
        """The book does not know it any more (it is GONE, and there is no conversation with it)."""
        member = self.members.pop(node_id, None)
        if member is not None:
            if member.scope is not None:
                member.scope.cancel()
            self.by_state[member.row.state].pop(node_id, None)
            self._cut.pop(node_id, None)
            self._refused.pop(node_id, None)
            self._undated.pop(node_id, None)
            self._look_at.pop(node_id, None)
            self.listing.forget(node_id)
            self._conduct.forget(node_id)

    def weighed_anew(self, node_ids: Iterable[NodeId]) -> None:
        """Something else is known of these nodes now."""
        for node_id in node_ids:
            member = self.members.get(node_id)
            if member is not None:
                member.weighed = self._book.weighed(node_id)
                member.authorities = authorities(member.weighed.attributes)
                self.listing.changed(node_id)
        self._notify()

    def revocations_changed(self) -> None:
        """``revoked`` says something else now: conversations with revoked nodes end, and their shares count as lost."""
        for node_id in list(self._cut):
            self.members[node_id].turn = self._dialling.add(node_id, 0.0, True)
        self._cut.clear()
        for member in list(self.members.values()):
            if self.revoked(member.entry.membership):
                if member.scope is not None:
                    member.scope.cancel()
                else:
                    self._cut_off(member)

    def leave_relays(self) -> None:
        """End the conversations that go through relays, and those that are just begun, which may; nodes that have no other
        way are away then.
        """
        for member in self.members.values():
            if member.scope is not None and (member.client is None or member.client.relayed):
                member.scope.cancel()

    def _cut_off(self, member: Member) -> None:
        if member.row.state != NodeState.GONE:
            log.warning("node %s was revoked by the hive's owner: its shares count as lost", member.node_id.hex()[:12])
            self._set(member, NodeState.GONE)
        member.refused = "the hive's owner revoked its membership"
        member.turn = 0
        self._cut[member.node_id] = None

    def _follow(self, seconds: float) -> None:
        """So much time passed since the last look, by a steady clock."""
        self._follow_clock(seconds)
        self._conduct.tick(seconds, len(self.by_state[NodeState.ONLINE]), len(self.by_state[NodeState.OFFLINE]))

    def _look_then(self, node_id: NodeId, when: float) -> None:
        self._look_at[node_id] = when
        heapq.heappush(self._looks, (when, node_id))

    def _due(self, now: float) -> Iterator[NodeId]:
        """Nodes that may be away for too long by now. Nobody is given up while the times since when do not follow a step of
        the clock yet.
        """
        while self._looks and self._looks[0][0] <= now and not self._shifts:
            when, node_id = heapq.heappop(self._looks)
            if self._look_at.get(node_id) == when:
                del self._look_at[node_id]
                yield node_id

    def _look(self, node_id: NodeId) -> None:
        member = self.members.get(node_id)
        if member is None or member.row.state != NodeState.OFFLINE:
            return
        limit = self._conduct.gone_after(node_id)
        # What passed before this process began is known by the clock alone.
        by_clock = bool(member.row.since_ns) and (self.clocks.right or member.dated)
        away = self._conduct.away(node_id, (self._wall - member.row.since_ns) / 1e9 if by_clock else 0.0)
        if away > limit:
            log.warning("node %s is gone: away for %.0f s", node_id.hex()[:12], limit)
            self._set(member, NodeState.GONE)
        else:  # it may count as away for longer all at once, see Conduct.away
            late = min(LOOK_LATE, limit / 16, (limit - away) / 2)
            self._look_then(node_id, trio.current_time() + max(LOOK_EVERY, late))

    def _follow_clock(self, seconds: float) -> None:
        """A clock that was set, or a machine that slept, moves the times since when nodes are away or given up: nobody is
        away longer for that, and no old copy is forgotten (maintenance/old_copies.py). And who did not answer since the
        clock was known to be right is away since then for later starts too: otherwise that would begin anew with each
        start, and of an engine that is started every day no node would ever be gone.

        A clock that is set back was ahead before, or is behind now. Times from before this process stay then: moved along
        they could be too early by all that it was ahead, and what is given up would be forgotten (that they are too late
        only makes it wait). When it is set forward again they stay by as much.
        """
        now = self._clock()
        step = now - self._wall - int(seconds * 1e9)
        self._wall = now
        if abs(step) > CLOCK_STEP_NS:
            self.clocks.stepped()
            for member in self.online():
                if member.client is not None:
                    member.client.ahead_ns = 0  # it was told of the clock of before
            stays = step if step < 0 else min(step, -self._set_back)
            self._set_back += stays
            away = {**self.by_state[NodeState.OFFLINE], **self.by_state[NodeState.GONE]}
            self._shifts.append((step, step - stays, away))
        for _ in range(SHIFTED):
            if not self._shifts:
                break
            step, before, waiting = self._shifts[0]
            if not waiting:
                del self._shifts[0]
                continue
            shifted = self.members.get(waiting.popitem()[0])
            by = 0 if shifted is None or not shifted.row.since_ns else step if shifted.dated else before
            if shifted is not None and by:
                shifted.row = replace(shifted.row, since_ns=max(1, shifted.row.since_ns + by))
                self._unsaved.append(shifted)
        self._date(now)
        late = [self._unsaved.popleft() for _ in range(min(SAVED_AT_ONCE, len(self._unsaved)))]
        known = (member for member in late if self.members.get(member.node_id) is member)
        rows = {member.node_id: member.row for member in known if member.row.state != NodeState.ONLINE}
        refused = islice(self._refused, SAVED_AT_ONCE)
        rows |= {node_id: self.members[node_id].row for node_id in refused if node_id in self.members}
        if rows:
            self._save_seen(rows)

    def _date(self, now: int) -> None:
        """Not while times have still to follow a step of the clock: it would be moved along, too."""
        for node_id in list(islice(self._undated, SAVED_AT_ONCE)) if self.clocks.right and not self._shifts else ():
            del self._undated[node_id]
            member = self.members.get(node_id)
            if member is not None:
                member.row, member.dated = replace(member.row, since_ns=now), True
                self._unsaved.append(member)

    def _save_seen(self, rows: dict[NodeId, NodeRow]) -> None:
        """What the disk does not take is written at a later look."""
        try:
            self._book.save_seen(rows)
        except DiskFull:
            self._refused |= dict.fromkeys(rows)
            return
        late = [node_id for node_id in rows if node_id in self._refused]
        for node_id in late:
            del self._refused[node_id]
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
            for _, _, waiting in self._shifts:
                waiting.pop(node_id, None)  # since when is by the clock as it is now
            if state == NodeState.OFFLINE:
                self._look_then(node_id, 0.0)
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
        if self.revoked(member.entry.membership):
            slot.free()
            self._cut_off(member)
            return
        member.scope = trio.CancelScope()
        try:
            with member.scope:
                async with self._dial(member.entry) as client:
                    slot.free()
                    member.pause = FIRST_PAUSE
                    member.refused = ""
                    if not self.revoked(client.greeted.node_membership):
                        await self._converse(member, client)
        except HivefsError as error:
            if not error.transient and member.refused != str(error):
                member.refused = str(error)
                log.warning("%s", error)
        finally:
            slot.free()
            member.scope = None
            self.clocks.lost(node_id)
            if member.client is not None:
                member.client = None
                log.info("node %s is offline", member.node_id.hex()[:12])
                self._set(member, NodeState.OFFLINE)
        if self.members.get(node_id) is member:
            recent = member.pause < LONGEST_PAUSE and member.row.state != NodeState.GONE
            member.turn = self._dialling.add(node_id, trio.current_time() + member.pause, recent)
            member.pause = min(self._dialling.longest, member.pause * 2)

    async def _converse(self, member: Member, client: NodeClient) -> None:
        first, again = True, False
        while True:
            stat = await client.stat()
            if self.members.get(member.node_id) is not member:
                return  # it was forgotten while that answer was on its way
            member.reserved = 0
            client.ahead_ns = self.clocks.heard(member.node_id, stat.time_ns, self._clock())
            # Room that goes or comes back all at once may be a node that leaves or stays after all: its own entry says so.
            news = not first and (stat.free_bytes == 0) != (member.row.free_bytes == 0)
            if not _named(member.entry, client):
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
