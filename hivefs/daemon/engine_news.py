"""News of nodes for the engine: their certificates and addresses (roster) and what they say of themselves.

A node is asked what its roster and statements come to (32 bytes each), and for all of them only when that is something else
than it was. A node of before there were statements ends the conversation at that question: it is asked seldom then,
and gives its roster at each greeting and when the engine asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.errors import ConnectionLost, Refused
from hivefs.maintenance.evidence import Evidence
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.protocol.answers import News as Told

log = logging.getLogger(__name__)

FIRST_SECONDS, LONGEST_SECONDS = 30.0, 3600.0
"""For so long a node that ended the conversation at a question for news is not asked again; twice as long each time."""


class News:
    """``learn`` takes roster entries in."""

    def __init__(self, learn: Callable[[Iterable[RosterEntry]], Awaitable[int]], evidence: Evidence) -> None:
        self._learn = learn
        self._evidence = evidence
        self._told: dict[NodeId, Told] = {}
        self._old: dict[NodeId, tuple[float, float]] = {}

    async def greeted(self, client: NodeClient) -> None:
        """A conversation began: learn all that the node knows. Raises HivefsError."""
        self._told.pop(client.node_id, None)
        if self._is_old(client.node_id) or not await self._compare(client):
            await self._learn(await client.get_roster())

    async def compare(self, client: NodeClient) -> None:
        """Learn what is news at this node since we asked it last. Raises HivefsError."""
        if not self._is_old(client.node_id):
            await self._compare(client)

    def _is_old(self, node_id: NodeId) -> bool:
        return self._old.get(node_id, (0.0, 0.0))[0] > trio.current_time()

    async def _compare(self, client: NodeClient) -> bool:
        """Whether the node knew the question."""
        try:
            told = await client.news()
        except (ConnectionLost, Refused) as error:
            pause = min(LONGEST_SECONDS, 2 * self._old.get(client.node_id, (0.0, 0.0))[1] or FIRST_SECONDS)
            self._old[client.node_id] = trio.current_time() + pause, pause
            log.debug("node %s tells no news: %s", client.peer, error)
            if isinstance(error, ConnectionLost):
                raise
            return False
        self._old.pop(client.node_id, None)
        before = self._told.get(client.node_id)
        if before is None or before.roster != told.roster:
            await self._learn(await client.get_roster())
        if before is None or before.statements != told.statements:
            await client.get_statements(self._evidence.hear)
        self._told[client.node_id] = told
        return True
