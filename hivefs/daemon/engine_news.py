"""News of nodes for the engine: their certificates and addresses (roster) and what they say of themselves.

A node is asked what its roster and statements come to (32 bytes each). Where that is something else than it was, it is
asked what 256 ranges of it come to (8 KiB), and for those ranges that have changed: a node that has moved costs some
kilobytes, not the roster of the hive. All of it is fetched once from each node, and again with the first change that comes
WHOLE_SECONDS after that: what was not taken then (its node had been revoked) may be taken now.

A node of before there were statements ends the conversation at the first question, one of before there were ranges at the
second: it is asked seldom then, and gives everything instead.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.errors import ConnectionLost, Refused
from hivefs.formats import attestation, member
from hivefs.maintenance.evidence import Evidence
from hivefs.model.attestation import Statement
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.node.sums import Sums
from hivefs.protocol.answers import News as Told

log = logging.getLogger(__name__)

FIRST_SECONDS, LONGEST_SECONDS = 30.0, 3600.0
"""For so long a node that ended the conversation at a question for news is not asked again; twice as long each time."""

WHOLE_SECONDS = 3600.0
MOST_REMEMBERED = 256
"""Nodes of which the sums of all ranges are remembered (16 KiB each); of those asked longest ago everything is fetched."""

SLICE = 16
MOST_BYTES = 1 << 20
"""What is fetched of changed ranges before others have their turn; the rest comes with the next comparison."""


@dataclass(slots=True)
class _Pause:
    """When to ask again, and how long the pause was."""

    until: float = 0.0
    seconds: float = 0.0

    @property
    def lasts(self) -> bool:
        return self.until > trio.current_time()

    def longer(self) -> None:
        self.seconds = min(LONGEST_SECONDS, 2 * self.seconds or FIRST_SECONDS)
        self.until = trio.current_time() + self.seconds


@dataclass(slots=True)
class _Heard:
    """What a node gave us: the sums of each range of its roster (False) and its statements (True), where known."""

    sums: dict[bool, list[bytes]] = field(default_factory=dict)
    since: dict[bool, float] = field(default_factory=dict)


class News:
    """``learn`` takes roster entries in."""

    def __init__(self, learn: Callable[[Iterable[RosterEntry]], Awaitable[int]], evidence: Evidence) -> None:
        self._learn = learn
        self._evidence = evidence
        self._told: dict[NodeId, Told] = {}
        self._heard: dict[NodeId, _Heard] = {}
        self._old: dict[NodeId, _Pause] = {}
        self._whole_only: dict[NodeId, _Pause] = {}

    async def greeted(self, client: NodeClient) -> None:
        """A conversation began: learn all that the node knows. Raises HivefsError."""
        self._told.pop(client.node_id, None)
        if self._is_old(client.node_id) or not await self._compare(client):
            await self._learn(await client.get_roster())

    async def compare(self, client: NodeClient) -> None:
        """Learn what is news at this node since we asked it last, or the first MOST_BYTES of it. Raises HivefsError."""
        if not self._is_old(client.node_id):
            await self._compare(client)

    def _is_old(self, node_id: NodeId) -> bool:
        return node_id in self._old and self._old[node_id].lasts

    async def _compare(self, client: NodeClient) -> bool:
        """Whether the node knew the question."""
        try:
            told = await client.news()
        except (ConnectionLost, Refused) as error:
            self._old.setdefault(client.node_id, _Pause()).longer()
            log.debug("node %s tells no news: %s", client.peer, error)
            if isinstance(error, ConnectionLost):
                raise
            return False
        self._old.pop(client.node_id, None)
        before = self._told.get(client.node_id)
        whole = True
        if before is None or before.roster != told.roster:
            whole = await self._fetch(client, False)
        if before is None or before.statements != told.statements:
            whole = await self._fetch(client, True) and whole
        if whole:
            self._told[client.node_id] = told
        return True

    async def _fetch(self, client: NodeClient, statements: bool) -> bool:
        """Learn what has changed in the roster, or in the statements; False when there is more."""
        heard = self._remembered(client.node_id)
        known = heard.sums.get(statements)
        pause = self._whole_only.get(client.node_id)
        fresh = known is not None and trio.current_time() - heard.since[statements] < WHOLE_SECONDS
        if known is not None and fresh and not (pause is not None and pause.lasts):
            sums = await self._ranges(client, statements)
            if sums is not None:
                return await self._changed(client, statements, known, sums)
        heard.sums.pop(statements, None)
        heard.sums[statements] = await self._everything(client, statements)
        heard.since[statements] = trio.current_time()
        return True

    def _remembered(self, node_id: NodeId) -> _Heard:
        heard = self._heard.pop(node_id) if node_id in self._heard else _Heard()
        self._heard[node_id] = heard  # the last one now
        if len(self._heard) > MOST_REMEMBERED:
            del self._heard[next(iter(self._heard))]
        return heard

    async def _ranges(self, client: NodeClient, statements: bool) -> list[bytes] | None:
        """None when the node does not know the question."""
        try:
            sums = list(await client.ranges(statements))
        except (ConnectionLost, Refused) as error:
            self._whole_only.setdefault(client.node_id, _Pause()).longer()
            log.debug("node %s tells nothing of ranges: %s", client.peer, error)
            if isinstance(error, ConnectionLost):
                raise
            return None
        self._whole_only.pop(client.node_id, None)
        return sums

    async def _changed(self, client: NodeClient, statements: bool, known: list[bytes], sums: list[bytes]) -> bool:
        fetched = 0
        for first, (old, new) in enumerate(zip(known, sums, strict=True)):
            if old == new:
                continue
            if fetched >= MOST_BYTES:
                return False
            if statements:
                fetched += await client.get_statement_range(first, self._evidence.hear)
            else:
                fetched += await client.get_roster_range(first, self._learn)
            known[first] = new
        return True

    async def _everything(self, client: NodeClient, statements: bool) -> list[bytes]:
        """The sums of what it gave."""
        sums = Sums()
        if statements:

            async def take(made: list[Statement]) -> None:
                for one in made:
                    sums.change(one.node_id, attestation.statement_to_bytes(one))
                await self._evidence.hear(made)

            await client.get_statements(take)
        else:
            entries = await client.get_roster()
            for number, entry in enumerate(entries, 1):
                sums.change(entry.membership.subject, member.entry_to_bytes(entry))
                if number % SLICE == 0:
                    await trio.lowlevel.checkpoint()
            await self._learn(entries)
        return sums.ranges()
