"""The queue of repair, without a hive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.errors import TooFewNodes
from hivefs.maintenance.repair import HOPELESS_LOOKS, RETRY, WORKERS, Repair
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Level, Purpose, Share, Stripe
from hivefs.placement.health import NodeState, NodeView
from hivefs.placement.health import State as StripeState


def test_a_stripe_that_became_more_urgent_is_not_repaired_twice_at_once() -> None:
    """It is in the queue once for each urgency; the later entry comes to its turn while it is being repaired."""
    nodes = [NodeId(bytes([n]) * 32) for n in range(5)]
    shares = tuple(Share(ShareId(n), bytes(32), n) for n in nodes)
    stripe = Stripe(StripeId(bytes(16)), Purpose.DATA, 1, 4096, shares)
    there = dict.fromkeys(nodes, NodeView(NodeState.ONLINE, ()))
    health = SimpleNamespace(
        verdict=SimpleNamespace(holds=True), state=StripeState.DEGRADED, level=Level.REMOTE, waits=False
    )
    state = SimpleNamespace(stripe=lambda stripe_id: stripe, health=lambda stripe: health)
    begun: list[StripeId] = []

    async def test() -> None:
        nothing = cast(Any, None)
        repair = Repair(cast(Any, state), nothing, nothing, there.get, nothing)

        async def slow(stripe_id: StripeId) -> bool:
            begun.append(stripe_id)
            await trio.sleep(1)
            return True

        repair.repair = slow  # type: ignore[method-assign]
        for node in nodes[:2]:
            del there[node]
            repair.add(stripe.stripe_id)
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(repair._work)
            await trio.sleep(5)
            assert len(begun) == 1 and not repair.busy
            repair.add(stripe.stripe_id)
            await trio.sleep(5)
            assert len(begun) == 2, "once it is done it may come again"
            nursery.cancel_scope.cancel()

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_is_looked_at_again_waits_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks in the middle of a look hears of all of them, and why they wait. (They were in no list then.)"""
    nodes = [NodeId(bytes([n]) * 32) for n in range(5)]
    shares = tuple(Share(ShareId(n), bytes(32), n) for n in nodes)
    ids = [StripeId(bytes([n]) * 16) for n in range(6)]
    stripes = {stripe_id: Stripe(stripe_id, Purpose.DATA, 1, 4096, shares) for stripe_id in ids}
    there = {node: NodeView(NodeState.ONLINE, ()) for node in nodes[1:]}
    health = SimpleNamespace(
        verdict=SimpleNamespace(holds=True), state=StripeState.DEGRADED, level=Level.REMOTE, waits=False
    )
    state = SimpleNamespace(stripe=stripes.get, health=lambda stripe: health)
    seen: list[tuple[int, int, str]] = []

    async def test() -> None:
        nothing = cast(Any, None)
        repair = Repair(cast(Any, state), nothing, nothing, there.get, trio.Event)

        async def waits(stripe_id: StripeId) -> bool:
            await trio.lowlevel.checkpoint()
            raise TooFewNodes(total=5, available=4, reason="a test says so", old_copies=True)

        async def looked(turns: Turns) -> None:
            await trio.sleep(0.1)
            seen.append((repair.queue, repair.waiting_for_copies, repair.waiting_for))

        repair.repair = waits  # type: ignore[method-assign]
        monkeypatch.setattr(Turns, "item", looked)
        for stripe_id in ids:
            repair.add(stripe_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repair._work)
            await trio.testing.wait_all_tasks_blocked()
            assert len(repair._stuck) == len(ids)
            nursery.start_soon(repair._retry)
            await trio.sleep(HOPELESS_LOOKS * RETRY + 2)
            nursery.cancel_scope.cancel()
        assert len(seen) == len(ids) and {(queue, copies) for queue, copies, _ in seen} == {(len(ids), len(ids))}
        assert all(why for *_, why in seen)

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


class Counted(dict[StripeId, str]):
    """Counts what is looked at of it."""

    looked = 0

    def __iter__(self) -> Any:
        for key in super().__iter__():
            self.looked += 1
            yield key


def test_status_does_not_look_at_all_that_waits() -> None:
    """With a million stripes that wait for nodes it would hold up the loop for a third of a second."""
    nothing = cast(Any, None)
    repair = Repair(nothing, nothing, nothing, nothing, trio.Event)
    repair._why = why = Counted()
    for number in range(1000):
        stripe_id = StripeId(number.to_bytes(16, "big"))
        repair._must_wait(stripe_id, f"reason {number}", number % 2 == 0)
        repair._parked[stripe_id] = None
    assert repair.waiting_for_copies == 500 and repair.waiting_for == "reason 999"
    assert why.looked == 0
    repair._must_wait(StripeId(bytes(16)), "nodes", False)
    repair._may_go(StripeId((2).to_bytes(16, "big")))
    assert repair.waiting_for_copies == 498 and repair.waiting_for == "nodes"


def test_what_may_wait_longer_leaves_the_queue_when_a_node_is_back() -> None:
    """A large code misses few of many shares now: as ``add`` would not have queued it, so it does not stay."""
    nodes = [NodeId(bytes([n]) * 32) for n in range(5)]
    shares = tuple(Share(ShareId(n), bytes(32), n) for n in nodes)
    stripes = {
        StripeId(bytes([n]) * 16): Stripe(StripeId(bytes([n]) * 16), Purpose.DATA, 1, 4096, shares) for n in range(4)
    }
    there = dict.fromkeys(nodes, NodeView(NodeState.ONLINE, ()))
    del there[nodes[0]], there[nodes[1]]
    healths = {
        stripe_id: SimpleNamespace(
            verdict=SimpleNamespace(holds=True), state=StripeState.DEGRADED, level=Level.GUARANTEED, waits=False
        )
        for stripe_id in stripes
    }
    state = SimpleNamespace(stripe=stripes.get, health=lambda stripe: healths[stripe.stripe_id])

    async def test() -> None:
        nothing = cast(Any, None)
        repair = Repair(cast(Any, state), nothing, nothing, there.get, nothing)
        for stripe_id in stripes:
            repair.add(stripe_id)
        assert repair.queue == 4
        there[nodes[0]] = NodeView(NodeState.ONLINE, ())
        first, second, third, fourth = stripes
        healths[first].waits = True  # one share is missing still
        healths[second].waits, healths[second].verdict.holds = True, False  # and it is out of policy
        del stripes[third]
        await repair._cancel()
        assert repair._queued == {second, fourth} and repair.cancelled == 2
        there[nodes[1]] = NodeView(NodeState.ONLINE, ())
        await repair._cancel()
        assert repair._queued == {second}

    trio.run(test)
