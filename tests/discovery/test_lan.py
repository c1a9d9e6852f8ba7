"""mDNS over the loopback interface: nodes of one hive find each other, nodes of another hive do not see them."""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from hivefs.crypto.keys import public_key
from hivefs.daemon import lan
from hivefs.discovery import lan as discovery
from hivefs.transport.addresses import join_address

HIVE, OTHER = b"h" * 32, b"o" * 32
KEYS = [public_key(bytes([i]) * 32) for i in (1, 2, 3)]


@functools.cache
def no_multicast() -> str:
    """Why datagrams to the group of mDNS do not come back over loopback here; empty when they do."""
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            receiver.bind(("", 0))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            receiver.settimeout(5)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sender.sendto(b"x", ("224.0.0.251", receiver.getsockname()[1]))
            receiver.recv(10)
    except OSError as error:
        return f"no multicast over loopback: {error}"
    return ""


@pytest.fixture(autouse=True)
def multicast() -> None:
    if no_multicast():
        pytest.skip(no_multicast())


def address(number: int) -> str:
    return join_address("127.0.0.1", 4001 + number, KEYS[number])


def within(body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await body(nursery)
                nursery.cancel_scope.cancel()

    trio.run(bounded)


def test_nodes_and_clients_of_a_hive_find_its_nodes_and_no_others() -> None:
    async def body(nursery: trio.Nursery) -> None:
        heard: dict[str, set[str]] = {name: set() for name in ("client", "node 0", "node 1", "stranger")}
        nursery.start_soon(lan.announce, HIVE, [address(0)], heard["node 0"].add)
        nursery.start_soon(lan.announce, HIVE, [address(1), "/dns4/x.example/tcp/1/p2p/x"], heard["node 1"].add)
        nursery.start_soon(lan.announce, OTHER, [address(2)], heard["stranger"].add)
        nursery.start_soon(lan.search, HIVE, heard["client"].add, ["127.0.0.1"])
        wanted = {"client": {address(0), address(1)}, "node 0": {address(1)}, "node 1": {address(0)}}
        while any(not heard[name] >= addresses for name, addresses in wanted.items()):
            await trio.sleep(0.05)
        await trio.sleep(0.5)
        assert heard == {**wanted, "stranger": set()}

    within(body)


def test_a_network_that_does_not_allow_it_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An address that this machine does not have."""

    async def body(nursery: trio.Nursery) -> None:
        await discovery.run(HIVE, lambda place: None, interfaces=["192.0.2.77"])

    within(body)
    assert [r.getMessage() for r in caplog.records if "local network cannot be asked" in r.getMessage()]
