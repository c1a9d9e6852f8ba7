"""Clocks that are wrong, ours and those of nodes: nobody is given up or forgotten by them, and no lease is short."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hivefs.chunkstore import shifts
from hivefs.chunkstore.clocks import AGREE_NS, MOST_AHEAD_NS, Clocks
from hivefs.chunkstore.pool import Pool
from hivefs.cli.status import eta, picture
from hivefs.daemon.engine_core import Engine
from hivefs.maintenance.old_copies import FORGOTTEN_S
from hivefs.model.ids import NodeId
from hivefs.placement.health import NodeState
from hivefs.testing.memory_hive import MemoryHive, MemoryNode

from .test_engine import make_home, run, running, until

DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9
NODES = [NodeId(bytes([n]) * 32) for n in range(9)]


def test_the_clock_is_right_while_most_who_answer_say_so() -> None:
    clocks = Clocks()
    assert not clocks.right and not clocks.asked, "nobody says so"
    assert clocks.heard(NODES[0], NOW + AGREE_NS, NOW) == 0 and clocks.right
    assert clocks.heard(NODES[1], NOW + AGREE_NS + 1, NOW) == AGREE_NS + 1 and not clocks.right
    assert clocks.heard(NODES[2], NOW - AGREE_NS - 1, NOW) == -AGREE_NS - 1 and not clocks.right
    assert clocks.heard(NODES[3], 0, NOW) == 0 and not clocks.right, "it does not say"
    assert clocks.heard(NODES[4], 2**63, NOW) == MOST_AHEAD_NS
    for gone in (NODES[1], NODES[2], NODES[4], NODES[5]):
        clocks.lost(gone)
    assert clocks.right
    clocks.heard(NODES[1], NOW + 2 * DAY, NOW)
    assert clocks.stepped() == [NODES[1]]
    assert not clocks.right and not clocks.asked and clocks.stepped() == []


def test_the_first_that_answers_is_not_enough() -> None:
    """It may be the user's own node, on the same machine with the same wrong clock, or one that says what pleases."""
    known = [6]
    clocks = Clocks(lambda: known[0])
    for node in NODES[:2]:
        clocks.heard(node, NOW, NOW)
        assert not clocks.right and not clocks.doubted, "two of six; nobody says another time"
    clocks.heard(NODES[2], NOW, NOW)
    assert clocks.right
    clocks.lost(NODES[2])
    clocks.lost(NODES[1])
    assert clocks.right, "it was, and nobody set it since"
    clocks.heard(NODES[3], NOW + 2 * DAY, NOW)
    assert not clocks.right and clocks.doubted
    clocks.stepped()
    clocks.heard(NODES[0], NOW, NOW)
    assert not clocks.right
    known[0] = 2  # the others were given up
    clocks.heard(NODES[0], NOW, NOW)
    assert clocks.right


def test_leases_go_by_the_clock_of_a_node_that_is_behind_only_while_ours_is_ahead() -> None:
    """A clock that is a year ahead would ask for 485 days, and an old copy counts for 151 (old_copies.py)."""
    clocks = Clocks()
    assert clocks.heard(NODES[0], NOW, NOW + 365 * DAY) == -365 * DAY
    for node in NODES[1:4]:
        clocks.heard(node, NOW, NOW)
    assert clocks.heard(NODES[0], NOW - 365 * DAY, NOW) == 0, "it is the one that is wrong, and will be set"


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(["agrees", "ahead", "behind", "lost", "silent"]))))
def test_it_counts_as_if_all_were_counted_anew(told: list[tuple[NodeId, str]]) -> None:
    clocks, by_hand = Clocks(), dict[NodeId, bool]()
    for node, what in told:
        by_hand.pop(node, None)
        if what == "lost":
            clocks.lost(node)
            continue
        off = {"agrees": 5, "ahead": 2 * DAY, "behind": -2 * DAY, "silent": -NOW}[what]
        clocks.heard(node, NOW + off, NOW)
        if what != "silent":
            by_hand[node] = what == "agrees"
    assert clocks.right == (sum(by_hand.values()) > len(by_hand) / 2) and clocks.asked == bool(by_hand)


def step(pool: Pool, by: int, wall: list[int]) -> None:
    """The clock is set by so much; what follows of that takes a few looks."""
    wall[0] += by
    for _ in range(3):
        pool._follow_clock(0.0)
    assert not pool._shifts.pending


@pytest.mark.parametrize(
    ("steps", "old", "new"),
    [
        ((400,), 400, 400),  # behind at the start, or ahead now: nobody is away for longer
        ((-400,), 0, -400),  # ahead at the start: what was written before then is as it was
        ((-400, 400), 0, 0),
        ((-400, 100, 300, 50), 50, 50),
        ((100, -400, 300), 100, 0),
    ],
)
def test_times_from_before_this_start_never_become_too_early(
    tmp_path: Path, steps: tuple[int, ...], old: int, new: int
) -> None:
    async def test() -> None:
        hive = MemoryHive(per_country=1)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            before, since = (engine.pool.members[node.node_id] for node in hive.nodes[:2])
            for node in hive.nodes[:2]:
                node.stop()
            await until(lambda: len(engine.pool.online()) == 2)
            pool, wall = engine.pool, [engine.pool._wall]
            pool._clock = lambda: wall[0]
            begun = wall[0] - 100 * DAY
            before.row, before.dated = replace(before.row, since_ns=begun), False
            since.row = replace(since.row, since_ns=begun)
            for by in steps:  # no checkpoint of trio: the pool itself does not look meanwhile
                step(pool, by * DAY, wall)
            assert before.row.since_ns == begun + old * DAY
            assert since.row.since_ns == begun + new * DAY
            assert wall[0] - before.row.since_ns <= 100 * DAY, "never for longer than it was"

    run(test)


def all_say(hive: MemoryHive, days: int) -> None:
    for node in hive.nodes:
        node.clock_ns = time.time_ns() + days * DAY


async def told(engine: Engine, right: bool) -> None:
    await until(lambda: engine.pool.clocks.asked and engine.pool.clocks.right == right)


def shown(engine: Engine) -> str:
    """What `hivefs status` prints."""
    value = {"home": "home", "vault_id": bytes(16), "code": "", "mount": None, "engine": engine.status()}
    console = Console(file=io.StringIO(), width=200)
    console.print(picture({**value, "eta": eta(value)}))
    return cast("io.StringIO", console.file).getvalue()


def test_who_is_given_up_by_a_wrong_clock_is_forgotten_only_after_a_right_one(tmp_path: Path) -> None:
    """A machine that runs for weeks without the net's time, and is set right while it is off."""

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        home, node = make_home(tmp_path / "home", gone_after=1), hive.nodes[0]
        all_say(hive, 300)
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            assert not engine.pool.clocks.right
            assert engine.status()["clock_doubted"] and "is the clock of this machine right?" in shown(engine)
            client = engine.pool.client(hive.nodes[1].node_id)
            assert client is not None and abs(client.ahead_ns - 300 * DAY) < DAY, "leases go by the node's clock"
            node.stop()
            await until(lambda: engine.pool.members[node.node_id].row.state == NodeState.GONE)
            row = engine.store.node_row(node.node_id)
            assert row is not None and row.since_ns == 0
            assert not engine.old_copies._forgotten(node.node_id)
        all_say(hive, 0)
        async with running(home, hive, None) as engine:
            await until(lambda: is_dated(engine, node))
            assert not engine.status()["clock_doubted"] and "right?" not in shown(engine)
            assert not engine.old_copies._forgotten(node.node_id)
            later = time.time_ns() + (FORGOTTEN_S + 60) * 10**9
            engine.old_copies._clock = lambda: later
            assert engine.old_copies._forgotten(node.node_id)
            engine.pool.clocks.stepped()
            assert not engine.old_copies._forgotten(node.node_id), "the clock was set: who knows"

    run(test)


def is_dated(engine: Engine, node: MemoryNode) -> bool:
    row = engine.store.node_row(node.node_id)
    return row is not None and row.state == NodeState.GONE and abs(time.time_ns() - row.since_ns) < DAY


def test_a_step_of_the_clock_leaves_no_lease_by_what_was_told_before(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive(per_country=1)
        all_say(hive, -300)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            clients = [client for node in hive.nodes if (client := engine.pool.client(node.node_id)) is not None]
            assert len(clients) == 4 and all(abs(client.ahead_ns + 300 * DAY) < DAY for client in clients)
            pool, wall = engine.pool, [engine.pool._wall]
            pool._clock = lambda: wall[0]
            step(pool, -300 * DAY, wall)
            assert not any(client.ahead_ns for client in clients)

    run(test)


def test_a_clock_that_is_ahead_at_the_start_gives_up_nobody(tmp_path: Path) -> None:
    """By it a node that went a moment before is away for a year."""

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        home, node = make_home(tmp_path / "home"), hive.nodes[0]
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            node.stop()
            await until(lambda: len(engine.pool.online()) == 3)
        all_say(hive, -400)
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 3)
            await told(engine, False)
            member = engine.pool.members[node.node_id]
            member.row = replace(member.row, since_ns=member.row.since_ns - 400 * DAY)
            asked: list[float] = []
            engine.trust.away = lambda node_id, since_s: asked.append(since_s) or 0.0  # type: ignore[func-returns-value, method-assign]
            engine.pool._look(node.node_id)
            all_say(hive, 0)
            for other in hive.nodes[1:]:
                engine.pool.clocks.heard(other.node_id, time.time_ns(), time.time_ns())
            assert engine.pool.clocks.right
            engine.pool._look(node.node_id)
            assert asked[0] == 0.0 and asked[1] > 390 * 86_400

    run(test)


def test_who_went_by_a_wrong_clock_is_not_given_up_by_a_right_one(tmp_path: Path) -> None:
    """A machine whose clock is behind writes that a node is away since then. By the right clock it would be so for long."""

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        home, node = make_home(tmp_path / "home"), hive.nodes[0]
        all_say(hive, 300)
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            node.stop()
            await until(lambda: len(engine.pool.online()) == 3)
            row = engine.store.node_row(node.node_id)
            assert row is not None and (row.state, row.since_ns) == (NodeState.OFFLINE, 0)
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 3)
            row = engine.store.node_row(node.node_id)
            assert row is not None and row.since_ns == 0, "nor by a start with such a clock"
            asked: list[float] = []
            engine.trust.away = lambda node_id, since_s: asked.append(since_s) or 0.0  # type: ignore[func-returns-value, method-assign]
            engine.pool._look(node.node_id)
            assert asked == [0.0]
        all_say(hive, 0)
        async with running(home, hive, None) as engine:
            await until(lambda: (row := engine.store.node_row(node.node_id)) is not None and row.since_ns > 0)
            assert engine.pool.members[node.node_id].row.state == NodeState.OFFLINE
            assert abs(time.time_ns() - engine.pool.members[node.node_id].row.since_ns) < DAY

    run(test)


def test_a_time_that_is_written_now_does_not_follow_a_step_of_before(tmp_path: Path) -> None:
    """With very many nodes their times follow a step in many looks. Meanwhile others say that the clock is right now."""

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 4)
            hive.nodes[0].stop()
            await until(lambda: len(engine.pool.online()) == 3)
            pool, node_id = engine.pool, hive.nodes[0].node_id
            member, wall = pool.members[node_id], [pool._wall]
            pool._clock = lambda: wall[0]
            pool._set(member, NodeState.GONE)
            member.row = replace(member.row, since_ns=0)
            pool._undated[node_id] = None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shifts, "SHIFTED", 0)  # the looks do not come so far
                wall[0] -= 400 * DAY
                pool._follow_clock(0.0)
                for other in hive.nodes[1:]:
                    pool.clocks.heard(other.node_id, wall[0], wall[0])
                assert pool.clocks.right
                pool._follow_clock(0.0)
            step(pool, 0, wall)
            step(pool, 0, wall)
            assert member.row.since_ns == wall[0], "and not 400 days before"

    run(test)
