"""What the engine thinks of nodes: kept over a kill, and who is away when everybody seems to be."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest
import trio

from hivefs.maintenance.trust import LEARN_EVERY, SAVE_EVERY, Trust
from hivefs.model.ids import CHUNK_BYTES, NodeId
from hivefs.model.stripe import Level
from hivefs.placement.health import NodeState
from hivefs.placement.reputation import Reputation
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

NODES = [NodeId(bytes([n]) * 32) for n in range(1, 13)]
DAY = 86_400.0


class Book:
    """What was written is what a killed process finds again."""

    def __init__(self) -> None:
        self.rows: dict[NodeId, Reputation] = {}
        self.distrusted: frozenset[NodeId] = frozenset()

    def reputations(self) -> list[tuple[NodeId, Reputation]]:
        return list(self.rows.items())

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None:
        self.rows |= rows

    def save_distrusted(self, nodes: Collection[NodeId]) -> None:
        self.distrusted = frozenset(nodes)


class World:
    """A trust and its two clocks."""

    def __init__(self, setting: float = DAY) -> None:
        self.book = Book()
        self.now = 1_800_000_000 * 10**9
        self.setting = setting
        self.trust = self.again()

    def again(self) -> Trust:
        self.trust = Trust(self.book, lambda: self.now, self.setting)
        return self.trust

    def seen(self, here: list[NodeId]) -> None:
        for node_id in NODES:
            (self.trust.came if node_id in here else self.trust.went)(node_id)

    def passes(self, seconds: float, away: list[NodeId], gone: list[NodeId] | None = None) -> None:
        here = [n for n in NODES if n not in away and n not in (gone or [])]
        step = 10 if seconds < 50_000 else 1000
        self.seen(here)
        self.trust.longest_tick = step
        while seconds > 0:
            self.now += min(step, int(seconds)) * 10**9
            self.trust.tick(min(step, int(seconds)), len(here), len(away))
            seconds -= step


def test_one_that_is_away_is_given_up_in_time_and_all_together_never() -> None:
    world = World()
    world.passes(1000, [])
    world.passes(DAY, NODES[:1])
    assert world.trust.away(NODES[0], 0.0) == DAY
    world = World()
    world.passes(1000, [])
    world.passes(40 * DAY, NODES)
    assert all(world.trust.away(n, 0.0) == 0 for n in NODES), "nobody answers: it is this machine"
    world.passes(100, NODES[:5])
    world.passes(100, [])
    assert not any(row.outages for row in world.trust.rows.values()), "and nothing is learnt from it"
    assert all(world.trust.status(n)["availability"] > 0.999 for n in NODES[5:])


def test_most_at_once_count_slowly_and_half_count_whole() -> None:
    world = World()
    world.passes(800, NODES[:7])
    assert world.trust.cut_off and world.trust.away(NODES[0], 0.0) == 100
    world.passes(800, NODES[:6])
    assert not world.trust.cut_off and world.trust.away(NODES[0], 0.0) == 900


def test_a_sleeping_machine_counts_nothing() -> None:
    world = World()
    world.passes(100, NODES[:1])
    world.trust.tick(50_000, len(NODES) - 1, 1)
    world.trust.tick(-5, len(NODES) - 1, 1)
    assert world.trust.away(NODES[0], 0.0) == 100


def test_an_engine_that_runs_an_hour_a_day_gives_up_who_is_away_for_days() -> None:
    world = World()
    world.passes(100, [])
    for day in range(3):
        world.now += int(DAY) * 10**9
        trust = world.again()
        assert trust.away(NODES[0], day * DAY) < DAY / 8, "not before it had its time to answer"
        world.passes(3600, NODES[:1])
        assert (trust.away(NODES[0], day * DAY + 3600) > DAY) == (day >= 1)
    # Cut off meanwhile: the clock says nothing of the node.
    world.passes(100, NODES)
    world.passes(3600, NODES[:1])
    assert world.trust.away(NODES[0], 30 * DAY) < DAY


def test_nodes_that_fail_together_are_a_domain_and_our_own_outages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def learn(trust: Trust) -> None:
        """One look, however long it takes."""
        looked = trio.Event()

        sleep = trio.sleep

        async def pause(seconds: float) -> None:
            if seconds >= LEARN_EVERY:
                looked.set()
            await sleep(seconds)

        with monkeypatch.context() as patched:
            patched.setattr(trio, "sleep", pause)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trust.run)
                with trio.fail_after(60):
                    await looked.wait()
                nursery.cancel_scope.cancel()

    world = World()
    world.passes(DAY, [])
    for _ in range(6):
        world.passes(8000, NODES)  # this machine is cut off
        world.passes(20_000, [])
    trio.run(learn, world.trust)
    assert world.trust.domains == {}
    for _ in range(4):
        world.passes(8000, NODES[:3])
        world.passes(20_000, [])
        world.passes(8000, NODES[5:6])
        world.passes(20_000, [])
    trio.run(learn, world.trust)
    assert {n for n in NODES if world.trust.outage(n)} == set(NODES[:3])
    assert len({world.trust.outage(n) for n in NODES[:3]}) == 1
    trio.run(learn, world.again())
    assert {n for n in NODES if world.trust.outage(n)} == set(NODES[:3]), "and again after a kill"


def test_a_kill_loses_a_minute_of_counting_and_no_decision() -> None:
    world = World()
    world.passes(5000, NODES[:1])
    for _ in range(5):
        world.trust.failed(NODES[3])
    world.trust.silent(NODES[4], bytes(16), 2, True)  # type: ignore[arg-type]
    world.passes(200, NODES[:1])
    before = world.trust.away(NODES[0], 0.0)
    again = world.again()
    assert before - 2 * SAVE_EVERY <= again.away(NODES[0], 0.0) <= before
    assert again.suspended(NODES[3]) and not again.suspended(NODES[2])
    assert [o.strikes for o in again.row(NODES[4]).owed] == [1]


def test_clock_steps_change_no_absence() -> None:
    world = World()
    for step in (10**18, -(10**18), -(10**17), 10**17):
        world.now += step
        world.passes(100, NODES[:1])
        world.trust.failed(NODES[1])
    assert world.trust.away(NODES[0], 0.0) == 400
    world.passes(1000, [])
    assert not world.trust.suspended(NODES[1])


def test_when_most_seem_bad_only_the_worst_third_is_suspended() -> None:
    world = World()
    world.passes(10, [])
    for number, node in enumerate(NODES):
        for _ in range(6 + number):
            world.trust.failed(node)
    assert [world.trust.suspended(n) for n in NODES] == [False] * 8 + [True] * 4
    assert world.book.distrusted == set(NODES[8:]), "and that is what levels are judged by"
    world.book.distrusted = frozenset()
    world.again()
    assert world.book.distrusted == set(NODES[8:]), "made good at the start when a kill came between"


def test_nodes_of_the_first_hour_are_vetted_and_later_ones_are_not() -> None:
    world = World()
    world.trust.row(NODES[0])
    world.now += 3600 * 10**9
    world.trust.row(NODES[1])
    world.now += 10**9
    world.trust.row(NODES[2])
    assert [world.trust.vetted(n) for n in NODES[:3]] == [True, True, False]


def test_reads_of_one_share_again_and_again_count_once_in_a_while() -> None:
    world = World()
    world.trust.failed(NODES[0])
    for _ in range(1000):
        world.trust.read(NODES[0])
    assert world.trust.row(NODES[0]).good == 1000


@pytest.mark.parametrize("cut", [8, 7])
def test_an_engine_that_is_cut_off_gives_up_nobody(tmp_path: Path, cut: int) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            for slot in range(3):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            for node in hive.nodes[:cut]:
                node.stop()
            await until(lambda: len(engine.pool.online()) == 8 - cut)
            await trio.sleep(2.0)
            assert engine.trust.cut_off
            assert all(m.row.state != NodeState.GONE for m in engine.pool.members.values())
            for node in hive.nodes:
                node.start()
            await until(lambda: len(engine.pool.online()) == 8)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            assert engine.repair.repaired == 0
            assert not any(row.outages for row in engine.trust.rows.values())

    run(test)


def test_a_clock_that_is_set_gives_up_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            hive.nodes[0].stop()
            await until(lambda: len(engine.pool.online()) == 7)
            real = engine.pool._clock
            for step in (10**18, -(10**18), 0):
                engine.pool._clock = lambda step=step: real() + step  # type: ignore[misc]
                await trio.sleep(0.6)
                row = engine.pool.members[hive.nodes[0].node_id].row
                assert row.state == NodeState.OFFLINE and 0 <= engine.pool._wall - row.since_ns < 60 * 10**9

    run(test)


def test_a_node_out_of_trust_loses_its_shares_and_gets_none(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            for slot in range(8):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            bad = max(hive.nodes, key=lambda node: len(node.shares))
            assert bad.shares
            for _ in range(5):
                engine.trust.failed(bad.node_id)
            # What it says that it holds proves nothing any more; the level is that of all who read the store.
            for stripe in engine.store.stripes():
                health = engine.store.health(stripe)
                there = [i for i, share in enumerate(stripe.shares) if share.node == bad.node_id]
                assert health.distrusted == tuple(there) and health.verdict.holds
                assert health.level == (Level.REMOTE if there else Level.GUARANTEED)
                assert "out of trust" in engine.store.explained(stripe.stripe_id)["proof"] or not there
            await until(lambda: not bad.shares)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            assert not next(c for c in engine.pool.candidates() if c.node_id == bad.node_id).usable
            vault.write(10, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            assert not bad.shares
        async with running(home, hive, None) as engine:
            assert engine.trust.suspended(bad.node_id), "and it is known after a restart"
            assert engine.trust.status(bad.node_id)["answers_left"] > 0

    run(test)
