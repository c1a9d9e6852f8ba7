"""A new node among full ones: shares move there, each stripe keeps its level, and nothing is left or lost by a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hivefs.daemon import engine_moving
from hivefs.daemon.engine_core import Engine
from hivefs.maintenance import garbage
from hivefs.maintenance.rebalance import Rebalance
from hivefs.maintenance.rebalance_plan import BEGIN, WIDTH, farthest
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.stripe import Level
from hivefs.testing.memory_hive import MemoryHive

from .book import check_book
from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until

CAPACITY = 20 << 20


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.05)


async def filled(engine: Engine, hive: MemoryHive, vault: MemoryVault) -> dict[int, bytes]:
    """The last node was away while the others filled; now it is there, empty."""
    new = hive.nodes[-1]
    plain = {ino: os.urandom(CHUNK_BYTES) for ino in range(32)}
    for ino, data in plain.items():
        vault.write(ino, 0, data)
    await settle(engine, vault)
    new.start()
    await until(lambda: len(engine.pool.online()) == len(hive.nodes))
    await known(engine, hive)
    return plain


async def known(engine: Engine, hive: MemoryHive) -> None:
    """What nodes say of their room has been heard (they are asked every 15 s, which a test does not wait for)."""
    for node in hive.nodes:
        member = engine.pool.members[node.node_id]
        engine.pool._set(member, member.row.state, node.capacity - node.used, node.capacity)


def nodes_of(per_country: int = 2) -> MemoryHive:
    hive = MemoryHive(per_country=per_country)
    for node in hive.nodes:
        node.capacity = CAPACITY
    hive.nodes[-1].stop()
    return hive


async def exactly_what_is_named(engine: Engine, hive: MemoryHive) -> None:
    await until(lambda: not engine.store.count("trash"))
    check_book(engine.store)
    named = {(s.node, s.share_id) for stripe in engine.store.stripes() for s in stripe.shares}
    assert named == {(node.node_id, share) for node in hive.nodes for share in node.shares}


def test_shares_move_to_a_new_node_until_all_are_about_equally_full(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = nodes_of(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await filled(engine, hive, vault)
            rebalance = engine.moving.rebalance
            assert farthest(engine.moving._fills()) > BEGIN
            rounds = 0
            while await rebalance.round():
                rounds += 1
                assert engine.status()["moving"]["rebalancing"], "also between two looks"
                # The old copies stay until a head that names the new holders is out.
                assert engine.store.count("doomed")
                vault.write(1000, 0, b"%d" % rounds)
                await settle(engine, vault)
                await until(lambda: not engine.store.count("trash"))
                await known(engine, hive)
            assert 0 < rounds < 20 and not rebalance.active
            assert farthest(engine.moving._fills()) <= WIDTH + 0.06  # a share of 1 MiB is 0.04
            assert all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes())
            status = engine.status()["moving"]
            assert status["moved_bytes"] >= 4 << 20 and status["queue"] == 0
            await settle(engine, vault)
            await exactly_what_is_named(engine, hive)
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            assert await rebalance.round() == 0

    run(test)


def test_what_waits_to_be_deleted_is_as_good_as_gone(tmp_path: Path) -> None:
    """No head comes out, so all old copies stay: who gave enough looks as full as before, and gives no more."""

    async def test() -> None:
        hive, vault = nodes_of(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await filled(engine, hive, vault)
            rebalance, moved = engine.moving.rebalance, 0
            while went := await rebalance.round():
                moved += went
                await known(engine, hive)
            named = {
                node.node_id: sum(s.share_bytes for s in engine.store.stripes() for x in s.shares if x.node == node.node_id)
                for node in hive.nodes
            }
            mean = sum(named.values()) / len(named) / CAPACITY
            assert moved >= 4 and engine.store.count("doomed") >= moved
            assert all(abs(size / CAPACITY - mean) <= BEGIN for size in named.values())
            assert named[hive.nodes[-1].node_id] / CAPACITY <= mean + WIDTH + 0.06

    run(test)


def test_a_node_that_nobody_knows_yet_gets_enough_to_be_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = nodes_of(), MemoryVault()
        monkeypatch.setattr(engine_moving, "TRIAL_BYTES", 3 << 20)
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await filled(engine, hive, vault)
            new, known_ones = hive.nodes[-1], engine.trust.vetted
            engine.trust.vetted = lambda n: n != new.node_id and known_ones(n)  # type: ignore[method-assign]
            engine.pool.conduct_changed(new.node_id)
            while await engine.moving.rebalance.round():
                await known(engine, hive)
            assert 2 << 20 <= new.used <= 3 << 20
            new_stripes = [s for s in engine.store.stripes() if new.node_id in [x.node for x in s.shares]]
            assert new_stripes and all(engine.store.health(s).level == Level.GUARANTEED for s in new_stripes)

    run(test)


def test_killed_between_the_copy_and_the_record_or_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    async def test() -> None:
        real = Rebalance._record
        for number, late in enumerate((False, True)):

            def die(self: Rebalance, *args: object, late: bool = late) -> bool:
                if late:
                    real(self, *args)  # type: ignore[arg-type]
                raise Killed

            hive, vault = nodes_of(), MemoryVault()
            home = make_home(tmp_path / f"home{number}")
            plain: dict[int, bytes] = {}
            monkeypatch.setattr(Rebalance, "_record", die)
            try:
                async with running(home, hive, vault) as engine:
                    plain = await filled(engine, hive, vault)
                    await engine.moving.rebalance.round()
            except* Killed:
                pass
            monkeypatch.undo()
            monkeypatch.setattr(garbage, "EVERY", 0.05)
            async with running(home, hive, vault) as engine:
                await until(lambda: len(engine.pool.online()) == 8)
                for n in range(2):
                    vault.write(1000, 0, b"%d" % n)
                    await settle(engine, vault)
                await until(lambda: not engine.store.count("trash"))
                await exactly_what_is_named(engine, hive)
                drop_cache(engine)
                for ino, data in plain.items():
                    assert await content(engine, vault, ino, 0) == data

    run(test)


def test_a_share_that_came_back_before_the_head_was_out_stays(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = nodes_of(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            share = stripe.shares[0]
            assert share.node is not None
            with engine.store.writing():
                engine.store.doom_share(place.stripe_id, share.node, share.share_id)
            vault.write(2, 0, b"a checkpoint")
            await settle(engine, vault)
            assert not engine.store.has_trash(share.node, share.share_id)
            assert await engine.reader.one(stripe, 0) is not None

    run(test)
