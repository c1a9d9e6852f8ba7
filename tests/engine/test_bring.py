"""Bringing shares into the cache for a reader: each once, and what lies there is not read for a guess ahead."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from hivefs.chunkstore.cache import share_path
from hivefs.model.ids import CHUNK_BYTES
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle


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

            # a guess ahead: what is there stays as it is, unread
            file.write_bytes(b"damaged")
            before = reader.fetched_bytes
            await reader.bring(stripe, place.index)
            assert (reader.fetched_bytes, file.read_bytes()) == (before, b"damaged")

            # somebody could not use it: it is looked at, and brought again
            await engine.fetch(ref.chunk_id, [])
            assert (reader.fetched_bytes, file.read_bytes()) == (before + len(whole), whole)

            # many at a time: one transfer
            file.unlink()
            before = reader.fetched_bytes
            async with trio.open_nursery() as nursery:
                for check in (True, False) * 4:
                    nursery.start_soon(lambda check=check: reader.bring(stripe, place.index, check=check))
            assert (reader.fetched_bytes, file.read_bytes()) == (before + len(whole), whole)

    run(test)
