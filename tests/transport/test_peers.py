"""Who may connect, and how soon a dead, frozen or flooding peer is noticed."""

from __future__ import annotations

import gc
import os
import socket
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from hivefs.errors import BadAddress, ConnectionLost, NodeProblem, PeerIdentityMismatch, PeerTimeout, PeerUnreachable
from hivefs.transport import Limits, open_host, peer_id_from_key

pytestmark = pytest.mark.usefixtures("security")  # over TLS and again over Noise

SERVER = """
    import os, sys, trio
    from hivefs.transport import Limits, open_host

    async def echo(stream):
        while data := await stream.receive_some():
            await stream.send_all(data)

    async def main():
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={"/echo/1": echo}) as host:
            print(host.addresses[0], flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


def test_wrong_peer_id_is_refused(kit, run):
    async def test():
        async with kit.server() as host, open_host(os.urandom(32)) as client:
            other = peer_id_from_key(client.peer_key)
            address = host.addresses[0].rpartition("/")[0] + "/" + other
            with pytest.raises(PeerIdentityMismatch) as caught:
                await client.dial(address)
            assert caught.value.found == peer_id_from_key(host.peer_key)
            assert caught.value.expected == other

    run(test)


def test_plaintext_is_refused(kit, run, security):
    async def test():
        async with kit.server() as host:
            port = int(host.addresses[0].split("/")[4])
            not_spoken = {b"/tls/1.0.0", b"/noise"} - {security.encode()}
            for protocol in (b"/plaintext/2.0.0", b"/secio/1.0.0", b"/yamux/1.0.0", b"/echo/1", *not_spoken):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                async with stream:
                    for line in (b"/multistream/1.0.0\n", protocol + b"\n"):
                        await stream.send_all(bytes([len(line)]) + line)
                    expected = b"\x13/multistream/1.0.0\n\x03na\n"
                    answer = b""
                    while len(answer) < len(expected):
                        more = await stream.receive_some()
                        assert more
                        answer += more
                    assert answer == expected

    run(test)


def test_addresses_are_checked_before_anything_is_sent(kit, run):
    async def test():
        async with open_host(os.urandom(32)) as host:
            with pytest.raises(BadAddress):
                await host.dial("/ip4/127.0.0.1/tcp/4001")
        with pytest.raises(BadAddress):
            async with open_host(os.urandom(32), listen=["127.0.0.1:0"]):
                pass

    run(test)


def test_nobody_there(kit, run):
    async def test():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, not listening
            port = taken.getsockname()[1]
            async with open_host(os.urandom(32)) as host:
                address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id_from_key(host.peer_key)}"
                with pytest.raises(PeerUnreachable) as caught:
                    await host.dial(address)
                assert "refused" in str(caught.value).lower()

    run(test)


def test_somebody_there_who_says_nothing(kit, run):
    async def test():
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            async with open_host(os.urandom(32)) as host:
                address = f"/ip4/127.0.0.1/tcp/{mute.getsockname()[1]}/p2p/{peer_id_from_key(host.peer_key)}"
                with pytest.raises(PeerUnreachable):
                    await host.dial(address, timeout=0.3)

    run(test)


def test_the_port_is_taken(kit, run):
    async def test():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
            with pytest.raises(NodeProblem) as caught:
                async with open_host(os.urandom(32), listen=[address]):
                    pass
            assert "already in use" in str(caught.value)

    run(test)


@pytest.mark.parametrize("listen", ["/ip6/::1/tcp/0", "/dns4/localhost/tcp/0"])
def test_other_kinds_of_address(kit, run, listen):
    if "ip6" in listen:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            pytest.skip("IPv6 is missing: ::1 cannot be bound")

    async def test():
        async with (
            open_host(os.urandom(32), listen=[listen], handlers={"/echo/1": kit.echo}) as host,
            open_host(os.urandom(32)) as client,
        ):
            address = host.addresses[0]
            if "dns4" in listen:
                address = address.replace("/ip4/127.0.0.1", "/dns4/localhost")
            connection = await client.dial(address)
            assert await kit.ask(connection, b"hello") == b"hello"

    run(test)


@pytest.mark.stops
def test_a_frozen_peer_is_noticed(kit, run):
    async def test():
        limits = Limits()
        async with kit.subprocess(SERVER) as process, open_host(os.urandom(32), limits=limits) as client:
            connection = await client.dial(await kit.line(process))
            idle = await connection.open_stream("/echo/1")
            await idle.send_all(b"x")
            assert await idle.receive_some() == b"x"
            # silence alone is not death: several intervals with nothing but pings
            for _ in range(8):
                await trio.testing.wait_all_tasks_blocked(0.01)
                reads = connection._reads
                clock.jump(limits.keepalive_interval)
                while connection._reads == reads:
                    await trio.to_thread.run_sync(time.sleep, 0.01)
            assert not connection.closed
            await kit.freeze(process)
            await kit.fall_silent(connection, clock, limits)
            with pytest.raises(PeerTimeout):
                await idle.receive_some()
            assert connection.closed

    clock = trio.testing.MockClock()
    run(test, clock=clock)


@pytest.mark.stops
def test_a_frozen_peer_is_noticed_by_a_blocked_sender(kit, run):
    async def test():
        async def send(stream):
            with pytest.raises(PeerTimeout):
                await stream.send_all(bytes(64 << 20))

        limits = Limits()
        async with kit.subprocess(SERVER) as process, open_host(os.urandom(32), limits=limits) as client:
            connection = await client.dial(await kit.line(process))
            stream = await connection.open_stream("/echo/1")
            await kit.freeze(process)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, stream)
                await kit.fall_silent(connection, clock, limits)

    clock = trio.testing.MockClock()
    run(test, clock=clock)


def test_a_killed_peer_is_noticed(kit, run):
    async def test():
        async with kit.subprocess(SERVER) as process, open_host(os.urandom(32)) as client:
            connection = await client.dial(await kit.line(process))
            stream = await connection.open_stream("/echo/1")
            process.kill()
            with pytest.raises(ConnectionLost):
                await stream.receive_some()
            with pytest.raises(ConnectionLost):
                await stream.send_all(b"x")
            await connection.wait_closed()

    run(test)


@pytest.mark.stops
def test_a_frozen_client_does_not_stay_a_connection_of_the_server(kit, run):
    program = """
        import os, sys, trio
        from hivefs.transport import open_host

        async def main():
            async with open_host(os.urandom(32)) as host:
                await host.dial(sys.argv[1])
                print("there", flush=True)
                await trio.sleep_forever()

        trio.run(main)
    """

    async def test():
        limits = Limits()
        async with kit.server(limits=limits) as host, kit.subprocess(program, host.addresses[0]) as process:
            assert await kit.line(process) == "there"
            while not host._connections:
                await trio.lowlevel.checkpoint()
            (connection,) = host._connections
            await kit.freeze(process)
            await kit.fall_silent(connection, clock, limits)
            await connection.wait_closed()

    clock = trio.testing.MockClock()
    run(test, clock=clock)


def test_half_open_flood_keeps_nobody_out(kit, run):
    async def test():
        limits = Limits(max_half_open=32)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            port = int(host.addresses[0].split("/")[4])
            flood = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(200)]
            connection = await client.dial(host.addresses[0])
            assert await kit.ask(connection, b"hello") == b"hello"
            assert len(host._half_open) <= 32
            clock.jump(limits.handshake_timeout)

            async def until_closed(stream):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                for stream in flood:
                    nursery.start_soon(until_closed, stream)
            assert await kit.ask(connection, b"hello again") == b"hello again"
            while host._half_open:
                await trio.lowlevel.checkpoint()

    clock = trio.testing.MockClock()
    run(test, clock=clock)


def test_connections_are_counted(kit, run):
    async def test():
        async with kit.server(limits=Limits(max_connections_per_ip=2)) as host, open_host(os.urandom(32)) as client:
            kept = [await client.dial(host.addresses[0]) for _ in range(2)]
            extra = await client.dial(host.addresses[0])
            await extra.wait_closed()
            assert await kit.ask(kept[1], b"x") == b"x"
            await kept[0].aclose()
            while True:  # the server notices the free place in its own time
                another = await client.dial(host.addresses[0])
                try:
                    assert await kit.ask(another, b"x") == b"x"
                    break
                except ConnectionLost:
                    continue

    run(test)


def test_shutdown_with_everything_running_leaves_nothing(kit, run):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    async def test():
        cancelled = []

        async def sleeper(stream):
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(True)

        gc.collect()
        before = descriptors()
        async with kit.pair({"/sleep/1": sleeper}) as (host, connection):
            streams = [await connection.open_stream("/sleep/1") for _ in range(5)]
            idle = await trio.open_tcp_stream("127.0.0.1", int(host.addresses[0].split("/")[4]))
        await idle.aclose()
        assert len(cancelled) == 5
        assert connection.closed
        assert descriptors() == before
        for stream in streams:
            with pytest.raises(ConnectionLost):
                await stream.receive_some()
        with pytest.raises(PeerUnreachable):
            await host.dial(host.addresses[0])

    run(test)


def test_the_library_does_not_talk(kit, run, caplog, capfd):
    async def test():
        async with kit.server() as host:
            stream = await trio.open_tcp_stream("127.0.0.1", int(host.addresses[0].split("/")[4]))
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            await stream.aclose()
            async with open_host(os.urandom(32)) as client:
                connection = await client.dial(host.addresses[0])
                assert await kit.ask(connection, b"x") == b"x"

    with caplog.at_level("INFO"):
        run(test)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
