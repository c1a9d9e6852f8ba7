"""Work for threads, in batches, and a bound on the bytes that requests may hold.

A hop into a worker thread costs 155 µs and a synced commit more, so what waits when a thread becomes free goes together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import trio

from hivefs.node.threads import in_thread
from hivefs.protocol.failures import Refusal

J = TypeVar("J")
R = TypeVar("R")


class _Item(Generic[J, R]):
    __slots__ = ("done", "job", "result")

    def __init__(self, job: J) -> None:
        self.job = job
        self.done = trio.Event()
        self.result: R | Refusal | None = None


class Batcher(Generic[J, R]):
    """``work`` gets 1 to ``most`` jobs in a worker thread and gives one result or Refusal for each. ``lanes`` batches are
    worked on at a time. A batch also ends before what ``weigh`` says of its jobs together exceeds ``heaviest`` (bytes).
    """

    def __init__(
        self,
        work: Callable[[Sequence[J]], Sequence[R | Refusal]],
        lanes: int,
        most: int,
        weigh: Callable[[J], int] = lambda job: 0,
        heaviest: int = 0,
    ) -> None:
        self._weigh = weigh
        self._heaviest = heaviest
        self._work = work
        self._lanes = lanes
        self._most = most
        self._queue: deque[_Item[J, R]] = deque()
        self._idle = trio.lowlevel.ParkingLot()
        self._threads = trio.CapacityLimiter(lanes)

    async def do(self, job: J) -> R:
        """Wait for the job's turn and its result; raises its Refusal. Cancelled: a job that was not begun is not done."""
        item: _Item[J, R] = _Item(job)
        self._queue.append(item)
        self._idle.unpark()
        try:
            await item.done.wait()
        except trio.Cancelled:
            if item in self._queue:
                self._queue.remove(item)
            raise
        if isinstance(item.result, Refusal):
            raise item.result
        if item.result is None:
            raise AssertionError("a job without a result")
        return item.result

    async def run(self) -> None:
        """Work until cancelled. An error of ``work`` that is no Refusal passes out."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._lanes):
                nursery.start_soon(self._lane)

    def _next(self) -> list[_Item[J, R]]:
        batch = [self._queue.popleft()]
        weight = self._weigh(batch[0].job)
        while self._queue and len(batch) < self._most:
            weight += self._weigh(self._queue[0].job)
            if weight > self._heaviest:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _lane(self) -> None:
        while True:
            while not self._queue:
                await self._idle.park()
            batch = self._next()
            jobs = [item.job for item in batch]
            results = await in_thread(self._work, jobs, limiter=self._threads)
            for item, result in zip(batch, results, strict=True):
                item.result = result
                item.done.set()


class Budget:
    """So many bytes, and no more, are held at a time; who asks first gets first. ``on_short`` is called when one waits."""

    def __init__(self, total: int, on_short: Callable[[], None] = lambda: None) -> None:
        self._on_short = on_short
        self.total = total
        self.free = total
        self._queue: deque[tuple[int, trio.Event]] = deque()

    @property
    def short(self) -> bool:
        """Whether somebody waits."""
        return bool(self._queue)

    async def take(self, count: int) -> None:
        """Wait until ``count`` (at most the total) are free, and take them."""
        if count > self.total:
            raise ValueError("more than there is")
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._queue and count <= self.free:
            self.free -= count
            return
        mine = (count, trio.Event())
        self._queue.append(mine)
        self._on_short()
        try:
            await mine[1].wait()
        except trio.Cancelled:
            if mine in self._queue:
                self._queue.remove(mine)
                self._serve()
            else:
                self.give(count)
            raise

    def give(self, count: int) -> None:
        """Give back."""
        self.free += count
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._queue[0][0] <= self.free:
            count, event = self._queue.popleft()
            self.free -= count
            event.set()
