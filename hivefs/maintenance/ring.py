"""Nodes in the order in which they were met, for looks through all of them that take turns with others.

A dictionary cannot be looked through while it changes, and a copy of one with hundreds of thousands of nodes is a gap of
the loop by itself. Here a look goes by number: what is met meanwhile comes at the end of it, and what is forgotten is
passed over, and named at its old place when it is met again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hivefs.model.ids import KEY_BYTES, NodeId

BLOCK: Final = 2048
"""Ids in one buffer of 64 KiB. One buffer for all would be copied into fresh memory again and again as it grows: with
100 000 nodes a gap of 27 ms, where the kernel has to clear that memory first.
"""


class Ring:
    """Ids of KEY_BYTES, one behind the other: no object for each, so that they cost the collector of garbage nothing."""

    __slots__ = ("_blocks", "_forgotten", "_length")

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []
        self._length = 0
        self._forgotten: set[NodeId] = set()

    def __len__(self) -> int:
        """How many were ever met."""
        return self._length

    def __getitem__(self, number: int) -> NodeId:
        block, place = divmod(number, BLOCK)
        return NodeId(bytes(self._blocks[block][place * KEY_BYTES : (place + 1) * KEY_BYTES]))

    def add(self, node_id: NodeId) -> None:
        """One was met that is not in here, or was forgotten."""
        if node_id in self._forgotten:
            self._forgotten.discard(node_id)
            return
        if self._length % BLOCK == 0:
            self._blocks.append(bytearray())
        self._blocks[-1] += node_id
        self._length += 1

    def forget(self, node_id: NodeId) -> None:
        """One of them is not known any more."""
        self._forgotten.add(node_id)

    def walk(self) -> Iterator[NodeId]:
        """All that are known when their turn comes, with those that are added meanwhile."""
        number = 0
        while number < len(self):
            node_id = self[number]
            if node_id not in self._forgotten:
                yield node_id
            number += 1
