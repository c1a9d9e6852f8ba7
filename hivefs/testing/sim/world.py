"""The whole simulated hive: makes nodes, lets things happen to them, starts the engine again, reads, and looks at
everything.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

import trio

from hivefs.chunkstore import writer as writing
from hivefs.content.packing import Packed
from hivefs.errors import HivefsError
from hivefs.maintenance import audit
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.stripe import Level, Purpose, Stripe
from hivefs.placement.policy import Policy
from hivefs.testing.sim import accounts, definitions, determinism, waiting
from hivefs.testing.sim.balance import Balance
from hivefs.testing.sim.checks import check, gone_is_gone
from hivefs.testing.sim.engine import STRETCHED, Life
from hivefs.testing.sim.faults import befall
from hivefs.testing.sim.files import Files
from hivefs.testing.sim.groups import Groups
from hivefs.testing.sim.heads import Heads
from hivefs.testing.sim.nodes import BEGIN_NS, DAY, SimClient, SimNode
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.truth import PURPOSE, Kept, Truth, Violation

SLACK = 2 * DAY
"""After the time-out of a node the engine has so long to make its shares again."""


@dataclass
class Result:
    """What came out. ``digest`` is of the whole trace; times in days, bytes of shares, expectations in
    docs/durability.md. ``waiting`` counts looks at a stripe that misses shares and may; in ``next_losses`` of these one
    more was destroyed, and not known to be.
    """

    digest: str = ""
    events: int = 0
    lost: list[tuple[float, int]] = field(default_factory=list)
    stripe_days: float = 0.0
    looks: int = 0
    unreachable: int = 0
    missing: int = 0
    destroyed: int = 0
    repaired: int = 0
    repair_read: int = 0
    repair_written: int = 0
    most_exposed: int = 0
    reads: int = 0
    late_reads: int = 0
    lives: int = 0
    stored: int = 0
    moved: int = 0
    heads: int = 0
    recoveries: int = 0
    waiting: int = 0
    next_losses: int = 0
    balancing: int = 0
    farthest: float = 0.0
    definitions: int = 0
    beside: int = 0
    risked: int = 0
    blows: list[tuple[float, bool, int, int]] = field(default_factory=list)


class World:
    """One run of a scenario. ``change`` may break the engine on purpose (for tests of the simulator)."""

    def __init__(
        self,
        scenario: Scenario,
        path: Path,
        *,
        policy: Policy | None = None,
        make_life: Callable[..., Life] = Life,
        trace: TextIO | None = None,
    ) -> None:
        self.scenario = scenario
        caps = (("operator", scenario.max_per_operator),)
        self.policy = policy or Policy(scenario.needed, scenario.total, max_per=caps, repair_at=scenario.repair_at)
        self.chance = random.Random(f"world {scenario.seed}")
        self.step_ns = 0
        self.stepped = 0.0
        """By how much the engine's clock is wrong, and since when."""
        self.result = Result()
        self._hash = hashlib.sha256()
        self._trace = trace
        self._path = path
        self._make_life = make_life
        rules = tuple((rule.family, rule.coalition) for rule in self.policy.rules if rule.coalition)
        lags = scenario.gone_after_days * DAY + SLACK, scenario.detection_days * DAY, scenario.blind_days * DAY
        self.truth = Truth(scenario.share_bytes, rules, *lags, self.say)
        self.truth.on_lost = self._on_lost
        self.truth.on_stored = self._stored
        self.files = Files(self)
        self.heads = Heads(self)
        self.balance = Balance(self)
        self.groups = Groups(self)
        self.truth.on_deleted = self.heads.deleted
        self.truth.given_up = self._given_up
        self._puts_to_live = 0
        self._begun = trio.Event()
        self.nodes = self.truth.nodes
        self.by_id: dict[NodeId, SimNode] = {}
        self.life: Life = None  # type: ignore[assignment]
        self.quiet = False
        self.impaired_until = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._timer_added = trio.Event()

    # ---- time and trace ---------------------------------------------------------------------------------------------

    def say(self, kind: str, *about: object) -> None:
        """One line of the trace."""
        line = f"{trio.current_time():.6f} {kind} {' '.join(map(str, about))}\n"
        self.result.events += 1
        self._hash.update(line.encode())
        if self._trace is not None:
            self._trace.write(line)

    def true_ns(self) -> int:
        """Nanoseconds since 1970, as they are."""
        return BEGIN_NS + round(trio.current_time() * 1e9)

    def engine_ns(self) -> int:
        """The engine's clock."""
        return self.true_ns() + self.step_ns

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Call it then (seconds of the virtual clock; never for infinity)."""
        if when != float("inf"):
            self._number += 1
            heapq.heappush(self._timers, (when, self._number, what))
            self._timer_added.set()

    async def _happen(self) -> None:
        while True:
            if not self._timers:
                self._timer_added = trio.Event()
                await self._timer_added.wait()
            self._timer_added = trio.Event()
            with trio.move_on_at(self._timers[0][0]):
                await self._timer_added.wait()
            while self._timers and self._timers[0][0] <= trio.current_time():
                heapq.heappop(self._timers)[2]()

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def join(self, country: str, operator: str, operator_country: str) -> SimNode:
        """A new node."""
        chance, now = self.chance, trio.current_time()
        node = SimNode(len(self.nodes) + 1, country, operator, operator_country, self.scenario.disk_bytes or 1 << 40, now)
        node.slow = chance.uniform(0.02, 0.2)
        node.skew_ns = round(chance.gauss(0, 30) * 1e9)
        self.nodes[node.number] = node
        self.by_id[node.node_id] = node
        if self.life is not None and not self.life.store.dead:
            self.life.learn([node])
        self.saw(node)
        self.say("join", node.number, country, operator)
        self.at(now + self.scenario.lifetimes.draw(chance), lambda: self.destroy(node))
        self._plan_outage(node)
        if self.scenario.disk_bytes and self.life is not None:
            self.balance.happened(False)
        return node

    def _plan_outage(self, node: SimNode) -> None:
        zone = self.scenario.countries.index(node.country) * 4
        self.at(self.scenario.outages.next(self.chance, trio.current_time(), zone), lambda: self._leave(node))

    def _leave(self, node: SimNode) -> None:
        if self.quiet or not node.up or node.dead:
            return
        node.up = False
        self.say("down", node.number)
        self.saw(node)
        self.at(
            trio.current_time() + self.chance.expovariate(1 / (self.scenario.outages.hours * 3600)),
            lambda: self._return(node),
        )

    def _return(self, node: SimNode) -> None:
        if not node.dead:
            node.up = True
            self.say("up", node.number)
            self.saw(node)
            self._plan_outage(node)

    def saw(self, node: SimNode) -> None:
        """The engine notices, if it runs, whether that node answers."""
        if self.life is not None:
            self.life.look_at(node)

    def wipe(self, node: SimNode, due: float) -> None:
        """All that is on its disk is destroyed."""
        shares, node.shares, node.used = node.shares, {}, 0
        for share_id in shares:
            self.truth.damaged(node, share_id, due, exposed=False)

    def destroy(self, node: SimNode, join_after_days: float | None = None) -> None:
        """The node is gone for ever, with its disk; another one joins in its place some time later (0: none does)."""
        if self.quiet or node.dead:
            return
        node.dead = True
        self.say("destroyed", node.number, len(node.shares))
        self.result.destroyed += len(node.shares)
        self.saw(node)
        # The engine's own time-out for this node, which its history may have prolonged or shortened.
        lag = self.life.trust.gone_after(node.node_id) + SLACK
        self.wipe(node, max(trio.current_time(), self.impaired_until) + lag)
        after = self.scenario.join_after_days if join_after_days is None else join_after_days
        if after:
            self.at(trio.current_time() + after * DAY, lambda: self._replace(node))

    def _replace(self, node: SimNode) -> None:
        self.join(node.country, node.operator, node.operator_country)

    def impaired(self, until: float) -> None:
        """Repair may be impossible until then: what is due is due a repair lag later."""
        self.impaired_until = max(self.impaired_until, until)
        self.truth.grant_time(self.impaired_until + self.truth.lag)

    # ---- the engine -------------------------------------------------------------------------------------------------

    def _connect(self, node_id: NodeId) -> SimClient:
        return SimClient(self.by_id[node_id], self.truth, self.true_ns)

    async def _engine(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lives of the engine, one after the other."""
        started = False
        while True:
            self.result.lives += 1
            self.life = life = self._make_life(
                self._path / "engine",
                self.policy,
                self.scenario.gone_after_days * DAY,
                self.engine_ns,
                f"engine {self.scenario.seed} {self.result.lives}",
                self._connect,
            )
            life.on_gone = lambda gone: gone_is_gone(self, gone)
            life.exact = bool(self.scenario.groups)
            if self.scenario.paths:
                life.wire(self.files, f"wired {self.scenario.seed} {self.result.lives}")
                self.files.begin()
                if self.scenario.disk_bytes:
                    self.balance.wire(life)
                if self.scenario.heads:
                    life.wired.heads = self.heads.wire(
                        life, random.Random(f"heads {self.scenario.seed} {self.result.lives}")
                    )
            try:
                life.learn(self.nodes.values())
                for node in self.nodes.values():
                    life.look_at(node)
                self._plan_kill(life)
                self._begun.set()
                if not started:
                    task_status.started()
                    started = True
                await life.run()
            finally:
                self.result.repaired += life.repair.repaired
                self.result.risked += life.repair.risked
                life.store.close()
            self._begun = trio.Event()
            self.say("engine killed", life.store.commits)
            await trio.sleep(self.chance.expovariate(1 / 600))

    async def alive(self) -> None:
        """Wait for the engine's next life when this one is over."""
        while self.life.store.dead:
            await self.life.ended.wait()
            await self._begun.wait()

    def _plan_kill(self, life: Life) -> None:
        if self.scenario.kills_per_year and not self.quiet:
            when = self.chance.expovariate(self.scenario.kills_per_year / (365 * DAY))
            self.at(trio.current_time() + when, lambda: self._arm(life))

    def _arm(self, life: Life) -> None:
        """Dies at once, when one of its next shares is at its node and not acknowledged, or at one of its next commits."""
        if not self.quiet:
            way = self.chance.random()
            if way < 0.2:
                life.kill()
            elif way < 0.6:
                self._puts_to_live = self.chance.randrange(1, 6)
            else:
                life.store.dies_after = self.chance.random() < 0.5
                life.store.dies_at = life.store.commits + self.chance.randrange(1, 40)

    def _stored(self) -> None:
        self._puts_to_live -= 1
        if self._puts_to_live == 0:
            self.life.kill()

    def _given_up(self, kept: Kept) -> bool:
        """Whether nobody needs that stripe any more."""
        if kept.meta:
            return kept.stripe_id not in self.heads.pages
        return bool(kept.holds) and self.files.given_up(kept)

    def _on_lost(self, kept: Kept) -> None:
        async def forget() -> None:
            stripe_id = kept.stripe_id
            while stripe_id is not None:
                await self.alive()
                life = self.life
                with life.outside(), life.store.writing():
                    life.store.forget_stripe(stripe_id)
                if not life.store.dead:
                    return

        self._nursery.start_soon(forget)

    # ---- the user ---------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Place one stripe, however often the engine dies meanwhile."""
        PURPOSE.set("user")
        needed, total, size = self.policy.needed, self.policy.total, self.scenario.share_bytes
        while True:
            data = tuple(self.chance.randbytes(size) for _ in range(needed))
            ids = tuple(c.share_id for c in writing.code(needed, total, data))
            kept = Kept(len(self.truth.stripes) + 1, needed, ids, data)
            kept.repair_at = self.scenario.repaired_at(needed, total)
            kept.spread = bool(self.scenario.groups) and self.groups.known
            self.truth.know(kept)
            life = self.life
            stripe_id: StripeId | None = None
            try:
                with life.outside():
                    stripe_id = life.writer.new_id()
                    stripe = await life.writer.place(Packed(size, data, ()), Purpose.DATA, stripe_id)
                    with life.store.writing():
                        life.store.save_stripe(stripe)
                        life.store.add_live(stripe_id, 1)
                    if any(share.node is None for share in stripe.shares):
                        life.repair.add(stripe_id)
            except HivefsError as error:
                self.say("write waits", error)
            await self.alive()
            if stripe_id is not None and self.life.store.stripe(stripe_id) is not None:
                self.truth.placed(kept, stripe_id)
                return
            kept.lost = True  # never was a file: what was put of it must be deleted again
            await trio.sleep(600.0)

    async def _reading(self) -> None:
        """Somebody reads something now and then."""
        PURPOSE.set("user")
        while True:
            await trio.sleep(self.chance.expovariate(self.scenario.reads_per_day / DAY))
            placed = [k for k in self.truth.stripes.values() if k.stripe_id is not None and not k.lost]
            placed = [k for k in placed if not self.truth.given_up(k)]
            if placed:
                await self._read(self.chance.choice(placed))

    def _named(self, kept: Kept, stripe: Stripe) -> int:
        """Shares that are whole and in reach where the engine's record of the stripe says."""
        nodes = [None if share.node is None else self.by_id[share.node] for share in stripe.shares]
        good = (n is not None and n.reachable and not n.flips and n.number in kept.intact[i] for i, n in enumerate(nodes))
        return sum(good)

    async def _read(self, kept: Kept) -> None:
        life, index = self.life, self.chance.randrange(kept.needed)
        if kept.stripe_id is None or life.store.dead:
            return
        stripe = life.store.stripe(kept.stripe_id)
        if stripe is None:
            if self.truth.given_up(kept):
                return
            raise Violation(f"the engine forgot stripe {kept.name}")
        before = self._named(kept, stripe)
        self.result.reads += 1
        found: list[bytes] = []
        try:
            with life.outside():
                found.append(await life.reader.data_share(stripe, index))
        except HivefsError as error:
            self.result.late_reads += 1
            self.say("read failed", kept.name, before)
            if not life.store.dead and not kept.lost and min(before, self._named(kept, stripe)) >= kept.needed:
                raise Violation(f"stripe {kept.name} could not be read with {before} shares in reach: {error}") from None
            return
        if found and found[0] != kept.data[index]:
            raise Violation(f"stripe {kept.name} was read as something else")
        self.say("read", kept.name, index)

    # ---- the run ----------------------------------------------------------------------------------------------------

    def populate(self) -> None:
        """The first nodes: operators with a few each, in all countries."""
        scenario = self.scenario
        for number in range(scenario.nodes):
            country = scenario.countries[number % len(scenario.countries)]
            owner = number // (len(scenario.countries) * scenario.nodes_per_operator) * len(scenario.countries)
            name = owner + number % len(scenario.countries)
            foreign = random.Random(f"operator {scenario.seed} {name}").random() < scenario.foreign
            home = scenario.countries[(name + 1) % len(scenario.countries)] if foreign else country
            self.join(country, f"operator-{name}", home)

    async def _watching(self) -> None:
        while True:
            await trio.sleep(self.scenario.check_hours * 3600)
            self.life.measure(self.nodes.values()) if not self.life.store.dead else None
            check(self)
            await self.heads.check()

    async def run(self) -> Result:
        """All of it. Raises Violation (in a group)."""
        scenario = self.scenario
        self.populate()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._happen)
            await nursery.start(self._engine)
            for number in range(scenario.stripes):
                if scenario.paths:
                    await self.files.write(scenario.paths[number % len(scenario.paths)])
                else:
                    await self.write()
            begun = trio.current_time()
            for fault in scenario.faults:
                self.at(begun + fault.day * DAY, lambda fault=fault: befall(self, fault))  # type: ignore[misc]
            self.groups.begin()
            nursery.start_soon(self._reading)
            nursery.start_soon(self._watching)
            await trio.sleep_until(begun + scenario.days * DAY)
            self._measure(begun)
            self.calm()
            await trio.sleep(scenario.settle_days * DAY)
            await self.alive()
            check(self)
            self.whole_again()
            if scenario.paths:
                self.files.check_settled()
                accounts.check_balanced(self)
                definitions.check_settled(self)
            if scenario.disk_bytes:
                self.balance.check_settled()
                self.result.balancing = self.balance.moves
                self.result.farthest = self.balance.farthest()
            nursery.cancel_scope.cancel()
        self.result.digest = self._hash.hexdigest()
        return self.result

    def _measure(self, begun: float) -> None:
        result, now = self.result, trio.current_time()
        result.lost = [(when - begun, name) for when, name in self.truth.lost]
        placed = [k for k in self.truth.stripes.values() if k.stripe_id is not None]
        gone = dict((name, when) for when, name in self.truth.lost)
        result.stripe_days = sum(gone.get(k.name, now) - begun for k in placed) / DAY
        result.stored = len(placed) * self.policy.total * self.scenario.share_bytes
        result.repair_read = self.truth.traffic.read["repair"]
        result.repair_written = self.truth.traffic.written["repair"]
        result.most_exposed = self.truth.most_exposed
        result.moved = self.files.moved
        result.heads = 0 if self.heads.out is None else self.heads.out.sequence
        result.recoveries = self.heads.recoveries
        result.blows = self.groups.blows

    def soon(self, what: Callable[[], Awaitable[None]]) -> None:
        """Begin something that takes a while."""
        self._nursery.start_soon(what)

    def calm(self) -> None:
        """From now on nothing befalls the hive any more; who is only away comes back."""
        self.quiet = True
        for node in self.nodes.values():
            if not node.dead and not (node.up and not node.cut):
                node.up, node.cut = True, False
                self.say("up", node.number)
                self.saw(node)

    def whole_again(self) -> None:
        """Everything is guaranteed again, each share is on one disk, and no disk has one that nobody names. Raises
        Violation.
        """
        named: set[tuple[NodeId, bytes]] = set()
        store = self.life.store
        for kept in self.truth.stripes.values():
            if kept.lost or kept.stripe_id is None:
                continue
            stripe = store.stripe(kept.stripe_id)
            if self.truth.given_up(kept):
                if kept.meta and stripe is not None:  # pages that were dropped go with the head after the next
                    named |= {(share.node, share.share_id) for share in stripe.shares if share.node is not None}
                continue
            waits = stripe is not None and kept.lazy and not waiting.of_what_is_left(self, kept, stripe)
            short = kept.left < len(kept.share_ids) and not waits
            if stripe is None or store.health(stripe).level != Level.GUARANTEED or short:
                raise Violation(
                    f"stripe {kept.name} is not whole again: {kept.left} shares, waiting for {self.life.repair.waiting_for}"
                )
            named |= {(share.node, share.share_id) for share in stripe.shares if share.node is not None}
        for node in self.nodes.values():
            stray = [s for s in node.shares if not node.dead and (node.node_id, s) not in named]
            if stray:
                raise Violation(f"node {node.number} keeps {len(stray)} shares that nothing names")


def simulate(
    scenario: Scenario,
    *,
    policy: Policy | None = None,
    make_life: Callable[..., Life] = Life,
    trace: TextIO | None = None,
) -> Result:
    """Run a scenario in a directory of its own, in memory where there is /dev/shm. Raises Violation."""
    memory = Path("/dev/shm")  # noqa: S108 - a private directory inside of it
    with (
        tempfile.TemporaryDirectory(prefix="hivefs-sim-", dir=memory if memory.is_dir() else None) as name,
        determinism.patched([*STRETCHED, (audit, "per_day", partial(_fewer, scenario.audit_part, audit.per_day))]),
    ):

        async def program() -> Result:
            world = World(scenario, Path(name), policy=policy, make_life=make_life, trace=trace)
            try:
                return await world.run()
            except BaseExceptionGroup as group:
                found = first_violation(group)
                if found is None:
                    raise
                raise Violation(f"{found} (again: {scenario.command})") from None

        return determinism.run(scenario.seed, program)


def _fewer(part: float, per_day: Callable[[int, int], float], shares: int, nodes: int) -> float:
    return part * per_day(shares, nodes)


def first_violation(group: BaseExceptionGroup[BaseException]) -> Violation | None:
    """The first violation inside of a group."""
    for error in group.exceptions:
        found = first_violation(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, Violation):
            return found
    return None
