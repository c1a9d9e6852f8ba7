"""What it costs to know very many nodes is counted: entries that are opened, objects that the collector of garbage has to
look at, nodes that are looked at between two turns of the loop. Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.chunkstore.pool import CLOCK_STEP_NS, SAVED_AT_ONCE, Pool
from hivefs.chunkstore.shifts import SHIFTED
from hivefs.crypto.keys import public_key
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats.invite import sign_invitation
from hivefs.formats.member import accept, entry_from_bytes, entry_to_bytes, outline_from_bytes, sign_address, sign_member
from hivefs.maintenance import turns
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId
from hivefs.model.node import (
    CREDITS_MARK,
    LEAVING_MARK,
    AddressRecord,
    Attribute,
    Invitation,
    Membership,
    Role,
    RosterEntry,
    Ticket,
    key_of_invitation,
)
from hivefs.placement.evidence import Weighed
from hivefs.placement.health import NodeRow, NodeState
from hivefs.testing.sim.nodes import HIVE_SEED

NOW = 1_800_000_000 * 10**9
VAULT = "0123456789abcdef" * 2


class Book:
    """Counts what is asked of it."""

    def __init__(self, count: int) -> None:
        self.asked: Counter[str] = Counter()
        self.rows = {node(i): NodeRow(NodeState.OFFLINE, 1, i, 1 << 40) for i in range(count)}
        self.more: dict[NodeId, tuple[str, ...]] = {}
        self.invited: dict[NodeId, Invitation] = {}
        self.saved: Counter[NodeId] = Counter()

    def node_rows(self) -> Iterator[tuple[NodeId, NodeRow]]:
        self.asked["node_rows"] += 1
        yield from self.rows.items()

    def nodes(self, node_ids: Iterable[NodeId] | None = None) -> Iterator[tuple[NodeId, RosterEntry, NodeRow]]:
        self.asked["nodes"] += 1
        for node_id in list(self.rows) if node_ids is None else node_ids:
            yield node_id, self._entry(node_id), self.rows[node_id]

    def _entry(self, node_id: NodeId) -> RosterEntry:
        member = Membership(bytes(32), node_id, Role.NODE, (), 1, 0, 1, bytes(64), self.invited.get(node_id))
        return RosterEntry(
            member, AddressRecord(node_id, ("/ip4/1.2.3.4/tcp/5", *self.more.get(node_id, ())), 1, bytes(64))
        )

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None:
        self.asked["roster_entry"] += 1
        return self._entry(node_id) if node_id in self.rows else None

    def entry_bytes(self, node_id: NodeId) -> bytes | None:
        self.asked["entry_bytes"] += 1
        return entry_to_bytes(self._entry(node_id)) if node_id in self.rows else None

    def weighed(self, node_id: NodeId) -> Weighed:
        self.asked["weighed"] += 1
        return Weighed((Attribute("country", "DE"),))

    def save_seen(self, rows: dict[NodeId, NodeRow]) -> None:
        self.saved.update(rows.keys())

    def reputations(self) -> list[Any]:
        return []

    def save_reputations(self, rows: Any) -> None:
        return

    def save_distrusted(self, nodes: Any) -> None:
        return


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


class World:
    def __init__(self, count: int) -> None:
        self.book, self.now = Book(count), NOW
        self.trust = Trust(cast("Any", self.book), lambda: self.now, 86_400.0)
        self.pool = Pool(cast("Any", self.book), cast("Any", self._dial), lambda: self.now, self.trust, cast("Any", None))
        self.trust.on_changed = self.pool.conduct_changed

    def _dial(self, entry: RosterEntry) -> Any:
        raise AssertionError("nobody is dialled here")

    def meet(self) -> None:
        for node_id, row in self.book.rows.items():
            self.pool._meet(node_id, row)


class Passes(trio.abc.Instrument):
    """The most of what is counted in one pass of the loop (see tests/engine/test_long_looks.py)."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.most, self.now = max(self.most, self.now), 0


def test_loading_opens_no_entry_and_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_S", float("inf"))  # as on a machine that is so fast that only numbers count
    world, passes = World(1000), Passes()
    meet = world.pool._meet

    def met(node_id: NodeId, row: NodeRow) -> Any:
        passes.now += 1
        return meet(node_id, row)

    monkeypatch.setattr(world.pool, "_meet", met)

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(world.pool._dialling, "run", trio.sleep_forever)
            await nursery.start(world.pool.run)
            nursery.cancel_scope.cancel()

    trio.run(go, instruments=[passes])
    assert len(world.pool.members) == 1000 and passes.most <= turns.MOST + 1
    assert world.book.asked == {"node_rows": 1}


def test_the_collector_has_one_object_to_look_at_for_a_known_node() -> None:
    """And none more when all were looked at, counted and dialled in turn, time after time."""
    count = 2000
    world = World(count)
    gc.collect()
    before = len(gc.get_objects())

    async def go() -> tuple[int, int]:
        world.meet()
        gc.collect()
        loaded = len(gc.get_objects()) - before
        for _ in range(3):
            world.trust.tick(29.0, 5, count)
            for node_id in world.book.rows:
                member = world.pool.members[node_id]
                assert not member.leaving and member.under(cast("Any", 1))
                world.pool._look(node_id)
                world.trust.row(node_id)
                member.turn = world.pool._dialling.add(node_id, 1.0, False)
                world.pool.conduct_changed(node_id)
        gc.collect()
        return loaded, len(gc.get_objects()) - before - loaded

    loaded, more = trio.run(go)
    assert count <= loaded <= count + 200
    assert more <= 200


def test_what_is_read_of_a_node_is_kept_while_there_is_a_conversation() -> None:
    async def go() -> None:
        world = World(2)
        world.meet()
        one = world.pool.members[node(0)]
        for _ in range(3):
            assert one.authorities["jurisdiction"] and one.entry.address.reachable
        assert world.book.asked == {"weighed": 3, "roster_entry": 3}
        one.client = cast("Any", world.pool)
        for _ in range(3):
            assert one.authorities["jurisdiction"] and one.entry.address.reachable
        assert world.book.asked == {"weighed": 4, "roster_entry": 4}
        one.let_go()
        one.client = None
        assert one.entry and world.book.asked["roster_entry"] == 5

    trio.run(go)


def test_of_each_node_the_entry_is_read_once_for_what_is_asked_of_all() -> None:
    async def go() -> None:
        world = World(300)
        mine = Invitation(bytes(32), bytes([9]) * 32, Role.NODE, (), 1, 2, 5, 0, bytes(64))
        world.book.more[node(5)] = (f"{LEAVING_MARK}77",)
        world.book.more[node(6)] = (f"{CREDITS_MARK}{VAULT}",)
        world.book.invited[node(7)] = world.book.invited[node(8)] = mine
        world.meet()
        assert world.pool.shelf.unread == 300
        await world.pool.all_read()
        for _ in range(2):
            assert [m.node_id for m in world.pool.members.values() if m.leaving] == [node(5)]
            assert [m.node_id for m in world.pool.crediting(VAULT)] == [node(6)] and world.pool.invited(mine.key) == 2
        assert world.book.asked == {"entry_bytes": 300} and not world.pool.shelf.unread
        world.pool.forget(node(6))
        world.pool.forget(node(8))
        assert not world.pool.crediting(VAULT) and not world.pool.shelf.crediting and world.pool.invited(mine.key) == 1
        del world.book.invited[node(7)]
        world.pool.refresh([node(7)])
        assert not world.pool.invited(mine.key)

    trio.run(go)


def test_news_of_a_node_that_was_not_read_yet_are_heard() -> None:
    async def go() -> None:
        world = World(3)
        world.meet()
        member = world.pool.members[node(1)]
        world.book.more[node(1)] = (f"{LEAVING_MARK}77",)
        turn = member.turn
        world.pool.refresh([node(1)])
        assert member.leaving and member.turn != turn, "it is dialled where it is now"
        turn = member.turn
        world.pool.refresh([node(1)])
        assert member.turn == turn, "that is known already"

    trio.run(go)


def test_nodes_are_looked_at_in_slices_for_those_that_are_revoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_S", float("inf"))
    world, passes = World(1000), Passes()

    async def go() -> None:
        world.meet()
        monkeypatch.setattr(world.pool._dialling, "run", trio.sleep_forever)
        bad = {node(i) for i in (3, 500, 999)}
        asked: list[bytes] = []

        def revoked(subject: bytes, invitation: bytes) -> bool:
            passes.now += 1
            asked.append(subject)
            return subject in bad

        world.pool.revoked = revoked
        async with trio.open_nursery() as nursery:
            await nursery.start(world.pool.run)
            world.pool.revocations_changed()
            while len(asked) < 1000:
                await trio.lowlevel.checkpoint()
                if len(asked) > 400 and node(1000) not in world.book.rows:  # one is met meanwhile, one forgotten, one new
                    world.book.rows[node(1000)] = NodeRow(NodeState.OFFLINE, 1)
                    world.pool.refresh([node(1000)])
                    world.pool.forget(node(998))
                    bad.add(node(2))
                    world.pool.revocations_changed()
                    asked.clear()
            while world.pool.by_state[NodeState.GONE].keys() != bad:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    trio.run(go, instruments=[passes])
    assert passes.most <= turns.MOST + 1


def test_a_step_of_the_clock_moves_each_time_once_whatever_happens_meanwhile() -> None:
    """Nodes that go, come, are forgotten and met again while the times of others are moved, some at each look."""

    async def go() -> None:
        for seed in range(5):
            dice, count, step = random.Random(seed), 3 * SHIFTED, 10 * CLOCK_STEP_NS
            world = World(count)
            world.meet()

            def all_say(world: World = world) -> None:
                for node_id in world.pool.members:
                    world.pool.clocks.heard(node_id, world.now, world.now)

            all_say()
            for number in dice.sample(range(count), 200):
                world.pool._set(world.pool.members[node(number)], dice.choice([NodeState.GONE, NodeState.ONLINE]))
            since = {n: m.since_ns for n, m in world.pool.members.items() if m.state != NodeState.ONLINE}
            world.now += step
            world.pool._follow_clock(0.0)
            while world.pool._shifts.pending:
                assert next(world.pool._due(trio.current_time()), None) is None, "nobody is given up meanwhile"
                for number in dice.sample(range(count), 20):
                    member = world.pool.members[node(number)]
                    since.pop(node(number), None)
                    if dice.random() < 0.3 and member.state != NodeState.ONLINE:
                        world.pool.forget(node(number))
                        world.pool._meet(node(number), NodeRow(NodeState.OFFLINE, world.now))
                    else:
                        world.pool._set(member, NodeState.ONLINE)
                        world.pool._set(member, NodeState.OFFLINE)
                world.pool._follow_clock(0.0)
            for node_id, member in world.pool.members.items():
                if member.state != NodeState.ONLINE:
                    # Since the step nobody said that the clock is right: who went then did so at no known time.
                    assert member.since_ns in ([since[node_id] + step] if node_id in since else [0, world.now])
            all_say()
            while world.pool._undated:
                world.pool._follow_clock(0.0)
            assert all(m.since_ns for m in world.pool.members.values() if m.state != NodeState.ONLINE)
            while world.pool._unsaved:
                before = sum(world.book.saved.values())
                world.pool._follow_clock(0.0)
                assert sum(world.book.saved.values()) - before <= SAVED_AT_ONCE

    trio.run(go)


@pytest.mark.parametrize("step", [-365 * 86_400 * 10**9, 10 * CLOCK_STEP_NS])
def test_a_time_that_is_first_known_while_others_follow_a_step_of_the_clock_is_of_now(step: int) -> None:
    """Moved by a year, old copies at the node would be forgotten at once."""

    async def go() -> None:
        world = World(3 * SHIFTED)
        world.meet()
        member = world.pool.members[node(3 * SHIFTED - 1)]
        world.pool._set(member, NodeState.GONE)
        assert not member.since_ns, "nobody said that the clock is right"
        world.now += step
        world.pool._follow_clock(0.0)
        assert world.pool._shifts.pending
        for number in range(2 * SHIFTED):
            world.pool.clocks.heard(node(number), world.now, world.now)
        assert world.pool.clocks.right
        while world.pool._shifts.pending or world.pool._undated:
            world.pool._follow_clock(0.0)
        assert member.since_ns == world.now

    trio.run(go)


def test_what_is_written_is_compared_with_the_clock_once_it_follows_its_step() -> None:
    """A clock that was behind is set, and most nodes agree at once: in the book they are given up for a year too long."""

    async def go() -> None:
        world, step = World(2 * SHIFTED), 365 * 86_400 * 10**9
        rows = world.book.rows
        rows.update({n: NodeRow(NodeState.GONE, NOW - 10**9) for n in rows})
        world.meet()
        world.book.save_seen = rows.update  # type: ignore[method-assign, assignment]
        world.pool.clocks.heard(node(0), world.now, world.now)
        assert world.pool.dates_hold
        world.now += step
        world.pool._follow_clock(0.0)
        world.pool.clocks.heard(node(0), world.now, world.now)
        looks = 0
        while not world.pool.dates_hold:
            assert world.pool.clocks.right and looks < len(rows)
            world.pool._follow_clock(0.0)
            looks += 1
        assert looks >= 2 * SHIFTED // SAVED_AT_ONCE - 2
        assert {row.since_ns for row in rows.values()} == {NOW - 10**9 + step}

    trio.run(go)


def _signed(number: int) -> RosterEntry:
    seed = bytes([number % 250 + 1]) * 32
    if number % 2:
        bare = Invitation(b"", public_key(bytes([251]) * 32), Role.NODE, (), NOW, NOW + 10**15, 3)
        made = accept(Ticket(sign_invitation(HIVE_SEED, bare), bytes([251]) * 32), seed, Role.NODE, (), NOW)
    else:
        said = (Attribute("country", "DE"),)
        made = sign_member(HIVE_SEED, Membership(b"", public_key(seed), Role.NODE, said, 1, 0, 1))
    return RosterEntry(made, sign_address(seed, ("/ip4/1.2.3.4/tcp/5", f"{LEAVING_MARK}{number}"), number))


def test_the_outline_of_an_entry_says_what_the_entry_does() -> None:
    for number in range(8):
        entry = _signed(number)
        address, key = outline_from_bytes(entry_to_bytes(entry))
        assert key == key_of_invitation(entry.membership) and address.leaving_s == entry.address.leaving_s == number
        assert (address.addresses, address.sequence) == (entry.address.addresses, entry.address.sequence)


@given(st.integers(0, 1), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_entry_has_no_outline_or_one(number: int, data: st.DataObject) -> None:
    whole = bytearray(entry_to_bytes(_signed(number)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(len(whole) // 2, len(whole))) :]
    try:
        outline_from_bytes(bytes(whole))
    except (Corrupt, UnknownVersion):
        with pytest.raises((Corrupt, UnknownVersion)):
            entry_from_bytes(bytes(whole))
