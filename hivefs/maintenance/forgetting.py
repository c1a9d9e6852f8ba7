"""Nodes that were given up long ago, and of which no stripe needs anything, are forgotten.

The book would keep each node that ever was, and what waits to be deleted there, for ever. After FORGET_S without it, by a
clock that most nodes agree with (chunkstore/clocks.py), all leases at a node, and its grace after them, have been over for
more than half a year (old_copies.py): what it still has it deletes by itself. Then its notes go, some at a time, and last,
in one transaction, the node itself. A crash in between leaves a node that is given up as before, with fewer notes, and the
next look goes on.

Rosters of other nodes name it still. They are not news until the node says something newer of itself, or another FORGET_S
has passed: then it is tried once more, as a new node. One that returns is new, too: it is vetted, and shares that it still
has are such that nothing names, which are deleted once their leases are old enough (ledger.py). Whom the hive's owner
revoked, the list of revocations refuses, however long ago that was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final, Protocol

import trio

from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.placement.health import NodeRow, NodeState

log = logging.getLogger(__name__)

FORGET_S: Final = 400 * 86_400
FIRST: Final = 300.0
EVERY: Final = 3600.0


class NodeNotes(Protocol):
    """The engine's store (metadata/engine_forgotten.py)."""

    def node_row(self, node_id: NodeId) -> NodeRow | None: ...
    def holds_something(self, node_id: NodeId) -> bool: ...
    def forget_notes(self, node_id: NodeId) -> bool: ...
    def forget_node(self, node_id: NodeId, now_ns: int) -> None: ...
    def was_forgotten(self, node_id: NodeId) -> tuple[int, int] | None: ...


class Forgetting:
    """``gone`` are the nodes given up now; ``forget`` is told of each that the book does not have any more. ``clock`` gives
    ns since 1970, ``right`` whether that is known to be about right.
    """

    def __init__(
        self,
        state: NodeNotes,
        gone: Callable[[], Collection[NodeId]],
        forget: Callable[[NodeId], None],
        clock: Callable[[], int],
        right: Callable[[], bool] = lambda: True,
    ) -> None:
        self._right = right
        self._state = state
        self._gone = gone
        self._forget = forget
        self._clock = clock
        self.forgotten = 0

    async def run(self) -> None:
        """Look every hour until cancelled; the whole book must be here."""
        await trio.sleep(FIRST)
        while True:
            await self.once()
            await trio.sleep(EVERY)

    async def once(self) -> None:
        """Look at all nodes that are given up."""
        turns = Turns()
        for node_id in list(self._gone()):
            await turns.item()
            # Between two steps it may come back, and get shares, which are noted as others are; or a stripe may name it.
            while self._is_due(node_id):
                if not self._state.forget_notes(node_id):
                    self._state.forget_node(node_id, self._clock())
                    self._forget(node_id)
                    self.forgotten += 1
                    log.info("node %s is forgotten: it was given up long ago and holds nothing", node_id.hex()[:12])
                await turns.over()

    def _is_due(self, node_id: NodeId) -> bool:
        if node_id not in self._gone():
            return False  # it is back; what is written of it may be of before, while the disk is full
        row = self._state.node_row(node_id)
        if row is None or row.state != NodeState.GONE or not row.since_ns or not self._right():
            return False
        if self._clock() - row.since_ns <= FORGET_S * 10**9:
            return False
        return not self._state.holds_something(node_id)


def is_old_news(entry: RosterEntry, forgotten: tuple[int, int] | None, now_ns: int) -> bool:
    """Whether that is what was known of a node when it was forgotten, not so long ago."""
    if forgotten is None:
        return False
    sequence, when_s = forgotten
    return entry.address.sequence <= sequence and 0 <= now_ns // 10**9 - when_s < FORGET_S
