"""Reading ahead, under a clock that jumps: how many at a time, in which order, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from hivefs.chunkstore.ahead import FIRST, LEAST, MOST, QUEUED, Ahead
from hivefs.errors import HivefsError
from hivefs.model.ids import ChunkId


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(16, "big"))


class Line:
    """Brings one share in ``seconds``; ``most`` is how many were on their way at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.here = False
        self.failing = False
        self.asked: list[int] = []
        self.left: list[list[int]] = []
        self.now = self.most = 0
        self.ahead = Ahead(self.bring)

    async def bring(self, chunk_id: ChunkId) -> bool:
        self.asked.append(int.from_bytes(chunk_id, "big"))
        self.now += 1
        self.most = max(self.most, self.now)
        await trio.sleep(self.seconds)
        self.now -= 1
        if self.failing:
            raise HivefsError(detail="no node has it")
        return not self.here

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.ahead.run)
                await body()
                nursery.cancel_scope.cancel()

        trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("seconds", "room"), [(0.01, MOST), (3.0, FIRST), (9.0, LEAST)])
def test_a_fast_line_carries_more_at_a_time_than_a_slow_one(seconds: float, room: int) -> None:
    line = Line(seconds)

    async def body() -> None:
        line.ahead.want([chunk(n) for n in range(QUEUED)])
        await trio.sleep(1000)

    line.run(body)
    assert sorted(line.asked) == list(range(QUEUED)) and line.ahead.room == room
    assert FIRST < line.most <= MOST if room == MOST else line.most == FIRST


def test_what_is_here_already_says_nothing_of_the_line() -> None:
    line = Line(0.0)
    line.here = True

    async def body() -> None:
        line.ahead.want([chunk(n) for n in range(QUEUED)])
        await trio.sleep(1)

    line.run(body)
    assert line.ahead.room == FIRST


def test_the_newest_wish_goes_first_and_nothing_is_brought_twice_at_once() -> None:
    line = Line(3.0)

    async def body() -> None:
        line.ahead.want([chunk(n) for n in (1, 2, 3, 4, 5)])
        await trio.sleep(1)
        line.ahead.want([chunk(n) for n in (2, 9, 5, 9)])
        line.left = [[int.from_bytes(c, "big") for c in line.ahead._queue[2:]]]
        await trio.sleep(100)

    line.run(body)
    assert sorted(line.asked[:3]) == [1, 2, 3] and sorted(line.asked[3:]) == [4, 5, 9] and line.left == [[4]]


def test_a_reader_who_jumps_about_leaves_no_endless_queue() -> None:
    line = Line(3.0)

    async def body() -> None:
        for start in range(0, 10_000, 100):
            line.ahead.want([chunk(start + n) for n in range(8)])
        await trio.sleep(1000)

    line.run(body)
    assert len(line.asked) == QUEUED and sum(number >= 9900 for number in line.asked[: 2 * FIRST]) == 2 * FIRST


def test_an_error_is_nobodys_but_the_readers() -> None:
    line = Line(0.1)
    line.failing = True

    async def body() -> None:
        line.ahead.want([chunk(n) for n in range(20)])
        await trio.sleep(100)

    line.run(body)
    assert len(line.asked) == 20 and line.ahead.room == FIRST
