"""What repair waits for, and that it goes on as soon as that is there."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.maintenance import garbage, repair
from hivefs.model.stripe import Level, Purpose
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until


def test_a_share_whose_only_place_is_where_a_bad_one_waits_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many nodes as the code has shares. Nothing is looked at again by the clock here."""
    monkeypatch.setattr(repair, "RETRY", 10_000.0)

    async def test() -> None:
        hive, vault = MemoryHive(("DE", "FR", "CH"), 2), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(200_000))
            await settle(engine, vault)
            await until(lambda: engine.store.count("trash") == 0)
            stripe = next(s for s in engine.store.stripes() if s.purpose == Purpose.DATA)
            assert engine.store.health(stripe).level == Level.GUARANTEED
            node = stripe.shares[2].node
            engine.garbage.held = lambda: True  # nothing is deleted before we looked
            engine.repair.bad_share(stripe, 2, "a test says so")

            def again() -> bool:
                now = engine.store.stripe(stripe.stripe_id)
                return now is not None and engine.store.health(now).level == Level.GUARANTEED

            assert not again()
            await until(lambda: engine.repair._stuck)
            engine.garbage.held = lambda: False
            await until(again)
            now = engine.store.stripe(stripe.stripe_id)
            assert now is not None and now.shares[2].node == node and not engine.repair._stuck

    run(test)


def test_what_no_node_takes_is_read_again_later_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try reads k shares. The nodes say that they are full only when they are asked to take one."""
    monkeypatch.setattr(repair, "RETRY", 0.1)
    monkeypatch.setattr(repair, "LONGEST_RETRY", 0.8)
    monkeypatch.setattr(garbage, "EVERY", 0.05)  # what was tried in vain may be tried again at once
    tries: list[float] = []

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            vault.write(1, 0, os.urandom(200_000))
            await settle(engine, vault)
            await until(lambda: engine.store.count("trash") == 0)
            stripe = next(s for s in engine.store.stripes() if s.purpose == Purpose.DATA)
            remade = engine.repair._remade

            async def noted(*given: Any) -> dict[int, bytes]:
                tries.append(trio.current_time())
                return await remade(*given)

            monkeypatch.setattr(engine.repair, "_remade", noted)
            for node in hive.nodes:
                node.capacity = 0
            engine.repair.bad_share(stripe, 2, "a test says so")
            await until(lambda: len(tries) >= 6)
            apart = [after - before for before, after in pairwise(tries)]
            assert all(gap >= least for gap, least in zip(apart, (0.1, 0.2, 0.4, 0.8, 0.8), strict=False)), apart
            for node in hive.nodes:
                node.capacity = 1 << 30

            def again() -> bool:
                now = engine.store.stripe(stripe.stripe_id)
                return now is not None and engine.store.health(now).level == Level.GUARANTEED

            await until(again)
            assert stripe.stripe_id not in engine.repair._vain

    run(test)
