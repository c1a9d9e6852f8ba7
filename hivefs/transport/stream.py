"""A stream as other rooms see it: waits for what `yamux.MuxStream` decides."""

from __future__ import annotations

from typing import Protocol

import trio

from .mux_stream import MuxStream, fresh
from .raw import MAX_NEGOTIATION_READ, EndOfConnection
from .sites import Site, site_of

HIGH_WATER = 512 * 1024
"""Sealed bytes that may wait for the kernel before senders wait too."""


class Outlet(Protocol):
    """What a stream needs of its connection."""

    peer_key: bytes
    remote: tuple[str, int]

    def push(self) -> None:
        """Something was put; see that it leaves."""

    async def room(self) -> None:
        """Wait until the backlog is below the high-water mark."""

    def accepted(self) -> int:
        """A count that grows with every byte put."""

    def departed(self) -> int:
        """As far as the same count has left this machine."""


class Stream:
    """One bidirectional stream of bytes. One task may send and one may receive at a time.

    ``receive_some`` returns b"" at the clean end only, which the other end's closing proves; a lost connection and a
    reset raise ConnectionLost, a frozen peer PeerTimeout. A cancelled ``send_all`` leaves the stream with an unknown
    part of the data sent: reset it.
    """

    def __init__(self, connection: Outlet, mux: MuxStream) -> None:
        self.peer_key = connection.peer_key
        self.remote = connection.remote
        self.site: Site = site_of(connection.remote[0])
        self._connection = connection
        self._mux = mux
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._sending = False
        self._receiving = False
        mux.wake_reader = self._wake_reader
        mux.wake_writer = self._wake_writer

    def is_on(self, connection: Outlet) -> bool:
        """Whether it is a stream of that connection."""
        return self._connection is connection

    def _wake_reader(self) -> None:
        if self._readable:
            self._readable.unpark_all()

    def _wake_writer(self) -> None:
        if self._writable:
            self._writable.unpark_all()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Accept all of ``data``. Returns when it is sealed, not when it arrived; ``data`` is free again."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            mux, connection = self._mux, self._connection
            view = memoryview(data)
            if view.itemsize != 1:
                view = view.cast("B")
            while True:
                await connection.room()
                sent = mux.send(view)
                if sent:
                    connection.push()
                view = view[sent:]
                if not view:
                    return
                if not mux.send_window:
                    await self._writable.park()
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int = 262144) -> bytes:
        """Between 1 and ``max_bytes`` bytes as soon as there are any; b"" when the other end closed its side."""
        if not await self._something(max_bytes):
            return b""
        data = self._mux.take(max_bytes)
        self._connection.push()
        return data

    async def receive_pieces(self, max_bytes: int = 262144) -> list[bytes | bytearray]:
        """The same in the pieces in which it came, which saves a copy of all of it; [] when the other end closed its side.
        The last piece may go beyond ``max_bytes``. The pieces are the caller's.
        """
        if not await self._something(max_bytes):
            return []
        pieces = self._mux.take_pieces(max_bytes)
        self._connection.push()
        return pieces

    async def _something(self, max_bytes: int) -> bool:
        """Wait until something can be read; False at the clean end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        self._receiving = True
        try:
            mux = self._mux
            while not mux.buffered:
                if mux.got_fin:
                    return False
                if mux.failure is not None:
                    raise fresh(mux.failure)
                await self._readable.park()
            return True
        finally:
            self._receiving = False

    def accepted(self) -> int:
        """A count that grows with every byte sent on the connection, also by other streams."""
        return self._connection.accepted()

    def departed(self) -> int:
        """As far as the same count has left this machine: behind our own upload some 768 KiB may still wait here, and on
        a slow line that takes longer than any answer. A system call.
        """
        return self._connection.departed()

    async def send_eof(self) -> None:
        """Close our direction only; the answer can still be received."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._mux.finish()
        self._connection.push()

    async def aclose(self) -> None:
        """Close our direction and let go of the stream. What was sent still arrives; what was not read is dropped."""
        self._mux.release()
        self._connection.push()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Abort both directions now; the other end's calls raise ConnectionLost."""
        self._mux.reset("this stream was reset on this side")
        self._connection.push()
        await trio.lowlevel.checkpoint()

    # ---- the names py-libp2p's negotiation uses -------------------------------------------------------------

    async def read(self, n: int) -> bytes:
        """For the protocol negotiation; an end in the middle of it raises."""
        if not 0 < n <= MAX_NEGOTIATION_READ:
            raise EndOfConnection("a negotiation message is too long")
        data = await self.receive_some(n)
        if not data:
            raise EndOfConnection("the stream ended")
        return data

    async def write(self, data: bytes) -> None:
        """For the protocol negotiation."""
        await self.send_all(data)
