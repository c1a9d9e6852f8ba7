"""Bytes of the engine's store are damaged, in the file, under the running engine: of a node that sets this node aside, and
stops nothing.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio

from hivefs.daemon.engine_core import Engine
from hivefs.errors import Corrupt
from hivefs.formats import records
from hivefs.maintenance.check import HiveCheck
from hivefs.metadata.damaged import Record
from hivefs.metadata.engine_store import EngineStore
from hivefs.metadata.engine_tables import OF_NODE
from hivefs.model.ids import NodeId
from hivefs.placement.health import NodeState
from hivefs.placement.reputation import Reputation
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_clocks import shown
from .test_engine import SECRETS, content, drop_cache, make_home, run, running, settle, until


def damage(store: EngineStore, table: str, key: bytes) -> None:
    """Turn one bit of a value, wherever the file has it (LMDB leaves old pages)."""
    value = store.plain(table, key)
    assert value is not None, f"nothing is kept in {table}"
    path = store.path / "data.mdb"
    data, at = path.read_bytes(), -1
    with path.open("r+b") as file:
        while (at := data.find(value, at + 1)) >= 0:
            file.seek(at + len(value) // 2)
            file.write(bytes([data[at + len(value) // 2] ^ 1]))
    with pytest.raises(Corrupt):
        store._load(table, key)


def entry_of(node_id: NodeId) -> tuple[str, bytes]:
    return "tree", records.node_key(node_id)


def all_of(store: EngineStore, node_id: NodeId) -> list[tuple[str, bytes]]:
    names = [("info", (name + node_id.hex()).encode()) for name in OF_NODE]
    wanted = [entry_of(node_id), ("nodes", node_id), ("known", node_id), ("reputation", node_id), *names]
    return [(table, key) for table, key in wanted if store.has_entry(table, key)]


def told(caplog: pytest.LogCaptureFixture, node_id: NodeId, record: Record) -> int:
    return sum(f"node {node_id.hex()[:12]}: {record.words}" in line for line in caplog.messages)


def test_one_that_is_merely_known_is_set_aside_until_its_entry_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        data = {(5, slot): os.urandom(200_000) for slot in range(4)}
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            one = hive.nodes[0]
            for (ino, slot), plain in data.items():
                vault.write(ino, slot, plain)
            await settle(engine, vault)
            one.stop()
            await until(lambda: engine.pool.members[one.node_id].client is None)
            engine.trust._save([one.node_id])
            with engine.store.writing():
                engine.store.save_info("answered-" + one.node_id.hex(), "/ip4/127.0.0.1/tcp/1")
                engine.store.save_info("renewed-" + one.node_id.hex(), 1)
            there = all_of(engine.store, one.node_id)
            assert {table for table, _ in there} == {"tree", "nodes", "known", "reputation", "info"}
            await until(lambda: engine.pool.members[one.node_id].scope is None)
            for table, key in there:
                damage(engine.store, table, key)
            engine.store._seen.clear()
            # It is tried, and everything else goes on: status, placing, checkpoints, reading, judging.
            await until(lambda: engine.pool.members[one.node_id].refused)
            assert "damaged" in engine.pool.members[one.node_id].refused
            status = await engine.told()
            assert [found["record"] for found in status["damaged"] if found["id"] == one.node_id.hex()].count("entry") == 1
            mine = next(node for node in status["nodes"] if node["id"] == one.node_id.hex())
            assert "entry" in mine["damaged"] and "damaged" in mine["last_problem"] and mine["addresses"] == []
            assert told(caplog, one.node_id, Record.ENTRY) == 1
            assert f"node {one.node_id.hex()[:12]}: its entry is damaged" in " ".join(shown(engine).split())
            vault.write(6, 0, b"more" * 1000)
            await settle(engine, vault)
            drop_cache(engine)
            for (ino, slot), plain in data.items():
                assert await content(engine, vault, ino, slot) == plain
            view = engine.store.node_view(one.node_id)
            assert view is not None and view.state == NodeState.OFFLINE, "its shares are not lost by it"
            await engine.evidence.weigh_all()
            assert len((await engine.moving.accounts())["nodes"]) == len(hive.nodes)
            # The node is there again: it cannot be dialled before somebody tells where.
            one.start()
            await trio.sleep(1.0)
            assert engine.pool.members[one.node_id].client is None
            assert await engine.hear([one.entry()]) == 1
            await until(lambda: engine.pool.members[one.node_id].client is not None)
            assert not engine.pool.members[one.node_id].refused
            await until(lambda: Record.ENTRY not in engine.store.damaged.of(one.node_id))
            with engine.store.writing():
                engine.evidence.weigh([one.node_id])
            engine.trust._save([one.node_id])
            left = {record for record in engine.store.damaged.of(one.node_id)}
            assert not left & {Record.ENTRY, Record.SEEN, Record.KNOWN, Record.CONDUCT}
            assert told(caplog, one.node_id, Record.ENTRY) == 1

    run(test)


def test_an_engine_starts_with_all_records_of_a_node_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    home = make_home(tmp_path / "home")

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        one, other = hive.nodes[0], hive.nodes[1]
        async with running(home, hive, vault) as engine:
            vault.write(5, 0, b"x" * 100_000)
            await settle(engine, vault)
            engine.trust._save([one.node_id])
            known = {node.node_id: engine.store.weighed(node.node_id) for node in hive.nodes}
        store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
        for table, key in all_of(store, one.node_id):
            damage(store, table, key)
        damage(store, "known", other.node_id)
        store.close()
        caplog.clear()
        async with running(home, hive, vault) as engine:
            # ``running`` tells all entries; one that is known to the byte is news when it cannot be read.
            await until(lambda: len(engine.pool.online()) == len(hive.nodes))
            for record in (Record.ENTRY, Record.SEEN, Record.CONDUCT):
                assert told(caplog, one.node_id, record) == 1
            assert told(caplog, other.node_id, Record.KNOWN) == 1
            await until(lambda: all(engine.store.weighed(node_id) == was for node_id, was in known.items()))
            vault.write(5, 1, b"y" * 100_000)
            await settle(engine, vault)
            assert await content(engine, vault, 5, 0) == b"x" * 100_000

    run(test)


def test_what_is_damaged_is_found_by_a_check_and_not_when_it_is_whole(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == len(hive.nodes))
            assert await found(engine) == []
            one = hive.nodes[3]
            one.stop()
            await until(lambda: engine.pool.members[one.node_id].client is None)
            damage(engine.store, *entry_of(one.node_id))
            assert await found(engine) == [f"node {one.node_id.hex()}: {Record.ENTRY.words}"]
            one.start()
            await engine.hear([one.entry()])
            assert await found(engine) == []

    run(test)


async def found(engine: Engine) -> list[str]:
    check = HiveCheck(engine.store, engine.reader, engine.online, engine.bad_shares.take)
    await check.nodes(engine.store.each_node(), 8, engine.store.damaged_of, lambda *_: None)
    assert all(finding.problem and finding.kind == "node-damaged" for finding in check.findings)
    return [finding.detail for finding in check.findings]


def test_a_checkpoint_is_made_though_an_entry_that_it_should_take_in_is_damaged(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(5, 0, b"x" * 1000)
            await settle(engine, vault)
            one = hive.nodes[2]
            one.also = ()
            one.epoch = 2
            with engine.store.writing():
                engine.store.save_node(one.entry(), 1 << 61)
            damage(engine.store, *entry_of(one.node_id))
            before = getattr(engine.checkpoint.head(), "sequence", 0)
            vault.write(5, 1, b"y" * 1000)
            await settle(engine, vault)
            assert getattr(engine.checkpoint.head(), "sequence", 0) > before
            assert await engine.hear([one.entry()]) == 1
            assert engine.store.has_entry("changed", records.node_key(one.node_id)), "the next one has it"

    run(test)


def test_who_is_out_of_trust_stays_so_when_the_record_of_that_is_damaged(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    bad, good = NodeId(bytes([1]) * 32), NodeId(bytes([2]) * 32)
    store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
    rows = {bad: Reputation(1, 1, bad=20_000, suspended=True), good: Reputation(1, 1, good=9)}
    store.save_reputations(rows)
    store.save_distrusted([bad])
    assert dict(store.reputations()) == rows
    for node_id in rows:
        damage(store, "reputation", node_id)
    left = dict(store.reputations())
    assert set(left) == {bad} and left[bad].suspended and not left[bad].good
    store.close()


def test_what_is_no_nodes_is_no_less_an_error_than_before(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
    with store.writing():
        store.save_info("head_out", True)
        store._save_tree(records.chunk_key(bytes(16)), b"value")  # type: ignore[arg-type]
    damage(store, "info", b"head_out")
    with pytest.raises(Corrupt):
        store.info("head_out")
    damage(store, "tree", records.chunk_key(bytes(16)))  # type: ignore[arg-type]
    with store.changes() as changes, pytest.raises(Corrupt):
        list(changes)
    store.close()
