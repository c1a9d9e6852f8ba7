"""Renewing leases: others have their turn meanwhile, and what waits is of nodes that are still known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.chunkstore.writer import DAY_NS, LEASE_NS, LEAST_LEASE_NS
from hivefs.errors import ConnectionLost, DiskFull
from hivefs.maintenance.leases import BATCH, EVERY, LOOKED_UP, Leases, _Neighbours
from hivefs.maintenance.turns import MOST
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.receipt import Listed
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.protocol.answers import Listing

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


class Granting(Node):
    """It says that it keeps what is renewed for ``days`` from now, by its clock, which is ``ahead_ns`` ahead."""

    def __init__(self, now: list[int], days: float, ahead_ns: int = 0) -> None:
        super().__init__()
        self.now, self.days, self.ahead_ns = now, days, ahead_ns
        self.times: list[float] = []
        self.leases: dict[ShareId, int] = {}
        self.listed = 0
        self.lists = True

    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]:
        self.times.append(self.now[0] / DAY_NS)
        for share_id in share_ids:
            self.leases[share_id] = self.now[0] + self.ahead_ns + int(self.days * DAY_NS)
        return await super().renew(share_ids, lease_ns)

    async def list_shares(self, after: bytes = b"") -> Listing:
        self.listed += 1
        await trio.lowlevel.checkpoint()
        if not self.lists:
            raise ConnectionLost(peer="it", reason="the node ended the conversation")
        page = [Listed(s, end, 10) for s, end in sorted(self.leases.items()) if s > after]
        return Listing(b"", (*page, Listed(ShareId(b"\xff" * 32), 1, 10)))  # one that was not renewed


class Days:
    """A duty that looks every hour while days go by in steps of half a day."""

    def __init__(self, node: Granting, book: Book, lists: bool = True) -> None:
        self.node, self.book, self.absurd = node, book, list[str]()
        self.right = True
        self.duty = self.made(lists)

    def made(self, lists: bool) -> Leases:
        duty = Leases(cast("Any", self.book), lambda: [(NODE, self.node)], lambda: self.node.now[0], lambda *_: None)
        duty.lists = lambda node_id: lists
        duty.right = lambda: self.right
        duty.on_absurd = lambda node_id, words: self.absurd.append(words)
        return duty

    async def passes(self, days: float) -> list[float]:
        """The days at which it renewed."""
        self.node.times.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.duty.run)
            await trio.sleep(EVERY / 2)  # never in the middle of a look
            for _ in range(int(2 * days)):
                await trio.sleep(2 * EVERY)
                self.node.now[0] += DAY_NS // 2
                self.duty._clock = lambda: self.node.now[0]
            nursery.cancel_scope.cancel()
        return sorted({round(day) for day in self.node.times})

    def run(self, *parts: Any) -> None:
        async def body() -> None:
            for part in parts:
                await part()

        trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("ahead", [0, -400 * DAY_NS, 400 * DAY_NS])
def test_a_node_that_grants_less_is_asked_sooner_also_after_a_restart_and_as_before_when_it_grants_all(ahead: int) -> None:
    now = [1000 * DAY_NS]
    node, book = Granting(now, 40.0, ahead), Book(3)
    days = Days(node, book)

    async def less() -> None:
        times = await days.passes(45)
        assert len(times) >= 4 and all(9 <= b - a <= 12 for a, b in pairwise(times))
        assert days.duty.granted(NODE) == 40 * DAY_NS
        assert not days.absurd, "forty days are of use"

    async def again() -> None:
        days.duty = days.made(True)
        assert days.duty.granted(NODE) == 40 * DAY_NS
        node.days = 120.0
        times = await days.passes(80)
        assert len(times) >= 3 and times[1] - times[0] >= 29 and days.duty.granted(NODE) == LEASE_NS

    days.run(less, again)


def test_a_node_that_says_it_granted_more_is_asked_as_any_other() -> None:
    node, book = Granting([1000 * DAY_NS], 5000.0), Book(3)
    days = Days(node, book)

    async def more() -> None:
        times = await days.passes(65)
        assert len(times) == 3 and times[1] - times[0] >= 29 and days.duty.granted(NODE) == LEASE_NS
        assert "granted-" + NODE.hex() not in book.kept and not days.absurd

    days.run(more)


@pytest.mark.parametrize("granted", [-300.0, 0.0, 3.0])
def test_leases_that_are_of_no_use_are_told_of_while_the_clock_is_known_to_be_right(granted: float) -> None:
    node, book = Granting([1000 * DAY_NS], granted), Book(3)
    days = Days(node, book)
    days.right = False

    async def unsure() -> None:
        await days.passes(2)
        assert node.times and not days.absurd

    async def sure() -> None:
        days.right = True
        await days.passes(2)
        assert days.absurd and ("past" in days.absurd[0]) == (granted <= 0)
        assert len(days.absurd) == len(node.times)

    days.run(unsure, sure)


def test_an_old_node_is_not_asked_for_a_listing_and_one_that_fails_at_it_is_asked_again() -> None:
    node = Granting([1000 * DAY_NS], 120.0)

    async def old() -> None:
        days = Days(node, Book(3), lists=False)
        days.duty.short(NODE, 50 * DAY_NS)
        times = await days.passes(30)
        assert len(times) == 3 and not node.listed and days.duty.granted(NODE) == 50 * DAY_NS

    async def failing() -> None:
        node.lists = False
        days = Days(node, Book(3))
        await days.passes(2)
        assert node.listed > 1 and days.duty.waiting == {NODE}
        node.lists = True
        await days.passes(2)
        assert not days.duty.waiting

    Days(node, Book(3)).run(old, failing)


def test_a_damaged_record_of_what_an_old_node_grants_does_not_renew_for_ever() -> None:
    """It does not list, so nothing else heals it; 0 stands for a record that does not open (engine_tables.OF_NODE)."""
    node, book = Granting([1000 * DAY_NS], 120.0), Book(3)
    book.kept["granted-" + NODE.hex()] = 0

    async def old() -> None:
        days = Days(node, book, lists=False)
        times = await days.passes(30)
        assert len(times) in (4, 5) and all(b - a >= 7 for a, b in pairwise(times)), times
        assert days.duty.granted(NODE) == LEAST_LEASE_NS

    Days(node, book).run(old)


def test_those_that_are_looked_up_are_neighbours() -> None:
    dice = Random(7)
    for count in (0, 1, 5, LOOKED_UP, 3 * LOOKED_UP):
        ids = [ShareId(dice.randbytes(32)) for _ in range(count)]
        for start in (bytes(32), b"\xff" * 32, dice.randbytes(32), *ids[:1]):
            some = _Neighbours(start)
            for share_id in ids:
                some.add(share_id)
            above = sorted(s for s in ids if s >= start)
            assert some.ids == (above or sorted(ids))[:LOOKED_UP]
