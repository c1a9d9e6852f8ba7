"""Nodes that keep their word in everything but the data: rotten bytes, old shares, answers without shares, no room."""

from __future__ import annotations

import os
import random
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from engine.memory_vault import MemoryVault
from engine.test_engine import content, drop_cache, make_home, run, running, settle, until

from hivefs.chunkstore.writer import DAY_NS, LEASE_NS
from hivefs.daemon.engine_core import Engine
from hivefs.errors import Corrupt, NodeFull, NotEnoughShares
from hivefs.maintenance.check import HiveCheck
from hivefs.model.ids import CHUNK_BYTES, NodeId, ShareId
from hivefs.model.stripe import Level
from hivefs.testing.memory_hive import MemoryClient, MemoryHive, MemoryNode


def corrupt_bytes(data: bytes, chance: float, dice: random.Random) -> bytes:
    """Every byte is changed with that chance; at least one of a share of some length."""
    rotten = bytearray(data)
    for _ in range(max(1, int(len(data) * chance))):
        rotten[dice.randrange(len(rotten))] ^= 1 << dice.randrange(8)
    return bytes(rotten)


async def check_all(engine: Engine) -> set[str]:
    check = HiveCheck(engine.store, engine.reader, engine.online, engine.repair.bad_share)
    await check.stripes(lambda *_: None)
    await check.data(lambda *_: None)
    return {finding.kind for finding in check.findings if finding.problem}


async def chunks_guaranteed(engine: Engine, vault: MemoryVault, count: int) -> dict[int, bytes]:
    """Files of one chunk each by their inodes, all placed."""
    plain = {ino: os.urandom(CHUNK_BYTES) for ino in range(count)}
    for ino, data in plain.items():
        vault.write(ino, 0, data)
    await settle(engine, vault)
    await all_guaranteed(engine)
    return plain


async def all_guaranteed(engine: Engine) -> None:
    await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))


@pytest.mark.parametrize("rotten_nodes", [1, 2])
def test_a_node_that_corrupts_one_byte_in_a_thousand(tmp_path: Path, rotten_nodes: int) -> None:
    """Everything reads back right, and every share that it damaged is made again elsewhere and gone from it."""

    async def test() -> None:
        dice = random.Random(rotten_nodes)
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(100_000) for ino in range(40)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            bad = sorted(hive.nodes, key=lambda n: -len(n.shares))[:rotten_nodes]
            for node in bad:
                node.shares = {name: corrupt_bytes(data, 0.001, dice) for name, data in node.shares.items()}
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            assert "share-damaged" in await check_all(engine)
            await all_guaranteed(engine)
            # A node with few of them may not have failed often enough to get no new ones, and those are whole.
            await until(
                lambda: all(sha256(data).digest() == name for node in bad for name, data in node.shares.items()), 60
            )
            drop_cache(engine)
            assert all([await content(engine, vault, ino, 0) == data for ino, data in plain.items()])

    run(test)


def test_a_node_that_answers_questions_but_not_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it has everything, renews leases, takes heads, and never gives a byte: data comes from elsewhere, and
    a check that reads finds it out.
    """

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(300_000) for ino in range(6)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(0, 0)].chunk_id)
            liar = hive.by_id(NodeId(stripe.shares[place.index].node or b""))  # the one that reading would ask first
            real = MemoryClient.get

            async def get(self: MemoryClient, share_id: ShareId, *args: int, **more: object) -> bytes:
                if self.node_id == liar.node_id:
                    await trio.sleep_forever()
                return await real(self, share_id, *args, **more)  # type: ignore[arg-type]

            monkeypatch.setattr(MemoryClient, "get", get)
            drop_cache(engine)
            engine.reader.deadline = 3600.0
            with trio.fail_after(90):  # each read waits for the liar a moment only, not until a deadline
                for ino, data in plain.items():
                    assert await content(engine, vault, ino, 0) == data
            client = engine.pool.client(liar.node_id)
            assert client is not None and all(await client.have(list(liar.shares))), "it goes on lying"

            async def denied(self: MemoryClient, share_id: ShareId, *args: int, **more: object) -> bytes:
                if self.node_id == liar.node_id:
                    raise Corrupt(what="a share", reason="its hash is wrong")
                return await real(self, share_id, *args, **more)  # type: ignore[arg-type]

            monkeypatch.setattr(MemoryClient, "get", denied)
            assert "share-damaged" in await check_all(engine)
            await all_guaranteed(engine)
            await until(lambda: all(s.node != liar.node_id for t in engine.store.stripes() for s in t.shares))

    run(test)


def test_shares_swapped_between_stripes_files_and_nodes(tmp_path: Path) -> None:
    """Two colluding nodes give each other's shares, or always the same one, or an older one: only true bytes are used."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            older = os.urandom(CHUNK_BYTES)
            vault.write(1, 0, older)
            await settle(engine, vault)
            _, before = await engine.locate(vault.map[(1, 0)].chunk_id)
            kept = {s.node: hive.by_id(NodeId(s.node or b"")).shares[s.share_id] for s in before.shares}
            plain = {ino: os.urandom(CHUNK_BYTES) for ino in range(1, 9)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            one, two = sorted(hive.nodes, key=lambda n: -len(n.shares))[:2]
            names = list(one.shares)
            one.shares = dict(zip(names, [*list(one.shares.values())[1:], next(iter(one.shares.values()))], strict=True))
            constant = kept.get(two.node_id, next(iter(two.shares.values())))  # the rolled back share, if it had one
            two.shares = dict.fromkeys(two.shares, constant)
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data

    run(test)


def test_pages_of_the_tree_rolled_back_by_nodes(tmp_path: Path) -> None:
    """Rollback of a checkpoint below the head: nodes give the pages of an older one. It reads as damage, not as a tree."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            pages: dict[int, dict[NodeId, bytes]] = {}
            for turn in range(2):
                for ino in range(50):
                    vault.write(ino, 0, os.urandom(100))
                await settle(engine, vault)
                (stripe,) = engine.checkpoint.root().stripes
                pages[turn] = {s.node: hive.by_id(s.node).shares[s.share_id] for s in stripe.shares if s.node is not None}
            old_bytes = list(pages[0].values())
            (stripe,) = engine.checkpoint.root().stripes
            for index, share in enumerate(stripe.shares):
                assert share.node is not None
                hive.by_id(share.node).shares[share.share_id] = old_bytes[index]
            drop_cache(engine)
            engine.reader.deadline = 0.3
            engine.checkpoint.tree._cache.clear()
            with pytest.raises((NotEnoughShares, Corrupt)):  # either is right: too few true shares, or damage
                await engine.load_page(b"m")

    run(test)


def test_nodes_that_run_full_or_refuse_while_shares_are_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of eight nodes promise room that they do not have: what is placed is placed on others, and nothing leaks."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        full = hive.nodes[::4] + hive.nodes[1:2]
        real = MemoryClient.put

        async def put(self: MemoryClient, share_id: ShareId, data: bytes, lease_ns: int, *, timeout: float = 30) -> int:
            node: MemoryNode = self._node
            if node in full and len(node.shares) >= 2:
                raise NodeFull(peer=str(node.number), reason="no space left on device")
            return await real(self, share_id, data, lease_ns, timeout=timeout)

        monkeypatch.setattr(MemoryClient, "put", put)
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(CHUNK_BYTES) for ino in range(20)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            await until(lambda: engine.store.count("trash") == 0)

            def nothing_leaked() -> bool:
                named = {(s.node, s.share_id) for stripe in engine.store.stripes() for s in stripe.shares}
                return {(node.node_id, name) for node in hive.nodes for name in node.shares} <= named

            await until(nothing_leaked)

    run(test)


@pytest.mark.parametrize("days", [-1000, 0, 3])
def test_a_node_that_takes_shares_and_means_to_keep_them_for_days_only(tmp_path: Path, days: int) -> None:
    """It counts as one that takes none, `hivefs status` says why, and what it took is deleted there."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        one, other = hive.nodes[0], hive.nodes[5]
        one.grants_ns, other.grants_ns = days * DAY_NS, 60 * DAY_NS
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await chunks_guaranteed(engine, vault, 12)
            named = [share.node for stripe in engine.store.stripes() for share in stripe.shares]
            assert one.node_id not in named and other.node_id in named
            said = next(n for n in (await engine.told())["nodes"] if n["id"] == one.node_id.hex())
            assert {-1000: "past", 0: "0 hours", 3: "3.0 days"}[days] in said["last_problem"]
            await until(lambda: not one.shares)
            # The one that keeps them for less than it was asked is used, and asked again in time.
            assert abs(engine.leases.granted(other.node_id) - 60 * DAY_NS) < DAY_NS
            assert engine.leases.granted(one.node_id) == LEASE_NS, "nothing lies there"

    run(test)


def test_a_node_that_renews_and_says_that_it_does_not_comes_out_of_trust(tmp_path: Path) -> None:
    """Its leases are seen in its own listing after a renewal; its shares move while they are there."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await chunks_guaranteed(engine, vault, 6)
            one = max(hive.nodes, key=lambda node: len(node.shares))
            one.grants_ns = 2 * DAY_NS
            for share_id in one.shares:
                one.leases[share_id] = one.now() + DAY_NS
            client = engine.pool.client(one.node_id)
            assert client is not None
            engine.leases.lists = lambda node_id: True
            for _ in range(9):
                now = engine.leases._clock()
                some = await engine.leases._renew(one.node_id, client, now + LEASE_NS)
                await engine.leases._look_up(one.node_id, client, some, now, trio.current_time())
                if engine.trust.suspended(one.node_id):
                    break
            assert engine.trust.suspended(one.node_id) and "days only" in engine.pool.members[one.node_id].last_problem
            await until(lambda: not one.shares)
            await all_guaranteed(engine)
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data

    run(test)
