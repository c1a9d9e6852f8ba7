"""One life of the engine in the simulator: its own store and duties, over simulated nodes, until it ends or is killed.

Polling pauses of the duties are stretched (``STRETCHED``): a year has six million pauses of five seconds, in which nothing
happens. What they decide, and after which events, stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.claims import Claims, Pair
from hivefs.chunkstore.member import Member
from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import Writer
from hivefs.content import packing
from hivefs.content.packing import Packer
from hivefs.daemon import engine_moving, engine_policies
from hivefs.maintenance import (
    audit,
    checkpoint,
    definitions,
    forgetting,
    garbage,
    leases,
    ledger,
    reassign,
    rebalance,
    repack,
    repack_plan,
    repair,
    spares,
    trust,
)
from hivefs.maintenance.audit import Audit
from hivefs.maintenance.forgetting import Forgetting
from hivefs.maintenance.garbage import Garbage
from hivefs.maintenance.leases import Leases
from hivefs.maintenance.old_copies import OldCopies
from hivefs.maintenance.repair import Repair
from hivefs.maintenance.spares import Spares
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeRow, NodeState, NodeView
from hivefs.placement.policy import Policy
from hivefs.testing.sim.files import SHARE, Files
from hivefs.testing.sim.nodes import DAY, DAY_NS, SimClient, SimNode
from hivefs.testing.sim.quick import SimPool
from hivefs.testing.sim.store import Killed, SimStore
from hivefs.testing.sim.truth import PURPOSE
from hivefs.testing.sim.wired import Wired

HOUR = 3600.0
HEAD = 300.0
"""Seconds from one head to the next; the engine takes 3 to 13, and a node is told nothing before."""
LOOK = 3 * HOUR
SOON = 15.0
"""Seconds until a node that came back counts as back."""
STRETCHED: list[tuple[Any, str, Any]] = [
    (repair, "RETRY", LOOK),
    (repair, "LEAVING_AGAIN", 6 * HOUR),
    (garbage, "EVERY", LOOK),
    (leases, "EVERY", DAY),
    (spares, "EVERY", LOOK),
    (forgetting, "EVERY", DAY),
    (audit, "LOOK_EVERY", LOOK),
    (trust, "LONGEST_TICK", DAY),
    (trust, "SAVE_EVERY", 6 * HOUR),
    (trust, "LEARN_EVERY", 6 * HOUR),
    (repack, "PASS_EVERY", LOOK),
    (repack, "RETRY", LOOK),
    (reassign, "EVERY", LOOK),
    (reassign, "ASK", LOOK),
    (reassign, "AGAIN", LOOK),
    (reassign, "ASK", HOUR),
    (engine_moving, "POLICIES_EVERY", HOUR),
    (engine_policies, "MEASURE_EVERY", LOOK),
    (ledger, "LOOK", LOOK),
    (definitions, "EVERY", LOOK),
    (rebalance, "EVERY", LOOK),
    (rebalance, "LONGEST", DAY),
    (checkpoint, "EVERY", DAY),
    (ledger, "EVERY_NS", 2 * DAY_NS),
    # Shares are short here, and so are the stripes that repacking makes.
    (repack, "Packer", partial(Packer, capacity=SHARE)),
    (repack_plan, "FULL_SHARE", SHARE),
    (packing, "SMALLEST_SHARE", 64),
]
KEY = bytes(range(32))


def only_killed(error: BaseException) -> bool:
    """Whether that is Killed, perhaps in groups, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(only_killed, error.exceptions))
    return isinstance(error, Killed)


class NoCache(Cache):
    """Everything comes from the nodes."""

    def __init__(self) -> None:
        self.usage = self.budget = 0

    def has(self, stripe_id: StripeId, index: int) -> bool:
        return False

    def get(self, stripe_id: StripeId, index: int) -> bytes | None:
        return None

    def put(self, stripe_id: StripeId, index: int, data: bytes) -> bool:
        return False

    def remove(self, stripe_id: StripeId, index: int) -> None:
        return


class Life:
    """From a start of the engine to its end. ``connect`` gives a conversation with a node that can be reached."""

    def __init__(
        self,
        path: Path,
        policy: Policy,
        gone_after: float,
        clock: Callable[[], int],
        seed: str,
        connect: Callable[[NodeId], SimClient | None],
    ) -> None:
        chance = random.Random(seed)
        self.policy = policy
        self.clock = clock
        self._connect = connect
        self._gone_after = gone_after
        self.store = SimStore(path, KEY, policy, chance.randbytes)
        self.store.clock = clock
        self.trust = Trust(self.store, clock, gone_after)
        self.pool = SimPool(self.store, cast("Any", None), clock, self.trust, cast("Any", None))
        self.trust.on_changed = self.pool.conduct_changed
        self.pool.on_touch = self._tell
        self.reader = Reader(self.pool, NoCache(), self._bad, on_good=self.trust.read)
        self.claims = claims = Claims(self._intend)
        self.old_copies = OldCopies(self.store, clock, lambda: self.pool.dates_hold)
        self.writer = Writer(self.pool, policy, clock, chance.randbytes, claims, copies=self.old_copies.of)
        self.repair = Repair(self.store, self.reader, self.writer, self._node_view, lambda: self._news)
        self.repair.on_bad = self.trust.failed
        self.spares = Spares(
            self.store, self.reader, self.trust, self._node_view, cast("Any", self.online), clock, chance.randbytes, claims
        )
        self.repair.take_back, self.repair.leave = self.spares.take_back, self.spares.leave
        self.spares.on_taken_back = self.repair.add
        self.audit = Audit(self.store, self.reader, self.trust, cast("Any", self.online), self._bad, chance.randbytes)
        self.trust.on_suspended = lambda node_id: self._tell()
        self.garbage = Garbage(self.store, claims, cast("Any", self.online))
        self.forgetting = Forgetting(
            self.store,
            lambda: self.pool.by_state[NodeState.GONE],
            self.pool.forget,
            clock,
            lambda: self.pool.dates_hold,
        )
        self.leases = Leases(self.store, cast("Any", self.online), clock, self._bad)
        self._news = trio.Event()
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        self.on_gone: Callable[[list[NodeId]], None] = lambda gone: None
        self.has_files = False
        self.exact = False
        """Whether it is counted to the second how long nodes are away, and learnt who fails together. Else that is looked
        at every three hours, which would make outages of the same hours look like one.
        """
        self._looked = trio.current_time()
        self._came_or_went = trio.Event()
        self._online: list[tuple[NodeId, NodeClient]] | None = None
        self.wired: Wired = None  # type: ignore[assignment]

    def wire(self, files: Files, seed: str) -> None:
        """Also run the duties that need files."""
        self.cache = NoCache()
        self.has_files = True
        self.wired = Wired(self, random.Random(seed), files, files.made, files.recorded)

    def online(self) -> Iterable[tuple[NodeId, NodeClient]]:
        """Nodes that can be asked now; listed anew when one comes or goes, since all duties ask at each of their looks."""
        if self._online is None:
            self._online = [(m.node_id, m.client) for m in self.pool.online() if m.client is not None]
        return self._online

    def _bad(self, stripe: Stripe, index: int, reason: str) -> None:
        self.repair.bad_share(stripe, index, reason)

    def _node_view(self, node_id: NodeId) -> NodeView | None:
        view = self.store.node_view(node_id)
        return replace(view, leaving=True) if view is not None and self.trust.suspended(node_id) else view

    def _intend(self, pairs: Collection[Pair]) -> None:
        with self.store.writing():
            for node_id, share_id in pairs:
                self.store.trash_share(node_id, share_id)

    # ---- what happens to it -----------------------------------------------------------------------------------------

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Around what others than the duties do with the engine: it may die of that, they do not."""
        try:
            yield
        except BaseException as error:  # Killed comes alone or in groups of groups; everything else is raised again
            if not only_killed(error):
                raise
            self.kill()

    def learn(self, nodes: Iterable[SimNode]) -> None:
        """Nodes that are new to the book."""
        now, nodes = self.clock(), list(nodes)
        with self.outside():
            with self.store.writing():
                for node in nodes:
                    if self.store.save_node(node.entry(), now) and self.store.node_row(node.node_id) is None:
                        self.store.save_node_row(node.node_id, NodeRow(NodeState.OFFLINE, now))
            self.pool.refresh([node.node_id for node in nodes])

    def look_at(self, node: SimNode) -> None:
        """A node came or went: what the pool's conversation with it would see."""
        if node.reachable and not self.store.dead and self.store.was_forgotten(node.node_id) is not None:
            self.learn([node])  # it says something newer of itself, see node/running.py
        member = self.pool.members.get(node.node_id)
        if member is None or self.store.dead:
            return
        if self.exact and node.reachable != (member.client is not None):
            with self.outside():
                self._look_away()
            self._came_or_went.set()
        self._online = None
        if node.reachable and member.client is None:
            member.client = cast("Any", self._connect(node.node_id))
            member.problems = 0
            member.reserved = 0
            self._hear(member)
            self._saw(member, NodeState.ONLINE, max(0, node.capacity - node.used), node.capacity)
        elif not node.reachable and member.client is not None:
            member.client = None
            self.pool.clocks.lost(node.node_id)
            self._saw(member, NodeState.OFFLINE)

    def _hear(self, member: Member) -> None:
        """What it tells of its clock with its room, every 15 seconds."""
        client = cast("SimClient", member.client)
        client.ahead_ns = self.pool.clocks.heard(member.node_id, client.time_ns(), self.clock())

    def _saw(self, member: Member, state: NodeState, free: int | None = None, capacity: int | None = None) -> None:
        before = member.row.state
        with self.outside():
            self.pool._set(member, state, free, capacity)
        if before == NodeState.GONE:
            self._tell()

    def measure(self, nodes: Iterable[SimNode]) -> None:
        """What the pool asks its nodes every now and then: their room."""
        for node in nodes:
            member = self.pool.members.get(node.node_id)
            if member is not None and member.client is not None and not self.store.dead:
                member.reserved = 0
                self._hear(member)
                self._saw(member, NodeState.ONLINE, max(0, node.capacity - node.used), node.capacity)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _give_up(self) -> None:
        """The pool's look at who is away for too long: it looks some times a second, here every three hours."""
        self._looked = trio.current_time()
        while True:
            self._came_or_went = trio.Event()
            with trio.move_on_after(min(LOOK, self._gone_after / 4)):
                await self._came_or_went.wait()
                await trio.sleep(SOON)
            self._look_away()

    def _look_away(self) -> None:
        for member in self.pool.online() if not self.pool.clocks.asked else ():
            self._hear(member)
        before = {m.node_id for m in self.pool.members.values() if m.row.state == NodeState.GONE}
        self.pool.give_up(trio.current_time() - self._looked)
        self._looked = trio.current_time()
        members = self.pool.members.values()
        gone = [m.node_id for m in members if m.row.state == NodeState.GONE and m.node_id not in before]
        if gone:
            self.on_gone(gone)
            self._tell()

    async def run(self) -> None:
        """The duties, until killed."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._give_up)
                    for duty in self.duties():
                        nursery.start_soon(duty)
        except BaseException as error:  # as in outside(): only Killed ends here
            if not only_killed(error):
                raise
        finally:
            self.store.dead = True
            self.ended.set()

    async def _audit(self) -> None:
        PURPOSE.set("audit")
        await self.audit.run()

    async def _heads(self) -> None:
        """What a head that is out lets go: copies that moves left. (No tree is built here; the order of things is.)"""
        while True:
            if not self.store.count("doomed"):
                self.store.doomed = trio.Event()
                await self.store.doomed.wait()
            await trio.sleep(HEAD)
            if self.store.count("doomed"):
                with self.store.writing():
                    closed = self.store.next_sequence()
                await trio.sleep(HEAD)
                self.garbage.reap(closed)

    def duties(self) -> list[Callable[[], Any]]:
        """One loop for each."""
        always = [
            self.repair.run,
            self.leases.run,
            self.garbage.empty_trash,
            self._audit,
            self.spares.run,
            self.forgetting.run,
        ]
        if self.exact:
            always.append(self.trust.run)
        if not self.has_files:
            return [*always, self._heads]
        return [*always, self.wired.heads or self._heads, *self.wired.duties()]

    def kill(self) -> None:
        """SIGKILL, now."""
        self.store.dead = True
        self._scope.cancel()
