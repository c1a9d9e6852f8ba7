"""Nodes that were given up long ago and hold nothing are forgotten, and one that returns after that is a new node."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from hivefs.chunkstore.dialling import Slot
from hivefs.daemon.engine_core import Engine
from hivefs.errors import DiskFull
from hivefs.formats import records
from hivefs.maintenance.forgetting import FORGET_S, Forgetting, is_old_news
from hivefs.maintenance.turns import Turns
from hivefs.metadata import engine_forgotten
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.attestation import TrustedKey
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import Revocations
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.reputation import Reputation
from hivefs.testing.bench.loop_figures import filled
from hivefs.testing.sim.nodes import SimNode

NOW = 2_000_000_000 * 10**9
LONG = (FORGET_S + 86_400) * 10**9
ALL = ("tree", "nodes", "known", "reputation", "trash", "spare", "copies", "unknown", "info", "bynode", "doomed")


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> Iterator[Engine]:
    """A new node, beside those of the stripes; it was given up long ago, and there are notes of all kinds about it."""
    engine = filled(tmp_path / "home", 40, 20, 0)
    yield engine
    engine.close()


class Old:
    def __init__(self, engine: Engine, notes: int = 3) -> None:
        self.node = SimNode(1000, "DE", "operator", "DE", 1 << 40, 0.0)
        self.node_id = self.node.node_id
        self.store: EngineStore = engine.store
        dice = random.Random(77)
        with self.store.writing():
            self.store.save_node(self.node.entry(), NOW)
            self.store.save_node_row(self.node_id, NodeRow(NodeState.GONE, NOW - LONG, 1, 2))
            self.store.save_info("renewed-" + self.node_id.hex(), 7)
            engine.evidence.weigh([self.node_id])
            for number in range(notes):
                self.store.trash_share(self.node_id, ShareId(dice.randbytes(32)))
                self.store.spare_share(self.node_id, ShareId(dice.randbytes(32)), StripeId(bytes(16)), number % 256, 1)
                self.store.put("unknown", self.node_id + dice.randbytes(32), bytes(8))
        self.store.save_reputations({self.node_id: Reputation(1, 1)})
        engine.pool.refresh([self.node_id])
        self.engine = engine
        self.told: list[NodeId] = []

    def named(self) -> list[tuple[str, bytes]]:
        """Keys of all tables that name the node."""
        name = self.node_id.hex().encode()
        return [(table, key) for table in ALL for key in self.store.keys(table) if self.node_id in key or name in key]

    def forgetting(self, now: int = NOW) -> Forgetting:
        def told(node_id: NodeId) -> None:
            self.told.append(node_id)
            self.engine._forgot(node_id)

        return Forgetting(self.store, lambda: self.engine.pool.by_state[NodeState.GONE], told, lambda: now)


def test_nothing_is_left_of_it(engine: Engine) -> None:
    old = Old(engine, notes=600)
    assert {table for table, _ in old.named()} >= {"tree", "nodes", "known", "reputation", "trash", "spare", "info"}
    others = engine.store.node_ids()
    trio.run(old.forgetting().once)
    assert old.named() == [] and old.told == [old.node_id]
    assert old.node_id not in engine.pool.members and old.node_id not in engine.trust.rows
    assert old.node_id not in {c.node_id for c in trio.run(_candidates, engine)}
    assert set(engine.store.node_ids()) == set(others) - {old.node_id}
    assert engine.store.has_entry("changed", records.node_key(old.node_id)), "the next checkpoint is without it"
    sequence = old.node.entry().address.sequence
    assert engine.store.was_forgotten(old.node_id) == (sequence, NOW // 10**9)


async def _candidates(engine: Engine) -> Any:
    await trio.lowlevel.checkpoint()
    return list(engine.pool.candidates(engine.policy))


@pytest.mark.parametrize("why", ["young", "offline", "holds", "doomed", "undated", "clock"])
def test_what_is_needed_or_may_come_back_stays(engine: Engine, why: str) -> None:
    old = Old(engine)
    before = old.named()
    stripe = next(engine.store.stripes())
    with engine.store.writing():
        match why:
            case "young":
                engine.store.save_node_row(old.node_id, NodeRow(NodeState.GONE, NOW - LONG + 2 * 86_400 * 10**9, 1, 2))
            case "offline":
                engine.store.save_node_row(old.node_id, NodeRow(NodeState.OFFLINE, NOW - LONG, 1, 2))
            case "undated":  # given up while the clock was not known to be right
                engine.store.save_node_row(old.node_id, NodeRow(NodeState.GONE, 0, 1, 2))
            case "holds":
                shares = (replace(stripe.shares[0], node=old.node_id), *stripe.shares[1:])
                engine.store.save_stripe(replace(stripe, shares=shares))
            case "doomed":
                engine.store.doom_share(stripe.stripe_id, old.node_id, stripe.shares[0].share_id)
    forgetting = old.forgetting()
    forgetting._right = lambda: why != "clock"  # most nodes say another time
    trio.run(forgetting.once)
    assert not old.told and set(before) <= set(old.named())


@pytest.mark.parametrize("written", [True, False])
def test_one_that_comes_back_meanwhile_keeps_what_is_noted_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """It gets a share, and should we die now, only the note of that would have it deleted. Whether the disk takes what was
    seen of the node, or is full.
    """
    monkeypatch.setattr(engine_forgotten, "STEP", 2)
    old, share_id = Old(engine), ShareId(bytes([7]) * 32)
    forget_notes = engine.store.forget_notes

    def comes_back(node_id: NodeId) -> bool:
        more = forget_notes(node_id)
        if engine.pool.members[node_id].row.state == NodeState.GONE:
            with monkeypatch.context() as full:
                if not written:
                    full.setattr(engine.store, "save_seen", refused)
                engine.pool._set(engine.pool.members[node_id], NodeState.ONLINE)
            engine._intend([(node_id, share_id)])
        return more

    def refused(rows: Any) -> None:
        raise DiskFull(path=engine.store.path, free=0)

    monkeypatch.setattr(engine.store, "forget_notes", comes_back)
    trio.run(old.forgetting().once)
    assert not old.told and engine.store.has_trash(old.node_id, share_id) and old.node_id in engine.pool.members


class Talks:
    """A conversation whose first answer comes in the very step in which the node is forgotten."""

    relayed = False

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: Any) -> None:
        pass

    async def stat(self) -> Any:
        self._then()
        return SimpleNamespace(free_bytes=1, capacity=2, dropped=0)

    async def wait_closed(self) -> None:
        await trio.sleep(0)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(node_membership=SimpleNamespace(subject=b"", invitation=None))


def test_an_answer_of_one_that_is_forgotten_is_not_heard(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Old(engine)

    async def go() -> None:
        def forgotten() -> None:
            engine.store.forget_node(old.node_id, NOW)
            engine._forgot(old.node_id)

        monkeypatch.setattr(engine.pool, "_dial", lambda entry: Talks(forgotten))
        monkeypatch.setattr(engine.pool, "revoked", lambda subject, invitation: False)
        member = engine.pool.members[old.node_id]
        await engine.pool._talk(old.node_id, member.turn, Slot(trio.Semaphore(1)))

    trio.run(go)
    assert engine.store.node_row(old.node_id) is None and old.node_id not in engine.trust.rows
    assert not any(old.node_id in there for there in engine.pool.by_state.values())


def test_status_goes_on_while_nodes_are_forgotten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn between two nodes."""
    first, second, *_ = engine.pool.members

    async def forget_one(self: Turns) -> None:
        if second in engine.pool.members:
            engine.store.forget_node(second, NOW)
            engine._forgot(second)

    monkeypatch.setattr(Turns, "item", forget_one)
    told = trio.run(engine.told)["nodes"]
    assert told[0]["id"] == first.hex() and len(told) == len(engine.pool.members) == 39


class Killed(BaseException):
    pass


def test_a_crash_after_any_transaction_is_gone_on_from(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends after the n-th transaction; the next one forgets the rest, and nothing is half forgotten."""
    monkeypatch.setattr(engine_forgotten, "STEP", 2)
    real = engine.store.writing
    crashes = 0
    old = Old(engine, notes=2)
    while old.node_id in engine.store.node_ids():
        left = [1 + crashes % 2]  # the first transaction finds nothing when all notes are gone

        class Dies:
            def __init__(self, left: list[int] = left) -> None:
                self._left = left
                self._real = real()

            def __enter__(self) -> Any:
                return self._real.__enter__()

            def __exit__(self, *error: Any) -> Any:
                done = self._real.__exit__(*error)
                self._left[0] -= 1
                if not self._left[0]:
                    raise Killed
                return done

        monkeypatch.setattr(engine.store, "writing", Dies)
        with pytest.raises(Killed):
            trio.run(old.forgetting().once)
        monkeypatch.setattr(engine.store, "writing", real)
        crashes += 1
        assert crashes < 50
        known = old.node_id in engine.store.node_ids()
        assert known == (engine.store.node_row(old.node_id) is not None)
        assert known == (engine.store.was_forgotten(old.node_id) is None)
    assert crashes > 3 and old.named() == []


def test_what_rosters_still_say_of_it_is_no_news_but_its_return_is(engine: Engine) -> None:
    old = Old(engine)
    entry = old.node.entry()
    trio.run(old.forgetting().once)
    told = engine.store.was_forgotten(old.node_id)
    assert told is not None and is_old_news(entry, told, NOW)
    assert is_old_news(entry, told, NOW + (FORGET_S - 10) * 10**9) and not is_old_news(entry, told, NOW + LONG)
    newer = replace(entry, address=replace(entry.address, sequence=entry.address.sequence + 1))
    assert not is_old_news(newer, told, NOW) and not is_old_news(entry, None, NOW)
    with engine.store.writing():
        assert engine.store.save_node(newer, NOW)
        engine.store.save_node_row(old.node_id, NodeRow(NodeState.OFFLINE, NOW))
    engine.pool.refresh([old.node_id])
    assert engine.store.was_forgotten(old.node_id) is None
    member = engine.pool.members[old.node_id]
    assert member.row.state == NodeState.OFFLINE and engine.trust.row(old.node_id).audits == 0


def test_learning_does_not_take_it_from_a_roster_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from hivefs.daemon import engine_roster

    old = Old(engine)
    trio.run(old.forgetting().once)
    monkeypatch.setattr(engine_roster.time, "time_ns", lambda: NOW)
    assert not engine.learning._is_news(old.node.entry())
    assert engine.learn([old.node.entry()]) == 0 and old.node_id not in engine.pool.members


def test_a_revoked_node_is_refused_after_it_was_forgotten(engine: Engine) -> None:
    old = Old(engine)
    trio.run(old.forgetting().once)
    newer = replace(old.node.entry(), address=replace(old.node.entry().address, sequence=NOW // 10**9))
    assert not engine.covers(newer.membership) and engine.learning._is_news(newer)
    engine.revoked = Revocations(bytes(32), 1, NOW, (bytes(old.node_id),))
    assert not engine.learning._is_news(newer) and engine.learn([newer]) == 0


def test_what_the_user_trusts_stays(engine: Engine) -> None:
    old = Old(engine)
    with engine.store.writing():
        engine.store.save_trusted(TrustedKey(bytes(32), "the notary", 1))
    trio.run(old.forgetting().once)
    assert [made.name for made in engine.store.trusted_keys()] == ["the notary"]


def test_a_node_signs_its_addresses_anew_before_it_is_forgotten() -> None:
    from hivefs.crypto.keys import public_key
    from hivefs.formats.member import entry_to_bytes
    from hivefs.node.running import RESIGN_S, own_entry

    seed = bytes(range(32))
    node_id = NodeId(public_key(seed))
    kept: dict[NodeId, bytes] = {}
    node = SimNode(3, "DE", "operator", "DE", 1 << 40, 0.0)
    config = cast(
        "Any", type("Config", (), {"membership": node.entry().membership, "leaving_ns": 0, "credits": "", "relays": ()})
    )
    index = cast("Any", type("Index", (), {"entry": lambda self, node_id: kept.get(node_id)})())
    first = own_entry(index, config, seed, node_id, ("/ip4/127.0.0.1/tcp/1",), NOW)
    kept[node_id] = entry_to_bytes(first)
    again = own_entry(index, config, seed, node_id, ("/ip4/127.0.0.1/tcp/1",), NOW + 86_400 * 10**9)
    assert again.address == first.address
    assert 2 * RESIGN_S <= FORGET_S
    later = own_entry(index, config, seed, node_id, ("/ip4/127.0.0.1/tcp/1",), NOW + (RESIGN_S + 1) * 10**9)
    assert later.address.sequence > first.address.sequence and later.address.addresses == first.address.addresses
