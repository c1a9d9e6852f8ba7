"""Receipts against the book, and the most dangerous code of all: deleting what nothing names."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hivefs.chunkstore import pool as pool_module
from hivefs.chunkstore.steps import Moment
from hivefs.chunkstore.writer import LEASE_NS
from hivefs.crypto import keys
from hivefs.daemon.engine_core import Engine
from hivefs.errors import Corrupt
from hivefs.formats import head as head_format
from hivefs.formats import receipt as receipt_format
from hivefs.maintenance import garbage
from hivefs.maintenance import ledger as ledger_module
from hivefs.maintenance.accounts import DAY_NS, SEEN_NS, UNRENEWED_NS, Account
from hivefs.maintenance.ledger import Ledger
from hivefs.model.ids import DeviceId, NodeId, ShareId
from hivefs.model.receipt import Listed, Receipt
from hivefs.model.stripe import Level
from hivefs.placement.health import NodeRow, NodeState
from hivefs.protocol.answers import Listing
from hivefs.testing.bench.loop_figures import SECRETS, filled
from hivefs.testing.memory_hive import MemoryClient, MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, no_heads, run, running, settle, until


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "EVERY", 0.05)
    monkeypatch.setattr(ledger_module, "FIRST", 10_000.0)  # the tests look themselves, however long they take


def ledger_of(engine: Engine) -> Ledger:
    return engine.moving.ledger


async def account(engine: Engine, node: MemoryNode) -> Account:
    client = engine.pool.client(node.node_id)
    assert client is not None
    return await ledger_of(engine).account(node.node_id, client)


async def placed(engine: Engine, vault: MemoryVault, files: int = 6) -> dict[int, bytes]:
    plain = {ino: os.urandom(30_000) for ino in range(files)}
    for ino, data in plain.items():
        vault.write(ino, 0, data)
        await settle(engine, vault)
    await until(lambda: not engine.store.count("trash"))
    return plain


def orphan(node: MemoryNode, age_ns: int = UNRENEWED_NS + DAY_NS, text: bytes = b"left by a lost client") -> ShareId:
    """A share at a node that no stripe names, renewed so long ago."""
    share_id = ShareId(hashlib.sha256(text).digest())
    node.shares[share_id] = text
    node.leases[share_id] = time.time_ns() + LEASE_NS - age_ns
    return share_id


def later(engine: Engine, node: MemoryNode, nanoseconds: int) -> None:
    """Both clocks go on."""
    now = time.time_ns() + nanoseconds
    ledger_of(engine)._clock = lambda: now
    node.clock_ns = now


def test_receipts_and_book_agree_and_the_sum_of_leases_is_the_sum_of_shares(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        async with running(home, hive, vault) as engine:
            await placed(engine, vault)
            for node in hive.nodes:
                row = await account(engine, node)
                assert row.balanced and row.agreed and row.leases == row.book == len(node.shares)
                assert row.size == row.book_size == node.used
            said = await engine.moving.accounts()
            assert not any(row["revoked"] for row in said["nodes"])
            assert all(row["state"] == "online" for row in said["nodes"] if row["online"])
            assert said["balanced"] and not said["missing"] and not said["unknown"]
            named = sum(s.node is not None for stripe in engine.store.stripes() for s in stripe.shares)
            assert said["leases"] == said["book_shares"] == named
        async with running(home, hive, None) as engine:  # the latest are kept
            assert ledger_of(engine).receipt(hive.nodes[0].node_id) == hive.nodes[0].agreed[-1]
            assert (await engine.moving.accounts())["leases"] == named

    run(test)


def test_a_share_that_a_node_lost_is_found_shown_and_made_again(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await placed(engine, vault)
            node = max(hive.nodes, key=lambda n: len(n.shares))
            gone = next(iter(node.shares))
            del node.shares[gone]
            row = await account(engine, node)
            assert row.missing == 1 and not row.balanced
            assert (await engine.moving.accounts())["missing"] == 1
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            await until(lambda: not engine.store.count("trash"))
            row = await account(engine, node)
            assert row.balanced and not row.missing
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data

    run(test)


def test_what_a_node_says_that_its_disk_has_lost_is_looked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the hour that passes between two receipts; and not again and again when it says so all the time."""
    monkeypatch.setattr(ledger_module, "FIRST", 0.0)
    monkeypatch.setattr(ledger_module, "LOOK", 0.05)
    monkeypatch.setattr(pool_module, "STAT_EVERY", 0.05)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault)
            node = max(hive.nodes, key=lambda n: len(n.shares))
            await until(lambda: ledger_of(engine).row(node.node_id).looked_ns)
            receipts, gone = node.receipts, next(iter(node.shares))
            del node.shares[gone]
            later(engine, node, ledger_module.HURRY_NS)
            await trio.sleep(0.3)
            assert node.receipts == receipts, "nobody knows"
            node.dropped = 1
            await until(lambda: ledger_of(engine).row(node.node_id).missing == 1)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            receipts = node.receipts
            for _ in range(5):
                node.dropped += 1
                await trio.sleep(0.1)
            assert node.receipts == receipts, "once a minute at most"
            later(engine, node, 3 * ledger_module.HURRY_NS)
            await until(lambda: node.receipts == receipts + 1)

    run(test)


def test_what_nothing_names_is_noted_and_goes_only_when_it_is_old_in_every_way(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await placed(engine, vault)
            node = hive.nodes[0]
            old, fresh = orphan(node), orphan(node, 0, b"renewed a moment ago")
            assert (await account(engine, node)).unknown == 2
            later(engine, node, SEEN_NS - DAY_NS)
            row = await account(engine, node)
            assert (row.unknown, row.deleted) == (2, 0)
            later(engine, node, SEEN_NS + DAY_NS)
            row = await account(engine, node)
            assert (row.unknown, row.deleted) == (1, 1)
            await until(lambda: old not in node.shares)
            assert fresh in node.shares
            later(engine, node, UNRENEWED_NS + 2 * DAY_NS)
            assert (await account(engine, node)).deleted == 1
            await until(lambda: fresh not in node.shares)
            assert (await account(engine, node)).balanced
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            assert all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes())

    run(test)


async def ripe(engine: Engine, node: MemoryNode) -> ShareId:
    """A share that the next look would delete."""
    share_id = orphan(node)
    await account(engine, node)
    later(engine, node, SEEN_NS + DAY_NS)
    return share_id


def refusals() -> dict[str, Callable[[Engine, MemoryHive, MemoryNode, ShareId], None]]:
    def forked(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        """Another device has published a head that ours does not contain: this node says so."""
        seed = bytes([77]) * 32
        owner = engine.keys.owner_seed
        certificate = head_format.sign_certificate(owner, DeviceId(keys.public_key(seed)), 9, 1)
        node.heads[certificate.device] = head_format.sign_head(seed, certificate, 3, None, 1, b"sealed")

    def not_out(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        with engine.store.writing():
            engine.store.save_info("head_out", False)

    def few_nodes(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        for other in hive.nodes:
            if other is not node:
                member = engine.pool.members[other.node_id]
                member.client = None

    def their_clock(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        node.clock_ns = time.time_ns()

    def our_clock_back(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        now = time.time_ns() - 10 * DAY_NS
        ledger_of(engine)._clock = lambda: now
        node.clock_ns = now

    def claimed(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        assert engine.claims.claim([(node.node_id, share_id)], Moment())
        with engine.store.writing():  # the claim is not recorded yet, and the crash that its trash is for has not been
            engine.store.trash_done(node.node_id, [share_id])

    def needed(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        ledger_of(engine).needed.append(lambda n, s: (n, s) == (node.node_id, share_id))

    def doomed(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        stripe = next(iter(engine.store.stripes()))
        with engine.store.writing():
            engine.store.doom_share(stripe.stripe_id, node.node_id, share_id)

    def named(engine: Engine, hive: MemoryHive, node: MemoryNode, share_id: ShareId) -> None:
        """Repair put the very share there again, and recorded it."""
        free = (s for s in engine.store.stripes() if not any(x.node == node.node_id for x in s.shares))
        stripe = next(free, None)
        if stripe is None:
            stripe = next(iter(engine.store.stripes()))
            shares = [replace(s, node=None) if s.node == node.node_id else s for s in stripe.shares]
            stripe = replace(stripe, shares=tuple(shares))
        shares = [replace(stripe.shares[0], share_id=share_id, node=node.node_id), *stripe.shares[1:]]
        with engine.store.writing():
            engine.store.save_stripe(replace(stripe, shares=tuple(shares)))

    return {
        f.__name__: f for f in (forked, not_out, few_nodes, their_clock, our_clock_back, claimed, needed, doomed, named)
    }


@pytest.mark.parametrize("name", refusals())
def test_whoever_may_need_it_keeps_it(name: str, tmp_path: Path) -> None:
    """Each reason by itself keeps a share that would be deleted otherwise."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            share_id = await ripe(engine, node)
            with no_heads(engine):  # which would change the reason
                refusals()[name](engine, hive, node, share_id)
                client = MemoryClient(hive, node)
                row = await ledger_of(engine).account(node.node_id, client)  # type: ignore[arg-type]
            assert row.deleted == 0
            assert not engine.store.has_trash(node.node_id, share_id)
            assert share_id in node.shares

    run(test)


def test_without_a_reason_it_goes_so_the_test_above_can_fail(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            share_id = await ripe(engine, hive.nodes[0])
            assert (await account(engine, hive.nodes[0])).deleted == 1
            await until(lambda: share_id not in hive.nodes[0].shares)

    run(test)


@pytest.mark.parametrize("moment", ["list_shares", "get_heads", "get_receipt", "agree"])
def test_a_share_that_is_recorded_at_any_moment_of_the_look_stays(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repair puts the same share at the same node while the ledger waits for the node's answer, whichever it is."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            share_id = await ripe(engine, node)
            real = getattr(MemoryClient, moment)

            async def meanwhile(self: MemoryClient, *args: object, **named: object) -> object:
                answer = await real(self, *args, **named)
                if self.node_id == node.node_id:
                    refusals()["named"](engine, hive, node, share_id)
                return answer

            monkeypatch.setattr(MemoryClient, moment, meanwhile)
            await account(engine, node)
            assert not engine.store.has_trash(node.node_id, share_id)
            await trio.sleep(0.12)
            assert share_id in node.shares
            monkeypatch.undo()
            monkeypatch.setattr(garbage, "EVERY", 0.05)
            # It may have been noted once more, by a book that was read before. The next look knows better, however late.
            later(engine, node, 100 * UNRENEWED_NS)
            await account(engine, node)
            await trio.sleep(0.12)
            assert share_id in node.shares and share_id not in engine.moving.contents.unknown(node.node_id)

    run(test)


def test_a_share_on_its_way_to_be_deleted_can_be_put_again_and_then_stays(tmp_path: Path) -> None:
    """Between the trash and the deletion: who claims it keeps it, and who comes during the deletion is refused."""

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            share_id = await ripe(engine, node)
            engine.garbage.held = lambda: True  # the trash is emptied later
            assert (await account(engine, node)).deleted == 1
            pair = (node.node_id, share_id)
            assert engine.claims.claim([pair], Moment()) == {pair}
            engine.garbage.held = lambda: False
            await trio.sleep(0.12)
            assert share_id in node.shares
            refusals()["named"](engine, hive, node, share_id)
            engine.claims.release([pair])
            await trio.sleep(0.12)
            assert share_id in node.shares and not engine.store.has_trash(*pair)

    run(test)


def test_forged_stale_and_replayed_receipts_are_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            good = await account(engine, node)
            node.receipts = 0  # the node's store was lost or set back, or it lies
            row = await account(engine, node)
            assert "stale" in row.problem and not row.balanced and row.number == good.number
            assert "stale" in engine.status()["nodes"][0]["last_problem"] or any(
                "stale" in n["last_problem"] for n in engine.status()["nodes"]
            )
            kept = ledger_of(engine).receipt(node.node_id)
            assert kept is not None and kept.sequence == good.number

            async def forged(self: MemoryClient, nonce: bytes, **_: object) -> tuple[Receipt, None]:
                raise Corrupt(what="the receipt of node x", reason="it is not the one that was asked for, signed by it")

            monkeypatch.setattr(MemoryClient, "get_receipt", forged)
            row = await account(engine, node)
            assert "refused" in row.problem and row.number == good.number
            rows = {r["id"]: r for r in (await engine.moving.accounts())["nodes"]}
            assert "refused" in rows[node.node_id.hex()]["problem"]
            assert not (await engine.moving.accounts())["balanced"]

    run(test)


def test_after_a_recovery_the_node_brings_back_what_was_agreed_and_older_ones_stay_stale(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            for _ in range(3):
                await account(engine, hive.nodes[0])
            with engine.store.writing():
                engine.store.delete("info", b"receipt-" + hive.nodes[0].node_id.hex().encode())
            hive.nodes[0].receipts = 1
            assert "stale" in (await account(engine, hive.nodes[0])).problem

    run(test)


def fake_listing(monkeypatch: pytest.MonkeyPatch, node: MemoryNode, page: Callable[[int], tuple[Listed, ...]]) -> list[int]:
    """That node lists without end; the numbers of the pages that were asked for."""
    asked: list[int] = []
    real = MemoryClient.list_shares

    async def endless(self: MemoryClient, after: bytes = b"", **named: object) -> Listing:
        if self.node_id != node.node_id:
            return await real(self, after)
        number = int.from_bytes(after[:8], "big") + 1
        asked.append(number)
        assert len(asked) < 1000, "it is asked without end"
        await trio.sleep(0)
        return Listing(number.to_bytes(8, "big").ljust(32, b"\xff"), page(number))

    monkeypatch.setattr(MemoryClient, "list_shares", endless)
    return asked


def rows_of(number: int) -> tuple[Listed, ...]:
    ids = (number.to_bytes(8, "big") + i.to_bytes(24, "big") for i in range(100))
    return tuple(Listed(ShareId(share_id), 1, 100) for share_id in ids)


@pytest.mark.parametrize("page", [rows_of, lambda number: ()], ids=["full", "empty"])
def test_a_listing_without_end_is_refused_and_named(
    page: Callable[[int], tuple[Listed, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SPARE_ROWS", 5000)
    monkeypatch.setattr(ledger_module, "MOST_EMPTY", 50)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            orphan(node)
            fake_listing(monkeypatch, node, page)
            row = await account(engine, node)
            assert "refused" in row.problem and not row.agreed
            assert not engine.moving.contents.unknown(node.node_id)
            row = await account(engine, hive.nodes[1])
            assert row.balanced

    run(test)


def test_a_node_that_never_ends_is_given_up_and_does_not_hold_the_others_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            slow = hive.nodes[0]
            asked = trio.Event()
            real = MemoryClient.get_receipt

            async def get_receipt(self: MemoryClient, nonce: bytes, **named: object) -> object:
                if self.node_id == slow.node_id:
                    asked.set()
                    await trio.sleep_forever()
                return await real(self, nonce)

            monkeypatch.setattr(MemoryClient, "get_receipt", get_receipt)
            ledger = ledger_of(engine)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ledger.look)
                await asked.wait()
                await until(lambda: all(ledger.row(n.node_id).looked_ns for n in hive.nodes[1:]))
                assert not ledger.row(slow.node_id).looked_ns
                nursery.cancel_scope.cancel()
            monkeypatch.setattr(ledger_module, "DEADLINE", 0.2)
            assert "refused" in (await account(engine, slow)).problem

    run(test)


def test_of_many_shares_that_nothing_names_only_some_are_remembered_and_all_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MOST_UNKNOWN", 5)
    monkeypatch.setattr(ledger_module, "MOST_NOTED", 3)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            ids = sorted(orphan(node, text=bytes([i])) for i in range(8))
            for noted in (3, 5, 5):
                row = await account(engine, node)
                assert (row.unknown, row.missing, len(engine.moving.contents.unknown(node.node_id))) == (8, 0, noted)
            for share_id in ids[:4]:
                del node.shares[share_id]
            assert (await account(engine, node)).unknown == 4
            assert set(engine.moving.contents.unknown(node.node_id)) == set(ids[4:])

    run(test)


def test_a_node_of_an_older_release_is_asked_seldom_and_all_else_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            node = hive.nodes[0]
            node.old = True
            for _ in range(2):
                ended = engine.pool.client(node.node_id)
                row = await account(engine, node)
                await until(lambda ended=ended: engine.pool.client(node.node_id) not in (None, ended))
            assert row.problem == "it gives no receipts"
            asked = node.stopped
            row = await account(engine, node)
            assert node.stopped is asked and row.problem  # it was not asked again, so it did not hang up
            vault.write(9, 0, b"goes on")
            await settle(engine, vault)

    run(test)


def test_entitlement_counts_what_nodes_that_credit_the_vault_offer_and_only_a_setting_enforces_it(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        home = make_home(tmp_path / "home")
        mine = home.vault.vault_id.hex()
        hive.nodes[0].credits = hive.nodes[1].credits = mine
        hive.nodes[2].credits = "0" * 32
        async with running(home, hive, vault) as engine:
            await placed(engine, vault, 1)
            await until(lambda: engine.capacity() is not None)
            free = engine.capacity()
            assert free is not None
            long = 10**15
            for node, there in ((hive.nodes[0], long), (hive.nodes[1], long // 2), (hive.nodes[2], long)):
                seen = engine.trust.row(node.node_id)
                engine.trust._rows[node.node_id] = replace(seen, online_ms=there, known_ms=long)
            worth = engine.moving.entitlement()
            assert worth == pytest.approx(1.5 * (1 << 30) / 1.5, rel=0.01)
            assert engine.capacity() == free  # shown only
            engine.home._vault = replace(home.vault, settings={**home.vault.settings, "enforce_entitlement": 1})
            engine.rules.levels = {"remote": 0, "guaranteed": 1 << 20}
            limited = engine.capacity()
            assert limited == (min(worth, free[0]), min(worth - (1 << 20), free[1])) and limited[0] < free[0]
            said = await engine.moving.accounts()
            assert said["enforced"] and said["entitlement"] == worth
            assert {r["credits"] for r in said["nodes"]} == {mine, "0" * 32, None}
            assert {r["availability"] for r in said["nodes"]} == {1.0, 0.5}

    run(test)


def test_whom_nodes_credit_is_read_little_by_little_before_it_is_asked_of_all_at_once(tmp_path: Path) -> None:
    """Also of nodes that never told their size."""
    first = filled(tmp_path / "home", 40, 20, 0)
    unseen = first.store.node_ids()[:10]
    first.store.save_seen({node_id: NodeRow(NodeState.OFFLINE, 1) for node_id in unseen})
    home = first.home
    first.close()
    home._vault = replace(home.vault, settings={**home.vault.settings, "enforce_entitlement": 1})
    engine = Engine(home, SECRETS, first.pool._dial)

    async def test() -> None:
        await engine.pool.meet_all()
        assert engine.pool.shelf.unread == 40
        assert await engine.room.count() is not None
        assert not engine.pool.shelf.unread

    try:
        run(test)
    finally:
        engine.close()


def test_receipts_of_the_fake_are_real_ones() -> None:
    """So that what is tested with them holds for those of a node, too (tests/node/test_node_receipts.py)."""

    async def test() -> None:
        hive = MemoryHive()
        receipt, _ = await MemoryClient(hive, hive.nodes[0]).get_receipt(bytes(32))
        assert receipt_format.receipt_valid(receipt) and receipt.node_id == NodeId(hive.nodes[0].node_id)

    run(test)
