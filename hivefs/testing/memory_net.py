"""A network of hosts in one process: dialling joins two ends of streams.stream_pair. The shape of transport.open_host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from hivefs.crypto.keys import public_key
from hivefs.errors import HivefsError, PeerUnreachable, Refused
from hivefs.testing.streams import MemoryStream, stream_pair

Handler = Callable[[MemoryStream], Awaitable[None]]


class MemoryConnection:
    """One dialled connection; ``streams`` are our ends of its streams."""

    def __init__(self, own_key: bytes, other: MemoryHost) -> None:
        self.peer_key = other.peer_key
        self.streams: list[MemoryStream] = []
        self._own_key = own_key
        self._other = other

    async def open_stream(self, protocol: str) -> MemoryStream:
        """Raises Refused when the other host does not speak ``protocol``."""
        await trio.lowlevel.checkpoint()
        if protocol not in self._other.handlers:
            raise Refused(peer=self.peer_key.hex()[:12], reason=f"it does not speak {protocol}")
        mine, theirs = stream_pair(self._own_key, self.peer_key)
        self.streams.append(mine)
        self._other.accept(protocol, theirs)
        return mine

    async def aclose(self) -> None:
        """Close all its streams."""
        for stream in self.streams:
            await stream.aclose()


class MemoryHost:
    """Made by MemoryNetwork.open_host."""

    def __init__(self, network: MemoryNetwork, key: bytes, handlers: Mapping[str, Handler], nursery: trio.Nursery) -> None:
        self.peer_key = key
        self.addresses = [network.address(key)]
        self.handlers = dict(handlers)
        self._network = network
        self._nursery = nursery

    def accept(self, protocol: str, stream: MemoryStream) -> None:
        """A peer opened a stream."""
        self._nursery.start_soon(self._handle, self.handlers[protocol], stream)

    def announce(self, addresses: Sequence[str]) -> None:
        """Nobody asks for them here."""

    @staticmethod
    async def _handle(handler: Handler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
            await stream.aclose()
        except HivefsError:
            await stream.reset()

    async def dial(self, address: str, *, timeout: float = 10.0) -> MemoryConnection:
        """Raises PeerUnreachable when nobody listens there."""
        await trio.lowlevel.checkpoint()
        other = self._network.hosts.get(address)
        if other is None:
            raise PeerUnreachable(address=address, reason="nobody listens there")
        return MemoryConnection(self.peer_key, other)


class MemoryNetwork:
    """``hosts`` by address; taking one out makes its node unreachable."""

    def __init__(self) -> None:
        self.hosts: dict[str, MemoryHost] = {}

    @staticmethod
    def address(key: bytes) -> str:
        """The address under which the host with this key listens."""
        return f"/memory/{key.hex()}"

    @asynccontextmanager
    async def open_host(
        self, seed: bytes, *, listen: Sequence[str] = (), handlers: Mapping[str, Handler] = {}
    ) -> AsyncIterator[MemoryHost]:
        """A host for as long as the block runs; it can be dialled if it listens anywhere."""
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            host = MemoryHost(self, public_key(seed), handlers, nursery)
            if listen:
                self.hosts[host.addresses[0]] = host
            try:
                yield host
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
                failure = error
            finally:
                self.hosts.pop(host.addresses[0], None)
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
