"""An honest client in a namespace of its own: ``partition_client.py ADDRESS``, the address of one node of two.

Learns the nodes from that one, keeps conversations with both as the engine does (Pool), and puts and gets shares on each
in a loop. Prints its state as JSON five times a second, with the time of the clock that all processes share; when its input
ends it reads back every share that a node said it keeps, prints that, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

sys.path += [str(Path(__file__).parents[1] / "node")]
from hive_tools import HIVE_KEY, client_certificate, lease, share

from hivefs.chunkstore.node_client import NodeClient
from hivefs.chunkstore.pool import Pool
from hivefs.crypto.keys import VaultKeys
from hivefs.daemon.network import Conversations
from hivefs.errors import HivefsError
from hivefs.formats.member import entry_to_bytes, entry_valid
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import RosterEntry
from hivefs.placement.evidence import Weighed
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.reputation import Reputation

KEPT = 5
"""One share of so many stays, to be read back in the end."""


class Book:
    def __init__(self, entries: list[RosterEntry]) -> None:
        self._rows = [(NodeId(e.membership.subject), e, NodeRow(NodeState.OFFLINE, time.time_ns())) for e in entries]

    def nodes(self, node_ids: object = None) -> list[tuple[NodeId, RosterEntry, NodeRow]]:
        return self._rows

    def node_rows(self) -> list[tuple[NodeId, NodeRow]]:
        return [(node_id, row) for node_id, _, row in self._rows]

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None:
        return next((entry for known, entry, _ in self._rows if known == node_id), None)

    def reputations(self) -> list[tuple[NodeId, Reputation]]:
        return []

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None:
        pass

    def save_distrusted(self, nodes: Collection[NodeId]) -> None:
        pass

    def entry_bytes(self, node_id: NodeId) -> bytes | None:
        entry = self.roster_entry(node_id)
        return None if entry is None else entry_to_bytes(entry)

    def weighed(self, node_id: NodeId) -> Weighed:
        return Weighed(())

    def save_seen(self, rows: object) -> None:
        pass


@dataclass
class State:
    rounds: int = 0
    lost: int = 0
    """Calls that ended with an error that says: try again."""
    online: bool = False


class Client:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.states = {node_id: State() for node_id in pool.members}
        self._kept: dict[NodeId, list[ShareId]] = {node_id: [] for node_id in pool.members}

    async def work(self, node_id: NodeId) -> None:
        state = self.states[node_id]
        while True:
            client = self._pool.client(node_id)
            if client is None:
                await self._pool.change().wait()
                continue
            try:
                await self._round(node_id, client)
                state.rounds += 1
            except HivefsError as error:
                if not error.transient:
                    raise
                state.lost += 1
                await trio.sleep(0.1)

    async def _round(self, node_id: NodeId, client: NodeClient) -> None:
        share_id, data = share(50_000)
        await client.put(share_id, data, lease())
        if await client.get(share_id) != data:
            raise AssertionError("other bytes")
        if self.states[node_id].rounds % KEPT:
            await client.delete([share_id])
        else:
            self._kept[node_id].append(share_id)

    def say(self, **more: object) -> None:
        for node_id, state in self.states.items():
            state.online = self._pool.client(node_id) is not None
        states = {node_id.hex(): asdict(state) for node_id, state in self.states.items()}
        print(json.dumps({**states, "at": time.monotonic(), **more}), flush=True)

    async def read_back(self) -> int:
        """How many shares were read, and are what they were (NodeClient proves it by their ids)."""
        count = 0
        for node_id, kept in self._kept.items():
            client = self._pool.client(node_id)
            if client is None:
                raise AssertionError("a node is away")
            for share_id in kept:
                await client.get(share_id)
                count += 1
        return count


async def entries_of(conversations: Conversations, address: str) -> list[RosterEntry]:
    while True:
        async with conversations.with_address(address) as client:
            found = await client.get_roster()
        if len(found) == 2:
            assert all(entry_valid(entry, HIVE_KEY, time.time_ns()) for entry in found)
            return found
        await trio.sleep(0.2)


async def main(address: str) -> None:
    keys = VaultKeys(bytes(range(32)))

    async def greeted(_: NodeClient) -> None:
        pass

    async with Conversations.open(os.urandom(32), keys, HIVE_KEY, client_certificate(keys.owner_seed)) as conversations:
        with trio.fail_after(120):
            book = Book(await entries_of(conversations, address))
        pool = Pool(book, conversations.with_node, time.time_ns, Trust(book, time.time_ns, 86_400.0), greeted)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            client = Client(pool)

            async def tell() -> None:
                while True:
                    client.say()
                    await trio.sleep(0.2)

            async with trio.open_nursery() as workers:
                for node_id in pool.members:
                    workers.start_soon(client.work, node_id)
                workers.start_soon(tell)
                await trio.to_thread.run_sync(sys.stdin.buffer.read)
                workers.cancel_scope.cancel()
            client.say(read=await client.read_back())
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
