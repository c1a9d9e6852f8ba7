"""Audits: what they ask, what they find, what they cost; nodes that lost shares, that corrupt, that withhold."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from hivefs.chunkstore import reader as reader_module
from hivefs.chunkstore.reader import Answer
from hivefs.content.merkle import LEAF_BYTES
from hivefs.crypto.seal import CODEC_RAW, segment_span
from hivefs.daemon.engine_core import Engine
from hivefs.errors import NodeBusy, PeerTimeout
from hivefs.maintenance import audit as audit_module
from hivefs.maintenance.audit import MEAN_BYTES, MOST_BYTES, PER_DAY, SAMPLES, SEGMENTS, SEVEN, Reservoir, per_day, where
from hivefs.model.ids import CHUNK_BYTES, SEGMENT_BYTES, StripeId
from hivefs.model.stripe import Level, Purpose
from hivefs.testing.memory_hive import MemoryClient, MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

SHARE = CHUNK_BYTES + CHUNK_BYTES // SEGMENT_BYTES * 16


def drawer(seed: int) -> Callable[[int], int]:
    dice = random.Random(seed)
    return dice.randrange


def test_the_arithmetic_of_finding_one_in_a_hundred() -> None:
    assert 1 - 0.99**SAMPLES > 0.99 and 1 - 0.9**44 > 0.99
    assert PER_DAY * SEVEN >= SAMPLES
    assert per_day(10_000, 100) == PER_DAY and per_day(5, 8) == 10 and per_day(0, 1) == 4
    assert per_day(10_000, 1000) * 27 > 459


def test_pieces_are_those_of_reads() -> None:
    """Same offsets and lengths as reading some segments of a chunk of 1 MiB, and all of a small share."""
    draw = drawer(1)
    reads = {
        segment_span(CODEC_RAW, SHARE, first * SEGMENT_BYTES, min((first + count) * SEGMENT_BYTES, CHUNK_BYTES))
        for first in range(32)
        for count in SEGMENTS
    }
    asked = {where(SHARE, draw) for _ in range(3000)}
    assert asked <= reads and len(asked) > 80
    assert where(1000, draw) == (0, 1000)
    for size in range(1, 300_000, 4999):
        offset, length = where(size, draw)
        assert length > 0 and 0 <= offset < offset + length <= size


def test_every_leaf_is_asked_for_and_the_cost_is_what_is_said() -> None:
    draw = drawer(2)
    leaves: Counter[int] = Counter()
    total, rounds = 0, 6000
    for _ in range(rounds):
        offset, length = where(SHARE, draw)
        first, last = offset // LEAF_BYTES, -(-(offset + length) // LEAF_BYTES)
        leaves.update(range(first, last))
        size = min(last * LEAF_BYTES, SHARE) - first * LEAF_BYTES
        assert size <= MOST_BYTES
        total += size
    assert set(leaves) == set(range(17)), "the last leaf is 512 bytes long"
    assert min(leaves[n] for n in range(1, 16)) > rounds / 17
    assert total / rounds <= MEAN_BYTES * 1.02
    assert PER_DAY * MEAN_BYTES <= 8.3 * (1 << 20) and PER_DAY * MOST_BYTES <= 17 << 20


def test_samples_are_of_all_shares_alike() -> None:
    counts: Counter[bytes] = Counter()
    draw = drawer(3)
    for _ in range(600):
        reservoir = Reservoir(draw)
        for number in range(300):
            reservoir.add(StripeId(number.to_bytes(16, "big")))
        counts.update(reservoir.items)
    expected = 600 * 64 / 300
    assert len(counts) == 300 and all(expected * 0.6 < c < expected * 1.4 for c in counts.values())


async def placed(engine: Engine, vault: MemoryVault, count: int, each: int = 8) -> None:
    engine.audit.look = nothing  # type: ignore[method-assign, assignment]
    for slot in range(count):
        vault.write(9, slot, os.urandom(40_000))
        if slot % each == each - 1:
            await settle(engine, vault)
    await settle(engine, vault)


async def nothing(*_: object) -> None:
    await trio.sleep(0)


async def look(engine: Engine, node: MemoryNode, times: int = 1) -> None:
    """What the loop would do for this node, without its pauses."""
    client = engine.pool.client(node.node_id)
    assert client is not None
    for _ in range(times):
        engine.audit._nodes[node.node_id] = audit_module._Node(0.0)
        await type(engine.audit).look(engine.audit, node.node_id, client)


def fullest(hive: MemoryHive) -> MemoryNode:
    return max(hive.nodes, key=lambda node: len(node.shares))


def test_an_honest_node_passes_and_pays_little(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 24)
            node = fullest(hive)
            hive.asked.clear()
            for _ in range(50):
                assert await engine.audit.audit(node.node_id) is Answer.RIGHT
            data = {x.share_id for s in engine.store.stripes() if s.purpose == Purpose.DATA for x in s.shares}
            asked = [number for number, share_id, *_ in hive.asked if share_id in data]
            assert set(asked) == {node.number}
            assert engine.trust.row(node.node_id).audits == 50
            assert not engine.trust.suspended(node.node_id)
            status = engine.audit.status()
            assert status["passed"] == 50 and status["bytes"] <= 50 * MOST_BYTES and not status["failed"]

    run(test)


def test_a_node_that_lost_a_tenth_is_found_swept_and_repaired(tmp_path: Path) -> None:
    """One loss is found by an audit, several make it look at all shares; all is guaranteed again in the end."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 96)
            node = fullest(hive)
            stripes = [stripe for stripe in engine.store.stripes() if stripe.purpose == Purpose.DATA]
            held = sorted(s.share_id for stripe in stripes for s in stripe.shares if s.node == node.node_id)
            lost = random.Random(5).sample(held, max(4, len(held) // 10))
            for share_id in lost:
                del node.shares[share_id]
            for _ in range(400):
                await engine.audit.audit(node.node_id)
                if engine.trust.row(node.node_id).sweep or engine.trust.suspended(node.node_id):
                    break
            assert engine.trust.row(node.node_id).sweep or engine.trust.suspended(node.node_id)
            with trio.fail_after(60):
                while engine.trust.row(node.node_id).sweep:
                    await look(engine, node)
            named = {s.share_id for stripe in engine.store.stripes() for s in stripe.shares if s.node == node.node_id}
            assert not named & set(lost) or engine.trust.suspended(node.node_id)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))

    run(test)


@pytest.mark.slow
def test_a_node_that_flips_a_byte_in_a_thousand_is_out_of_trust(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 60)
            node = fullest(hive)
            node.rotten = set(node.shares)
            for _ in range(20):
                await engine.audit.audit(node.node_id)
                with trio.move_on_after(0.01):
                    await trio.sleep_forever()
                if engine.trust.suspended(node.node_id):
                    break
            assert engine.trust.suspended(node.node_id)
            await until(lambda: not node.shares)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))

    run(test)


def test_a_node_that_says_it_has_all_and_gives_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third silence for the same share counts, the first two do not; strikes outlive the engine."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        real = MemoryClient.get

        async def get(self: MemoryClient, share_id: object, *args: object, **kwargs: object) -> bytes:
            if self._node.number == liar:
                await trio.sleep(0)
                raise PeerTimeout(peer=self.peer, what="a request for a share", seconds=15)
            return await real(self, share_id, *args, **kwargs)  # type: ignore[arg-type]

        liar = 0
        monkeypatch.setattr(MemoryClient, "get", get)
        async with running(home, hive, vault) as engine:
            await placed(engine, vault, 16, each=2)
            node = fullest(hive)
            liar = node.number
            assert await engine.audit.audit(node.node_id) is Answer.SILENT
            await look(engine, node)
            (owed,) = engine.trust.row(node.node_id).owed
            assert owed.strikes == 2 and engine.repair.queue == 0
            engine.trust._save([node.node_id])
        async with running(home, hive, vault) as engine:
            engine.audit.look = nothing  # type: ignore[method-assign, assignment]
            await look(engine, node)
            stripe = engine.store.stripe(StripeId(owed.stripe_id))
            assert stripe is not None and stripe.shares[owed.index].node != node.node_id
            # For others of its shares it may have strikes, and for this one when another read of it was on its way: the
            # next look sees that the node need not have it any more.
            await look(engine, node)
            assert (owed.stripe_id, owed.index) not in [(o.stripe_id, o.index) for o in engine.trust.row(node.node_id).owed]
            for _ in range(60):
                await engine.audit.audit(node.node_id)
                await look(engine, node, 2)
                if engine.trust.suspended(node.node_id):
                    break
            assert engine.trust.suspended(node.node_id)
            await until(lambda: not node.shares)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))

    run(test)


def test_busy_is_no_strike_and_late_once_is_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        real = MemoryClient.get
        answers: list[Exception] = []
        chosen: list[object] = []

        async def get(self: MemoryClient, share_id: object, *args: object, **kwargs: object) -> bytes:
            if answers and share_id in chosen:
                raise answers.pop()
            return await real(self, share_id, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(MemoryClient, "get", get)
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 8)
            stripe = next(s for s in engine.store.stripes() if s.purpose == Purpose.DATA)
            share = stripe.shares[0]
            assert share.node is not None
            node = hive.by_id(share.node)
            chosen.append(share.share_id)
            answers += [NodeBusy(peer="x", reason="quiet hours") for _ in range(20)]
            assert await engine.audit._audit_stripe(node.node_id, stripe.stripe_id) is Answer.BUSY
            await look(engine, node, 19)
            (owed,) = engine.trust.row(node.node_id).owed
            assert owed.strikes == 0 and not answers
            answers += [PeerTimeout(peer="x", what="a share", seconds=15) for _ in range(2)]
            await look(engine, node, 2)
            (owed,) = engine.trust.row(node.node_id).owed
            assert owed.strikes == 2 and not answers
            await look(engine, node)
            row = engine.trust.row(node.node_id)
            assert not row.owed and row.bad == 0 and engine.repair.repaired == 0

    run(test)


def test_audits_wait_for_the_budget(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 8)
            engine.moving.budget._reading = lambda: True  # somebody waits for a read
            with trio.move_on_after(0.5) as waiting:
                await engine.audit.audit(fullest(hive).node_id)
            assert waiting.cancelled_caught, "people first"

    run(test)


def test_reads_and_audits_ask_in_the_same_way(tmp_path: Path) -> None:
    """The node sees the same call for both, with the same time-out."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        seen: list[tuple[tuple[object, ...], dict[str, object]]] = []
        shares: set[object] = set()
        real = MemoryClient.get

        async def get(self: MemoryClient, *args: object, **kwargs: object) -> bytes:
            if args[0] in shares:
                seen.append((args[1:], {k: v for k, v in kwargs.items() if k not in ("early", "merkle_root")}))
            return await real(self, *args, **kwargs)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MemoryClient, "get", get)
            async with running(make_home(tmp_path / "home"), hive, vault) as engine:
                vault.write(9, 0, os.urandom(CHUNK_BYTES))
                await settle(engine, vault)
                place, stripe = await engine.locate(vault.map[(9, 0)].chunk_id)
                node = stripe.shares[place.index].node
                assert node is not None
                shares.update(share.share_id for share in stripe.shares)
                await engine.audit._audit_stripe(node, stripe.stripe_id, place.index)
                (offset, length), options = seen.pop()
                await engine.reader.part(stripe, place.index, offset, length)  # type: ignore[arg-type]
                assert seen.pop() == ((offset, length), options) and options == {"timeout": reader_module.GET_TIMEOUT}

    run(test)
