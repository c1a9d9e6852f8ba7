"""The nodes as placement sees them are kept as they change: always what making all of them anew gives."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.chunkstore.listing import AGAIN_S
from hivefs.chunkstore.member import Member
from hivefs.chunkstore.pool import LISTED, Pool
from hivefs.formats.member import entry_to_bytes
from hivefs.maintenance import turns
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId
from hivefs.model.node import LEAVING_MARK, AddressRecord, Attribute, Evidence, Membership, Role, RosterEntry
from hivefs.placement.evidence import Weighed
from hivefs.placement.field import Field
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy
from hivefs.placement.reputation import VET_AUDITS, VET_S

COUNTRIES = ("DE", "FR", "GB", "CH")
ATTESTED = Policy(2, 3, evidence=Evidence.ATTESTED)


class Book:
    """What pool and trust keep elsewhere."""

    def __init__(self) -> None:
        self.known: dict[NodeId, Weighed] = {}
        self.entries: dict[NodeId, RosterEntry] = {}

    def nodes(self, node_ids: Any = None) -> list[tuple[NodeId, RosterEntry, NodeRow]]:
        row = NodeRow(NodeState.ONLINE, 1, 1 << 30, 1 << 40)
        return [(n, entry, row) for n, entry in self.entries.items() if node_ids is None or n in node_ids]

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None:
        return self.entries.get(node_id)

    def entry_bytes(self, node_id: NodeId) -> bytes | None:
        entry = self.roster_entry(node_id)
        return None if entry is None else entry_to_bytes(entry)

    def weighed(self, node_id: NodeId) -> Weighed:
        return self.known[node_id]

    def save_seen(self, rows: dict[NodeId, NodeRow]) -> None:
        return

    def reputations(self) -> list[tuple[NodeId, Any]]:
        return []

    def save_reputations(self, rows: Any) -> None:
        return

    def save_distrusted(self, nodes: Any) -> None:
        return

    def learn(self, number: int, dice: random.Random, leaving: int = 0) -> NodeId:
        node_id = NodeId(number.to_bytes(32, "big"))
        said = (
            Attribute("country", dice.choice(COUNTRIES), dice.choice(list(Evidence))),
            Attribute("operator", f"o{number % 5}", dice.choice(list(Evidence))),
        )
        self.known[node_id] = Weighed(said)
        member = Membership(b"", node_id, Role.NODE, said, 1, 0, 1)
        where = (f"/ip4/127.0.0.1/tcp/{dice.randrange(1, 60000)}",)
        self.entries[node_id] = RosterEntry(member, AddressRecord(node_id, where, 1))
        return node_id


class World:
    def __init__(self, count: int, seed: int) -> None:
        self.dice = random.Random(seed)
        self.book = Book()
        self.now = 1
        self.trust = Trust(cast("Any", self.book), lambda: self.now, 86_400.0)
        self.pool = Pool(cast("Any", self.book), cast("Any", None), lambda: self.now, self.trust, cast("Any", None))
        self.trust.on_changed = self.pool.conduct_changed
        self.count = count
        for number in range(count):
            self.book.learn(number, self.dice)
        self.pool.refresh()

    def differs(self) -> bool:
        """Whether what is listed is another thing than what making all anew gives."""
        for policy in (None, ATTESTED):
            weakest = Evidence.CLAIMED if policy is None else policy.evidence
            field = cast("Field", self.pool.candidates(policy))
            listed = {c.node_id: c for c in field}
            fresh = {n: self.pool._as_listed(n, weakest) for n in self.pool.members}
            if listed != {n: c for n, c in fresh.items() if self.pool.client(n) is not None}:
                return True
            if fresh != {n: field.get(n) for n in fresh} or field.known != len(fresh):
                return True
        return False

    def answers(self, node_id: NodeId) -> Member:
        member: Member = self.pool.members[node_id]
        member.client = cast("Any", self.pool)
        self.pool._set(member, NodeState.ONLINE)
        return member

    def event(self) -> None:
        dice, pool, trust = self.dice, self.pool, self.trust
        node_id = dice.choice(list(pool.members))
        member: Member = pool.members[node_id]
        match dice.randrange(13):
            case 0:
                pool.reserve(node_id, dice.randrange(1 << 20))
            case 1:
                pool.report(node_id, "wrong")
            case 2:
                pool.answered_put(node_id, busy=True)
            case 3:
                pool.answered_put(node_id, busy=False)
            case 4:
                member.client, member.problems, member.reserved = cast("Any", pool), 0, 0
                pool._set(member, NodeState.ONLINE, dice.randrange(1 << 40), 1 << 40)
            case 5:
                member.client = None
                pool._set(member, NodeState.OFFLINE)
            case 6:
                self.book.learn(int.from_bytes(node_id, "big"), dice)
                pool.weighed_anew([node_id])
            case 7:
                self.count += 1
                self.book.learn(self.count, dice)
                pool.refresh()
            case 8:
                trust.failed(node_id)
            case 9:
                trust.passed(node_id)
            case 10:
                trust.read(node_id)
            case 11:
                online = sum(m.client is not None for m in pool.members.values())
                trust.tick(dice.choice([1.0, 29.0]), online, len(pool.members) - online)
            case 12:
                self.book.learn(int.from_bytes(node_id, "big"), dice)  # other addresses, so another entry
                pool.refresh()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_listed_is_always_what_making_all_anew_gives(seed: int) -> None:
    async def go() -> None:
        world = World(25, seed)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        for _ in range(400):
            world.event()
            clock.jump(world.dice.choice([0.0, 0.5, 7.0]))
            assert not world.differs()

    trio.run(go, clock=trio.testing.MockClock())


def test_a_change_that_is_not_told_would_be_seen() -> None:
    async def go() -> None:
        world = World(5, 0)
        member = world.answers(next(iter(world.pool.members)))
        assert not world.differs()
        member.reserved += 1
        assert world.differs()

    trio.run(go)


def test_a_pool_that_does_not_hear_of_conduct_would_be_seen() -> None:
    async def go(deaf: bool) -> bool:
        world = World(5, 0)
        node_id = next(iter(world.pool.members))
        world.answers(node_id)
        assert not world.differs()
        if deaf:
            world.trust.on_changed = lambda node_id: None
        world.trust.failed(node_id)
        return world.differs()

    assert trio.run(go, True) and not trio.run(go, False)


def test_nodes_of_which_nothing_changed_are_not_made_again() -> None:
    async def go() -> None:
        world = World(600, 1)
        for node_id in list(world.pool.members)[:500]:
            world.answers(node_id)
        field = cast("Field", world.pool.candidates())
        assert world.pool.listing.made == 500 == len(field) and field.known == 600, (
            "those that cannot be asked are not made"
        )
        for _ in range(20):
            for node_id in list(world.pool.members)[:10]:
                world.pool.reserve(node_id, 1)
            assert world.pool.candidates() is field
        assert world.pool.listing.made == 500 + 20 * 10

    trio.run(go)


def test_a_node_that_becomes_old_enough_is_seen_to_be_vetted() -> None:
    async def go() -> None:
        world = World(1, 1)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        world.now = 10 * 86_400 * 10**9
        new = world.book.learn(1, world.dice)
        world.pool.refresh([new])
        for _ in range(VET_AUDITS):
            world.trust.passed(new)
        world.answers(new)

        def seen() -> bool:
            return next(c.vetted for c in world.pool.candidates() if c.node_id == new)

        assert not seen()
        world.now += int(VET_S * 10**9) + 1
        assert not seen()  # nothing told of it, and it is not time yet
        clock.jump(AGAIN_S)
        assert seen()

    trio.run(go, clock=trio.testing.MockClock())


def test_a_node_that_leaves_is_not_usable_any_more() -> None:
    async def go() -> None:
        world = World(3, 1)
        node_id = next(iter(world.pool.members))
        world.answers(node_id)
        assert next(c.usable for c in world.pool.candidates() if c.node_id == node_id)
        entry = world.book.entries[node_id]
        marked = replace(entry.address, addresses=(*entry.address.addresses, f"{LEAVING_MARK}5"))
        world.book.entries[node_id] = replace(entry, address=marked)
        world.pool.refresh()
        assert not next(c.usable for c in world.pool.candidates() if c.node_id == node_id)

    trio.run(go)


def test_a_clock_that_is_set_makes_nobody_longer_given_up() -> None:
    """Copies at nodes given up count until all their leases have ended: by a clock that is a year ahead they had."""

    async def test() -> None:
        world = World(3, 1)
        saved: dict[NodeId, NodeRow] = {}
        world.book.save_seen = saved.update  # type: ignore[method-assign]
        year, states = 365 * 86_400 * 10**9, (NodeState.ONLINE, NodeState.OFFLINE, NodeState.GONE)
        world.now += year
        world.pool._follow_clock(365 * 86_400.0)
        for node_id in world.pool.members:
            world.pool.clocks.heard(node_id, world.now, world.now)
        for member, state in zip(world.pool.members.values(), states, strict=True):
            world.pool._set(member, NodeState.ONLINE)
            world.pool._set(member, state)
        world.now += year
        world.pool._follow_clock(1.0)
        for node_id, member in world.pool.members.items():
            away = (world.now - member.row.since_ns) / 1e9
            if member.row.state != NodeState.ONLINE:
                assert away <= 1.0
                assert saved[node_id] == member.row

    trio.run(test)


def test_who_asks_first_by_another_class_of_evidence_hides_no_change_from_others() -> None:
    async def go() -> None:
        world = World(4, 1)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        node_id = next(iter(world.pool.members))
        world.answers(node_id)
        world.pool.candidates()
        world.pool.answered_put(node_id, busy=True)
        assert not {c.node_id: c for c in world.pool.candidates()}[node_id].usable
        clock.jump(600.0)
        world.pool.candidates(ATTESTED)
        assert {c.node_id: c for c in world.pool.candidates()}[node_id].usable and not world.differs()

    trio.run(go, clock=trio.testing.MockClock())


class Made(trio.abc.Instrument):
    """The most candidates that were made in one pass of the loop."""

    def __init__(self) -> None:
        self.most = self._before = 0
        self.world: World | None = None

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        if self.world is not None:
            now = self.world.pool.listing.made
            self.most, self._before = max(self.most, now - self._before), now


@pytest.mark.parametrize("reason", ["changed", "vetting"])
def test_when_very_many_changed_others_have_their_turn(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """However fast the machine is: also when their time to be looked at has come."""
    monkeypatch.setattr(turns, "SLICE_S", math.inf)
    made, count = Made(), 2000

    async def go() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        made.world = world = World(count, 3)
        monkeypatch.setattr(world.trust, "vetted", lambda node_id: False)
        for node_id in world.pool.members:
            world.answers(node_id)
        field = await world.pool.listed(Policy(2, 3))
        assert len(field) == world.pool.listing.made == count
        await trio.sleep(0)
        if reason == "vetting":
            clock.jump(AGAIN_S + 1)
        else:
            world.pool.weighed_anew(list(world.pool.members))
        assert await world.pool.listed(Policy(2, 3)) is field and world.pool.listing.made == 2 * count
        assert await world.pool.listed(Policy(2, 3)) is field and world.pool.listing.made == 2 * count

    trio.run(go, clock=trio.testing.MockClock(), instruments=[made])
    assert 0 < made.most <= LISTED * turns.MOST
