"""A node that leaves: its shares are read where they are, and move to nodes that keep the rules with the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hivefs.chunkstore.pool import BUSY_LONGEST
from hivefs.daemon.engine_core import Engine
from hivefs.maintenance.repair import plan
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.stripe import Level, Purpose
from hivefs.testing.memory_hive import MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until

SINCE = int(time.time())


def leave(engine: Engine, node: MemoryNode, since: int = SINCE) -> None:
    node.leaving_s = since
    engine.learn([node.entry()])


def held(engine: Engine, node: MemoryNode) -> int:
    return sum(1 for stripe in engine.store.stripes() for share in stripe.shares if share.node == node.node_id)


def test_shares_move_from_a_node_that_leaves_and_nothing_is_less_safe_meanwhile(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        data = {(100, slot): os.urandom(CHUNK_BYTES) for slot in range(12)}
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for (ino, slot), plain in data.items():
                vault.write(ino, slot, plain)
            await settle(engine, vault)
            before = max(hive.nodes, key=lambda node: len(node.shares))
            assert before.shares
            fetched = engine.reader.fetched_bytes
            moved = [s for s in engine.store.stripes() if any(share.node == before.node_id for share in s.shares)]
            leave(engine, before)
            # It still counts: the stripes are whole, but these shares need another home.
            assert all(engine.store.health(stripe).level == Level.GUARANTEED for stripe in engine.store.stripes())
            decision = plan(moved[0], engine.store.node_view)
            assert len(decision.moving) == 1 and not decision.missing and decision.urgency == 2
            assert not next(c for c in engine.pool.candidates() if c.node_id == before.node_id).usable
            await until(lambda: not before.shares)
            assert held(engine, before) == 0
            for stripe in engine.store.stripes():
                assert engine.store.health(stripe).level == Level.GUARANTEED
                assert len({share.node for share in stripe.shares}) == 6
            # One read for each share that moved, not k.
            largest = max(stripe.share_bytes for stripe in moved)
            assert engine.reader.fetched_bytes - fetched <= largest * (len(moved) + 4)
            before.stop()
            drop_cache(engine)
            for (ino, slot), plain in data.items():
                assert await content(engine, vault, ino, slot) == plain
            vault.write(7, 0, b"new" * 1000)
            await settle(engine, vault)
            assert held(engine, before) == 0

    run(test)


def test_without_another_node_the_shares_stay_and_are_read(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(per_country=2), MemoryVault()
        hive.nodes = hive.nodes[:6]
        async with running(make_home(tmp_path / "home", needed=4, total=6), hive, vault) as engine:
            vault.write(5, 0, b"x" * 100_000)
            await settle(engine, vault)
            one = hive.nodes[0]
            assert held(engine, one)
            made = {s.stripe_id for s in engine.store.stripes()}  # a checkpoint made later has five nodes
            leave(engine, one)
            await until(lambda: engine.repair.waiting_for)
            assert "6 nodes" in engine.repair.waiting_for
            assert held(engine, one) and one.shares
            data = next(s for s in engine.store.stripes() if s.purpose is Purpose.DATA)
            hive.asked.clear()
            engine.repair.add(data.stripe_id)
            await until(lambda: not engine.repair.busy)
            asked = {share for _, share, _, _ in hive.asked} & {share.share_id for share in data.shares}
            assert not asked, "a share that cannot go anywhere is not read in vain"
            known = [s for s in engine.store.stripes() if s.stripe_id in made]
            assert all(engine.store.health(stripe).level == Level.GUARANTEED for stripe in known)
            drop_cache(engine)
            assert await content(engine, vault, 5, 0) == b"x" * 100_000
            # It stays after all: nothing is left to do.
            one.leaving_s = 0
            entry = one.entry()
            engine.learn([entry])  # an older record takes nothing back
            assert engine.store.node_view(one.node_id).leaving  # type: ignore[union-attr]

    run(test)


def test_a_node_that_leaves_and_dies_is_repaired_from_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            for slot in range(4):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            one = max(hive.nodes, key=lambda node: len(node.shares))
            one.stop()
            leave(engine, one)
            await until(lambda: held(engine, one) == 0)
            assert all(engine.store.health(stripe).level == Level.GUARANTEED for stripe in engine.store.stripes())

    run(test)


def test_a_busy_node_is_given_nothing_for_a_while_and_is_no_loss(tmp_path: Path) -> None:
    """A capped node says BUSY at the price of a share: it must not be asked again and again."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            one = hive.nodes[0]
            one.busy = True
            for slot in range(40):
                vault.write(3, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            assert 1 <= one.refused <= 6, "those that were on their way together, and no more"
            assert held(engine, one) == 0 and not one.shares
            assert all(engine.store.health(stripe).level == Level.GUARANTEED for stripe in engine.store.stripes())
            member = engine.pool.members[one.node_id]
            usable = {c.node_id: c.usable for c in engine.pool.candidates()}
            assert not usable[one.node_id] and sum(usable.values()) == 7
            # The hive is not smaller for it: this passes, and the drive must not say that it is full.
            room = await engine.room.count()
            assert room is not None and room[1] > 0
            first = member.busy_for
            for _ in range(20):
                member.busy_until = 0.0
                engine.pool.answered_put(one.node_id, busy=True)
                engine.pool.answered_put(one.node_id, busy=True)
            assert first < member.busy_for == BUSY_LONGEST
            one.busy = False
            member.busy_until = 0.0
            engine.pool.answered_put(one.node_id, busy=False)
            assert member.busy_for == 0
            assert next(c for c in engine.pool.candidates() if c.node_id == one.node_id).usable

    run(test)
