"""Who reads from a slow line is woken when something can be opened, and not for each packet."""

from __future__ import annotations

import fcntl
import os
import random
import ssl
import struct
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from hivefs.errors import PeerTimeout
from hivefs.transport import Limits, open_host
from hivefs.transport.noise import NoiseChannel
from hivefs.transport.raw import MOST_TOGETHER
from hivefs.transport.tls import TlsChannel

RECORD = 16_384


@pytest.mark.parametrize("seed", range(20))
def test_how_much_is_missing_of_a_record_is_always_known(seed: int) -> None:
    chance = random.Random(seed)
    raw = SimpleNamespace(is_initiator=True, socket=None)
    channel = TlsChannel(raw, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_side=False)
    sizes = [chance.choice([0, 1, 2, chance.randrange(400), chance.randrange(16_640)]) for _ in range(40)]
    ends, data = [0], b""
    for size in sizes:
        ends += [len(data) + 5, len(data) + 5 + size]
        data += struct.pack(">BHH", 23, 0x303, size) + bytes(size)
    at = 0
    while at < len(data):
        assert channel.missing == min(end for end in [*ends, len(data) + 5] if end > at) - at
        cut = at + chance.choice([1, 2, 5, 1448, 70_000])
        channel._came(memoryview(data)[at:cut])
        at = min(cut, len(data))
    assert channel.missing == 5


def test_how_much_is_missing_of_a_message_of_noise() -> None:
    channel = NoiseChannel(SimpleNamespace(is_initiator=True, socket=None))
    for came, missing in [(b"", 2), (b"\x01", 1), (b"\x01\x02", 258), (b"\x01\x02" + bytes(200), 58)]:
        channel._partial = bytearray(came)
        assert channel.missing == missing


class Line:
    """Between a server and its client: passes on what it may of what the server sends, ``step`` bytes at a time."""

    def __init__(self) -> None:
        self.allowed = 0
        self.step = 1 << 20
        self.free = True
        self._changed = trio.Event()

    def allow(self, count: int) -> None:
        self.free = False
        self.allowed += count
        self._changed.set()

    def open(self) -> None:
        self.free = True
        self._changed.set()

    async def serve(self, near: trio.SocketStream, port: int) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._up, near, far)
            try:
                while data := await far.receive_some(65_536):
                    while data:
                        while not (self.free or self.allowed):
                            self._changed = trio.Event()
                            await self._changed.wait()
                        count = self.step if self.free else min(self.step, self.allowed)
                        self.allowed = max(0, self.allowed - len(data[:count]))
                        await near.send_all(data[:count])
                        data = data[count:]
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _up(near: trio.SocketStream, far: trio.SocketStream) -> None:
        try:
            while data := await near.receive_some(65_536):
                await far.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def over(line: Line, kit, limits: Limits) -> AsyncIterator[object]:
    """A connection over a line to a host that echoes."""
    async with kit.server(limits=limits) as host, trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = int(host.addresses[0].split("/")[4])
        nursery.start_soon(trio.serve_listeners, lambda near: line.serve(near, port), listeners)
        here = listeners[0].socket.getsockname()[1]
        async with open_host(os.urandom(32), limits=limits) as client:
            yield await client.dial(host.addresses[0].replace(f"/tcp/{port}/", f"/tcp/{here}/"))
        nursery.cancel_scope.cancel()


def unread(connection) -> int:
    """Bytes that the kernel holds for it."""
    return struct.unpack("=i", fcntl.ioctl(connection._channel.raw.socket, termios.FIONREAD, bytes(4)))[0]


async def until(what) -> None:
    """Real time, as long as it takes; the test is bounded."""
    while not what():
        await trio.to_thread.run_sync(time.sleep, 0.005)


def test_a_reader_is_not_woken_by_each_packet(kit, run, security):
    """However fast or slowly the pieces come: nobody is woken before a header or a whole record is there."""

    async def test():
        line = Line()
        async with over(line, kit, Limits(keepalive_interval=3600, keepalive_timeout=3600)) as connection:
            stream = await connection.open_stream("/echo/1")
            line.step = 100
            before = connection._reads
            sent = os.urandom(20 * RECORD)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, sent)
                assert await kit.receive_exactly(stream, len(sent)) == sent
            # Some 3300 pieces. Of each record at most its header and its end wake; records of windows and heads are
            # among them, and one of Noise is waited for in parts.
            parts = len(sent) // MOST_TOGETHER + 1 if security == "/noise" else 0
            assert connection._reads - before <= 2 * 3 * 20 + parts
            await stream.aclose()

    run(test)


def test_half_a_record_is_a_sign_of_life(kit, run):
    """It wakes nobody while nobody doubts that the other end lives. In doubt each byte counts, and when none comes more
    the other end is given up.
    """
    clock = trio.testing.MockClock()

    async def test():
        line, limits = Line(), Limits()
        async with over(line, kit, limits) as connection:
            try:
                await look(connection, line, limits)
            finally:
                line.open()  # or nobody could say goodbye
                clock.rate = 100.0

    async def look(connection, line, limits):
        stream = await connection.open_stream("/echo/1")
        await kit.ask(connection, b"everything is read that was on its way")
        await trio.testing.wait_all_tasks_blocked(0.05)
        line.allow(0)
        await stream.send_all(os.urandom(RECORD))
        reads = connection._reads
        line.allow(3000)
        await until(lambda: connection._reads > reads)
        await trio.testing.wait_all_tasks_blocked(0.05)
        reads, more = connection._reads, unread(connection)
        line.allow(1000)
        await until(lambda: unread(connection) == more + 1000 or connection._reads > reads)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert connection._reads == reads, "a part of a record wakes nobody"
        for _ in range(4):
            before = connection._reads
            clock.jump(limits.keepalive_interval)  # it asks, and the answer is held up
            line.allow(1)
            await until(lambda before=before: connection._reads > before)
            clock.jump(limits.keepalive_timeout)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not connection.closed
        for _ in range(100):  # in small steps: whoever sees that much more time went by thinks that it stood still itself
            await trio.testing.wait_all_tasks_blocked(0.01)
            clock.jump(0.5)
        assert connection.closed
        with pytest.raises(PeerTimeout):
            await kit.receive_all(stream)

    run(test, clock=clock, seconds=100_000)  # of its own clock
