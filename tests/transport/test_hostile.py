"""Proved peers that break the protocol or try to make memory grow."""

from __future__ import annotations

import os
import struct

import pytest
import trio
import trio.testing
from libp2p.io.exceptions import IOException
from libp2p.peer.id import ID

from hivefs.errors import ConnectionLost
from hivefs.transport import Limits, open_host, peer_id_from_key, split_address

pytestmark = pytest.mark.usefixtures("security")  # over TLS and again over Noise

FRAME = struct.Struct("!BBHII")
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class Villain:
    """A libp2p peer with a good handshake and a hand-made multiplexer."""

    def __init__(self, host, channel):
        self.host = host
        self.channel = channel

    @classmethod
    async def reach(cls, host, address):
        ip, port, key = split_address(address)
        return cls(host, await host._reach(ip, port, ID.from_base58(peer_id_from_key(key))))

    async def send(self, *parts):
        await self.channel.write(b"".join(parts))

    async def closed(self):
        """Read until the connection ends."""
        try:
            while True:
                await self.channel.read(65536)
        except (IOException, OSError):
            self.channel.abort()


GARBAGE = {
    "random bytes": b"\xff" * 100,
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a frame of 4 GiB on a new stream": FRAME.pack(0, DATA, SYN, 1, 0xFFFFFFFF),
    "a frame of 4 GiB on no stream": FRAME.pack(0, DATA, 0, 7, 0xFFFFFFFF),
    "a frame beyond the window": FRAME.pack(0, DATA, SYN, 1, 262145),
    "another version": FRAME.pack(1, DATA, SYN, 1, 0),
    "an unknown type": FRAME.pack(0, 4, 0, 0, 0),
    "our stream number": FRAME.pack(0, UPDATE, SYN, 2, 0),
    "stream number 0": FRAME.pack(0, UPDATE, SYN, 0, 0),
    "a stream twice": FRAME.pack(0, UPDATE, SYN, 1, 0) * 2,
    "data behind the end": FRAME.pack(0, UPDATE, SYN | FIN, 1, 0) + FRAME.pack(0, DATA, 0, 1, 1) + b"x",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_after_the_handshake_ends_the_connection(kit, run, what):
    async def test():
        async with kit.server() as host, open_host(os.urandom(32)) as client:
            honest = await client.dial(host.addresses[0])
            villain = await Villain.reach(client, host.addresses[0])
            await villain.send(GARBAGE[what])
            await villain.closed()
            assert await kit.ask(honest, b"hello") == b"hello"

    run(test)


def test_garbage_in_the_place_of_what_is_sealed_ends_the_connection(kit, run, security):
    record = {"/tls/1.0.0": b"\x17\x03\x03\x00\x20", "/noise": b"\x00\x20"}

    async def test():
        async with kit.server() as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            await villain.channel.raw.write(record[security] + bytes(32))
            await villain.closed()
            assert await kit.ask(await client.dial(host.addresses[0]), b"hello") == b"hello"

    run(test)


def test_pings_without_reading_the_answers_end_the_connection(kit, run):
    async def test():
        limits = Limits(keepalive_interval=30, keepalive_timeout=30)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            pings = FRAME.pack(0, PING, SYN, 0, 1) * 5000
            with pytest.raises(OSError):
                while True:
                    await villain.send(pings)
            villain.channel.abort()
            while host._connections:
                await trio.sleep(0)

    run(test)


def test_unread_bytes_of_one_peer_are_bounded(kit, run):
    async def test():
        wait = trio.Event()

        async def deaf(stream):
            await wait.wait()

        most = 2 << 20
        limits = Limits(max_buffered_bytes=most)
        async with kit.server({"/deaf/1": deaf}, limits=limits) as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            hello = b"\x13/multistream/1.0.0\n\x08/deaf/1\n"
            for number in range(1, 101, 2):  # 50 streams full to their first window are 12 MiB
                body = hello + bytes(262144 - len(hello))
                await villain.send(FRAME.pack(0, DATA, SYN, number, len(body)), body)
            (session,) = (connection._session for connection in host._connections)
            while session.buffered <= most // 2:
                await trio.sleep(0.01)
            with trio.move_on_after(1):
                while True:
                    assert most // 2 < session.buffered <= most
                    await trio.sleep(0.01)
            wait.set()
            villain.channel.abort()

    run(test)


def test_who_holds_all_streams_makes_room_for_others(kit, run):
    """A peer that opens more streams than all may have loses its own; one that has few keeps them and gets new ones."""

    async def test():
        limits = Limits(max_streams=64, max_streams_in_total=100)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            honest = await client.dial(host.addresses[0])
            lasting = await honest.open_stream("/echo/1")
            villains = []
            for _ in range(2):
                villain = await Villain.reach(client, host.addresses[0])
                await villain.send(*(FRAME.pack(0, UPDATE, SYN, number, 0) for number in range(1, 129, 2)))
                villains.append(villain)
            while host._budget.streams < 100:
                await trio.sleep(0.01)

            async def asked() -> bytes:
                """While they open theirs, those that were reset are not all gone: the answer may be no for a moment."""
                while True:
                    try:
                        return await kit.ask(honest, b"hello")
                    except ConnectionLost as refused:
                        assert "reset the stream" in str(refused)
                        await trio.sleep(0.01)

            for _ in range(5):
                assert await asked() == b"hello"
                assert host._budget.streams <= 112
            await lasting.send_all(b"still")
            assert await kit.receive_exactly(lasting, 5) == b"still"
            for villain in villains:
                villain.channel.abort()

    run(test)


def test_unread_bytes_of_all_peers_are_bounded(kit, run):
    async def test():
        wait = trio.Event()

        async def deaf(stream):
            await wait.wait()

        most = 4 << 20
        limits = Limits(max_buffered_bytes=2 << 20, max_buffered_in_total=most)
        async with kit.server({"/deaf/1": deaf}, limits=limits) as host, open_host(os.urandom(32)) as client:
            honest = await client.dial(host.addresses[0])
            hello = b"\x13/multistream/1.0.0\n\x08/deaf/1\n"
            villains = []
            for _ in range(8):
                villain = await Villain.reach(client, host.addresses[0])
                for number in range(1, 15, 2):
                    body = hello + bytes(262144 - len(hello))
                    await villain.send(FRAME.pack(0, DATA, SYN, number, len(body)), body)
                if len(villains) < 4:  # those that stay count, those that hang up at once count too
                    villains.append(villain)
                else:
                    villain.channel.abort()
            message = os.urandom(300_000)
            for _ in range(10):
                assert await kit.ask(honest, message) == message
                assert sum(connection._session.buffered for connection in host._connections) <= most
            while host._budget.buffered != sum(connection._session.buffered for connection in host._connections):
                await trio.sleep(0.01)  # those that hung up are not all seen to have at once
            wait.set()
            for villain in villains:
                villain.channel.abort()

    run(test)


def test_tiny_frames_do_not_become_tiny_objects(kit, run):
    async def test():
        wait = trio.Event()

        async def deaf(stream):
            await wait.wait()

        async with kit.server({"/deaf/1": deaf}) as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            await villain.send(FRAME.pack(0, UPDATE, SYN, 1, 0))
            hello = b"\x13/multistream/1.0.0\n\x08/deaf/1\n"
            await villain.send(FRAME.pack(0, DATA, 0, 1, len(hello)), hello)
            await villain.channel.read(12 + 12 + 20 + 12 + 9)
            for _ in range(20):
                await villain.send((FRAME.pack(0, DATA, 0, 1, 1) + b"x") * 5000)
            (session,) = (connection._session for connection in host._connections)
            while session.buffered < 100_000:
                await trio.sleep(0.01)
            assert len(session._streams[1]._pieces) < 10
            wait.set()
            villain.channel.abort()

    run(test)


def test_opening_and_resetting_in_a_loop_gains_nothing(kit, run):
    async def test():
        limits = Limits(max_streams=10)
        running = 0
        most = 0

        async def stubborn(stream):
            nonlocal running, most
            running += 1
            most = max(most, running)
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            running -= 1

        async with kit.server({"/stubborn/1": stubborn}, limits=limits) as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            hello = b"\x13/multistream/1.0.0\n\x0c/stubborn/1\n"
            for number in range(1, 4001, 2):
                await villain.send(
                    FRAME.pack(0, DATA, SYN, number, len(hello)), hello, FRAME.pack(0, UPDATE, RST, number, 0)
                )
                assert all(len(connection._session._inbound) <= 10 for connection in host._connections)
            assert most <= 10
            villain.channel.abort()

    run(test)


def test_a_paused_reader_is_waited_for(kit, run):
    async def test():
        go = trio.Event()
        total = 16 << 20

        async def slow(stream):
            await stream.send_all(b"ready")
            await go.wait()
            received = await kit.receive_all(stream)
            await stream.send_all(len(received).to_bytes(8, "big"))

        async with kit.pair({"/slow/1": slow}) as (host, connection):
            stream = await connection.open_stream("/slow/1")
            assert await stream.receive_some() == b"ready"
            sent = trio.Event()

            async def send():
                await stream.send_all(bytes(total))
                await stream.send_eof()
                sent.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(6.5)
                assert not sent.is_set()
                (server,) = host._connections
                assert server._session.buffered <= 4 << 20
                assert connection._channel.backlog <= 1 << 20
                # other streams of the same connection are not held up
                assert await kit.ask(connection, b"meanwhile") == b"meanwhile"
                go.set()
                assert await kit.receive_exactly(stream, 8) == total.to_bytes(8, "big")

    run(test)


def test_a_negotiation_message_without_end_is_refused(kit, run):
    async def test():
        async with kit.server() as host, open_host(os.urandom(32)) as client:
            villain = await Villain.reach(client, host.addresses[0])
            await villain.send(FRAME.pack(0, DATA, SYN, 1, 10), b"\xff" * 9 + b"\x01")
            answer = b""
            while FRAME.pack(0, UPDATE, RST, 1, 0) not in answer:
                answer += await villain.channel.read(4096)
            villain.channel.abort()

    run(test)


def test_a_peer_that_drops_everything_at_once(kit, run):
    async def test():
        async with kit.pair() as (host, connection):
            streams = [await connection.open_stream("/echo/1") for _ in range(20)]
            (server,) = host._connections
            server._channel.raw.abort()
            for stream in streams:
                with pytest.raises(ConnectionLost):
                    await stream.send_all(bytes(8 << 20))
                with pytest.raises(ConnectionLost):
                    await stream.receive_some()

    run(test)
