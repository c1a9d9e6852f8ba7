"""Joining two streams of bytes: what comes from one goes to the other, unread, until both have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

from hivefs.errors import ConnectionLost, PeerTimeout

PIECE: Final = 128 * 1024
"""Bytes that are held between the two, each way."""
HALF_SECONDS: Final = 10.0
"""For so long one direction may go on when the other has ended: HiveFS's connections end both at once."""

GONE: Final = (ConnectionLost, PeerTimeout, OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What either end raises when it is lost."""


class End(Protocol):
    """A `Stream` or a trio.SocketStream."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int) -> bytes | bytearray: ...
    async def send_eof(self) -> None: ...


class Limit(Exception):
    """Raised by ``count``: no more may pass."""


async def splice(one: End, other: End, count: Callable[[int], None] = lambda size: None) -> bool:
    """True when both directions ended cleanly; False when an end was lost, fell silent half-closed, or ``count``, which
    hears of every byte before it passes on, raised Limit. Closes neither.
    """
    clean = True
    ended = 0
    async with trio.open_nursery() as nursery:

        async def pass_on(source: End, sink: End) -> None:
            nonlocal clean, ended
            try:
                while data := await source.receive_some(PIECE):
                    count(len(data))
                    await sink.send_all(bytes(data))
                await sink.send_eof()
            except (*GONE, Limit):
                clean = False
                nursery.cancel_scope.cancel()
            ended += 1
            if ended == 1:
                nursery.cancel_scope.deadline = trio.current_time() + HALF_SECONDS

        nursery.start_soon(pass_on, one, other)
        nursery.start_soon(pass_on, other, one)
    return clean and ended == 2
