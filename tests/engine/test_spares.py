"""Nodes that come back with shares that were made again meanwhile, and nodes that come back in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hivefs.daemon.engine_core import Engine
from hivefs.maintenance import spares as spares_module
from hivefs.model.ids import CHUNK_BYTES, ShareId
from hivefs.model.stripe import Level, Purpose
from hivefs.placement.health import NodeState
from hivefs.testing.memory_hive import MemoryClient, MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until


async def guaranteed(engine: Engine) -> None:
    await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))


def state(engine: Engine, node: MemoryNode) -> NodeState:
    return engine.pool.members[node.node_id].row.state


def names(engine: Engine, node: MemoryNode) -> set[bytes]:
    """Shares of data there; metadata stripes come and go with checkpoints."""
    stripes = [stripe for stripe in engine.store.stripes() if stripe.purpose == Purpose.DATA]
    return {s.share_id for stripe in stripes for s in stripe.shares if s.node == node.node_id}


def puts(hive: MemoryHive) -> int:
    return sum(node.puts for node in hive.nodes)


def test_a_node_that_is_back_in_time_costs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for slot in range(4):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            await guaranteed(engine)
            before = [s.shares for s in engine.store.stripes() if s.purpose == Purpose.DATA]
            node = max(hive.nodes, key=lambda n: len(n.shares))
            node.stop()
            await until(lambda: state(engine, node) == NodeState.OFFLINE)
            node.start()
            await until(lambda: state(engine, node) == NodeState.ONLINE)
            assert engine.repair.queue == engine.repair.repaired == 0
            assert [s.shares for s in engine.store.stripes() if s.purpose == Purpose.DATA] == before

    run(test)


def test_what_waits_for_repair_is_cancelled_when_its_node_is_back(tmp_path: Path) -> None:
    """Without a ninth node nothing can be made again; the node comes back, and nothing was sent."""

    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            for slot in range(4):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            await guaranteed(engine)
            before = puts(hive)
            node = hive.nodes[0]
            node.stop()
            await until(lambda: state(engine, node) == NodeState.GONE and engine.repair.queue)
            node.start()
            await until(lambda: engine.repair.queue == 0)
            await guaranteed(engine)
            assert engine.repair.repaired == 0 and puts(hive) == before

    run(test)


def test_an_old_copy_is_taken_back_instead_of_being_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[ShareId] = []
    real = MemoryClient.put

    async def put(self: MemoryClient, share_id: ShareId, data: bytes, lease_ns: int, **options: float) -> int:
        sent.append(share_id)
        return await real(self, share_id, data, lease_ns, **options)

    async def test() -> None:
        monkeypatch.setattr(MemoryClient, "put", put)
        hive, vault = MemoryHive(per_country=3), MemoryVault()
        home = make_home(tmp_path / "home", gone_after=1)
        data = {slot: os.urandom(CHUNK_BYTES) for slot in range(8)}
        async with running(home, hive, vault) as engine:
            for slot, plain in data.items():
                vault.write(9, slot, plain)
            await settle(engine, vault)
            await guaranteed(engine)
            first = max(hive.nodes, key=lambda n: len(names(engine, n)))
            old = names(engine, first)
            first.stop()
            await until(lambda: state(engine, first) == NodeState.GONE)
            await guaranteed(engine)
            assert engine.spares.status()["waiting"] >= len(old) > 0
        # The engine is killed and started in between; what it knew of spares is still there.
        async with running(home, hive, vault) as engine:
            first.start()
            await until(lambda: state(engine, first) == NodeState.ONLINE)
            holders = {s.node for stripe in engine.store.stripes() for s in stripe.shares if s.share_id in old}
            second = next(n for n in hive.nodes if n.node_id in holders)
            moved = {share for share in old & names(engine, second)}
            assert moved and first.shares.keys() >= moved
            sent.clear()
            second.stop()
            await until(lambda: moved <= names(engine, first))
            await until(lambda: state(engine, second) == NodeState.GONE)
            await guaranteed(engine)
            assert engine.spares.taken_back >= len(moved)
            assert not moved & set(sent), "not a byte of them was sent"
            drop_cache(engine)
            for slot, plain in data.items():
                assert await content(engine, vault, 9, slot) == plain
            # and the second one, when it is back, has spares now
            second.start()
            await until(lambda: state(engine, second) == NodeState.ONLINE)
            assert all(engine.store.has_spare(second.node_id, share) for share in moved)  # type: ignore[arg-type]

    run(test)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["rotten", "missing"])
def test_an_old_copy_that_is_not_whole_is_not_believed(tmp_path: Path, damage: str) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(per_country=3), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            for slot in range(4):
                vault.write(9, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            await guaranteed(engine)
            first = max(hive.nodes, key=lambda n: len(names(engine, n)))
            old = names(engine, first)
            first.stop()
            await until(lambda: state(engine, first) == NodeState.GONE)
            await guaranteed(engine)
            if damage == "rotten":
                first.rotten = set(first.shares)
            else:
                first.shares.clear()
            first.start()
            await until(lambda: state(engine, first) == NodeState.ONLINE)
            holders = {s.node for stripe in engine.store.stripes() for s in stripe.shares if s.share_id in old}
            second = next(n for n in hive.nodes if n.node_id in holders)
            second.stop()
            await until(lambda: state(engine, second) == NodeState.GONE)
            await until(lambda: not names(engine, second))
            await guaranteed(engine)
            assert engine.spares.taken_back == 0
            assert not any(engine.trust.row(n.node_id).suspended for n in hive.nodes)

    run(test)


@pytest.mark.slow
def test_a_spare_of_a_stripe_that_is_gone_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(spares_module, "EVERY", 0.1)
        hive, vault = MemoryHive(per_country=3), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            vault.write(9, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            await guaranteed(engine)
            first = max(hive.nodes, key=lambda n: len(names(engine, n)))
            first.stop()
            await until(lambda: state(engine, first) == NodeState.GONE)
            await guaranteed(engine)
            stripe = next(s for s in engine.store.stripes() if s.purpose == Purpose.DATA)
            with engine.store.writing():
                engine.store.forget_stripe(stripe.stripe_id)
            shares = {share.share_id for share in stripe.shares}
            first.start()
            await until(lambda: not shares & first.shares.keys())

    run(test)
