"""Nodes in the order in which they were met, for looks through all of them that take turns with others.

A dictionary cannot be looked through while it changes, and a copy of one with hundreds of thousands of nodes is a gap of
the loop by itself. Here a look goes by number: what is met meanwhile comes at the end of it, and what is forgotten is
passed over, and named at its old place when it is met again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hivefs.model.ids import KEY_BYTES, NodeId


class Ring:
    """Ids of KEY_BYTES, one behind the other in one buffer: no object for each, so that it costs the collector of garbage
    nothing.
    """

    __slots__ = ("_forgotten", "_ids")

    def __init__(self, node_ids: Iterable[NodeId] = ()) -> None:
        self._ids = bytearray(b"".join(node_ids))
        self._forgotten: set[NodeId] = set()

    def __len__(self) -> int:
        """How many were ever met."""
        return len(self._ids) // KEY_BYTES

    def __getitem__(self, number: int) -> NodeId:
        return NodeId(bytes(self._ids[number * KEY_BYTES : (number + 1) * KEY_BYTES]))

    def add(self, node_id: NodeId) -> None:
        """One was met that is not in here, or was forgotten."""
        if node_id in self._forgotten:
            self._forgotten.discard(node_id)
        else:
            self._ids += node_id

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
