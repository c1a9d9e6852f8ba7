"""The engine's duties over a hive in memory: placing, checkpoints, repair, garbage, and what crashes leave behind."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hivefs.crypto.seal import RecordSealer
from hivefs.daemon.engine_core import Engine, opened
from hivefs.daemon.engine_roster import Learning
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.errors import HivefsError, NotEnoughShares
from hivefs.formats import head as head_format
from hivefs.formats.records import map_key
from hivefs.maintenance import checkpoint, spares
from hivefs.maintenance.checkpoint import Checkpoint
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.head import Root
from hivefs.model.ids import CHUNK_BYTES, NodeId, StripeId
from hivefs.model.stripe import Level, Purpose
from hivefs.placement.health import NodeState
from hivefs.testing.memory_hive import HIVE_SEED, MemoryHive

from .memory_vault import MemoryVault

SECRETS = Secrets(bytes(range(32)), bytes([9]) * 32)


def make_home(path: Path, gone_after: int = 86_400, needed: int = 4, total: int = 6) -> Home:
    settings = {"node_gone_after_s": gone_after, "read_deadline_s": 30, "cache_bytes": 64 << 20}
    return Home.create(path, SECRETS, Lock("none"), HIVE_SEED, (), needed, total, settings)


@asynccontextmanager
async def running(home: Home, hive: MemoryHive, vault: MemoryVault | None) -> AsyncIterator[Engine]:
    """An engine with all its duties; but nobody is audited by chance: who counts what nodes were asked would count that."""
    async with opened(home, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
        engine.audit._pause = lambda rate: math.inf  # type: ignore[method-assign]
        engine.audit._nodes.clear()
        engine.learn([node.entry() for node in hive.nodes])
        if vault is not None:
            engine.placing._stage = vault
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.serve_vault, vault, vault.snapshot)
                await until(lambda: len(engine.pool.online()) == sum(n.up for n in hive.nodes))
                yield engine
                nursery.cancel_scope.cancel()
        else:
            yield engine


async def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def settle(engine: Engine, vault: MemoryVault) -> None:
    """Everything written is placed and published, what the engine itself noted too: no checkpoint comes by itself now."""
    with trio.fail_after(90):
        while True:
            engine.placing.poke()
            engine.checkpoint.poke()
            status = await vault.status()
            placed = not status["dirty_slots"] and not vault.queue
            if placed and status["published"] >= status["committed"] and quiet(engine):
                return
            await trio.sleep(0.02)


def recovered(home: Home, root: Root) -> None:
    """Make the engine's store one that knows nothing but this root, as after a recovery."""
    store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
    with store.writing():
        store.save_info("root", head_format.root_to_bytes(root))
        store.save_info("hydrating", True)
        store.save_info("head_out", False)
    store.close()


@contextmanager
def no_heads(engine: Engine) -> Iterator[None]:
    """No checkpoint is made meanwhile, however long it takes."""

    async def none(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    engine.checkpoint.once = none  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.checkpoint.once  # type: ignore[method-assign]


def quiet(engine: Engine) -> bool:
    """Whether the last head is out, and what it made superfluous given up, and nothing changed since."""
    return engine.store.info("head_out") is True and not engine.store.count("changed") and not engine.store.count("moved")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(200):
            await test()

    trio.run(bounded)


async def content(engine: Engine, vault: MemoryVault, ino: int, slot: int) -> bytes:
    return await engine.placing.old_chunk(vault.map[(ino, slot)])


def drop_cache(engine: Engine) -> None:
    for stripe in engine.store.stripes():
        for index in range(stripe.needed):
            engine.cache.remove(stripe.stripe_id, index)


def test_placed_data_is_guaranteed_and_reads_back_with_any_two_nodes_gone(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        data = {(ino, 0): os.urandom(50_000 + ino) for ino in range(20)} | {
            (100, slot): os.urandom(CHUNK_BYTES) for slot in range(7)
        }
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for (ino, slot), plain in data.items():
                vault.write(ino, slot, plain)
            await settle(engine, vault)
            assert await engine.checkpoint.measure() == Level.GUARANTEED
            for (ino, slot), plain in data.items():
                place, stripe = await engine.locate(vault.map[(ino, slot)].chunk_id)
                assert engine.store.stripe_level(place.stripe_id) == Level.GUARANTEED
                assert len({s.node for s in stripe.shares}) == 6
                assert await content(engine, vault, ino, slot) == plain
            for first, second in [(0, 1), (2, 5), (6, 7)]:
                drop_cache(engine)
                for n in (first, second):
                    hive.nodes[n].stop()
                await until(lambda: len(engine.pool.online()) == 6)
                for (ino, slot), plain in data.items():
                    assert await content(engine, vault, ino, slot) == plain
                for n in (first, second):
                    hive.nodes[n].start()
                await until(lambda: len(engine.pool.online()) == 8)

    run(test)


def test_a_gone_node_is_repaired_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            plain = {ino: os.urandom(200_000) for ino in range(30)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            victim = max(hive.nodes, key=lambda n: len(n.shares))
            # Of data: stripes of metadata come and go with checkpoints, and what is left of them with the node's return.
            data_stripes = [s for s in engine.store.stripes() if s.purpose == Purpose.DATA]
            lost = {x.share_id for s in data_stripes for x in s.shares if x.node == victim.node_id}
            victim.stop()
            await until(lambda: engine.pool.members[victim.node_id].row.state == NodeState.GONE)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            assert lost
            await settle(engine, vault)
            assert await engine.checkpoint.measure() == Level.GUARANTEED
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            # It comes back with its old copies: they are kept for a while, and then deleted, since the stripes moved on.
            victim.start()
            await until(lambda: engine.pool.client(victim.node_id) is not None)
            assert lost <= victim.shares.keys()
            monkeypatch.setattr(spares, "KEEP_S", -1)
            await until(lambda: not lost & victim.shares.keys())

    run(test)


@pytest.mark.parametrize("damage", ["flip", "missing", "swapped"])
def test_a_damaged_share_is_noticed_read_elsewhere_and_made_again(tmp_path: Path, damage: str) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(300_000) for ino in range(8)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(3, 0)].chunk_id)
            share = stripe.shares[place.index]
            assert share.node is not None
            node = hive.by_id(share.node)
            if damage == "flip":
                node.rotten.add(share.share_id)
            elif damage == "missing":
                del node.shares[share.share_id]
            else:
                others = (data for n in hive.nodes for s, data in n.shares.items() if s != share.share_id)
                node.shares[share.share_id] = next(others)
            drop_cache(engine)
            assert await content(engine, vault, 3, 0) == plain[3]
            assert engine.pool.members[node.node_id].problems == 1

            def made_again() -> bool:
                """Elsewhere, or at the same node, when it has deleted what it had before a place was looked for."""
                now = engine.store.stripe(stripe.stripe_id)
                holder = None if now is None else now.shares[place.index].node
                there = None if holder is None else hive.by_id(holder)
                if there is None or share.share_id in there.rotten:
                    return False
                return hashlib.sha256(there.shares.get(share.share_id, b"")).digest() == share.share_id

            await until(made_again)
            assert engine.store.stripe_level(stripe.stripe_id) == Level.GUARANTEED

    run(test)


def test_too_few_shares_end_after_the_deadline_and_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, b"x" * 70_000)
            await settle(engine, vault)
            drop_cache(engine)
            place, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            holder = stripe.shares[place.index].node  # the code is systematic: its node alone could serve the chunk
            others = [n for n in hive.nodes if n.node_id != holder and n.node_id in {s.node for s in stripe.shares}]
            down = [hive.by_id(NodeId(holder or b"")), *others[:2]]
            for node in down:
                node.stop()
            await until(lambda: len(engine.pool.online()) == 5)
            deadline, engine.reader.deadline = engine.reader.deadline, 0.5
            with pytest.raises(NotEnoughShares):
                await content(engine, vault, 1, 0)
            engine.reader.deadline = deadline
            for node in down:
                node.start()
            await until(lambda: len(engine.pool.online()) == 8)
            assert await content(engine, vault, 1, 0) == b"x" * 70_000

    run(test)


def test_placing_waits_for_nodes_and_then_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        for node in hive.nodes:
            node.stop()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            engine.placing.poke()
            await until(lambda: engine.placing.progress.waiting_for)
            assert "nodes" in engine.placing.progress.waiting_for
            for node in hive.nodes:
                node.start()
            await settle(engine, vault)

    run(test)


def test_with_some_nodes_away_data_is_remote_and_guaranteed_later(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        for node in hive.nodes[:3]:
            node.stop()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            assert engine.store.health(stripe).level == Level.REMOTE
            for node in hive.nodes:
                node.start()
            await until(lambda: engine.store.stripe_level(place.stripe_id) == Level.GUARANTEED)
            # The metadata too: its stripes get their shares, and the head goes to more nodes.
            await until(lambda: engine.store.metadata_level() == Level.GUARANTEED)

    run(test)


def test_a_full_node_is_replaced_by_another(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            hive.nodes[0].capacity = 0  # it learns of it only when it is refused
            for ino in range(12):
                vault.write(ino, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            assert all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes())
            there = hive.nodes[0].node_id  # it may have got a page of the very first checkpoint, before it was full
            data_stripes = [s for s in engine.store.stripes() if s.purpose == Purpose.DATA]
            assert data_stripes and not any(x.node == there for s in data_stripes for x in s.shares)

    run(test)


def test_deleted_data_leaves_the_nodes_after_a_head_without_it(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(8):
                vault.write(ino, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            full = sum(n.used for n in hive.nodes)
            for ino in range(8):
                vault.delete(ino, 0)
            await settle(engine, vault)
            await until(lambda: sum(n.used for n in hive.nodes) < full / 20)
            assert not [s for s in engine.store.stripes() if s.purpose == 1]

    run(test)


def test_old_checkpoint_pages_do_not_pile_up(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for _ in range(12):
                vault.write(1, 0, os.urandom(100))
                await settle(engine, vault)
            await until(lambda: sum(1 for _ in engine.store.metadata_stripes()) <= 4)
            await until(lambda: sum(len(n.shares) for n in hive.nodes) <= 36)

    run(test)


def test_a_refused_swap_frees_the_chunk(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.refuse.add((1, 0))
            vault.write(1, 0, os.urandom(9000))
            engine.placing.poke()
            await until(lambda: engine.placing.progress.placed_stripes)
            vault.refuse.clear()
            await settle(engine, vault)
            await settle(engine, vault)
            await until(lambda: sum(1 for s in engine.store.stripes() if s.purpose == 1) == 1)

    run(test)


def test_chunks_offered_before_a_crash_are_settled_at_the_next_start(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        plain = os.urandom(5000)

        class Crash(Exception):
            pass

        async def crash_before(results: object) -> list[bool]:
            raise Crash

        async def crash_after(results: object) -> list[bool]:
            await MemoryVault.placed(vault, results)  # type: ignore[arg-type]
            raise Crash

        for way in (crash_before, crash_after):
            vault.placed = way  # type: ignore[assignment, method-assign]
            vault.write(1, 0, plain)
            try:
                async with running(home, hive, vault) as engine:
                    engine.placing.poke()
                    await trio.sleep_forever()
            except* Crash:
                pass
            del vault.placed  # type: ignore[method-assign]
            async with running(home, hive, vault) as engine:
                await settle(engine, vault)
                assert engine.store.count("offered") == 0
                drop_cache(engine)
                assert await content(engine, vault, 1, 0) == plain
        async with running(home, hive, vault) as engine:
            await settle(engine, vault)
            await until(lambda: sum(1 for s in engine.store.stripes() if s.purpose == 1) == 1)

    run(test)


def test_a_checkpoint_that_fails_half_way_leaves_nothing_and_is_made_later(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            vault.write(1, 0, os.urandom(5000))
            await settle(engine, vault)
            first = engine.checkpoint.head()
            for node in hive.nodes[:7]:
                node.stop()
            await until(lambda: len(engine.pool.online()) == 1)
            engine.reader.deadline = 0.5
            vault.delete(1, 0)
            engine.checkpoint.poke()
            await until(lambda: engine.checkpoint.waiting_for)
            assert engine.checkpoint.head() == first
            engine.reader.deadline = 30.0
            for node in hive.nodes:
                node.start()
            await settle(engine, vault)
            assert first is not None and engine.checkpoint.head().sequence > first.sequence  # type: ignore[union-attr]
            assert engine.checkpoint.waiting_for == ""

    run(test)


def test_heads_chain_and_every_node_has_the_newest(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            heads = []
            for _ in range(3):
                vault.write(1, 0, os.urandom(100))
                await settle(engine, vault)
                heads.append(engine.checkpoint.head())
            last = heads[-1]
            assert last is not None and head_format.head_valid(last, engine.keys.vault_id)
            assert all(list(n.heads.values()) == [last] for n in hive.nodes)
            sealer = RecordSealer(engine.keys.head_key, os.urandom)
            root = head_format.open_root(sealer, last)
            assert root.seen == ((1, last.sequence),)
            assert len({h.sequence for h in heads if h is not None}) == 3

    run(test)


def test_an_unchanged_drive_makes_no_new_heads(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, b"once")
            await settle(engine, vault)
            before = engine.checkpoint.head()
            for _ in range(5):
                assert not await Checkpoint.once(engine.checkpoint, vault, vault.snapshot)
            assert engine.checkpoint.head() == before

    run(test)


def test_a_checkpoint_in_many_batches_is_the_same_tree_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited in pieces, while placing goes on: the records are right, and every page is named or given back."""
    monkeypatch.setattr(checkpoint, "BATCH", 50)

    async def named(engine: Engine) -> dict[bytes, int]:
        """The number of pages of each metadata stripe that the published tree names."""
        count: dict[bytes, int] = {}
        async for ref, _ in engine.checkpoint.tree.pages(engine.checkpoint.root()):
            count[ref.place.stripe_id] = count.get(ref.place.stripe_id, 0) + 1
        return count

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(700):
                vault.write(ino, 0, b"%d" % ino)
            await until(lambda: engine.checkpoint.head() is not None)
            for ino in range(0, 700, 7):
                vault.write(ino, 0, b"anew %d" % ino)
            for ino in range(3, 700, 7):
                vault.delete(ino, 0)
            await settle(engine, vault)
            records = {}
            async for leaf, _ in engine.checkpoint.tree.walk(engine.checkpoint.root()):
                records |= dict(leaf.records)
            assert {k: v for k, v in records.items() if k[:1] == b"m"} == {
                map_key(ino, slot): vault.value(map_key(ino, slot)) for ino, slot in vault.map
            }
            assert {k for k in records if k[:1] == b"s"} == set(engine.store.keys("tree", b"s"))
            assert all(b"c" + ref.chunk_id in records for ref in vault.map.values())
            left = {s.stripe_id: engine.store.live(s.stripe_id) for s in engine.store.metadata_stripes()}
            for key in engine.store.keys("doomed"):  # until the next head
                left[StripeId(key[-24:-8])] -= 1
            assert await named(engine) == {stripe_id: pages for stripe_id, pages in left.items() if pages}

    run(test)


def test_capacity_is_reported_and_shrinks(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        for node in hive.nodes:
            node.capacity = 12 << 20
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            all_nodes = pytest.approx(8 * (12 << 20) / 6 * 4 * 7 / 8, rel=0.01)
            # The first report may be of six or seven nodes, whichever have answered by then.
            await until(lambda: vault.capacity is not None and vault.capacity[0] == all_nodes)
            assert engine.capacity() is not None

    run(test)


def test_recovery_reads_the_tree_as_needed_and_repair_waits_for_it(tmp_path: Path) -> None:
    """A second engine that has only the root finds chunks, loads the book, and keeps what was live alive."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        plain = {ino: os.urandom(3000) for ino in range(200)}
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            root = engine.checkpoint.root()
            stripes = {s.stripe_id for s in engine.store.stripes() if s.purpose == 1}
        second = make_home(tmp_path / "second")
        async with opened(second, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
            pass
        recovered(second, root)
        async with running(second, hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            engine.placing._stage = vault
            place, _ = await engine.locate(vault.map[(77, 0)].chunk_id)
            assert await content(engine, vault, 77, 0) == plain[77]
            await engine.hydration.done.wait()
            assert {s.stripe_id for s in engine.store.stripes() if s.purpose == 1} == stripes
            assert engine.store.live(place.stripe_id) > 0
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data

    run(test)


def test_nodes_that_only_the_recovered_book_names_are_dialled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Learning, entries: object) -> int:
        return 0

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(3000))
            await settle(engine, vault)
            root = engine.checkpoint.root()
        monkeypatch.setattr(Learning, "hear", nothing)  # no roster names the last node, or it is no news any more
        second = make_home(tmp_path / "second")
        recovered(second, root)
        async with opened(second, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
            engine.learn([node.entry() for node in hive.nodes[:-1]])
            await engine.hydration.done.wait()
            await until(lambda: len(engine.pool.online()) == len(hive.nodes))
            assert engine.learn([hive.nodes[-1].entry()]) == 0

    run(test)


def test_levels_fall_when_a_node_is_gone_and_no_spare_is_left(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH"), 1), MemoryVault()
        home = make_home(tmp_path / "home", gone_after=1, needed=2, total=3)
        async with running(home, hive, vault) as engine:
            vault.write(1, 0, os.urandom(100))
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            assert engine.store.stripe_level(place.stripe_id) == Level.GUARANTEED
            hive.nodes[0].stop()
            await until(lambda: engine.store.stripe_level(place.stripe_id) == Level.REMOTE)
            await until(lambda: engine.repair.waiting_for)
            hive.nodes[0].start()
            await until(lambda: engine.store.stripe_level(place.stripe_id) == Level.GUARANTEED)
            assert stripe.stripe_id == place.stripe_id

    run(test)


def test_a_stripe_whose_record_was_changed_is_not_believed(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(2):
                vault.write(ino, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(0, 0)].chunk_id)
            shares = list(stripe.shares)
            shares[place.index], shares[(place.index + 1) % 4] = shares[(place.index + 1) % 4], shares[place.index]
            with engine.store.writing():
                engine.store.save_stripe(replace(stripe, shares=tuple(shares)))
            drop_cache(engine)
            with pytest.raises(HivefsError):
                await content(engine, vault, 0, 0)

    run(test)
