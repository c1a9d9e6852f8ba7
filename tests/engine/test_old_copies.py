"""Repair beside old copies: it waits rather than bring k shares together, and not when the stripe would be lost over it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.chunkstore import pool
from hivefs.daemon.engine_core import Engine
from hivefs.maintenance import repair as repair_module
from hivefs.maintenance.old_copies import FORGOTTEN_S
from hivefs.maintenance.placement_check import PlacementCheck
from hivefs.model.ids import CHUNK_BYTES, NodeId, ShareId, StripeId
from hivefs.model.stripe import Level, Purpose, Stripe
from hivefs.placement.health import NodeRow, NodeState
from hivefs.testing.memory_hive import MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import content, make_home, run, running, settle, until
from .test_spares import guaranteed, state


def of(hive: MemoryHive, country: str) -> list[MemoryNode]:
    return [node for node in hive.nodes if node.country == country]


@asynccontextmanager
async def placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Engine, MemoryVault, MemoryHive]]:
    """A 2/4 stripe over DE, FR, CH and IS, then NO joins, where nothing lies. One share each makes it: two rebuild it."""
    monkeypatch.setattr(repair_module, "RETRY", 0.2)
    hive, vault = MemoryHive(("DE", "FR", "CH", "IS", "NO"), 2), MemoryVault()
    for node in of(hive, "NO"):
        node.stop()
    async with running(make_home(tmp_path / "home", gone_after=1, needed=2, total=4), hive, vault) as engine:
        vault.write(9, 0, os.urandom(CHUNK_BYTES))
        await settle(engine, vault)
        await guaranteed(engine)
        yield engine, vault, hive


def stripe_of(engine: Engine) -> Stripe:
    return next(s for s in engine.store.stripes() if s.purpose == Purpose.DATA)


def index_in(engine: Engine, hive: MemoryHive, country: str) -> int:
    there = {node.node_id for node in of(hive, country)}
    return next(i for i, share in enumerate(stripe_of(engine).shares) if share.node in there)


def stop(hive: MemoryHive, country: str) -> None:
    for node in of(hive, country):
        node.stop()


def hive_share(hive: MemoryHive, share_id: ShareId) -> dict[ShareId, Any]:
    """A share as the node that has it keeps it."""
    return next({share_id: node.shares[share_id]} for node in hive.nodes if share_id in node.shares)


async def found(engine: Engine) -> set[str]:
    await trio.lowlevel.checkpoint()
    check = PlacementCheck(engine.store, engine.old_copies.as_read, engine.old_copies.together)
    check.run()
    return {finding.kind for finding in check.findings}


def test_repair_waits_until_old_copies_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, vault, hive):
            one, other = of(hive, "NO")
            engine.garbage.held = lambda: True
            stripe = stripe_of(engine)
            mine, lost = (stripe.shares[index_in(engine, hive, country)] for country in ("DE", "FR"))
            with engine.store.writing():
                engine.store.trash_share(one.node_id, mine.share_id)
            for node in (one, other):
                node.start()
            await until(lambda: all(state(engine, n) == NodeState.ONLINE for n in (one, other)))
            stop(hive, "FR")
            await until(lambda: engine.repair.waiting_for_copies == 1)
            # Of stripes of metadata too, that are repaired meanwhile: the last that waits says why.
            await until(lambda: "old copies" in engine.status()["repair"]["waiting_for"])
            assert engine.status()["repair"]["waiting_for_copies"] == 1
            await trio.sleep(1)  # some looks more
            assert all(lost.share_id not in node.shares for node in (one, other)), "it would be under NO with the old copy"
            assert engine.repair.risked == 0
            engine.garbage.held = lambda: False
            await guaranteed(engine)
            assert any(lost.share_id in node.shares for node in (one, other))
            assert engine.repair.waiting_for_copies == 0
            assert len(await content(engine, vault, 9, 0)) == CHUNK_BYTES

    run(test)


def test_a_stripe_about_to_be_lost_waits_for_no_copy_that_may_be_destroyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more share may be lost: it waits for the copy at a node that was given up. None more may be: not any longer, and
    that is said.
    """

    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, _, hive):
            away, there = of(hive, "NO")
            await until(lambda: state(engine, away) == NodeState.GONE)
            there.start()
            await until(lambda: state(engine, there) == NodeState.ONLINE)
            mine = stripe_of(engine).shares[index := index_in(engine, hive, "DE")]
            with engine.store.writing():
                engine.store.spare_share(away.node_id, mine.share_id, stripe_of(engine).stripe_id, index, 1)
            assert "old-copies" not in await found(engine)
            stop(hive, "FR")
            await until(lambda: engine.repair.waiting_for_copies == 1)
            assert not any(s.node == there.node_id for s in stripe_of(engine).shares) and engine.repair.risked == 0
            stop(hive, "CH")
            await until(lambda: any(s.node == there.node_id for s in stripe_of(engine).shares))
            assert engine.repair.risked == 1 == engine.status()["repair"]["risked"]
            assert "old-copies" in await found(engine)

    run(test)


def test_what_can_not_come_back_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy at a node that is away for longer than all its leases; it counts again when the node is back."""

    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, _, hive):
            node, stripe = of(hive, "NO")[0].node_id, stripe_of(engine)
            with engine.store.writing():
                engine.store.spare_share(node, stripe.shares[1].share_id, stripe.stripe_id, 1, 1)
            now = time.time_ns()
            for row, counts in (
                (NodeRow(NodeState.GONE, now - (FORGOTTEN_S - 60) * 10**9), True),
                (NodeRow(NodeState.GONE, now - (FORGOTTEN_S + 60) * 10**9), False),
                (NodeRow(NodeState.ONLINE, now - (FORGOTTEN_S + 60) * 10**9), True),
            ):
                with engine.store.writing():
                    engine.store.save_node_row(node, row)
                assert ((1, node) in engine.old_copies.of(stripe)) == counts
            assert {(i, s.node) for i, s in enumerate(stripe.shares)} <= engine.old_copies.of(stripe)
            other = StripeId(bytes(16))
            bare = replace(stripe, stripe_id=other, shares=tuple(replace(s, node=None) for s in stripe.shares))
            assert engine.old_copies.of(bare) == {(1, node)}, "also of a stripe that is placed again under another name"
            assert engine.store.health(stripe).level == Level.GUARANTEED

    run(test)


def test_nothing_is_moved_to_where_an_old_copy_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rebalancing asks before it moves a share."""

    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, _, hive):
            one, other = of(hive, "NO")
            stripe, index = stripe_of(engine), index_in(engine, hive, "FR")
            shares = list(stripe.shares)
            shares[index] = replace(shares[index], node=other.node_id, standing=b"")
            moved = replace(stripe, shares=tuple(shares))
            other.start()
            await until(lambda: state(engine, other) == NodeState.ONLINE)
            assert engine.moving._keeps(stripe, moved)
            for old, good in ((index, True), (index_in(engine, hive, "DE"), False)):
                with engine.store.writing():
                    engine.store.trash_share(one.node_id, stripe.shares[old].share_id)
                assert engine.moving._keeps(stripe, moved) == good, "of the same share it costs nothing"

    run(test)


def test_a_share_that_was_taken_back_while_repair_read_is_not_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Putting notes the pair for deletion first: killed then, the next start would delete what the stripe names."""

    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, vault, hive):
            back = of(hive, "NO")[0]
            index, remade, intended = index_in(engine, hive, "FR"), engine.repair._remade, engine.claims._intend
            held = hive_share(hive, stripe_of(engine).shares[index].share_id)
            named: list[bool] = []

            async def taken_back(stripe: Stripe, *given: Any) -> dict[int, bytes]:
                found = await remade(stripe, *given)
                if stripe.purpose != Purpose.DATA:
                    return found
                back.shares.update(held)
                shares = list(stripe.shares)
                shares[index] = replace(shares[index], node=back.node_id, standing=b"")
                with engine.store.writing():
                    engine.store.save_stripe(replace(stripe, shares=tuple(shares)))
                named.append(False)
                return found

            def intend(pairs: Collection[tuple[NodeId, ShareId]]) -> None:
                if (back.node_id, stripe_of(engine).shares[index].share_id) in pairs and named:
                    named.append(True)
                intended(pairs)

            engine.repair._remade, engine.claims._intend = taken_back, intend  # type: ignore[method-assign]
            stop(hive, "FR")
            back.start()
            await until(lambda: bool(named))
            await guaranteed(engine)
            assert not any(named)
            assert len(await content(engine, vault, 9, 0)) == CHUNK_BYTES

    run(test)


def test_what_is_recorded_by_now_counts_for_who_read_the_stripe_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, _, hive):
            before, node = stripe_of(engine), of(hive, "NO")[0].node_id
            shares = (replace(before.shares[0], node=node, standing=b""), *before.shares[1:])
            with engine.store.writing():
                engine.store.save_stripe(replace(before, shares=shares))
            assert (0, node) in engine.old_copies.of(before)

    run(test)


def test_a_repair_whose_puts_all_failed_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BUSY_SECONDS", 0.2)

    async def test() -> None:
        async with placed(tmp_path, monkeypatch) as (engine, _, hive):
            recorded: list[bool] = []
            record = engine.repair._record

            def noted(before: Stripe, holders: dict[int, NodeId]) -> bool:
                recorded.append(record(before, holders))
                return recorded[-1]

            engine.repair._record = noted  # type: ignore[method-assign]
            for node in of(hive, "NO"):
                node.busy = True
                node.start()
            stop(hive, "FR")
            await until(lambda: bool(recorded))
            assert not any(recorded) and engine.repair.repaired == 0
            for node in of(hive, "NO"):
                node.busy = False
            await guaranteed(engine)
            assert engine.repair.repaired >= 1, "the stripe of metadata too, if FR had a share of it"

    run(test)
