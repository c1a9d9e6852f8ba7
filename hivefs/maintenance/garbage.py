"""Garbage: what no file and no checkpoint names any more is deleted at the nodes.

Three steps, each safe to repeat after a crash. The mount's ``released`` queue says which chunks no file names: they are
doomed. When a head without them is out (maintenance/checkpoint.py), ``reap`` lowers the live count of their stripes; a
stripe with nothing alive is forgotten and its shares go to the trash. The trash of a node is emptied when the node can
be reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from hivefs.chunkstore.claims import Claims
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.ports import State, Vault
from hivefs.model.ids import NodeId, ShareId

log = logging.getLogger(__name__)

BATCH = 512
EVERY = 1.0
DELETES = 256


class Deleter(Protocol):
    """One conversation, as garbage collection uses it."""

    async def delete(self, share_ids: list[ShareId]) -> list[bool]: ...


class Garbage:
    """``online`` gives the nodes that can be asked now."""

    def __init__(self, state: State, claims: Claims, online: Callable[[], Iterable[tuple[NodeId, Deleter]]]) -> None:
        self._state = state
        self._claims = claims
        self._online = online
        self.deleted_shares = 0
        self._released = trio.Event()
        self.held: Callable[[], bool] = lambda: False
        """While this is true nothing is deleted: somebody else may need it."""
        self.on_deleted: Callable[[list[ShareId]], None] = lambda share_ids: None

    def look(self) -> None:
        """The mount may have released something a moment ago: ask it now, so that the next checkpoint lets it go."""
        self._released.set()

    async def take_released(self, vault: Vault) -> None:
        """Doom what the mount released, until cancelled. HivefsError of the vault passes out."""
        while True:
            self._released = trio.Event()
            batch = await vault.released(0, BATCH)
            if batch:
                with self._state.writing():
                    for _, chunk_id in batch:
                        self._state.doom_chunk(chunk_id)
                await vault.released_done(batch[-1][0])
            if len(batch) < BATCH:
                with trio.move_on_after(EVERY):
                    await self._released.wait()

    async def empty_trash(self) -> None:
        """Delete trashed shares at nodes that are online, until cancelled."""
        while True:
            waiting = frozenset(() if self.held() else self._state.trash_nodes())
            for node_id, client in list(self._online()) if waiting else ():
                if node_id not in waiting:
                    continue
                share_ids = self._claims.begin_delete(node_id, self._state.trash_of(node_id, DELETES))
                if not share_ids:
                    continue
                try:
                    await client.delete(share_ids)
                    with self._state.writing():
                        self._state.trash_done(node_id, share_ids)
                except DiskFull:
                    raise  # what is deleted is noted as such when there is room: to delete it again does no harm
                except HivefsError as error:
                    log.info("deleting at node %s waits: %s", node_id.hex()[:12], error)
                    continue
                finally:
                    self._claims.end_delete(node_id, share_ids)
                self.deleted_shares += len(share_ids)
                self.on_deleted(share_ids)
            await trio.sleep(EVERY)

    def reap(self, published: int) -> None:
        """A head with everything up to that sequence is out: forget what was doomed before it."""
        while True:
            with self._state.writing():
                if self._state.reap(published, BATCH) < BATCH:
                    return
