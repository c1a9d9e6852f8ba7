"""What changes between two steps of the engine: kills, evictions, stripes that cannot be repaired, a full disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio
from trio.testing import MockClock

from hivefs.chunkstore.cache import Cache, share_path
from hivefs.chunkstore.steps import Interrupted
from hivefs.chunkstore.writer import Writer
from hivefs.errors import DiskFull
from hivefs.formats.records import chunk_key, place_to_bytes
from hivefs.maintenance import repair
from hivefs.maintenance.leases import Leases
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import CHUNK_BYTES, ChunkId, ShareId, StripeId
from hivefs.model.inode import ChunkRef
from hivefs.model.stripe import ChunkPlace, Purpose, Share, Stripe
from hivefs.placement.policy import Policy
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

DAY = 86_400 * 10**9


def store_in(path: Path) -> EngineStore:
    return EngineStore(path, bytes(32), Policy(1, 1, ()))


def test_a_swap_that_the_flush_commits_is_seen_by_reconcile(tmp_path: Path) -> None:
    """The engine dies while the mount takes a chunk: the next one makes the mount commit, and must look after that."""

    class Late(MemoryVault):
        async def flush(self) -> None:
            self.map[5, 0] = ChunkRef(taken, bytes(32), 100, 0)

    async def test() -> None:
        hive, vault = MemoryHive(), Late()
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            engine.placing._stage = vault
            stripe = Stripe(StripeId(bytes(16)), Purpose.DATA, 1, 4096, (Share(ShareId(bytes(32)), bytes(32), None),))
            with engine.store.writing():
                engine.store.save_stripe(stripe)
                for slot, chunk_id in enumerate([taken, lost]):
                    engine.store.save_place(chunk_id, ChunkPlace(stripe.stripe_id, 0, 0, 100), 5, slot)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.serve_vault, vault, vault.snapshot)
                await until(lambda: not engine.store.count("offered"))
                assert engine.store.place(taken) is not None and engine.store.place(lost) is None
                nursery.cancel_scope.cancel()

    taken, lost = ChunkId(bytes(15) + b"a"), ChunkId(bytes(15) + b"b")
    run(test)


def test_evicting_beside_puts_and_removals_harms_neither(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)
    first, second = StripeId(os.urandom(16)), StripeId(os.urandom(16))
    assert cache.put(first, 0, bytes(5000))
    going_on = share_path(cache.root, second, 0).with_suffix(".tmp")
    going_on.write_bytes(b"half a share")
    cache.evict()
    assert going_on.exists(), "a put that was going on was torn down"
    assert cache.usage == 0 and not cache.has(first, 0)
    assert Cache(tmp_path / "cache", 1000).usage == 0 and not going_on.exists(), "a crash leaves nothing"

    assert cache.put(first, 1, bytes(5000))
    listed = os.scandir

    class Vanishing:
        """A directory whose files go between being listed and being looked at."""

        def __init__(self, path: object) -> None:
            self._entries = list(listed(path))  # type: ignore[call-overload]
            for entry in self._entries:
                os.unlink(entry.path)

        def __enter__(self) -> object:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            return

    os.scandir = Vanishing  # type: ignore[assignment]
    try:
        cache.evict()
    finally:
        os.scandir = listed
    assert not cache.has(first, 1)


def test_lost_stripes_do_not_keep_repair_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at again by the clock here: they were put aside for good."""
    monkeypatch.setattr(repair, "RETRY", 10_000.0)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino in range(12):
                vault.write(ino, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            stripes = [s for s in engine.store.stripes() if s.purpose == 1]
            assert len(stripes) >= 3
            *lost, weak = stripes
            for stripe in lost:
                for index in range(stripe.needed):
                    engine.cache.remove(stripe.stripe_id, index)
                for index in range(3):  # more than the code can make again
                    hive.by_id(stripe.shares[index].node).shares.pop(stripe.shares[index].share_id)  # type: ignore[arg-type]
                    engine.repair.bad_share(stripe, index, "lost")
            await until(lambda: len(engine.repair._parked) == len(lost))
            engine.repair.bad_share(weak, 0, "lost")
            await until(lambda: engine.store.stripe(weak.stripe_id).shares[0].node is not None)  # type: ignore[union-attr]
            assert engine.repair.queue >= len(lost)

    run(test)


def test_a_chunk_given_up_before_its_page_was_loaded_stays_gone(tmp_path: Path) -> None:
    """A checkpoint held it while it was only offered; then the mount did not take it, in the middle of a recovery."""
    store = store_in(tmp_path)
    chunk, stripe = ChunkId(os.urandom(16)), StripeId(os.urandom(16))
    place = ChunkPlace(stripe, 0, 0, 100)
    with store.writing():
        store.save_info("hydrating", True)
        store.save_place(chunk, place, 5, 0)
        store.published(store.next_sequence())
        store.settle(chunk, taken=False)
    store.load_page(b"c", None, [(chunk_key(chunk), place_to_bytes(place))])
    assert store.place(chunk) is None and store.live(stripe) == 1
    with store.writing():
        store.reap(store.next_sequence(), 10)
    assert store.live(stripe) == 0
    store.close()


def test_a_full_disk_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivefs.metadata.engine_writer.MAP_BYTES", 1 << 20)
    store = store_in(tmp_path)
    with pytest.raises(DiskFull), store.writing():
        for number in range(1000):
            store.save_info(f"value-{number}", bytes(4000))
    with store.writing():
        store.save_info("afterwards", 1)
    assert store.info("afterwards") == 1 and store.info("value-0") is None
    store.close()


def test_other_failures_of_lmdb_are_named(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    from hivefs.errors import StoreDamaged

    with pytest.raises(StoreDamaged), store.writing():
        raise lmdb.CorruptedError("page not found")
    store.close()


class LeaseBook:
    """What renewing asks of the store; each look at a node's stripes is noted."""

    def __init__(self, looked: Callable[[], None], **kept: Any) -> None:
        self.kept: dict[str, Any] = dict(kept)
        self._looked = looked

    def info(self, name: str) -> Any:
        return self.kept.get(name)

    def save_info(self, name: str, value: int) -> None:
        self.kept[name] = value

    def writing(self) -> object:
        return contextlib.nullcontext()

    def node_ids(self) -> list[bytes]:
        return [b"n" * 32]

    def each_on(self, node_id: bytes) -> list[bytes]:
        self._looked()
        return []


async def lease_turns(book: LeaseBook, now: list[int], days: Sequence[int]) -> None:
    """One turn of the loop on each of these days."""
    leases = Leases(book, lambda: [(b"n" * 32, None)], lambda: now[0], lambda *bad: None)  # type: ignore[arg-type, list-item]
    for day in days:
        now[0] = day * DAY
        with trio.move_on_after(1):  # of a virtual clock: it sleeps for longer after its turn
            await leases.run()


def test_after_a_recovery_all_is_renewed_once_the_book_is_here() -> None:
    """Nobody knows when it was done last, and the machine may have been lost long ago."""
    now, renewed = [0], list[int]()
    book = LeaseBook(lambda: renewed.append(now[0]), hydrating=True)
    trio.run(lease_turns, book, now, (300, 301), clock=MockClock(autojump_threshold=0))
    assert renewed == []
    book.kept["hydrating"] = False
    trio.run(lease_turns, book, now, (302, 303, 340), clock=MockClock(autojump_threshold=0))
    assert renewed == [302 * DAY, 340 * DAY]


def test_leases_are_renewed_although_the_clock_was_ahead_once() -> None:
    """A machine that woke up in 2036 must not wait ten years with renewing what ends in 120 days."""

    now, renewed = [0], list[int]()
    book = LeaseBook(lambda: renewed.append(now[0]))
    trio.run(lease_turns, book, now, (4000, 300, 301, 340), clock=MockClock(autojump_threshold=0))
    assert renewed == [300 * DAY, 340 * DAY]


def test_a_share_torn_in_the_cache_is_brought_again(tmp_path: Path) -> None:
    """The cache is not synced: after a power cut a file may be short, or zeros, under its right name."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            place, stripe = await engine.locate(vault.map[(1, 0)].chunk_id)
            path = share_path(engine.cache.root, stripe.stripe_id, place.index)
            whole = path.read_bytes()
            for torn in (whole[:5000], b"", bytes(len(whole))):
                path.write_bytes(torn)
                await engine.fetch(vault.map[(1, 0)].chunk_id, [])
                assert path.read_bytes() == whole

    run(test)


@pytest.mark.parametrize("where", ["choosing and claiming", "letting go and recording"])
def test_an_engine_with_a_checkpoint_where_none_may_be_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    choose, place = Writer._choose, Writer.place

    async def late_choice(self: Writer, *given: Any) -> Any:
        chosen = await choose(self, *given)
        await trio.lowlevel.checkpoint()
        return chosen

    async def late_return(self: Writer, *given: Any) -> Any:
        placed = await place(self, *given)
        await trio.lowlevel.checkpoint()
        return placed

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, b"a file")
            await settle(engine, vault)

    if where == "choosing and claiming":
        monkeypatch.setattr(Writer, "_choose", late_choice)
    else:
        monkeypatch.setattr(Writer, "place", late_return)
    with pytest.raises(BaseExceptionGroup) as caught:
        run(test)
    assert caught.group_contains(Interrupted)
