"""How the engine learns of nodes: roster entries that nodes tell, checked in slices, and no more of them than may be true.

Two signatures are checked for each entry that is news, in a worker thread, some at a time: a roster may have 20 000
entries. Who was invited makes its own certificate, so one stolen invitation could make members without end. Nodes count
uses (node/members.py); of one invitation the engine takes twice as many as it allows and SPARE more, since nodes that
cannot reach each other may count one use each.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from hivefs.formats.member import entry_to_bytes, entry_valid
from hivefs.maintenance.forgetting import is_old_news
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry, key_of_invitation
from hivefs.placement.health import NodeRow, NodeState

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

log = logging.getLogger(__name__)

SLICE: Final = 16
"""Entries of which the signatures are checked in one go, by a thread."""

TAKEN: Final = 2
"""Entries that are taken in one transaction: half a millisecond, and the transaction's own time."""

SPARE: Final = 16


class Learning:
    """See the head of the file."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._warned: set[bytes] = set()

    def now(self, entries: Iterable[RosterEntry]) -> int:
        """Take in a few entries at once; how many were new."""
        news = [entry for entry in entries if self._is_news(entry)]
        return self._record(_valid(news, self._engine.home.vault.hive_key))

    async def hear(self, entries: Iterable[RosterEntry]) -> int:
        """The same for any number, while others have their turn."""
        hive_key, new = self._engine.home.vault.hive_key, 0
        news: list[RosterEntry] = []
        turns = Turns()
        for entry in entries:
            if entry.membership.invitation is not None:
                await self._engine.pool.all_read()  # so that it is known how many came by each invitation
            if self._is_news(entry):
                news.append(entry)
            await turns.item()
            if len(news) == SLICE:
                new += await self._take(news, hive_key)
                news = []
        return new + (await self._take(news, hive_key) if news else 0)

    async def _take(self, news: list[RosterEntry], hive_key: bytes) -> int:
        good, new = await trio.to_thread.run_sync(_valid, news, hive_key), 0
        for first in range(0, len(good), TAKEN):
            new += self._record(good[first : first + TAKEN])
            await trio.lowlevel.checkpoint()
        return new

    def _is_news(self, entry: RosterEntry) -> bool:
        """What is known already was checked."""
        store, node_id = self._engine.store, NodeId(entry.membership.subject)
        known = store.entry_bytes(node_id)
        if known is None and is_old_news(entry, store.was_forgotten(node_id), time.time_ns()):
            return False
        if entry_to_bytes(entry) == known:  # to open what is known costs more
            return False
        return not self._engine.covers(entry.membership) and (known is not None or self._may_join(entry))

    def _may_join(self, entry: RosterEntry, joined: Mapping[bytes, int] = MappingProxyType({})) -> bool:
        """``joined`` are those of this very transaction, by their invitations."""
        invitation = entry.membership.invitation
        if invitation is None:
            return True
        if self._engine.pool.invited(invitation.key) + joined.get(invitation.key, 0) < 2 * invitation.uses + SPARE:
            return True
        if invitation.key not in self._warned and len(self._warned) < 1000:
            self._warned.add(invitation.key)
            log.warning("more nodes come by one invitation for %d than it can have let in: revoke it", invitation.uses)
        return False

    def _record(self, entries: Sequence[RosterEntry]) -> int:
        """Those whose signatures hold; how many were new. It may have been revoked while they were checked."""
        engine, now, new = self._engine, time.time_ns(), list[NodeId]()
        joined: Counter[bytes] = Counter()
        with engine.store.writing():
            for entry in entries:
                node_id = NodeId(entry.membership.subject)
                row = engine.store.node_row(node_id)
                if engine.covers(entry.membership) or (row is None and not self._may_join(entry, joined)):
                    continue
                if engine.store.save_node(entry, now):
                    new.append(node_id)
                    if row is None:
                        engine.store.save_node_row(node_id, NodeRow(NodeState.OFFLINE, now))
                        joined[key_of_invitation(entry.membership)] += 1
            engine.evidence.weigh(new)
        engine.pool.refresh(new)
        return len(new)


def _valid(entries: Sequence[RosterEntry], hive_key: bytes) -> list[RosterEntry]:
    now = time.time_ns()
    return [entry for entry in entries if entry_valid(entry, hive_key, now)]
