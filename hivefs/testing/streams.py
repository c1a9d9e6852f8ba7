"""Two ends of a stream in memory, with the behaviour of the transport's streams: bounded buffer, end, reset, peer keys."""

from __future__ import annotations

from collections import deque

import trio

from hivefs.errors import ConnectionLost

WINDOW_BYTES = 1 << 20


class _Pipe:
    """One direction."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.pieces: deque[memoryview] = deque()
        self.held = 0
        self.ended = False
        self.broken = False
        self.changed = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self.changed.unpark_all()


class MemoryStream:
    """One end; made by ``stream_pair``. ``received_bytes`` and ``sent_bytes`` count, for tests.
    ``unsent`` is what a test says has not left this machine yet of the bytes that were sent.
    """

    def __init__(self, peer_key: bytes, inbound: _Pipe, outbound: _Pipe) -> None:
        self.peer_key = peer_key
        self.site = "memory", "memory"
        self.sent_bytes = 0
        self.received_bytes = 0
        self.unsent = 0
        self._in = inbound
        self._out = outbound
        self._sending = False

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(peer=self.peer_key.hex()[:12], reason="the stream was reset")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Returns when the other end's window has taken all of it. Raises ConnectionLost."""
        await trio.lowlevel.checkpoint()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            view = memoryview(data)
            while view:
                if self._out.broken or self._out.ended:
                    raise self._lost()
                room = self._out.window - self._out.held
                if room <= 0:
                    await self._out.changed.park()
                    continue
                piece = view[:room]
                # Copied, as a wire would: the sender may change its buffer afterwards.
                self._out.pieces.append(memoryview(bytes(piece)))
                self._out.held += len(piece)
                self.sent_bytes += len(piece)
                self._out.wake()
                view = view[len(piece) :]
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int = 262144) -> bytes:
        """1 to ``max_bytes`` bytes; b"" at the end. Raises ConnectionLost after a reset."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._in.broken:
                raise self._lost()
            if self._in.pieces:
                break
            if self._in.ended:
                return b""
            await self._in.changed.park()
        taken: list[memoryview] = []
        left = max_bytes
        while left and self._in.pieces:
            piece = self._in.pieces.popleft()
            if len(piece) > left:
                self._in.pieces.appendleft(piece[left:])
                piece = piece[:left]
            taken.append(piece)
            left -= len(piece)
        data = b"".join(taken)
        self._in.held -= len(data)
        self.received_bytes += len(data)
        self._in.wake()
        return data

    async def receive_pieces(self, max_bytes: int = 262144) -> list[bytes | bytearray]:
        """What receive_some gives, as a list; [] at the end."""
        data = await self.receive_some(max_bytes)
        return [data] if data else []

    def accepted(self) -> int:
        """Bytes sent so far."""
        return self.sent_bytes

    def departed(self) -> int:
        """The same but for ``unsent``."""
        return self.sent_bytes - self.unsent

    async def aclose(self) -> None:
        """The other end reads what was sent, then the end; what it sends from now on fails."""
        self._out.ended = True
        self._in.broken = True
        self._out.wake()
        self._in.wake()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Both directions break now."""
        self._out.broken = self._in.broken = True
        self._out.wake()
        self._in.wake()
        await trio.lowlevel.checkpoint()


def stream_pair(a_key: bytes, b_key: bytes, window: int = WINDOW_BYTES) -> tuple[MemoryStream, MemoryStream]:
    """The end that the peer with ``a_key`` holds, and that of ``b_key``."""
    there, back = _Pipe(window), _Pipe(window)
    return MemoryStream(b_key, back, there), MemoryStream(a_key, there, back)
