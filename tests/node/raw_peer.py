"""A peer that sends a node what it likes, byte by byte; and how patient nodes are in these tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hive_tools import HIVE_KEY, client_certificate, seed_of

from hivefs.chunkstore.node_client import PROTOCOL, credentials
from hivefs.errors import ConnectionLost
from hivefs.node.session import Bounds
from hivefs.protocol import failures, frames
from hivefs.protocol.client_side import ClientHandshake
from hivefs.protocol.failures import Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind
from hivefs.testing.memory_net import MemoryNetwork
from hivefs.testing.streams import MemoryStream

PATIENT = Bounds(greeting_seconds=60.0, frame_seconds=60.0, idle_seconds=60.0, send_seconds=60.0)
SHORT = replace(PATIENT, frame_seconds=0.3, idle_seconds=0.6, send_seconds=0.5)
"""A greeting takes as long as the machine lets it: who is to come in does, whatever the machine does meanwhile."""


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder(frozenset(Kind))

    async def send(self, *sent: Frame | bytes) -> None:
        for item in sent:
            await self.stream.send_all(item if isinstance(item, bytes) else frames.to_bytes(item))

    async def receive(self) -> Frame | None:
        """The next frame, None at the end of the conversation."""
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await self.stream.receive_some()
            except ConnectionLost:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return frame

    async def refusal(self) -> Refusal:
        """The next frame, which must be a refusal of the whole conversation, after which it ends."""
        frame = await self.receive()
        assert frame is not None and frame.kind == Kind.FAILURE and frame.request == 0
        assert await self.receive() is None
        return failures.from_header(frame.header)

    async def login(self, owner: str = "owner") -> None:
        seed = seed_of(owner)
        who = credentials(seed, self.own_key, HIVE_KEY, client_certificate(seed))
        handshake = ClientHandshake(who, self.stream.peer_key)
        outgoing: Frame | None = handshake.hello()
        while outgoing is not None:
            await self.send(outgoing)
            frame = await self.receive()
            assert frame is not None
            outgoing = handshake.receive(frame, time.time_ns())

    own_key = b""


@asynccontextmanager
async def raw(network: MemoryNetwork, node_id: bytes, name: str = "raw") -> AsyncIterator[Raw]:
    async with network.open_host(seed_of(name)) as host:
        connection = await host.dial(network.address(node_id))
        peer = Raw(await connection.open_stream(PROTOCOL))
        peer.own_key = host.peer_key
        yield peer
