"""What waits for what: a slot that cannot be read holds nothing up, and who waits gets a checkpoint in time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.chunkstore.writer import Writer
from hivefs.daemon import engine_core
from hivefs.errors import NotEnoughShares
from hivefs.maintenance import checkpoint
from hivefs.maintenance.checkpoint import Checkpoint
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until


def test_a_slot_whose_older_part_cannot_be_read_holds_nothing_up(tmp_path: Path) -> None:
    """It is tried again later; meanwhile others are placed and the loop does not spin."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(9000))
            await settle(engine, vault)
            asked = 0
            locate, dirty = engine.placing._locate, vault.dirty

            async def lost(chunk_id: object) -> object:
                raise NotEnoughShares(have=0, needed=4, stripe="x", reason="test")

            async def partly(limit: int, quiet_ns: int, skip: object) -> object:
                nonlocal asked
                asked += 1
                work = await dirty(limit, quiet_ns, skip)  # type: ignore[arg-type]
                return [replace(w, extents=()) if (w.ino, w.slot) == (1, 0) else w for w in work]

            engine.placing._locate = lost  # type: ignore[assignment]
            vault.dirty = partly  # type: ignore[assignment, method-assign]
            vault.write(1, 0, os.urandom(9000))
            vault.write(2, 0, os.urandom(9000))
            engine.placing.poke()
            await until(lambda: (2, 0) in vault.map)
            assert "older part" in engine.placing.progress.waiting_for or (1, 0) in vault.dirty_slots
            before = asked
            await trio.sleep(1.2)
            assert asked - before < 10
            engine.placing._locate = locate
            engine.placing._stuck.clear()
            del vault.dirty  # type: ignore[method-assign]
            await settle(engine, vault)

    run(test)


def test_who_waits_gets_a_checkpoint_when_the_last_stripe_is_placed_and_none_for_each_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that are slow to take shares: ten questions meanwhile make one checkpoint, and the next comes by itself."""

    async def body() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        monkeypatch.setattr(checkpoint, "EVERY", 1000.0)
        monkeypatch.setattr(engine_core, "EVERY", 1000.0)
        made: list[int] = []
        open_gate = trio.Event()
        spread = Writer.spread

        async def slow(self: Writer, *arguments: Any, **named: Any) -> Any:
            await open_gate.wait()
            return await spread(self, *arguments, **named)

        once = Checkpoint.once

        async def counted(self: Checkpoint, *arguments: Any) -> bool:
            made.append(len(vault.map))
            return await once(self, *arguments)

        async with running(
            make_home(
                tmp_path / "home",
            ),
            hive,
            vault,
        ) as engine:
            await settle(engine, vault)
            await until(lambda: not engine.checkpoint.wanted.is_set())
            monkeypatch.setattr(Writer, "spread", slow)
            monkeypatch.setattr(Checkpoint, "once", counted)
            for slot in range(6):
                vault.write(2, slot, os.urandom(200_000))
            engine.placing.poke()
            await until(lambda: engine.placing.in_flight)
            engine._hurried = trio.current_time()
            for _ in range(10):
                engine.hurry()
                await trio.sleep(0.01)
            assert made == []
            open_gate.set()
            await until(lambda: len(vault.map) == 6 and made)
            status = await vault.status()
            await until(lambda: vault.published_sequence >= status["committed"])

    run(body)
