"""Bringing shares into the cache for a reader: each once, and what lies there is not read for a guess ahead."""

from __future__ import annotations

import os
from pathlib import Path

import trio
import trio.testing

from hivefs.chunkstore.cache import share_path
from hivefs.chunkstore.source import Piece
from hivefs.model.ids import CHUNK_BYTES, NodeId, ShareId
from hivefs.model.stripe import Purpose
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import drop_cache, make_home, run, running, settle, until


def test_each_share_is_brought_once_and_damage_is_found(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            ref = vault.map[(1, 0)]
            place, stripe = await engine.locate(ref.chunk_id)
            file = share_path(tmp_path / "home" / "cache", stripe.stripe_id, place.index)
            whole = file.read_bytes()
            reader = engine.reader

            def asked() -> int:
                """Bytes of shares of this stripe that nodes were asked for; pages of the tree are read beside."""
                ids = {share.share_id for share in stripe.shares}
                return sum(length or stripe.share_bytes for _, share_id, _, length in hive.asked if share_id in ids)

            # a guess ahead: what is there stays as it is, unread
            file.write_bytes(b"damaged")
            before = asked()
            await reader.bring(stripe, place.index)
            assert (asked(), file.read_bytes()) == (before, b"damaged")

            # somebody could not use it: it is looked at, and brought again
            await engine.fetch(ref.chunk_id, [])
            assert (asked(), file.read_bytes()) == (before + len(whole), whole)

            # many at a time: one transfer
            file.unlink()
            before = asked()
            async with trio.open_nursery() as nursery:
                for check in (True, False) * 4:
                    nursery.start_soon(lambda check=check: reader.bring(stripe, place.index, check=check))
            assert (asked(), file.read_bytes()) == (before + len(whole), whole)

    run(test)


def test_the_first_bytes_are_one_question_and_the_share_comes_behind_them(tmp_path: Path) -> None:
    """What somebody waits for is asked for alone; nothing else is before it on the line, and nothing comes twice."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for slot in range(6):
                vault.write(1, slot, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            refs = [vault.map[(1, slot)] for slot in range(6)]
            place, stripe = await engine.locate(refs[0].chunk_id)
            whole = engine.cache.get(stripe.stripe_id, place.index) or b""
            sealed = whole[place.offset : place.offset + place.length]
            drop_cache(engine)
            shares = {x.share_id for s in engine.store.stripes() if s.purpose == Purpose.DATA for x in s.shares}

            def asked() -> list[tuple[ShareId, int, int | None]]:
                """Since then, for data; pages of the tree may be read beside."""
                return [(s, o, n) for _, s, o, n in hive.asked if s in shares]

            hive.asked.clear()
            hive.delay = 0.05
            span = (65_568, 32_784)
            piece = await engine.fetch(refs[0].chunk_id, [ref.chunk_id for ref in refs[1:]], span)
            assert piece == Piece(span[0], sealed[span[0] : span[0] + span[1]])
            share_id = stripe.shares[place.index].share_id
            assert asked() == [(share_id, place.offset + span[0], span[1])]

            # the next read of it joins what is coming
            await trio.testing.wait_all_tasks_blocked()
            assert await engine.fetch(refs[0].chunk_id, [], (0, 100)) is None
            assert engine.cache.get(stripe.stripe_id, place.index) == whole
            await until(lambda: len(asked()) == 7)
            places = [await engine.locate(ref.chunk_id) for ref in refs]
            await until(lambda: all(engine.cache.has(s.stripe_id, p.index) for p, s in places))
            assert len(asked()) == 7 and len({s for s, _, _ in asked()}) == 6

    run(test)


def test_first_bytes_of_a_node_that_is_away_or_spans_that_are_none_bring_the_share(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(CHUNK_BYTES))
            await settle(engine, vault)
            chunk_id = vault.map[(1, 0)].chunk_id
            place, stripe = await engine.locate(chunk_id)
            for span in [(0, 0), (-1, 10), (place.length - 5, 6), (0, 900_000)]:
                drop_cache(engine)
                assert await engine.fetch(chunk_id, [], span) is None
                assert engine.cache.has(stripe.stripe_id, place.index)
            drop_cache(engine)
            hive.by_id(stripe.shares[place.index].node or NodeId(b"")).stop()
            await until(lambda: len(engine.pool.online()) == 7)
            assert await engine.fetch(chunk_id, [], (0, 100)) is None
            assert engine.cache.has(stripe.stripe_id, place.index)

    run(test)
