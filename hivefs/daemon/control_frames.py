"""The frames of control sockets; what they mean is at the head of daemon/control.py."""

from __future__ import annotations

import struct
from typing import Any, Final

import cbor2
import trio

from hivefs.errors import HivefsError

VERSION: Final = 2
CALL, RESULT, ERROR, PROGRESS, CANCEL = range(5)
MAX_FRAME: Final = 32 << 20
_LENGTH = struct.Struct(">I")


class Encoded:
    """A value that is CBOR already: a long one that another process has made is not taken apart in this one's loop."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def value(self) -> Any:
        """What it says."""
        return cbor2.loads(self.data)


class Frames:
    """Frames over a stream; sending is one frame at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()

    async def send(self, call: int, kind: int, name: str, value: Any) -> None:
        if isinstance(value, Encoded):
            head = cbor2.dumps([VERSION, call, kind, name, None])
            data = head[:-1] + value.data  # in the place of the null, which is one byte and the last
        else:
            data = cbor2.dumps([VERSION, call, kind, name, value])
        if len(data) > MAX_FRAME:
            raise HivefsError(detail=f"an answer of {len(data)} bytes to '{name}' is too long")
        async with self._sending:
            await self._stream.send_all(_LENGTH.pack(len(data)) + data)

    async def receive(self) -> tuple[int, int, int, str, Any] | None:
        """(version, id, kind, name, value); None at the end. ValueError for what is no frame."""
        head = await self._exactly(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MAX_FRAME:
            raise ValueError("frame too long")
        data = await self._exactly(length)
        if data is None:
            return None
        try:
            frame = cbor2.loads(data)
        except (cbor2.CBORDecodeError, EOFError, RecursionError, MemoryError) as error:
            raise ValueError("not CBOR") from error
        if not isinstance(frame, list) or len(frame) != 5 or not all(isinstance(x, int) for x in frame[:3]):
            raise ValueError("not a frame")
        if not isinstance(frame[3], str):
            raise ValueError("not a frame")
        return frame[0], frame[1], frame[2], frame[3], frame[4]

    async def _exactly(self, length: int) -> bytes | None:
        while len(self._buffer) < length:
            piece = await self._stream.receive_some()
            if not piece:
                return None
            self._buffer += piece
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
