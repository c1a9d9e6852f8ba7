"""A TCP socket with the face of py-libp2p's IRawConnection, for everything before the first frame.

The standard library's socket rather than trio's: the hot path reads and writes without waiting, and asks trio only
when the kernel has nothing to give (`trio.lowlevel.wait_readable`).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import socket
import struct
from pathlib import Path
from typing import Any

import trio
from libp2p.abc import IRawConnection
from libp2p.io.exceptions import IOException

MAX_NEGOTIATION_READ = 64 * 1024
"""py-libp2p reads a message of any announced length (utils/varint.py read_delim); nothing honest comes near this."""

UNSENT_LOW_WATER = 256 * 1024
"""Bytes that may wait unsent in the kernel: enough to keep the line busy, and a ping is not stuck behind megabytes."""

MOST_TOGETHER = 20 * 1024
"""Bytes that are waited for before the reader is woken, at most: a record of TLS with some bytes to spare."""

RELAYED = "relayed"
"""Stands for the IP address of a peer behind a relay, which we do not know."""

_SIOCOUTQNSD = 0x894B
_INT = struct.Struct("=i")
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def congestion_control(host: str, allowed: str) -> bytes | None:
    """The congestion control for a connection to ``host``, None for the system's own. ``allowed`` is what the system lets
    ordinary users choose, names with spaces between.

    BBR where that is allowed: on a line that loses one packet in a hundred over 100 ms, what the usual CUBIC gets is some
    thirtieth of 50 Mbit/s, and BBR most of it (docs/performance.md). Not on this machine itself, where nothing is lost.
    """
    try:
        far = not ipaddress.ip_address(host).is_loopback
    except ValueError:
        far = False
    return b"bbr" if far and "bbr" in allowed.split() else None


@functools.cache
def _allowed() -> str:
    try:
        return _ALLOWED.read_text()
    except OSError:
        return ""


class EndOfConnection(IOException):  # type: ignore[misc]
    """The connection ended, or must end, during the negotiation. An IOException so that py-libp2p understands it."""


class RawSocket(IRawConnection):  # type: ignore[misc]
    """Owns the socket until `abort`."""

    def __init__(self, stream: trio.SocketStream, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.remote_host, self.remote_port = _remote(stream)
        self.socket = socket.socket(fileno=stream.socket.detach())
        self.socket.setblocking(False)
        self._wakes_at = 1
        if self.socket.family == socket.AF_UNIX:
            return  # one end of a pair: the other leads through a relay
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_LOW_WATER)
        chosen = congestion_control(self.remote_host, _allowed())
        if chosen is not None:
            with contextlib.suppress(OSError):  # allowed and not there after all: the system's own does it too
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, chosen)

    async def readable(self) -> None:
        """Wait for bytes, an end or an error to read."""
        await trio.lowlevel.wait_readable(self._open_file())

    def wake_at(self, count: int) -> None:
        """From now on ``readable`` returns when so many bytes are there (or MOST_TOGETHER, an end or an error). On a slow
        line a record comes in a dozen packets, and each would wake a task that can do nothing yet. May be called while
        a task waits: it is woken when what is there is enough by the new number.
        """
        count = min(count, MOST_TOGETHER)
        if count != self._wakes_at and self.socket.fileno() >= 0 and self.socket.family != socket.AF_UNIX:
            self._wakes_at = count
            with contextlib.suppress(OSError):  # closed by the other end: that wakes whoever waits
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)

    async def writable(self) -> None:
        """Wait until the kernel takes bytes again."""
        await trio.lowlevel.wait_writable(self._open_file())

    def _open_file(self) -> int:
        file = self.socket.fileno()
        if file < 0:
            raise trio.ClosedResourceError
        return file

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes; raises at the end, because py-libp2p would ask an ended stream 100 times."""
        if n is None or not 0 < n <= MAX_NEGOTIATION_READ:
            raise EndOfConnection("a negotiation message is too long")
        while True:
            try:
                data = self.socket.recv(n)
            except (BlockingIOError, InterruptedError):
                await self.readable()
            else:
                break
        if not data:
            raise EndOfConnection("the other end closed the connection")
        return data

    async def write(self, data: bytes) -> None:
        """All of ``data``."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except (BlockingIOError, InterruptedError):
                await self.writable()

    async def close(self) -> None:
        """Close the socket; py-libp2p calls this when it gives up on a connection."""
        self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Close the socket now; a task that waits for it gets trio.ClosedResourceError."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket.fileno())
            self.socket.close()

    def unsent(self) -> int:
        """Bytes that the kernel took and has not sent once yet; 0 where it does not tell."""
        try:
            return _INT.unpack(fcntl.ioctl(self.socket, _SIOCOUTQNSD, bytes(_INT.size)))[0]  # type: ignore[no-any-return]
        except (OSError, ValueError):  # no Linux, or closed
            return 0

    def end_writing(self) -> None:
        """Tell the other end that nothing more comes."""
        with contextlib.suppress(OSError):  # it is gone already, or was closed: both are what the caller wants
            self.socket.shutdown(socket.SHUT_WR)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the other end is, in the form py-libp2p wants."""
        return self.remote_host, self.remote_port

    def get_transport_addresses(self) -> list[Any]:
        """Part of py-libp2p's interface; nothing here asks for it."""
        return []

    def get_connection_type(self) -> Any:
        """Part of py-libp2p's interface; nothing here asks for it."""
        raise NotImplementedError


def _remote(stream: trio.SocketStream) -> tuple[str, int]:
    if stream.socket.family == socket.AF_UNIX:
        return RELAYED, 0
    name = stream.socket.getpeername()
    host = str(name[0]).partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host, int(name[1])
