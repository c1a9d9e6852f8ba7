"""Duties that look through the whole book let others of the loop have their turn, however fast or slow the machine is: what
is counted is how many stripes are decoded, or nodes looked at, between two turns of somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from hivefs.daemon.engine_core import Engine
from hivefs.formats import stripe as stripe_format
from hivefs.maintenance import certify, turns
from hivefs.maintenance.certify import Certify
from hivefs.maintenance.ledger import Ledger
from hivefs.maintenance.turns import Turns
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, StripeId
from hivefs.placement import effort, selector
from hivefs.placement.explain import LONG
from hivefs.testing.bench.loop_figures import duties, filled

FILES, STRIPES, NODES = 900, 300, 40


@pytest.fixture(name="engine")
def _engine(tmp_path: Path) -> Iterator[Engine]:
    engine = filled(tmp_path / "home", NODES, STRIPES, FILES)
    yield engine
    engine.close()


def looks(engine: Engine) -> Iterator[tuple[str, Any]]:
    """All that look through stripes in the engine's loop."""
    return ((name, work) for name, work in duties(engine) if name not in ("infeasible", *ASKED))


ASKED = ("check", "explain", "simulate")
"""What a user asks: a process of its own looks (tests/engine/test_looker.py)."""


class Passes(trio.abc.Instrument):
    """Counts what is done in each pass of the loop: between two of them all others that are ready had their turn. (Between
    two turns of a task of its own would be one pass or two, since trio takes those that are ready in any order.)
    """

    def __init__(self) -> None:
        self._counted = self.most = self.total = 0

    def one(self) -> None:
        self._counted += 1

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.most, self.total, self._counted = max(self.most, self._counted), self.total + self._counted, 0


def most_between_turns(work: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The most stripes that are decoded in one pass of the loop, and how many are in all."""
    passes = Passes()
    decode = stripe_format.from_bytes

    def decoded(data: bytes) -> Any:
        passes.one()
        return decode(data)

    async def go() -> None:
        await work()
        await trio.lowlevel.checkpoint()

    with monkeypatch.context() as patched:
        patched.setattr(stripe_format, "from_bytes", decoded)
        trio.run(go, instruments=[passes])
    return passes.most, passes.total


def test_no_duty_looks_at_many_stripes_in_one_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_S", inf)  # as if the machine were so fast that a slice never lasted too long
    for name, work in looks(engine):
        most, total = most_between_turns(work, monkeypatch)
        assert total >= STRIPES, name
        # Certificates are made beside the scan, so there are two looks.
        assert most <= (2 if name == "certify" else 1) * turns.MOST + 1, name


def test_on_a_slow_machine_each_stripe_is_a_turn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_S", 0.0)
    for name, work in looks(engine):
        most, _ = most_between_turns(work, monkeypatch)
        assert most <= 3, name  # a move looks at its stripe so often when nothing of it has to wait


def test_turns_go_by_time_and_by_number() -> None:
    async def go() -> tuple[int, int]:
        fast, slow = Turns(), Turns()
        for _ in range(10 * turns.MOST):
            await fast.item()
        mock = trio.lowlevel.current_clock()
        assert isinstance(mock, trio.testing.MockClock)
        for _ in range(10):
            mock.jump(turns.SLICE_S)
            await slow.item()
        return fast.given, slow.given

    assert trio.run(go, clock=trio.testing.MockClock()) == (10, 10)


def test_when_others_use_their_turn_the_look_waits() -> None:
    async def go() -> float:
        mock = trio.lowlevel.current_clock()
        assert isinstance(mock, trio.testing.MockClock)

        async def busy() -> None:
            while True:
                mock.jump(2 * turns.BUSY_S)  # its own work takes so long
                await trio.sleep(0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            look, begun = Turns(), trio.current_time()
            for _ in range(20):
                await look.over()
            nursery.cancel_scope.cancel()
        return (trio.current_time() - begun) / 20

    assert trio.run(go, clock=trio.testing.MockClock()) >= turns.WAIT_S


def test_certificates_are_recorded_many_at_a_time(engine: Engine) -> None:
    waiting = engine.repair.unproved

    async def go() -> None:
        for stripe in engine.store.stripes():
            waiting.note(stripe.stripe_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting.run)
            while waiting.queue:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(go)
    assert all(engine.store.certified(stripe) for stripe in engine.store.stripes())
    assert waiting.transactions == -(-STRIPES // certify.BATCH)


def test_a_scan_has_all_proved_once(engine: Engine) -> None:
    assert not any(engine.store.certified(stripe) for stripe in engine.store.stripes())
    scan = dict(duties(engine))["certify"]
    trio.run(scan)
    made = {stripe.stripe_id: stripe for stripe in engine.store.stripes()}
    assert all(map(engine.store.certified, made.values()))
    trio.run(scan)
    assert {stripe.stripe_id: stripe for stripe in engine.store.stripes()} == made  # nothing is proved again


def test_a_stripe_that_changes_before_its_certificate_is_recorded_keeps_the_change(engine: Engine) -> None:
    store = engine.store
    one = next(store.stripes())
    certificate = store.certificate(one.stripe_id)
    assert certificate is not None
    lost = replace(one, shares=(replace(one.shares[0], node=None), *one.shares[1:]))
    with store.writing():
        store.save_stripe(lost)
        assert store.certify([certificate]) == [one.stripe_id]
    assert store.stripe(one.stripe_id) == lost and store.certificate(one.stripe_id) is None


def test_a_certificate_made_ahead_is_the_one_that_recording_makes(engine: Engine) -> None:
    store = engine.store
    store.clock = lambda: 7
    first, second = list(store.stripes())[:2]
    certificate = store.certificate(first.stripe_id)
    assert certificate is not None
    with store.writing():
        assert store.certify([certificate]) == []
        same = replace(
            second, shares=tuple(replace(s, node=f.node) for s, f in zip(second.shares, first.shares, strict=True))
        )
        store.save_stripe(same)
    by_certify, by_saving = store.stripe(first.stripe_id), store.stripe(second.stripe_id)
    assert by_certify is not None and by_saving is not None
    assert [s.standing for s in by_certify.shares] == [s.standing for s in by_saving.shares]
    assert by_certify.policy_hash == by_saving.policy_hash and by_certify.placed_ns == by_saving.placed_ns == 7
    assert store.certified(by_certify) and store.has_entry("changed", b"s" + first.stripe_id)


def test_who_notes_very_many_waits_for_room(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certify, "MOST_WAITING", 10)
    seen: list[int] = []

    class Watched(Certify):
        def note(self, stripe_id: StripeId) -> None:
            super().note(stripe_id)
            seen.append(self.queue)

    engine.repair.unproved = Watched(engine.store)
    trio.run(dict(duties(engine))["certify"])
    assert max(seen) <= 10 and all(engine.store.certified(stripe) for stripe in engine.store.stripes())


def test_the_ledger_is_summed_up_and_told_node_by_node(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SLICE_S", 0.0)
    passes, row = Passes(), Ledger.row

    def counted(self: Ledger, node_id: NodeId) -> Any:
        passes.one()
        return row(self, node_id)

    monkeypatch.setattr(Ledger, "row", counted)

    async def go() -> None:
        sums = await engine.moving.accounts(nodes=False)
        assert sums["nodes"] is None
        whole = await engine.moving.accounts()
        assert {**whole, "nodes": None} == sums and len(whole["nodes"]) == NODES
        told, after = list[dict[str, Any]](), None
        while more := await engine.moving.accounts_of(after, 7):
            assert len(more) <= 7
            told += more
            after = NodeId(bytes.fromhex(more[-1]["id"]))
        assert told == sorted(whole["nodes"], key=lambda node: node["id"])
        await trio.lowlevel.checkpoint()

    trio.run(go, instruments=[passes])
    assert passes.total >= 3 * NODES and passes.most <= 4


def test_what_is_seen_of_a_node_is_what_is_written(engine: Engine) -> None:
    store: EngineStore = engine.store
    node_id = store.node_ids()[0]
    before, row = store.node_view(node_id), store.node_row(node_id)
    assert before is not None and row is not None
    other = replace(row, state=type(row.state).GONE)
    with pytest.raises(ZeroDivisionError), store.writing():
        store.save_node_row(node_id, other)
        now = store.node_view(node_id)
        assert now is not None and now.state == other.state
        raise ZeroDivisionError
    assert store.node_view(node_id) == before  # the transaction was undone
    store.save_seen({node_id: other})
    after = store.node_view(node_id)
    assert after is not None and after.state == other.state and after.trusted
    store.save_distrusted([node_id])
    after = store.node_view(node_id)
    assert after is not None and not after.trusted


def test_a_policy_that_no_nodes_can_keep_is_found_out_elsewhere(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[int | None] = []

    def explain(*given: Any) -> Any:
        explained.append(effort._left.get())
        effort.spend(LONG)
        raise AssertionError("explained in the engine's loop")

    monkeypatch.setattr(selector, "explain", explain)  # of this process: the child has its own
    trio.run(dict(duties(engine))["infeasible"])
    assert engine.thinker.sent == 3
    assert None not in explained
