"""A vault's engine and the revocation list: nodes that are cut off, shares made again, no way back to an older list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from hivefs.crypto.keys import public_key
from hivefs.daemon.engine_core import opened
from hivefs.errors import Corrupt
from hivefs.formats import revoked
from hivefs.formats.member import sign_address
from hivefs.model.node import RosterEntry
from hivefs.model.stripe import Level
from hivefs.placement.health import NodeState
from hivefs.testing.memory_hive import HIVE_SEED, MemoryHive

from .memory_vault import MemoryVault
from .test_engine import SECRETS, content, drop_cache, make_home, run, running, settle, until


def listed(sequence: int, *members: bytes, seed: bytes = HIVE_SEED) -> bytes:
    return revoked.revocations_to_bytes(revoked.sign_revocations(seed, sequence, 1, members, ()))


def test_shares_of_a_revoked_node_are_made_again_elsewhere_and_its_conversation_ends(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        data = {(ino, 0): os.urandom(200_000) for ino in range(6)}
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            for (ino, slot), plain in data.items():
                vault.write(ino, slot, plain)
            await settle(engine, vault)
            victim = next(n for n in hive.nodes if list(engine.store.each_on(n.node_id)))
            puts = victim.puts
            room = engine.capacity()
            assert engine.take_revoked(listed(3, victim.node_id))
            await until(lambda: engine.pool.client(victim.node_id) is None)
            await until(lambda: not list(engine.store.each_on(victim.node_id)) and not engine.repair.queue)
            for stripe in engine.store.stripes():
                assert engine.store.stripe_level(stripe.stripe_id) == Level.GUARANTEED
            assert victim.puts == puts and len(engine.pool.online()) == 7
            await until(lambda: engine.capacity() != room)
            status = next(n for n in engine.status()["nodes"] if n["id"] == victim.node_id.hex())
            assert status["revoked"] and status["state"] == "gone" and "revoked" in status["last_problem"]
            drop_cache(engine)
            for (ino, slot), plain in data.items():
                assert await content(engine, vault, ino, slot) == plain
        async with running(home, hive, None) as engine:  # kept across a restart, and not undone by an older list
            await until(lambda: len(engine.pool.online()) == 7)
            for old in (listed(2), listed(3, victim.node_id), listed(9, seed=bytes([1]) * 32)):
                assert not engine.take_revoked(old)
            with pytest.raises(Corrupt):
                engine.take_revoked(b"garbage")
            await trio.sleep(0.3)
            assert engine.pool.members[victim.node_id].row.state == NodeState.GONE
            assert engine.take_revoked(listed(4))  # the owner lifted it
            await until(lambda: len(engine.pool.online()) == 8)

    run(test)


def test_a_list_is_taken_from_the_first_node_that_has_it_and_given_to_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        hive.revoked = listed(5, hive.nodes[0].node_id)
        home = make_home(tmp_path / "home")
        async with running(home, hive, None) as engine:
            # Who is online says only then what it knows.
            await until(lambda: engine.revoked is not None and len(engine.pool.online()) == 7)
            assert engine.revoked is not None and engine.revoked.sequence == 5
            assert engine.pool.client(hive.nodes[0].node_id) is None
        hive.revoked = None  # all nodes lost it
        async with running(home, hive, None) as engine:
            await until(lambda: hive.revoked is not None)
            assert hive.revoked == listed(5, hive.nodes[0].node_id)

    run(test)


def test_a_list_from_a_node_of_another_hive_is_not_taken(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        hive.revoked = listed(5, hive.nodes[0].node_id, seed=bytes([1]) * 32)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            assert engine.revoked is None

    run(test)


def test_a_revoked_node_is_not_learnt_again(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        victim = hive.nodes[0]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            engine.take_revoked(listed(1, victim.node_id))
            moved = RosterEntry(victim.entry().membership, sign_address(victim.seed, ("/ip4/127.0.0.1/tcp/9",), 9))
            assert engine.learn([moved]) == 0

    run(test)


def test_addresses_and_nodes_are_remembered_without_any_bootstrap_address(tmp_path: Path) -> None:
    """The vault file names no node; what was learnt once is in the engine's book."""

    async def test() -> None:
        hive = MemoryHive()
        home = make_home(tmp_path / "home")
        async with running(home, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
        assert home.vault.nodes == ()
        async with opened(home, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
            await until(lambda: len(engine.pool.online()) == 8)

    run(test)


def test_new_addresses_and_new_certificates_are_each_taken_when_newer(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[0]
        certificate = node.entry().membership
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            moved = RosterEntry(certificate, sign_address(node.seed, ("/ip4/127.0.0.1/tcp/9",), 7))
            assert engine.learn([moved]) == 1
            assert engine.learn([RosterEntry(certificate, sign_address(node.seed, ("/old",), 6))]) == 0
            assert engine.pool.members[node.node_id].entry.address.addresses == ("/ip4/127.0.0.1/tcp/9",)
            assert public_key(node.seed) == node.node_id

    run(test)
