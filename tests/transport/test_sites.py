"""Who holds many connections from one place, or one network, pushes out its own and keeps nobody else out.

All of 127.0.0.0/8 is this machine, so a test can be in as many IPv4 networks as it likes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import trio

import hivefs.transport.host
from hivefs.errors import ConnectionLost
from hivefs.transport import Connection, Host, Limits, open_host
from hivefs.transport.sites import Site, crowd, site_of


def test_addresses_that_one_owner_has_for_nothing_count_together():
    assert site_of("192.0.2.77") == Site("192.0.2.0/24", "192.0.2.77")
    assert site_of("::ffff:192.0.2.77") == site_of("192.0.2.77")
    assert site_of("2001:db8:1:2:3:4:5:6") == Site("2001:db8:1::/48", "2001:db8:1:2::/64")
    assert site_of("2001:db8:1:2:ffff::9") == site_of("2001:db8:1:2:3:4:5:6")
    assert site_of("fe80::1%eth0") == site_of("fe80::2")
    assert site_of("2001:db8:1:3::1").network == site_of("2001:db8:1:2::1").network
    assert site_of("no address") == Site("no address", "no address")


def test_the_crowd_is_the_fullest_place_of_the_fullest_network():
    addresses = ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.9.0.1", "10.9.0.2", "10.9.0.2", "10.9.0.3"]
    assert crowd({number: site_of(address) for number, address in enumerate(addresses)}) == [4, 5]
    assert crowd({number: site_of(f"10.9.0.{number}") for number in range(3)}) == [0, 1, 2]
    assert crowd({}) == []


@contextmanager
def sources() -> Iterator[list[str]]:
    """Connections are made from the one address in this list."""
    source = ["127.0.0.1"]
    real = hivefs.transport.host._connect

    async def connect(host: str, port: int) -> trio.SocketStream:
        made = trio.socket.socket()
        await made.bind((source[0], 0))
        await made.connect((host, port))
        return trio.SocketStream(made)

    hivefs.transport.host._connect = connect
    try:
        yield source
    finally:
        hivefs.transport.host._connect = real


async def dial(client: Host, host: Host, source: list[str], address: str) -> Connection:
    source[0] = address
    return await client.dial(host.addresses[0])


async def answers(kit, connection: Connection) -> bool:
    try:
        return await kit.ask(connection, b"x") == b"x"
    except ConnectionLost:
        return False


def test_one_network_has_its_bound_and_a_family_behind_one_address_fits(kit, run):
    async def test():
        limits = Limits(max_connections=100, max_connections_per_ip=6, max_connections_per_network=10)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            with sources() as source:
                family = [await dial(client, host, source, "127.7.7.7") for _ in range(6)]
                assert [await answers(kit, one) for one in family] == [True] * 6
                assert not await answers(kit, await dial(client, host, source, "127.7.7.7"))
                near = [await dial(client, host, source, f"127.7.7.{8 + number}") for number in range(4)]
                assert [await answers(kit, one) for one in near] == [True] * 4
                assert await answers(kit, await dial(client, host, source, "127.7.8.7"))
                assert [await answers(kit, one) for one in (*family, *near)] == [True] * 10

    run(test)


def test_two_addresses_that_fill_a_network_do_not_keep_out_the_others_in_it(kit, run):
    """Customers of one hoster share a /24 or a /48: who comes from a place that has less gets one of the fullest place."""

    async def test():
        limits = Limits(max_connections=100, max_connections_per_ip=5, max_connections_per_network=10)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            with sources() as source:
                for number in range(10):
                    await dial(client, host, source, f"127.7.7.{7 + number % 2}")
                others = []
                for number in range(4):
                    others.append(await dial(client, host, source, f"127.7.7.{20 + number}"))
                    assert await answers(kit, others[-1])
                for number in range(10):
                    await answers(kit, await dial(client, host, source, f"127.7.7.{7 + number % 2}"))
                assert [await answers(kit, one) for one in others] == [True] * 4
                while len(host._inbound) != 10:  # the network as a whole gets no more
                    await trio.sleep(0.01)

    run(test)


def test_a_full_host_whose_fullest_network_is_ones_own_still_has_room(kit, run):
    async def test():
        limits = Limits(max_connections=10)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            with sources() as source:
                for _ in range(10):
                    await dial(client, host, source, "127.7.7.7")
                assert await answers(kit, await dial(client, host, source, "127.7.7.8"))
                while len(host._inbound) != 10:
                    await trio.sleep(0.01)

    run(test)


def test_many_addresses_that_hold_every_connection_keep_nobody_out(kit, run):
    """Forty places from three networks hold all there is; members from elsewhere come in all the same, and stay."""

    async def test():
        limits = Limits(max_connections=40, max_connections_per_network=30)
        async with kit.server(limits=limits) as host, open_host(os.urandom(32)) as client:
            with sources() as source:
                flood = []
                for number in range(40):
                    address = f"127.1.{number % 3}.{number + 1}"
                    flood.append((address, await dial(client, host, source, address)))
                busy = await flood[0][1].open_stream("/echo/1")
                await busy.send_all(b"x")
                assert await busy.receive_some() == b"x"
                members = []
                for number in range(10):
                    members.append(await dial(client, host, source, f"127.9.{number}.1"))
                    assert await answers(kit, members[-1])
                    refilled = await dial(client, host, source, f"127.1.0.{100 + number}")
                    await answers(kit, refilled)
                assert [await answers(kit, one) for one in members] == [True] * 10
                assert not busy._mux.failure, "who asks for nothing goes first"
                assert len(host._inbound) <= 40
                await busy.aclose()

    run(test, seconds=120)


def test_half_open_connections_of_one_network_push_out_each_other(kit, run):
    async def test():
        limits = Limits(max_half_open=16, handshake_timeout=30.0)
        async with kit.server(limits=limits) as host:
            port = int(host.addresses[0].split("/")[4])
            held = []

            async def hold(address: str) -> trio.SocketStream:
                made = trio.socket.socket()
                await made.bind((address, 0))
                await made.connect(("127.0.0.1", port))
                held.append(trio.SocketStream(made))
                return held[-1]

            slow = await hold("127.9.9.9")
            for number in range(60):
                await hold(f"127.3.3.{number + 1}")
            while len(host._half_open) < 16:
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked()
            assert site_of("127.9.9.9") in host._half_open.values(), "it is older than all of them, and alone"
            assert len(host._half_open) <= 16
            for stream in held:
                await trio.aclose_forcefully(stream)
            assert slow in held

    run(test)
