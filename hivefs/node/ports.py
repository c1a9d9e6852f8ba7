"""What a node needs of a transport; daemon wiring passes hivefs.transport.open_host, tests a network in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from hivefs.protocol.stream import ByteStream

Handler = Callable[[ByteStream], Awaitable[None]]


class Connection(Protocol):
    """A proved connection to one peer."""

    async def open_stream(self, protocol: str) -> ByteStream: ...

    async def aclose(self) -> None: ...


class Host(Protocol):
    """Our end of the network. ``addresses`` are those listened on, with our peer id at their end; ``announce`` says what
    strangers are told, which is nothing before it."""

    @property
    def peer_key(self) -> bytes: ...

    @property
    def addresses(self) -> list[str]: ...

    def announce(self, addresses: Sequence[str]) -> None: ...

    async def dial(self, address: str, *, timeout: float = ...) -> Connection: ...


class Lan(Protocol):
    """Tells the local network where this node listens, and calls ``found`` for addresses of others, until cancelled."""

    def __call__(self, hive_key: bytes, addresses: Sequence[str], found: Callable[[str], None]) -> Awaitable[None]: ...


class Serve(Protocol):
    """Opens a host under the key of ``seed`` for as long as the block runs."""

    def __call__(
        self, seed: bytes, *, listen: Sequence[str] = ..., handlers: Mapping[str, Handler] = ...
    ) -> AbstractAsyncContextManager[Host]: ...
