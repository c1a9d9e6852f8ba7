"""Bytes arrive whole, in order and once, whatever the sizes and however many streams there are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket

import pytest
import trio
import trio.testing

from hivefs.errors import ConnectionLost, Refused
from hivefs.transport import Limits
from hivefs.transport.raw import RawSocket, congestion_control

pytestmark = pytest.mark.usefixtures("security")  # over TLS and again over Noise


def test_echo_of_64_mib_in_varied_sizes(kit, run):
    async def test():
        async with kit.pair() as (_, connection):
            stream = await connection.open_stream("/echo/1")
            dice = random.Random(1)
            source = os.urandom(3 * 1024 * 1024)
            sent, received = hashlib.sha256(), hashlib.sha256()
            total = 64 * 1024 * 1024

            async def send():
                left = total
                while left:
                    size = min(left, dice.choice([1, 11, 12, 13, 100, 4095, 4096, 8192, 8193, 65536, 300_000, 2_000_000]))
                    start = dice.randrange(len(source) - size)
                    piece = memoryview(source)[start : start + size]
                    sent.update(piece)
                    await stream.send_all(piece)
                    left -= size
                await stream.send_eof()

            count = 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while True:
                    most = dice.choice([1, 1000, 65536, 262144, 1 << 20])
                    if dice.random() < 0.5:
                        pieces = await stream.receive_pieces(most)
                        assert all(pieces)
                        assert sum(map(len, pieces[:-1])) < most
                    else:
                        data = await stream.receive_some(most)
                        pieces = [data] if data else []
                    if not pieces:
                        break
                    for piece in pieces:
                        received.update(piece)
                        count += len(piece)
            assert count == total
            assert received.digest() == sent.digest()

    run(test, seconds=120)


def test_500_streams(kit, run):
    async def test():
        limits = Limits(max_streams=600)
        async with kit.pair(limits=limits) as (_, connection):
            opened = [await connection.open_stream("/echo/1") for _ in range(500)]

            async def talk(number, stream):
                message = number.to_bytes(4, "big") * (1 + number)
                await stream.send_all(message)
                await stream.send_eof()
                assert await kit.receive_all(stream) == message
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                for number, stream in enumerate(opened):
                    nursery.start_soon(talk, number, stream)
            # finished streams leave nothing behind on either end
            assert await kit.ask(connection, b"still there") == b"still there"
            assert connection._session._streams == {}

    run(test)


def test_more_streams_than_allowed_are_reset_and_the_others_live(kit, run):
    async def test():
        async with kit.pair(limits=Limits(max_streams=4)) as (_, connection):
            kept = [await connection.open_stream("/echo/1") for _ in range(4)]
            with pytest.raises(ConnectionLost):
                await connection.open_stream("/echo/1")
            for stream in kept:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
            await kept[0].aclose()
            with trio.fail_after(60):
                while True:  # the slot is free when the other end's handler has noticed
                    try:
                        again = await connection.open_stream("/echo/1")
                        break
                    except ConnectionLost:
                        await trio.sleep(0)
            await again.send_all(b"y")
            assert await again.receive_some() == b"y"

    run(test)


def test_both_ends_know_each_other(kit, run):
    async def test():
        seen = []

        async def handler(stream):
            seen.append(stream.peer_key)

        async with kit.pair({"/who/1": handler}) as (host, connection):
            stream = await connection.open_stream("/who/1")
            assert stream.peer_key == connection.peer_key == host.peer_key
            assert await stream.receive_some() == b""
            assert connection.address == host.addresses[0]
            assert len(seen[0]) == 32
            assert seen[0] != host.peer_key

    run(test)


def test_an_unknown_protocol_is_refused_and_the_connection_lives(kit, run):
    async def test():
        async with kit.pair() as (_, connection):
            with pytest.raises(Refused):
                await connection.open_stream("/nothing/1")
            assert await kit.ask(connection, b"hello") == b"hello"

    run(test)


def test_a_failing_handler_costs_its_stream_only(kit, run, caplog):
    async def test():
        async def bad(stream):
            await stream.receive_some()
            raise KeyError("secret of the handler")

        async with kit.pair({"/bad/1": bad}) as (_, connection):
            good = await connection.open_stream("/echo/1")
            stream = await connection.open_stream("/bad/1")
            await stream.send_all(b"x")
            with pytest.raises(ConnectionLost):
                await stream.receive_some()
            await good.send_all(b"still here")
            assert await good.receive_some() == b"still here"
            assert await kit.ask(connection, b"new ones too") == b"new ones too"

    with caplog.at_level("INFO", logger="hivefs.transport"):
        run(test)
    lines = [record for record in caplog.records if record.name == "hivefs.transport"]
    assert len(lines) == 1
    assert "KeyError" in lines[0].getMessage()
    assert lines[0].exc_info is None


def test_a_handler_that_leaves_early_still_delivers_its_answer(kit, run):
    async def test():
        async def refuse(stream):
            await stream.receive_some(1)
            await stream.send_all(b"no, thank you")

        async with kit.pair({"/refuse/1": refuse}) as (_, connection):
            for _ in range(20):
                stream = await connection.open_stream("/refuse/1")
                await stream.send_all(bytes(200_000))
                assert await kit.receive_all(stream) == b"no, thank you"
                await stream.aclose()
            assert connection._session._streams == {}

    run(test)


def test_what_was_sent_arrives_although_the_connection_is_closed_at_once(kit, run):
    async def test():
        arrived = []
        done = trio.Event()

        async def keep(stream):
            arrived.append(await kit.receive_all(stream))
            done.set()

        async with kit.pair({"/keep/1": keep}) as (_, connection):
            stream = await connection.open_stream("/keep/1")
            message = os.urandom(200_000)
            await stream.send_all(message)
            await stream.aclose()
            await connection.aclose()
            assert connection.closed
            await done.wait()
            assert arrived == [message]
            with pytest.raises(ConnectionLost):
                await connection.open_stream("/keep/1")

    run(test)


def test_a_cut_off_stream_never_looks_like_a_clean_end(kit, run):
    async def test():
        async def half(stream):
            await stream.receive_some()
            await stream.send_all(b"half")
            await stream.reset()

        async with kit.pair({"/half/1": half}) as (_, connection):
            stream = await connection.open_stream("/half/1")
            await stream.send_all(b"x")
            with pytest.raises(ConnectionLost):
                await kit.receive_all(stream)

            stream = await connection.open_stream("/echo/1")
            await stream.send_all(b"x")
            await connection.aclose()
            with pytest.raises(ConnectionLost):
                await kit.receive_all(stream)

    run(test)


def test_a_cancelled_sender_leaves_the_connection_whole(kit, run):
    async def test():
        blocked = trio.Event()

        async def deaf(stream):
            await blocked.wait()

        async with kit.pair({"/deaf/1": deaf}) as (_, connection):
            for _ in range(5):
                stream = await connection.open_stream("/deaf/1")
                with trio.move_on_after(0.05) as scope:
                    await stream.send_all(bytes(10 << 20))
                assert scope.cancelled_caught
                await stream.reset()
                message = os.urandom(1_000_000)
                assert await kit.ask(connection, message) == message
            blocked.set()

    run(test)


def test_one_sender_and_one_receiver_at_a_time(kit, run):
    async def test():
        async with kit.pair() as (_, connection):
            stream = await connection.open_stream("/echo/1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_some)
                await trio.testing.wait_all_tasks_blocked(0.05)
                with pytest.raises(trio.BusyResourceError):
                    await stream.receive_some()
                await stream.send_all(b"done")

    run(test)


def test_an_error_of_the_block_leaves_open_host_as_it_is(kit, run):
    async def test():
        with pytest.raises(ZeroDivisionError):
            async with kit.pair():
                raise ZeroDivisionError

    run(test)


def test_the_round_trip_is_known_from_the_start(kit, run):
    """Windows grow by it; the pings of the keepalive come only after a silence."""

    async def test():
        limits = Limits(keepalive_interval=3600.0, keepalive_timeout=3600.0)
        async with kit.pair(limits=limits, client_limits=limits) as (host, connection):
            (theirs,) = host._connections
            while not (connection._session.round_trip and theirs._session.round_trip):
                await trio.sleep(0.001)

    run(test)


@pytest.mark.parametrize(
    ("host", "allowed", "chosen"),
    [
        ("192.0.2.7", "reno cubic bbr\n", b"bbr"),
        ("2001:db8::1", "reno bbr\n", b"bbr"),
        ("192.0.2.7", "reno cubic\n", None),
        ("192.0.2.7", "", None),
        ("127.0.0.1", "reno cubic bbr\n", None),
        ("::1", "reno cubic bbr\n", None),
        ("a name", "reno cubic bbr\n", None),
    ],
)
def test_bbr_only_where_the_administrator_allows_it_and_not_on_this_machine(host, allowed, chosen):
    assert congestion_control(host, allowed) == chosen


def test_what_waits_on_this_machine_has_not_departed(kit, run):
    async def test():
        read = trio.Event()
        total = 0

        async def late(stream):
            nonlocal total
            await read.wait()
            while data := await stream.receive_some():
                total += len(data)
            await stream.send_all(b"all")

        async with kit.pair({"/late/1": late}, limits=Limits(max_buffered_bytes=64 << 20)) as (_, connection):
            stream = await connection.open_stream("/late/1")
            # The peer's session takes only its window: what is more waits in the session, so hold up the socket itself.
            connection._channel.raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            before = stream.accepted()
            assert stream.departed() <= before
            held = connection._channel.flush
            connection._channel.flush = lambda: None
            await stream.send_all(bytes(200_000))
            assert stream.accepted() >= before + 200_000
            assert stream.departed() <= before, "nothing of it went to the kernel"
            connection._channel.flush = held
            mark = stream.accepted()
            read.set()
            await stream.send_all(b"last")
            await stream.send_eof()
            assert await stream.receive_some() == b"all"
            assert stream.departed() > mark and total == 200_004

    run(test)


def test_what_the_kernel_has_not_sent_has_not_departed(kit, run):
    """A socket whose other end does not read: the kernel takes more than it sends."""

    async def test():
        listener = socket.create_server(("127.0.0.1", 0))
        stream = await trio.open_tcp_stream(*listener.getsockname())
        raw = RawSocket(stream, is_initiator=True)
        other, _ = listener.accept()
        try:
            assert raw.unsent() == 0
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += raw.socket.send(bytes(1 << 16))
            assert 0 < raw.unsent() < sent
            other.settimeout(60)
            while sent:
                sent -= len(other.recv(1 << 20))
            while raw.unsent():  # what was taken is said to be so in a moment
                await trio.sleep(0.01)
        finally:
            other.close()
            listener.close()
            raw.abort()
        assert raw.unsent() == 0, "closed"

    run(test)
