"""mDNS over the loopback interface: nodes of one hive find each other, nodes of another hive do not see them."""

from __future__ import annotations

import functools
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from hivefs.crypto.keys import public_key
from hivefs.daemon import lan
from hivefs.daemon.engine import Process
from hivefs.daemon.engine_core import opened
from hivefs.daemon.home import Home, Lock, Secrets, client_membership
from hivefs.daemon.network import Conversations
from hivefs.discovery import lan as discovery
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute
from hivefs.node.config import create_node
from hivefs.node.service import run_node
from hivefs.testing.ports import free_port
from hivefs.transport import open_host
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
        return f"multicast over loopback is missing: {error}"
    return ""


@pytest.fixture(autouse=True)
def multicast() -> None:
    if no_multicast():
        pytest.skip(no_multicast())


def address(number: int) -> str:
    return join_address("127.0.0.1", 4001 + number, KEYS[number])


def within(body: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(120):
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


# ---- wired ------------------------------------------------------------------------------------------------------

HIVE_SEED = bytes([7]) * 32


def node_in(directory: Path) -> bytes:
    return create_node(
        directory,
        listen=(f"/ip4/127.0.0.1/tcp/{free_port()}",),
        capacity=1 << 30,
        attributes=(Attribute("country", "DE"),),
        hive_seed=HIVE_SEED,
        lan=True,
        now_ns=1,
    )


def test_a_node_without_any_address_finds_the_other_by_itself(tmp_path: Path) -> None:
    async def body(nursery: trio.Nursery) -> None:
        ids = {node_in(tmp_path / name) for name in ("a", "b")}
        serving = [
            await nursery.start(partial(run_node, tmp_path / name, open_host, lan=lan.announce)) for name in ("a", "b")
        ]
        secrets = Secrets(bytes(32), bytes([9]) * 32)
        membership = client_membership(HIVE_SEED, secrets.keys().owner_key, 1)
        opened_as = Conversations.open(secrets.device_seed, secrets.keys(), public_key(HIVE_SEED), membership)
        async with opened_as as conversations:
            for one in serving:
                found: set[bytes] = set()
                while found != ids:
                    await trio.sleep(0.05)
                    async with conversations.with_address(one.addresses[0]) as client:
                        found = {e.membership.subject for e in await client.get_roster()}

    within(body)


def test_a_vault_that_knows_no_address_finds_its_hive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "search", partial(lan.search, interfaces=["127.0.0.1"]))

    async def body(nursery: trio.Nursery) -> None:
        node_id = NodeId(node_in(tmp_path / "a"))
        await nursery.start(partial(run_node, tmp_path / "a", open_host, lan=lan.announce))
        secrets = Secrets(bytes(32), bytes([9]) * 32)
        home = Home.create(tmp_path / "home", secrets, Lock("none"), HIVE_SEED, (), 1, 1, {"lan": 1})
        vault = home.vault
        assert vault.setting("lan") == 1 and not vault.nodes
        opened_as = Conversations.open(secrets.device_seed, secrets.keys(), vault.hive_key, vault.membership)
        async with opened_as as conversations, opened(home, secrets, conversations.with_node) as engine:
            nursery.start_soon(Process(engine, conversations, home).listen)
            while engine.pool.client(node_id) is None:
                await trio.sleep(0.05)

    within(body)
