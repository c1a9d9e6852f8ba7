"""The engine's disk is full at each point where it writes: every duty goes on when there is room, and nothing is lost."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from hivefs.chunkstore import pool
from hivefs.crypto import keys
from hivefs.daemon import registry_file
from hivefs.daemon.engine_core import Engine
from hivefs.errors import DiskFull
from hivefs.formats import attestation, records, revoked
from hivefs.formats import stripe as stripe_format
from hivefs.maintenance import checkpoint, codes, definitions, full_disk, garbage, leases, spares
from hivefs.maintenance.accounts import DAY_NS, SEEN_NS
from hivefs.metadata.engine_tables import DISTRUSTED
from hivefs.model.attestation import Attestation
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Level, Purpose, Share, Stripe
from hivefs.placement.health import NodeState
from hivefs.testing.bench.loop_figures import filled as bench_filled
from hivefs.testing.memory_hive import HIVE_SEED, MemoryHive, MemoryNode

from . import test_engine, test_moving, test_spares
from .book import check_book
from .full_disk_points import FullStore, all_points
from .memory_vault import MemoryVault
from .test_engine import content, drop_cache, make_home, run, running, settle, until
from .test_forgetting import Old
from .test_ledger import account, later, orphan, placed
from .test_rebalance import exactly_what_is_named, filled, nodes_of

MOVING: Final = {
    "daemon/engine_core.py:Engine._intend",
    "daemon/engine_moving.py:EngineMoving._place",
    "daemon/engine_policies.py:EnginePolicies.run",
    "maintenance/checkpoint.py:Checkpoint._forget_made",
    "maintenance/checkpoint.py:Checkpoint._once",
    "maintenance/checkpoint.py:Checkpoint._publish",
    "maintenance/checkpoint.py:Checkpoint.measure",
    "maintenance/checkpoint.py:Checkpoint.send_head",
    "maintenance/checkpoint.py:Pages.placed",
    "maintenance/evidence.py:Evidence._save",
    "maintenance/placing.py:Placing._place",
    "maintenance/placing.py:Placing.reconcile",
    "maintenance/repack.py:Repack._record",
    "maintenance/repack.py:Repack._switch",
    "metadata/engine_contents.py:Contents.index",
    "metadata/engine_nodes.py:NodeTables.save_seen",
}
ONLY_AFTER_ANOTHER: Final = {"maintenance/checkpoint.py:Checkpoint._forget_made"}
"""Of these: what is not come to unless a tree did not come to be."""

LIVING: Final = {
    "maintenance/certify.py:Certify._some",
    "maintenance/checkpoint.py:Checkpoint.spread_head",
    "maintenance/evidence.py:Evidence.weigh",
    "maintenance/garbage.py:Garbage.empty_trash",
    "maintenance/garbage.py:Garbage.reap",
    "maintenance/garbage.py:Garbage.take_released",
    "maintenance/leases.py:Leases._write",
    "maintenance/repair.py:Repair._record",
    "maintenance/repair.py:Repair.bad_share",
    "maintenance/spares.py:Spares._give_up",
    "metadata/engine_contents.py:Contents.forget_empty",
    "metadata/engine_stripes.py:StripeTables.keep_standings",
    "metadata/engine_trust.py:TrustTables.save_distrusted",
    "metadata/engine_trust.py:TrustTables.save_reputations",
}
RECOVERING: Final = {
    "metadata/engine_hydration.py:HydrationTables.hydrated",
    "metadata/engine_hydration.py:HydrationTables.load_books",
    "metadata/engine_hydration.py:HydrationTables.load_page",
}
COMING_BACK: Final = {"maintenance/spares.py:Spares._record"}
ACCOUNTS: Final = {
    "maintenance/ledger.py:Ledger._account",
    "maintenance/ledger.py:Ledger._save",
    "metadata/engine_contents.py:Contents.forget_unknown",
    "metadata/engine_contents.py:Contents.note_unknown",
    "metadata/engine_contents.py:Contents.trash_unknown",
}
ASKED: Final = {
    "daemon/engine_core.py:Engine.take_revoked",
    "daemon/engine_policies.py:EnginePolicies.set",
    "daemon/engine_roster.py:Learning._record",
    "daemon/registry_file.py:keep",
    "maintenance/codes.py:Codes._code",
    "maintenance/definitions.py:Definitions._remove",
    "maintenance/evidence.py:Evidence.answered",
    "maintenance/evidence.py:Evidence.distrust",
    "maintenance/evidence.py:Evidence.take_attestations",
    "maintenance/evidence.py:Evidence.trust",
    "maintenance/round_trips.py:RoundTrips._save",
    "maintenance/round_trips.py:RoundTrips.move",
}
REBALANCING: Final = {"maintenance/rebalance.py:Rebalance._record"}
FORGETTING: Final = {
    "metadata/engine_forgotten.py:ForgottenTables.forget_node",
    "metadata/engine_forgotten.py:ForgottenTables.forget_notes",
}

TWICE: Final = 2


def test_every_point_where_the_engine_writes_is_found_full_by_a_test_here() -> None:
    groups = (MOVING, LIVING, RECOVERING, COMING_BACK, ACCOUNTS, ASKED, REBALANCING, FORGETTING)
    assert set.union(*groups) == all_points()
    assert sum(map(len, groups)) == len(all_points())


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "FIRST", 0.05)
    monkeypatch.setattr(full_disk, "LONGEST", 0.1)
    monkeypatch.setattr(garbage, "EVERY", 0.05)


def full_twice(monkeypatch: pytest.MonkeyPatch, own: bool | Collection[str] = False) -> FullStore:
    """At each point the disk is full for the first two times."""
    store = FullStore(lambda point: store.failed[point] < TWICE, own)
    store.install(monkeypatch)
    return store


def missed(store: FullStore, points: set[str]) -> set[str]:
    """Of these points those that were not found full, or not written to in the end."""
    return {point for point in points if store.failed[point] < TWICE or not store.written[point]}


async def insist(store: FullStore, call: Callable[..., Any], *given: Any) -> Any:
    """Again and again while the disk is full, as a person does."""
    for _ in range(100):
        try:
            result = call(*given)
            return await result if inspect.isawaitable(result) else result
        except DiskFull:
            await trio.sleep(0)
    raise AssertionError("the disk stays full")


def test_placing_publishing_and_moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = full_twice(monkeypatch)
    test_moving.test_what_another_text_or_a_move_of_files_calls_for_happens_at_once(tmp_path, monkeypatch)
    assert not missed(store, MOVING)


@pytest.mark.slow
@pytest.mark.parametrize("point", sorted(MOVING - ONLY_AFTER_ANOTHER))
def test_everything_is_full_from_this_point_on_for_a_second(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STAT_EVERY", 0.2)  # what a node told is asked for again with the next of these
    until_s: list[float] = []

    def is_full(now: str) -> bool:
        if now == point and not until_s:
            until_s.append(trio.current_time() + 1)
        return bool(until_s) and trio.current_time() < until_s[0]

    store = FullStore(is_full)
    store.install(monkeypatch)
    test_moving.test_what_another_text_or_a_move_of_files_calls_for_happens_at_once(tmp_path, monkeypatch)
    assert store.failed[point] and store.written[point]


@pytest.mark.slow
def test_repairing_certifying_trusting_and_deleting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.2)
    monkeypatch.setattr(spares, "EVERY", 0.1)
    monkeypatch.setattr(leases, "EVERY", 0.2)
    store = full_twice(monkeypatch)

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            engine.moving.repack.young_ns = 0
            plain = {ino: os.urandom(60_000) for ino in range(6)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
                await settle(engine, vault)
            await damaged(engine, hive, vault, plain)
            await gone_and_back(engine, hive, monkeypatch)
            await given_up(engine, vault, plain)
            await few_have_the_head(store, engine)
            await without_certificates(engine)
            await out_of_trust(engine, hive.nodes[3])
            with trio.move_on_after(60):
                while missed(store, LIVING):
                    engine.evidence.again()
                    await trio.sleep(0.1)
            assert missed(store, LIVING) == set()
            await settle(engine, vault)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            await until(lambda: not engine.disk.waiting and not engine.disk.waiting_for)
            drop_cache(engine)
            for ino, data in plain.items():
                assert await content(engine, vault, ino, 0) == data
            check_book(engine.store)

    run(test)


async def damaged(engine: Engine, hive: MemoryHive, vault: MemoryVault, plain: dict[int, bytes]) -> None:
    """A read meets a damaged share, and is answered."""
    place, stripe = await engine.locate(vault.map[(3, 0)].chunk_id)
    share = stripe.shares[place.index]
    assert share.node is not None
    hive.by_id(share.node).rotten.add(share.share_id)

    def made_again() -> bool:
        """Elsewhere, or, when the damaged copy was deleted before repair could write down where, at the same node."""
        holder = _holder(engine, stripe.stripe_id, place.index)
        return holder is not None and share.share_id not in hive.by_id(NodeId(holder)).rotten

    with trio.fail_after(90):
        while not made_again():
            drop_cache(engine)
            assert await content(engine, vault, 3, 0) == plain[3]
            await trio.sleep(0.1)
    assert engine.pool.members[share.node].problems
    hive.by_id(share.node).rotten.clear()


def _holder(engine: Engine, stripe_id: Any, index: int) -> bytes | None:
    stripe = engine.store.stripe(stripe_id)
    return None if stripe is None else stripe.shares[index].node


async def gone_and_back(engine: Engine, hive: MemoryHive, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node is given up and comes back; its old copies go at once here."""
    victim = max(hive.nodes, key=lambda node: len(node.shares))
    victim.stop()
    await until(lambda: engine.pool.members[victim.node_id].row.state == NodeState.GONE)
    await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
    assert engine.store.count("spare")
    monkeypatch.setattr(spares, "KEEP_S", -1)
    victim.start()
    await until(lambda: not engine.store.count("spare"))


async def given_up(engine: Engine, vault: MemoryVault, plain: dict[int, bytes]) -> None:
    """Files are deleted, and a stripe is there in which nothing lives, as after a recovery."""
    for ino in (0, 1):
        vault.delete(ino, 0)
        del plain[ino]
    await settle(engine, vault)
    shares = tuple(Share(ShareId(os.urandom(32)), bytes(32), None) for _ in range(6))
    empty = Stripe(StripeId(bytes(16)), Purpose.DATA, 4, 4096, shares)
    with engine.store.writing():
        engine.store.save_stripe(empty)
    engine.moving.repack.poke()
    await until(lambda: engine.store.stripe(empty.stripe_id) is None)


async def few_have_the_head(store: FullStore, engine: Engine) -> None:
    """Nodes that have no head get it."""
    while missed(store, {"maintenance/checkpoint.py:Checkpoint.spread_head"}):
        holders = engine.store.info("head_holders")
        with engine.store.writing():
            engine.store.save_info("head_holders", holders[:1])
        engine.checkpoint.poke()
        await until(lambda: len(engine.store.info("head_holders")) > 2)


async def without_certificates(engine: Engine) -> None:
    """Stripes that have none get theirs, as after an update."""
    found = [s for s in engine.store.stripes() if s.purpose == Purpose.DATA]
    with engine.store.writing():
        for stripe in found:
            bare = replace(stripe, policy_hash=bytes(32), shares=tuple(replace(s, standing=b"") for s in stripe.shares))
            engine.store._save_tree(records.stripe_key(stripe.stripe_id), stripe_format.to_bytes(bare))
        for key in engine.store.keys("tree", records.standing_key(b"")):
            engine.store._save_tree(key, None)
    for stripe in found:
        engine.repair.add(stripe.stripe_id)
    certified = engine.store.certified
    await until(lambda: all(certified(engine.store.stripe(s.stripe_id)) for s in found))  # type: ignore[arg-type]


async def out_of_trust(engine: Engine, node: MemoryNode) -> None:
    """A node gives wrong answers until nobody believes it."""

    async def fail() -> None:
        while not engine.trust.suspended(node.node_id):
            engine.trust.failed(node.node_id)
            await trio.sleep(0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
    await until(lambda: node.node_id in (engine.store.info(DISTRUSTED) or []))


def test_recovering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = full_twice(monkeypatch, RECOVERING)

    async def patiently(self: Engine, chunk_id: Any, locate: Any = Engine.locate) -> Any:
        return await insist(store, locate, self, chunk_id)

    monkeypatch.setattr(Engine, "locate", patiently)
    test_engine.test_recovery_reads_the_tree_as_needed_and_repair_waits_for_it(tmp_path)
    assert not missed(store, RECOVERING)


@pytest.mark.slow
def test_old_copies_that_are_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = full_twice(monkeypatch)
    test_spares.test_an_old_copy_is_taken_back_instead_of_being_made_again(tmp_path, monkeypatch)
    assert not missed(store, COMING_BACK)


def test_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            await placed(engine, vault, 1)
            store = full_twice(monkeypatch, own=True)
            node = hive.nodes[0]
            share_id, other = orphan(node), orphan(node, text=b"another")
            await accounted(store, engine, node)
            assert engine.moving.contents.unknown(node.node_id).keys() == {share_id, other}
            del node.shares[other]
            await accounted(store, engine, node)
            assert engine.moving.contents.unknown(node.node_id).keys() == {share_id}
            later(engine, node, SEEN_NS + DAY_NS)
            await accounted(store, engine, node)
            await until(lambda: share_id not in node.shares)
            assert (await accounted(store, engine, node)).balanced
            assert not missed(store, ACCOUNTS)
            check_book(engine.store)

    run(test)


async def accounted(store: FullStore, engine: Engine, node: MemoryNode) -> Any:
    while True:
        row = await insist(store, account, engine, node)
        if "is full" not in row.problem:
            return row


def test_rebalancing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        hive, vault = nodes_of(), MemoryVault()
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            plain = await filled(engine, hive, vault)
            store = full_twice(monkeypatch, own=True)
            assert await insist(store, engine.moving.rebalance.round)
            assert not missed(store, REBALANCING)
            await settle(engine, vault)
            vault.write(1000, 0, b"one more head")
            await settle(engine, vault)
            await until(lambda: not list(engine.store.moved_copies()))
            await exactly_what_is_named(engine, hive)
            drop_cache(engine)
            for ino in (0, 9, 31):
                assert await content(engine, vault, ino, 0) == plain[ino]

    run(test)


def test_forgetting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bench_filled(tmp_path / "home", 40, 20, 0)

    async def bounded() -> None:
        store = full_twice(monkeypatch, own=True)
        await insist(store, old.forgetting().once)
        assert not missed(store, FORGETTING)

    try:
        old = Old(engine)
        trio.run(bounded)
        assert not old.named() and old.told == [old.node_id]
        assert engine.store.was_forgotten(old.node_id) is not None
    finally:
        monkeypatch.undo()
        engine.close()


NOTARY: Final = bytes([77]) * 32


def test_what_a_person_asks_for_is_refused_and_changes_nothing_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(definitions, "KEEP_S", 0.0)
    key = keys.public_key(NOTARY)

    async def test() -> None:
        hive = MemoryHive()
        node = hive.nodes[0]
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: len(engine.pool.online()) == 8)
            await engine.hydration.done.wait()
            await until(lambda: len(engine.news._told) == 8)  # all have told what they know: no more is heard by the way
            store = full_twice(monkeypatch, own=True)
            vouched = attestation.sign_attestation(NOTARY, Attestation(b"", node.node_id, (("country", "DE"),), 0, 0))
            listed = revoked.revocations_to_bytes(revoked.sign_revocations(HIVE_SEED, 5, 1, (), ()))
            new = MemoryNode(99, "DE", "operator-99")
            hive.nodes.append(new)

            def known() -> list[Any]:
                evidence, trips = engine.evidence, engine.round_trips
                return [evidence.trusted, trips.place_text, trips._refuted, engine.revoked, engine.store.policy_text()]

            refuted = {(node.node_id, "DE"): [1, 2.0, [bytes(32)]]}
            asked: list[tuple[Callable[..., Any], Any]] = [
                (lambda _: engine.evidence.trust(key, "the notary"), None),
                (engine.evidence.take_attestations, [vouched]),
                (engine.evidence.distrust, key),
                (lambda way: engine.evidence.answered(node.node_id, way, False), "/ip4/192.0.2.7/tcp/4001"),
                (engine.round_trips._save, refuted),
                (engine.take_revoked, listed),
                (lambda facts: registry_file.keep(engine.store, facts), None),
                (engine.rules.set, '[policy.some]\ncode = "auto"\n[paths]\n"/Some" = "some"\n'),
                (lambda entries: engine.hear(entries), [new.entry()]),
            ]
            for call, given in asked:
                before = known()
                with pytest.raises(DiskFull):
                    result = call(given)
                    await result if inspect.isawaitable(result) else result
                assert known() == before
                assert new.node_id not in engine.pool.members
                await insist(store, call, given)
            assert engine.revoked is not None and engine.revoked.sequence == 5
            await until(lambda: engine.pool.client(new.node_id) is not None)
            await until(lambda: not isinstance(_resolved(engine), Exception))
            with pytest.raises(DiskFull):
                engine.round_trips.move("52.5,13.4")
            assert not engine.round_trips.place_text and engine.round_trips._refuted == refuted
            await insist(store, engine.round_trips.move, "52.5,13.4")
            assert engine.round_trips.place_text == "52.5,13.4"
            await insist(store, engine.rules.set, "")
            while missed(store, {"maintenance/definitions.py:Definitions._remove"}):
                await insist(store, engine.definitions.once)
            assert not missed(store, ASKED)

    run(test)


def _resolved(engine: Engine) -> Any:
    try:
        return engine.policies.named("some")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not resolved yet
        return error


def test_reads_go_on_and_conversations_last_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "STAT_EVERY", 0.5)  # who could not be heard is asked again then

    async def test() -> None:
        hive, vault = MemoryHive(), MemoryVault()
        async with running(make_home(tmp_path / "home", gone_after=1), hive, vault) as engine:
            plain = {ino: os.urandom(30_000) for ino in range(5)}
            for ino, data in plain.items():
                vault.write(ino, 0, data)
            await settle(engine, vault)
            room: list[bool] = []
            FullStore(lambda point: not room, own=True).install(monkeypatch)
            gone, comes = hive.nodes[1], hive.nodes[2]
            gone.stop()
            comes.stop()
            await until(lambda: len(engine.pool.online()) == 6)
            comes.start()
            hive.nodes.append(MemoryNode(98, "FR", "operator-98"))  # news for those who greet
            await until(lambda: len(engine.pool.online()) == 7)
            vault.write(77, 0, b"waits")
            for ino, data in plain.items():
                drop_cache(engine)
                assert await content(engine, vault, ino, 0) == data
            await until(lambda: engine.pool.members[gone.node_id].row.state == NodeState.GONE)
            await trio.sleep(0.5)
            assert len(engine.pool.online()) == 7
            assert "is full" in engine.status()["disk"]["waiting_for"]
            engine.placing.poke()
            await until(lambda: "is full" in engine.placing.progress.waiting_for)
            room.append(True)
            await settle(engine, vault)
            await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
            await until(lambda: not engine.status()["disk"]["waiting_for"])
            row = engine.store.node_row(gone.node_id)
            assert row is not None and row.state == NodeState.GONE
            await until(lambda: len(engine.pool.members) == 9, 40)
            assert await content(engine, vault, 77, 0) == b"waits"
            check_book(engine.store)

    run(test)
