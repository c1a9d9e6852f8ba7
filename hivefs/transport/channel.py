"""A proved and encrypted connection below the multiplexer, whatever protects it.

A channel never waits. It takes plaintext, keeps ciphertext, and says what is pending; the connection's own tasks wait
for the socket. That is why a cancelled sender cannot leave half a record on the wire, and why a small message costs no
task switch of its own.

    sender --put()--> plain --seal--> sealed pieces --flush()--> socket
    socket --fill()--> opened --> the caller's function

The buffer for what comes from a socket is shared by all channels of a process, since there are several hundred idle
peers; nobody keeps a view of it across a checkpoint.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from .raw import RawSocket

SLICE = 64 * 1024
READ_SIZE = 256 * 1024
RECORD = 8 * 1024 + 32
MIDDLE = 64 * 1024
"""Bodies up to MIDDLE are sealed in pieces of RECORD bytes. The other end can open a piece only as a whole, and larger ones
keep the first segment of a chunk waiting for another round trip on a line where TCP begins with 14 KiB. Four of these hold
that segment with its tag (32 KiB and 16 bytes), which with pieces of 8 KiB waited for a fifth."""

SMALL = 8 * 1024
"""Bodies up to here are copied behind their header, so that many of them share one record."""

cipher_scratch = memoryview(bytearray(READ_SIZE))


class WrongPeer(Exception):
    """The handshake proved another key than the address names; ``found`` is that key."""

    def __init__(self, found: bytes) -> None:
        super().__init__(found.hex())
        self.found = found


class HandshakeProblem(Exception):
    """The other end did not prove a usable identity."""


class Channel(ABC):
    """One connection: seals and opens synchronously, keeps what the socket has not taken yet.

    Every method of the hot path raises OSError when the connection is broken or what came was not sealed by the peer.
    """

    security: str
    """The libp2p protocol that protects it."""

    slice_size: int
    """Bytes of plaintext that are sealed in one go."""

    peer_key: bytes
    remote_public_key: Any

    def __init__(self, raw: RawSocket) -> None:
        self.raw = raw
        self.is_initiator = raw.is_initiator
        self._socket: socket.socket = raw.socket
        self._plain = bytearray()
        self._sealed: deque[bytes | memoryview] = deque()
        self._sealed_bytes = 0
        self.flushed = 0
        """Bytes that the kernel took so far."""

    # ---- negotiation: waits, under the caller's deadline ----------------------------------------------------

    @abstractmethod
    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes of plaintext, for py-libp2p's negotiation; raises at the end instead of returning b""."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """All of ``data``, for py-libp2p's negotiation."""

    async def close(self) -> None:
        """Drop the connection; py-libp2p calls this when it gives up on one."""
        self.abort()
        await trio.lowlevel.checkpoint()

    # ---- the hot path: never waits --------------------------------------------------------------------------

    @abstractmethod
    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        """Seal all of ``data`` and keep it."""

    @abstractmethod
    def open_buffered(self, consume: Callable[[memoryview], None]) -> bool:
        """Hand all plaintext that is there without the socket to ``consume``; False when the peer said goodbye."""

    @abstractmethod
    def fill(self, consume: Callable[[memoryview], None]) -> int | None:
        """One read from the socket, opened, into ``consume``. Bytes read, 0 at the end, None when there are none."""

    @property
    @abstractmethod
    def missing(self) -> int:
        """Bytes that must come before anything more can be opened, at least 1."""

    @abstractmethod
    def say_goodbye(self) -> None:
        """Seal everything accepted so far, and behind it what says that nothing more comes, where there is such a thing."""

    @property
    def backlog(self) -> int:
        """Bytes accepted and not yet taken by the kernel."""
        return self._sealed_bytes + len(self._plain)

    def put(self, head: bytes, body: bytes | memoryview = b"") -> None:
        """Accept a frame. A large body is sealed from where it lies, without a copy."""
        self._plain += head
        size = len(body)
        if size <= SMALL:
            self._plain += body
            if len(self._plain) >= self.slice_size:
                self._seal_plain()
            return
        self._seal_plain()
        view, step = memoryview(body), self.slice_size if size > MIDDLE else RECORD
        for start in range(0, size, step):
            self._seal(view[start : start + step])

    def _seal_plain(self) -> None:
        if self._plain:
            self._seal(self._plain)
            self._plain = bytearray()

    def _keep(self, sealed: bytes) -> None:
        self._sealed.append(sealed)
        self._sealed_bytes += len(sealed)

    def flush(self) -> None:
        """Give the kernel what it takes now; raises OSError when the connection is gone."""
        self._seal_plain()
        sealed = self._sealed
        while sealed:
            try:
                # 16 pieces are 1 MiB, more than a flush usually finds
                sent = self._socket.sendmsg([sealed[i] for i in range(min(len(sealed), 16))])
            except (BlockingIOError, InterruptedError):
                return
            self._sealed_bytes -= sent
            self.flushed += sent
            while sent:
                first = sealed[0]
                if sent < len(first):
                    sealed[0] = memoryview(first)[sent:]
                    return
                sent -= len(first)
                sealed.popleft()

    def abort(self) -> None:
        """Close the socket now and drop what was accepted."""
        self._sealed.clear()
        self._plain.clear()
        self._sealed_bytes = 0
        self.raw.abort()
