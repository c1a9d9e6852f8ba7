"""Moving sealed chunks into new stripes: room comes back, readers never notice, and a crash anywhere leaves no trace."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hivefs.chunkstore.cache import CacheReader
from hivefs.chunkstore.source import CachedChunks
from hivefs.daemon import engine_moving
from hivefs.daemon.engine_core import Engine
from hivefs.daemon.home import Home
from hivefs.errors import NotEnoughShares
from hivefs.maintenance import garbage, reassign, repack
from hivefs.maintenance.rebalance import at
from hivefs.maintenance.repack import Repack
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import CHUNK_BYTES, ChunkId, StripeId
from hivefs.model.stripe import ChunkPlace, Level, Purpose, Stripe
from hivefs.testing.memory_hive import MemoryHive

from .book import check_book
from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, no_heads, run, running, settle, until

DUTY = Repack.run


async def idle(_: Repack) -> None:
    await trio.sleep_forever()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.05)
    # The tests look and move themselves: the duty would take their jobs when it is the first.
    monkeypatch.setattr(Repack, "run", idle)
    monkeypatch.setattr(engine_moving, "POLICIES_EVERY", 10_000.0)


def data_stripes(engine: Engine) -> int:
    return sum(stripe.purpose == Purpose.DATA for stripe in engine.store.stripes())


async def half_dead(engine: Engine, vault: MemoryVault, files: int = 8) -> dict[int, bytes]:
    """Files of a full chunk each, every second one of them deleted; what is left."""
    plain = {ino: os.urandom(CHUNK_BYTES) for ino in range(files)}
    for ino, data in plain.items():
        vault.write(ino, 0, data)
    await settle(engine, vault)
    for ino in range(0, files, 2):
        vault.delete(ino, 0)
        del plain[ino]
    await settle(engine, vault)
    await until(lambda: not engine.store.count("trash"))
    return plain


async def moved(engine: Engine) -> int:
    """Everything that is worth it, now."""
    engine.moving.repack.young_ns = 0
    while not engine.moving.contents.indexed:
        engine.moving.contents.index()
    return await engine.moving.repack.work(await engine.moving.repack.look())


async def all_reads(engine: Engine, vault: MemoryVault, plain: dict[int, bytes]) -> None:
    check_book(engine.store)
    drop_cache(engine)
    for ino, data in plain.items():
        assert await content(engine, vault, ino, 0) == data


def test_small_slots_share_stripes(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(3000):
                vault.write(ino, 0, os.urandom(1024))
            await settle(engine, vault)
            data_stripes = [s for s in engine.store.stripes() if s.purpose == 1]
            assert len(data_stripes) <= 4
            assert sum(len(n.shares) for n in hive.nodes) < 80

    run(test)


def test_half_dead_stripes_become_one_and_their_room_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            plain = await half_dead(engine, vault)
            assert data_stripes(engine) == 2
            before = sum(node.used for node in hive.nodes)
            with no_heads(engine):
                assert await moved(engine) == 1
                assert data_stripes(engine) == 3  # the old ones stay until a head without them is out
            await settle(engine, vault)
            await until(lambda: data_stripes(engine) == 1 and not engine.store.count("trash"))
            (stripe,) = (s for s in engine.store.stripes() if s.purpose == Purpose.DATA)
            assert engine.store.health(stripe).level == Level.GUARANTEED
            assert engine.store.live(stripe.stripe_id) == 4
            await until(lambda: sum(node.used for node in hive.nodes) < before * 0.6)
            await all_reads(engine, vault, plain)
            assert await moved(engine) == 0  # nothing is moved for ever
            status = engine.status()["moving"]
            assert status["moved"] == 1 and status["queue"] == 0 and status["eta_s"] == 0
        async with running(home, hive, vault) as engine:
            await all_reads(engine, vault, plain)

    run(test)


def test_what_is_deleted_while_it_moves_does_not_live_on(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await half_dead(engine, vault)
            engine.moving.repack.young_ns = 0
            engine.moving.contents.index()
            (job,) = await engine.moving.repack.look()
            with engine.store.writing():
                engine.store.doom_chunk(vault.map[(1, 0)].chunk_id)
            assert await engine.moving.repack.move(job)
            del plain[1]
            (stripe,) = {engine.store.place(vault.map[(ino, 0)].chunk_id).stripe_id for ino in plain}  # type: ignore[union-attr]
            assert engine.store.live(stripe) == 3
            await settle(engine, vault)
            # All of them gone before it is read: nothing is placed at all.
            with no_heads(engine):
                puts = sum(node.puts for node in hive.nodes)
                assert not await engine.moving.repack.move(job)
                assert puts == sum(node.puts for node in hive.nodes)

    run(test)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("_record", -1),
        pytest.param("move_place", 0, marks=pytest.mark.slow),
        ("move_place", 2),
        pytest.param("_keep_cached", -1, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_nothing_is_lost_or_left(
    name: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new stripe is recorded, after it, between two places that switch, and after all: the next engine
    goes on, with every chunk readable, and with exactly the shares at the nodes that its book names.
    """

    def dying(name: str, after: int) -> Callable[[], None]:
        """Die in the ``after``-th call of a method of the state, or, below 0, before the first of the repack's own."""

        def patch() -> None:
            owner = Repack if after < 0 else EngineStore
            real, calls = getattr(owner, name), [0]

            def die(*args: object, **named: object) -> object:
                calls[0] += 1
                if calls[0] > after:
                    raise Killed
                return real(*args, **named)

            monkeypatch.setattr(owner, name, die)

        return patch

    async def once(home: Home, hive: MemoryHive, vault: MemoryVault, kill: Callable[[], None]) -> None:
        plain: dict[int, bytes] = {}
        try:
            async with running(home, hive, vault) as engine:
                plain = await half_dead(engine, vault)
                kill()
                await moved(engine)
        except* Killed:
            pass
        monkeypatch.undo()
        monkeypatch.setattr(garbage, "EVERY", 0.05)
        monkeypatch.setattr(repack, "PLACES", 1)
        async with running(home, hive, vault) as engine:
            await all_reads(engine, vault, plain)
            await moved(engine)
            await settle(engine, vault)
            vault.write(50, 0, b"so that a checkpoint is made")
            await settle(engine, vault)
            # Four full chunks, and the small one.
            await until(lambda: data_stripes(engine) == 2 and not engine.store.count("trash"))
            await all_reads(engine, vault, plain)
            named = {(s.node, s.share_id) for stripe in engine.store.stripes() for s in stripe.shares}
            held = {(node.node_id, share) for node in hive.nodes for share in node.shares}
            assert named == held

    async def test() -> None:
        monkeypatch.setattr(repack, "PLACES", 1)
        await once(make_home(tmp_path / "home"), MemoryHive(), MemoryVault(), dying(name, after))

    run(test)


def test_a_mount_that_remembers_the_old_place_reads_on(tmp_path: Path) -> None:
    """The mount asked for the place before; then the chunk moves, and the old stripe goes."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await half_dead(engine, vault)
            chunks = CachedChunks(engine.keys.vault_id, engine.store, CacheReader(engine.cache.root), engine.fetch)
            for ino, data in plain.items():
                assert await chunks.fetch(vault.map[(ino, 0)], 0, 1000, []) == data[:1000]
            chunks._shares.close()  # type: ignore[attr-defined]
            await moved(engine)
            await settle(engine, vault)
            await until(lambda: data_stripes(engine) == 1 and not engine.store.count("trash"))
            for path in engine.cache.root.glob("*/*"):
                path.unlink()
            for ino, data in plain.items():
                assert await chunks.fetch(vault.map[(ino, 0)], 5000, 9000, []) == data[5000:9000]
                chunks._plain.clear()
                assert await chunks.fetch(vault.map[(ino, 0)], 0, CHUNK_BYTES, []) == data

    run(test)


def test_a_reader_that_holds_a_stripe_that_is_given_up_asks_anew_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await half_dead(engine, vault)
            chunk_id = vault.map[(1, 0)].chunk_id
            place, stripe = await engine.locate(chunk_id)
            await moved(engine)
            await settle(engine, vault)
            await until(lambda: engine.store.stripe(stripe.stripe_id) is None and not engine.store.count("trash"))
            drop_cache(engine)
            engine.cache.remove(stripe.stripe_id, place.index)
            engine.reader.deadline = 600.0
            with trio.fail_after(60), pytest.raises(NotEnoughShares, match="moved"):
                await engine.reader.data_share(stripe, place.index)

            real, first = engine.locate, [(place, stripe)]

            async def stale(asked: ChunkId) -> object:
                return first.pop() if first else await real(asked)

            engine.locate = stale  # type: ignore[assignment, method-assign]
            with trio.fail_after(60):
                await engine.fetch(chunk_id, [])
            engine.locate = real  # type: ignore[method-assign]
            assert await content(engine, vault, 1, 0) == plain[1]

    run(test)


def test_moving_waits_while_it_would_be_less_safe_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await half_dead(engine, vault)
            for node in hive.nodes[:3]:
                node.stop()
            await until(lambda: len(engine.pool.online()) == 5)
            assert await moved(engine) == 0
            assert engine.moving.repack.moving.waiting_for
            for node in hive.nodes:
                node.start()
            await until(lambda: len(engine.pool.online()) == 8)
            await until(lambda: not engine.store.count("trash"))
            named = {(s.node, s.share_id) for stripe in engine.store.stripes() for s in stripe.shares}
            assert named >= {(node.node_id, share) for node in hive.nodes for share in node.shares}
            assert await moved(engine) == 1
            await all_reads(engine, vault, plain)

    run(test)


def test_a_changed_code_moves_all_data_into_stripes_of_the_new_one(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        plain = {ino: os.urandom(40_000) for ino in range(30)} | {100: os.urandom(CHUNK_BYTES)}
        async with running(home, hive, vault) as engine:
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
        home._vault = replace(home.vault, needed=3, total=6)
        async with running(home, hive, vault) as engine:
            await moved(engine)
            vault.write(200, 0, b"a checkpoint")
            await settle(engine, vault)
            await until(lambda: all(s.needed == 3 for s in engine.store.stripes() if s.purpose == Purpose.DATA))
            await all_reads(engine, vault, plain)
            assert await moved(engine) == 0

    run(test)


def test_a_policy_with_another_code_moves_its_data_and_a_share_moves_only_where_it_is_proved(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(40_000) for ino in range(12)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            with engine.store.writing():
                engine.store.save_policy_text('[policy.default]\ncode = "3/7"\n')
            await moved(engine)
            assert engine.moving.repack.moving.jobs
            vault.write(200, 0, b"a checkpoint")
            await settle(engine, vault)
            await until(lambda: all((s.needed, s.total) == (3, 7) for s in data_of(engine)))
            assert all(engine.store.health(s).level == Level.GUARANTEED for s in data_of(engine))
            await all_reads(engine, vault, plain)
            assert await moved(engine) == 0
            # And with the rule of one country for at most two of the seven shares.
            (stripe, *_) = data_of(engine)
            keeps = engine.moving._keeps
            free = next(n.node_id for n in hive.nodes if n.node_id not in [s.node for s in stripe.shares])
            assert any(keeps(stripe, at(stripe, index, free)) for index in range(7))
            here = next(s.node for s in stripe.shares)
            assert here is not None and not keeps(stripe, at(stripe, 1, here))

    run(test)


def test_chunks_whose_file_has_another_policy_now_move_and_those_beside_them_stay(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = {ino: os.urandom(30_000) for ino in range(12)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            await until(lambda: engine.moving.reassign.known)
            assert not await engine.moving.reassign.once(vault) and not await moved(engine)
            text = '[policy.default]\ncode = "4/6"\n[policy.family]\ncode = "3/6"\n[paths]\n"/Family" = "family"\n'
            with engine.store.writing():
                engine.store.save_policy_text(text)
            vault.policies = {ino: "family" for ino in range(0, 12, 3)}
            assert await engine.moving.reassign.once(vault)
            assert await moved(engine)
            vault.write(200, 0, b"a checkpoint")
            await settle(engine, vault)

            def lies_by(ino: int) -> str:
                place = engine.store.place(vault.map[(ino, 0)].chunk_id)
                stripe = None if place is None else engine.store.stripe(place.stripe_id)
                assert stripe is not None
                name = engine.store.policies.name_of(stripe)
                assert (stripe.needed, engine.store.health(stripe).level) == (
                    3 if name == "family" else 4,
                    Level.GUARANTEED,
                )
                return name

            assert all(lies_by(ino) == vault.policies.get(ino, "default") for ino in plain)
            await all_reads(engine, vault, plain)
            assert not await engine.moving.reassign.once(vault) and not await moved(engine)
            vault.policies = {}  # moved out of /Family again
            assert await engine.moving.reassign.once(vault) and await moved(engine)
            assert all(lies_by(ino) == "default" for ino in plain)
            await all_reads(engine, vault, plain)

    run(test)


def test_files_move_as_soon_as_the_code_of_their_policy_is_chosen_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text whose codes are left to the engine: it looks for them when the text is set, and files are not to wait for the
    next look at everything, nor to move by the code that is known first.
    """
    monkeypatch.setattr(Repack, "run", DUTY)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(3):
                vault.write(ino, 0, os.urandom(30_000))
            await settle(engine, vault)
            placed_by, recorded = [], engine.moving.repack.on_recorded

            def noted(stripe_id: StripeId) -> None:
                stripe = engine.store.stripe(stripe_id)
                placed_by.append(None if stripe is None else engine.store.policies.name_of(stripe))
                recorded(stripe_id)

            engine.moving.repack.on_recorded = noted
            vault.policies = dict.fromkeys(range(3), "family")
            text = '[policy.default]\ncode = "3/6"\n[policy.family]\ncode = "auto"\n[paths]\n"/Family" = "family"\n'
            await engine.rules.set(text)

            def all_there() -> bool:
                stripes = [engine.store.stripe(place.stripe_id) for ino in range(3) if (place := where(engine, vault, ino))]
                return all(s is not None and engine.store.policies.name_of(s) == "family" for s in stripes)

            await until(all_there)
            assert set(placed_by) == {"family"}

    run(test)


def where(engine: Engine, vault: MemoryVault, ino: int) -> ChunkPlace | None:
    return engine.store.place(vault.map[(ino, 0)].chunk_id)


def data_of(engine: Engine) -> list[Stripe]:
    return [stripe for stripe in engine.store.stripes() if stripe.purpose == Purpose.DATA]


def test_metadata_stripes_with_a_living_page_each_are_merged(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for first in range(0, 6000, 1500):
                for ino in range(first, first + 1500):
                    vault.write(ino, 0, b"%d" % ino)
                await settle(engine, vault)
            for _ in range(6):  # each checkpoint leaves a stripe with what the next one does not replace
                for ino in range(_ * 100, 6000, 1000):
                    vault.write(ino, 0, b"anew")
                await settle(engine, vault)
            before = {s.stripe_id: engine.store.live(s.stripe_id) for s in engine.store.metadata_stripes()}
            chosen = await engine.moving.evacuation.once()
            assert chosen and chosen <= set(before)
            root = engine.checkpoint.root()
            engine.checkpoint.poke()
            await until(lambda: engine.checkpoint.root() != root and engine.checkpoint.head() is not None)
            vault.write(1, 0, b"what a tree does not name any more goes after the head after it")
            await settle(engine, vault)
            await until(lambda: not chosen & {s.stripe_id for s in engine.store.metadata_stripes()})
            await until(lambda: not engine.store.count("trash"))
            records = {}
            async for leaf, _number in engine.checkpoint.tree.walk(engine.checkpoint.root()):
                records |= dict(leaf.records)
            assert sum(key[:1] == b"m" for key in records) == 6000
            for _ in range(6):  # it comes to an end
                root = engine.checkpoint.root()
                if not await engine.moving.evacuation.once():
                    return
                engine.checkpoint.poke()
                await until(lambda root=root: engine.checkpoint.root() != root)
            raise AssertionError("the same pages are written again for ever")

    run(test)


def test_stripes_in_which_nothing_lives_are_given_up_after_a_recovery(tmp_path: Path) -> None:
    """A head may name a stripe whose chunks were doomed: who recovers from it has no queue that says so."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(5000))
            await settle(engine, vault)
            place, _ = await engine.locate(vault.map[(1, 0)].chunk_id)
            with engine.store.writing():
                engine.store.delete("live", place.stripe_id)
            await engine.moving.repack.look()
            assert engine.store.stripe(place.stripe_id) is None and engine.store.count("trash")

    run(test)


def test_moving_is_held_while_another_machine_works_on_the_vault(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await half_dead(engine, vault)
            engine.moving.repack.held = lambda: "another machine"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(moved, engine)
                await until(lambda: engine.status()["moving"]["waiting_for"] == "another machine")
                await trio.sleep(0.3)
                assert engine.moving.repack.moving.jobs == 0
                nursery.cancel_scope.cancel()

    run(test)


def test_all_chunks_are_looked_at_again_only_after_something_changed(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            repack_ = engine.moving.repack
            now = 1_800_000_000 * 10**9
            repack_._clock = lambda: now
            assert repack_._may_differ()
            await repack_.look()
            assert repack_._may_differ()  # what was too young then
            now += repack_.young_ns + 1
            await repack_.look()
            assert not repack_._may_differ()
            now += 10**12
            assert not repack_._may_differ()
            vault.write(1, 0, b"something new")
            await settle(engine, vault)
            assert repack_._may_differ()
            for _ in range(20):  # the last head may still be on its way, and is a change as well
                now += repack_.young_ns + 1
                await repack_.look()
                if not repack_._may_differ():
                    break
                await trio.sleep(0.5)
            assert not repack_._may_differ()
            now -= 10**15  # the clock goes back
            assert repack_._may_differ()

    run(test)


def test_what_another_text_or_a_move_of_files_calls_for_happens_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The looks every few seconds and minutes are a net only: here they never come."""
    monkeypatch.setattr(Repack, "run", DUTY)
    monkeypatch.setattr(engine_moving, "POLICIES_EVERY", 3600.0)
    monkeypatch.setattr(reassign, "ASK", 0.05)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            engine.moving.repack.young_ns = 0
            for ino in range(4):
                vault.write(ino, 0, os.urandom(30_000))
            await settle(engine, vault)

            def by(ino: int) -> str:
                place = engine.store.place(vault.map[(ino, 0)].chunk_id)
                stripe = None if place is None else engine.store.stripe(place.stripe_id)
                return "" if stripe is None else engine.store.policies.name_of(stripe)

            vault.policies = {0: "family"}
            await engine.rules.set('[policy.family]\ncode = "3/6"\n[paths]\n"/Family" = "family"\n')
            await until(lambda: by(0) == "family")
            assert by(1) == "default"
            vault.policies[1] = "family"
            vault.moves += 1
            await until(lambda: by(1) == "family")

    run(test)
