"""Reading ahead: which shares are brought before anybody waits for them, and how many at a time.

How many is found out by trying, since lines differ by a factor of a thousand: one more for each that came within QUICK
seconds, one fewer for each that took longer than SLOW. So a line of 2 Mbit/s carries two or three at a time, and the
share that somebody waits for is not starved by those that nobody waits for yet; a fast one is at MOST after a dozen.

Atomic between two checkpoints of trio: everything but ``_bring_one`` and ``run``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from hivefs.errors import HivefsError
from hivefs.model.ids import ChunkId

log = logging.getLogger(__name__)

FIRST: Final = 3
LEAST: Final = 2
MOST: Final = 16
"""Each may need k others in memory when its node is away."""
QUEUED: Final = 32
QUICK: Final = 2.5
SLOW: Final = 5.0


class Ahead:
    """``bring`` has a chunk's share in the cache when it returns, and says whether it was not there or coming already;
    raises HivefsError. ``run`` must be running.
    """

    def __init__(self, bring: Callable[[ChunkId], Awaitable[bool]]) -> None:
        self._bring = bring
        self._queue: list[ChunkId] = []
        self._running: set[ChunkId] = set()
        self._nursery: trio.Nursery | None = None
        self.room = FIRST

    def want(self, chunk_ids: Sequence[ChunkId]) -> None:
        """These will be read soon, in this order. What was wanted before and was not begun comes after them."""
        new = [chunk_id for chunk_id in dict.fromkeys(chunk_ids) if chunk_id not in self._running]
        self._queue = [*new, *(old for old in self._queue if old not in new)][:QUEUED]
        self._begin()

    def _begin(self) -> None:
        while self._nursery is not None and self._queue and len(self._running) < self.room:
            chunk_id = self._queue.pop(0)
            self._running.add(chunk_id)
            self._nursery.start_soon(self._bring_one, chunk_id)

    async def _bring_one(self, chunk_id: ChunkId) -> None:
        began, brought = trio.current_time(), False
        try:
            brought = await self._bring(chunk_id)
        except HivefsError as error:
            log.debug("reading ahead: %s", error)  # whoever really reads it gets the error
        finally:
            self._running.discard(chunk_id)
        took = trio.current_time() - began
        if not brought:
            pass  # which says nothing of the line
        elif took < QUICK:
            self.room = min(MOST, self.room + 1)
        elif took > SLOW:
            self.room = max(LEAST, self.room - 1)
        self._begin()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._begin()
            await trio.sleep_forever()
