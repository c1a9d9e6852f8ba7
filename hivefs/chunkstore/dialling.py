"""Which node is dialled next: so many at a time, each when it is due, however many are known. A node that waits for its
turn is an entry of a list and no task.

Those that were there a moment ago, or are new, have slots of their own, so that they do not stand behind very many that
have not answered for long. Of those each waits longer the more there are, so that all are dialled RATE times a second.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from math import inf
from typing import Final

import trio

from hivefs.chunkstore.due import EARLIEST
from hivefs.model.ids import NodeId

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 8.0
"""Seconds between two tries of a node that does not answer, at first, and at most while there are few."""

RECENT: Final = 48
OTHERS: Final = 16
"""Nodes that are dialled at a time: a try takes as long as a time-out at every address."""

RATE: Final = 25.0


_ENTRY: Final = struct.Struct(">dQ")
"""Time and number before the id: bytes sort as they do, and are no object for the collector of garbage (due.py)."""


class Slot:
    """The right to dial, until it is given back; a conversation that began needs none."""

    def __init__(self, room: trio.Semaphore) -> None:
        self._room: trio.Semaphore | None = room

    def free(self) -> None:
        """Give it back, once."""
        room, self._room = self._room, None
        if room is not None:
            room.release()


class Dialling:
    """``talk`` is given a node, the number of its entry and a slot; it dials, has the conversation and comes to its end."""

    def __init__(self, talk: Callable[[NodeId, int, Slot], Awaitable[None]]) -> None:
        self._talk = talk
        self._waiting: dict[bool, list[bytes]] = {True: [], False: []}
        self._added = {True: trio.Event(), False: trio.Event()}
        self._numbers = count(1)

    @property
    def longest(self) -> float:
        """The longest pause between two tries now."""
        return max(LONGEST_PAUSE, len(self._waiting[False]) / RATE)

    def add(self, node_id: NodeId, when: float, recent: bool) -> int:
        """Dial it at that time or as soon as there is a slot; the number of the entry."""
        number = next(self._numbers)
        heapq.heappush(self._waiting[recent], _ENTRY.pack(when + EARLIEST, number) + node_id)
        self._added[recent].set()
        return number

    async def run(self) -> None:
        """Until cancelled; so do all conversations end then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, True, RECENT, nursery)
            nursery.start_soon(self._serve, False, OTHERS, nursery)

    async def _serve(self, recent: bool, slots: int, nursery: trio.Nursery) -> None:
        room, waiting = trio.Semaphore(slots), self._waiting[recent]
        while True:
            await room.acquire()
            while not waiting or _when(waiting[0]) > trio.current_time():
                self._added[recent] = trio.Event()
                with trio.CancelScope(deadline=_when(waiting[0]) if waiting else inf):
                    await self._added[recent].wait()
            entry = heapq.heappop(waiting)
            number = _ENTRY.unpack_from(entry)[1]
            nursery.start_soon(self._talk, NodeId(entry[_ENTRY.size :]), number, Slot(room))


def _when(entry: bytes) -> float:
    return float(_ENTRY.unpack_from(entry)[0]) - EARLIEST
