"""When others are asked for a share: silence counts, not time. Requests are counted, under a clock that jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.patience import CEILING, FLOOR, IN_ALL, Patience
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import code
from hivefs.errors import NotEnoughShares, PeerTimeout
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe

NEEDED, TOTAL = 4, 6
SHARE = bytes(range(256)) * 1024
DATA = tuple(bytes([number]) + SHARE for number in range(NEEDED))


class Client:
    """A node that gives share ``index`` after ``seconds``; a piece of it comes every ``every`` seconds until then."""

    def __init__(self, share: bytes) -> None:
        self.share = share
        self.seconds = 0.1
        self.every = 0.0
        self.patience = Patience()
        self.moved = 0.0
        self.asked: list[tuple[int, int | None]] = []
        self.leaves_after = 0.0
        """Seconds for which our own uploads, which move, are before the request."""

    def departed(self, share_id: ShareId, asked: float) -> tuple[float, bool]:
        now = trio.current_time()
        return min(now, asked + self.leaves_after), now >= asked + self.leaves_after

    async def get(self, share_id: ShareId, offset: int = 0, length: int | None = None, **more: Any) -> bytes:
        self.asked.append((offset, length))
        end = trio.current_time() + self.seconds
        with trio.move_on_after(more["timeout"]):
            while (left := end - trio.current_time()) > 0:
                await trio.sleep(min(left, self.every or left))
                if self.every:
                    self.moved = trio.current_time()
            return self.share[offset:] if length is None else self.share[offset : offset + length]
        raise PeerTimeout(peer="x", what="a share", seconds="15")


class World:
    """A stripe of six shares on six nodes."""

    def __init__(self, root: Path) -> None:
        coded = code(NEEDED, TOTAL, DATA)
        ids = [NodeId(bytes([n]) * 32) for n in range(TOTAL)]
        self.clients = [Client(c.data) for c in coded]
        self.away: set[int] = set()
        self.stripe = Stripe(
            StripeId(b"s" * 16),
            Purpose.DATA,
            NEEDED,
            len(DATA[0]),
            tuple(Share(c.share_id, c.merkle_root, node) for c, node in zip(coded, ids, strict=True)),
            b"p" * 32,
            0,
        )
        self.changed = trio.Event()
        clients = dict(zip(ids, self.clients, strict=True))
        pool = SimpleNamespace(
            client=lambda node: None if clients.get(node) in [self.clients[n] for n in self.away] else clients.get(node),
            change=lambda: self.changed,
            report=lambda node, problem: None,
        )
        self.reader = Reader(pool, Cache(root, 1 << 30), lambda *bad: None)  # type: ignore[arg-type]

    @property
    def requests(self) -> list[int]:
        return [len(client.asked) for client in self.clients]

    def run(self, body: Callable[[], Awaitable[Any]]) -> tuple[Any, float]:
        """The body's result, and how many seconds of the clock it took."""

        async def main() -> tuple[Any, float]:
            began = trio.current_time()
            return await body(), trio.current_time() - began

        return trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    # The clock would jump over whatever a thread takes.
    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    return World(tmp_path)


def test_a_share_that_comes_slowly_is_asked_for_once(world: World) -> None:
    """Seven seconds for one share, and never more than 0.3 s without a piece of it: nobody else is asked."""
    world.clients[0].seconds, world.clients[0].every = 7.0, 0.3
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and took == pytest.approx(7.0)
    assert world.requests == [1, 0, 0, 0, 0, 0]


def test_a_silent_node_is_not_waited_for(world: World) -> None:
    world.clients[0].seconds = 14.0
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and FLOOR < took < FLOOR + 0.5
    assert world.requests == [1, 1, 1, 1, 1, 0]


def test_a_request_behind_our_own_uploads_is_not_late_before_it_has_left(world: World) -> None:
    """Two seconds behind our own upload, then an answer in 0.1 s: nobody else is asked, and nothing is held against it."""
    world.clients[0].seconds, world.clients[0].leaves_after = 2.1, 2.0
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and took == pytest.approx(2.1)
    assert world.requests == [1, 0, 0, 0, 0, 0]
    assert world.clients[0].patience.limit == FLOOR


def test_a_node_that_is_silent_after_the_request_has_left_is_late(world: World) -> None:
    world.clients[0].seconds, world.clients[0].leaves_after = 14.0, 1.0
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and 1.0 + FLOOR < took < 1.0 + FLOOR + 0.5
    assert world.requests == [1, 1, 1, 1, 1, 0]


def test_a_range_that_could_not_be_asked_for_yet_is_waited_for(world: World) -> None:
    world.clients[0].seconds, world.clients[0].leaves_after = 1.1, 1.0
    part, took = world.run(lambda: world.reader.part(world.stripe, 0, 100, 50))
    assert part == DATA[0][100:150] and took == pytest.approx(1.1)


def test_a_node_that_was_always_slow_gets_its_time(world: World) -> None:
    world.clients[0].seconds = 0.9
    for _ in range(10):
        world.clients[0].patience.answered(0.9)
    data, _ = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and world.requests == [1, 0, 0, 0, 0, 0]


def test_a_node_that_drips_has_an_end(world: World) -> None:
    world.clients[0].seconds, world.clients[0].every = 14.0, 0.3
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and IN_ALL < took < IN_ALL + 0.5


def test_what_nobody_waits_for_yet_may_take_longer(world: World) -> None:
    world.clients[0].seconds = CEILING - 0.5
    _, took = world.run(lambda: world.reader.bring(world.stripe, 0, ahead=True))
    assert took == pytest.approx(CEILING - 0.5) and world.requests == [1, 0, 0, 0, 0, 0]


def test_as_soon_as_somebody_waits_the_silence_before_counts(world: World) -> None:
    world.clients[0].seconds = 14.0

    async def body() -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: world.reader.bring(world.stripe, 0, ahead=True))
            await trio.sleep(1.0)
            assert world.requests == [1, 0, 0, 0, 0, 0]
            return await world.reader.data_share(world.stripe, 0)

    data, took = world.run(body)
    assert data == DATA[0] and took < 1.5 and world.requests == [1, 1, 1, 1, 1, 0]


def test_one_more_is_asked_for_each_that_is_late_while_a_share_is_rebuilt(world: World) -> None:
    world.away.add(0)
    world.clients[2].seconds = 14.0
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 0))
    assert data == DATA[0] and FLOOR < took < 1.5
    assert world.requests == [0, 1, 1, 1, 1, 1]


def test_a_range_is_one_question_and_a_silent_node_is_left_at_once(world: World) -> None:
    part, took = world.run(lambda: world.reader.part(world.stripe, 0, 100, 50))
    assert part == DATA[0][100:150] and took == pytest.approx(0.1)
    assert world.clients[0].asked == [(100, 50)] and world.requests == [1, 0, 0, 0, 0, 0]
    world.clients[1].seconds = 14.0
    part, took = world.run(lambda: world.reader.part(world.stripe, 1, 0, 50))
    assert part is None and took == pytest.approx(FLOOR)
    data, took = world.run(lambda: world.reader.data_share(world.stripe, 1, silent=True))
    assert data == DATA[1] and took < 0.4, "it had been waited for already"


def test_too_few_nodes_end_at_the_deadline(world: World) -> None:
    world.away = {0, 1, 2}

    async def body() -> None:
        with pytest.raises(NotEnoughShares):
            await world.reader.data_share(world.stripe, 0)

    _, took = world.run(body)
    assert took == pytest.approx(world.reader.deadline)
