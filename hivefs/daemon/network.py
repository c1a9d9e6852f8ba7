"""Conversations with nodes: the transport's streams under the client's greeting. Importing this imports libp2p."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.crypto.keys import VaultKeys
from hivefs.errors import HivefsError, PeerIdentityMismatch, PeerUnreachable
from hivefs.model.node import Membership, RosterEntry
from hivefs.transport import Host, open_host

DIAL_SECONDS = 8.0


class Conversations:
    """Opens conversations as the owner of one vault. ``hive_key`` and ``membership`` are None during a recovery.
    ``revoked`` may be set: a node whose certificate it covers is not spoken to. With ``relays`` a node that none of its
    own addresses leads to is reached through the relays that it names.
    """

    def __init__(self, host: Host, keys: VaultKeys, hive_key: bytes | None, membership: Membership | None) -> None:
        self._host = host
        self.revoked: Callable[[Membership], bool] = lambda membership: False
        self.relays = False
        self._credentials = credentials(
            keys.owner_seed, host.peer_key, hive_key, membership, lambda node: self.revoked(node)
        )

    @staticmethod
    @asynccontextmanager
    async def open(
        device_seed: bytes, keys: VaultKeys, hive_key: bytes | None, membership: Membership | None
    ) -> AsyncIterator[Conversations]:
        """A host of its own (it listens nowhere) under the device's key."""
        async with open_host(device_seed) as host:
            yield Conversations(host, keys, hive_key, membership)

    @asynccontextmanager
    async def with_address(self, address: str) -> AsyncIterator[NodeClient]:
        """A conversation with the node at an address. Raises HivefsError."""
        connection = await self._host.dial(address, timeout=DIAL_SECONDS)
        try:
            stream = await connection.open_stream(PROTOCOL)
            async with converse(stream, self._credentials, time.time_ns()) as client:
                yield client
        finally:
            await connection.aclose()

    @asynccontextmanager
    async def with_node(self, entry: RosterEntry) -> AsyncIterator[NodeClient]:
        """The same at the first address of the node that answers, else through the first relay that does."""
        problem: HivefsError = PeerUnreachable(address=entry.membership.subject.hex()[:12], reason="it has told no address")
        told = entry.address
        ways = [(address, False) for address in told.reachable]
        ways += [(relay, True) for relay in told.relays if self.relays]
        for address, relayed in ways:
            try:
                if relayed:
                    connection = await self._host.dial_through(address, told.node_id, timeout=DIAL_SECONDS)
                else:
                    connection = await self._host.dial(address, timeout=DIAL_SECONDS)
            except HivefsError as error:
                problem = error
                continue
            try:
                stream = await connection.open_stream(PROTOCOL)
                async with converse(stream, self._credentials, time.time_ns()) as client:
                    _same_node(client, entry, address)
                    client.relayed, client.way = relayed, address
                    yield client
                    return
            finally:
                await connection.aclose()
        raise problem


def _same_node(client: NodeClient, entry: RosterEntry, address: str) -> None:
    """A node tells its own addresses, and could tell those of another: then one node would be counted as two."""
    expected = entry.membership.subject
    if client.node_id != expected:
        raise PeerIdentityMismatch(address=address, expected=expected.hex()[:12], found=client.node_id.hex()[:12])
