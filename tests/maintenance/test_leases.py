"""Renewing leases: others have their turn meanwhile, and what waits is of nodes that are still known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from hivefs.chunkstore.writer import LEASE_NS
from hivefs.errors import ConnectionLost, DiskFull
from hivefs.maintenance.leases import BATCH, EVERY, Leases
from hivefs.maintenance.turns import MOST
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe

NODE = NodeId(bytes(32))


class Book:
    """Stripes that are made when they are asked for, each with one share on the node."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.known = [NODE]
        self.kept: dict[str, Any] = {"hydrating": False}
        self.opened = 0
        self.full = False

    def node_ids(self) -> list[NodeId]:
        return self.known

    def info(self, name: str) -> Any:
        return self.kept.get(name)

    def save_info(self, name: str, value: Any) -> None:
        self.kept[name] = value

    @contextmanager
    def writing(self) -> Iterator[None]:
        if self.full:
            raise DiskFull(path=Path("book"), free=0)
        yield

    def each_on(self, node_id: NodeId) -> list[StripeId]:
        return [StripeId(number.to_bytes(16, "big")) for number in range(self.count)]

    def stripe(self, stripe_id: StripeId) -> Stripe:
        self.opened += 1
        share = Share(ShareId(stripe_id * 2), bytes(32), NODE)
        return Stripe(stripe_id, Purpose.DATA, 1, 10, (share,))


class Node:
    def __init__(self, *, answers: bool = True) -> None:
        self.answers = answers
        self.renewed: list[ShareId] = []

    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]:
        await trio.lowlevel.checkpoint()
        if not self.answers:
            raise ConnectionLost(peer="it", reason="gone")
        self.renewed += share_ids
        return [True] * len(share_ids)


def test_others_have_their_turn_after_every_few_stripes() -> None:
    book, node = Book(2 * BATCH + 7), Node()
    longest = 0

    async def body() -> None:
        nonlocal longest
        duty = Leases(cast("Any", book), lambda: [(NODE, node)], lambda: 1, lambda *_: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.run)
            while len(node.renewed) < book.count:
                before = book.opened
                await trio.lowlevel.checkpoint()
                longest = max(longest, book.opened - before)
            assert not duty.waiting
            nursery.cancel_scope.cancel()

    trio.run(body)
    assert 0 < longest <= 2 * MOST


def test_what_waits_is_forgotten_with_its_node() -> None:
    book, node = Book(3), Node(answers=False)

    async def body() -> None:
        online = [(NODE, node)]
        duty = Leases(cast("Any", book), lambda: online, lambda: 1, lambda *_: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.run)
            await trio.sleep(1)
            assert duty.waiting == {NODE}
            online.clear()
            await trio.sleep(EVERY)
            assert duty.waiting == {NODE}, "it may come back"
            duty.forget(NODE)
            await trio.sleep(EVERY)
            assert not duty.waiting
            nursery.cancel_scope.cancel()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_full_disk_is_no_reason_to_let_leases_run_out() -> None:
    """For as long as it lasts all are renewed when it is time, not those of the first node only, nor again and again."""
    book, others = Book(3), {NodeId(bytes([number]) * 32): Node() for number in range(3)}
    book.known = list(others)
    book.full, book.kept["hydrating"] = True, None
    now = 1

    async def body() -> None:
        nonlocal now
        duty = Leases(cast("Any", book), others.items, lambda: now, lambda *_: None)
        book.each_on = lambda node_id: [] if node_id not in others else [StripeId(bytes(16))]  # type: ignore[method-assign]
        book.stripe = lambda stripe_id: Stripe(  # type: ignore[method-assign]
            stripe_id, Purpose.DATA, 1, 10, tuple(Share(ShareId(node_id), bytes(32), node_id) for node_id in others)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.run)
            await trio.sleep(1)
            for done in range(4):
                assert [len(node.renewed) for node in others.values()] == [done] * 3
                await trio.sleep(3 * EVERY)
                now += LEASE_NS // 4 + 1
                await trio.sleep(EVERY)
            assert set(book.kept) == {"hydrating"}
            book.full = False
            await trio.sleep(EVERY)
            assert {name for name in book.kept if name != "hydrating"} == {"renewed-" + n.hex() for n in others}
            assert set(book.kept.values()) == {None, now}
            nursery.cancel_scope.cancel()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
