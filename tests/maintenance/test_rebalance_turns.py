"""Which nodes give, when the fullest cannot: all have their turn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from hivefs.maintenance.budget import Budget
from hivefs.maintenance.rebalance import EVERY, LONGEST, MOST_SOURCES, Rebalance
from hivefs.maintenance.rebalance_plan import Fill, Move
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.health import State

SIZE, FULL, EMPTY = 100, 3 * MOST_SOURCES, 3
NODES = [NodeId(bytes([n]) * 32) for n in range(1, FULL + EMPTY + 1)]
FREE = NODES[FULL - 1]
"""The only node whose shares may go anywhere. It is the least full of those that are too full."""


class Book:
    """Each full node has eight shares or more of stripes of their own."""

    def __init__(self) -> None:
        self.all: dict[StripeId, Stripe] = {}
        for number, node in enumerate(NODES[:FULL]):
            for extra in range(8 + (number < FULL - 1)):
                stripe_id = StripeId(bytes([number, extra]) * 8)
                share = Share(ShareId(stripe_id * 2), bytes(32), node)
                self.all[stripe_id] = Stripe(stripe_id, Purpose.DATA, 1, SIZE, (share,), b"")

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        return self.all.get(stripe_id)

    def stripes(self) -> Iterator[Stripe]:
        return iter(list(self.all.values()))

    def each_on(self, node_id: NodeId, after: StripeId | None = None) -> Iterator[StripeId]:
        mine = sorted(i for i, s in self.all.items() if s.shares[0].node == node_id)
        return iter([i for i in mine if after is None or i > after])

    def moved_copies(self) -> list[Any]:
        return []

    def copies_left(self, stripe_id: StripeId) -> set[NodeId]:
        return set()

    def has_trash(self, node_id: NodeId, share_id: ShareId) -> bool:
        return False

    def health(self, stripe: Stripe) -> Any:
        return SimpleNamespace(state=State.HEALTHY)


def test_a_node_that_can_give_has_its_turn_though_fuller_ones_cannot() -> None:
    async def test() -> None:
        book, moved = Book(), list[Move]()

        def fills() -> list[Fill]:
            held = {node: len(list(book.each_on(node))) * SIZE for node in NODES}
            return [Fill(node, 10 * SIZE, held[node], 0) for node in NODES]

        def keeps(before: Stripe, after: Stripe) -> bool:
            return before.shares[0].node == FREE

        async def move(one: Move) -> bool:
            moved.append(one)
            return False

        budget = cast("Budget", None)
        rebalance = Rebalance(
            cast("Any", book), cast("Any", None), cast("Any", None), fills, lambda node: 1e9, keeps, budget
        )
        rebalance.move = move  # type: ignore[method-assign]
        for _ in range(200):
            await rebalance.round()
            if moved:
                break
            await trio.sleep(EVERY)
        assert moved and {one.source for one in moved} == {FREE}
        assert trio.current_time() < 3 * LONGEST

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_plan_of_which_nothing_moves_is_made_again_later_and_later() -> None:
    async def test() -> None:
        book, tried = Book(), list[float]()

        async def move(one: Move) -> bool:
            tried.append(trio.current_time())
            return went

        def fills() -> list[Fill]:
            held = {node: len(list(book.each_on(node))) * SIZE for node in NODES}
            return [Fill(node, 10 * SIZE, held[node], 0) for node in NODES]

        budget, went = cast("Budget", None), False
        rebalance = Rebalance(
            cast("Any", book), cast("Any", None), cast("Any", None), fills, lambda node: 1e9, lambda *_: True, budget
        )
        rebalance.move = move  # type: ignore[method-assign]
        for _ in range(100):
            await rebalance.round()
            await trio.sleep(EVERY)
        rounds = sorted(set(tried))
        assert 3 <= len(rounds) < 50
        pauses = [after - before for before, after in itertools.pairwise(rounds)]
        assert pauses == sorted(pauses) and pauses[-1] > 3 * EVERY
        went = True
        for _ in range(100):
            await rebalance.round()
            await trio.sleep(EVERY)
        rounds = sorted(set(tried))
        assert rounds[-1] - rounds[-2] == EVERY  # what goes on is not held up

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))
