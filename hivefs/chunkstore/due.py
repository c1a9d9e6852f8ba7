"""Who is looked at when: a heap of times, for hundreds of thousands of nodes.

An entry is a block of bytes that sorts by its time. A tuple would be an object that the collector of garbage looks at; and
when those that were there long are replaced by others it is not called for a long time, and then has all of them to look
at: of 320 000 nodes that are looked at once a minute in one gap of more than 100 ms.
"""

from __future__ import annotations

import heapq
import struct
from math import inf
from typing import Final

from hivefs.model.ids import NodeId

_WHEN: Final = struct.Struct(">d")
EARLIEST: Final = 8.0
"""Added to each time, so that none is negative: only numbers that are not sort as their bytes do."""


class Due:
    """Each node has one time at most: the one that was given last."""

    def __init__(self) -> None:
        self._heap: list[bytes] = []
        self._when: dict[NodeId, float] = {}
        """Who was taken keeps its place, with no time: a dictionary from which is taken and into which is put again and
        again is built anew now and then, with 100 000 nodes in 8 ms.
        """

    def put(self, node_id: NodeId, when: float) -> None:
        """At that time (of trio's clock, -8 or later), and at no other."""
        self._when[node_id] = when
        heapq.heappush(self._heap, _WHEN.pack(when + EARLIEST) + node_id)

    def drop(self, node_id: NodeId) -> None:
        """At no time."""
        self._when.pop(node_id, None)

    def take(self, now: float) -> NodeId | None:
        """The next one that is due, once; None when none is."""
        while self._heap:
            first = self._heap[0]
            when = _WHEN.unpack_from(first)[0]
            if when > now + EARLIEST:
                return None
            heapq.heappop(self._heap)
            node_id = NodeId(first[_WHEN.size :])
            known = self._when.get(node_id)
            if known is not None and known + EARLIEST == when:
                self._when[node_id] = inf
                return node_id
        return None
