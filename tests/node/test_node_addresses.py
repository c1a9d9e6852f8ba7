"""Addresses over real sockets: remembered across restarts, and found again when they changed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from hive_tools import HIVE, HIVE_KEY, client_certificate, seed_of, within

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.errors import NodeProblem, PeerIdentityMismatch
from hivefs.node import gossip
from hivefs.node.config import CONFIG, SEED, create_node, load_node
from hivefs.node.running import Running
from hivefs.node.service import run_node
from hivefs.testing.ports import free_port
from hivefs.transport import open_host


def make(directory: Path, name: str, bootstrap: tuple[str, ...] = ()) -> bytes:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    return create_node(
        directory,
        listen=(listen,),
        capacity=1 << 30,
        hive_seed=HIVE,
        seed=seed_of(name),
        now_ns=1,
        bootstrap=bootstrap,
    )


def edit(directory: Path, old: str, new: str) -> None:
    path = directory / CONFIG
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        serving: Running = await nursery.start(partial(run_node, directory, open_host))
        yield serving
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking(address: str) -> AsyncIterator[NodeClient]:
    seed = seed_of("owner")
    async with open_host(seed_of("device")) as host:
        connection = await host.dial(address)
        stream = await connection.open_stream(PROTOCOL)
        who = credentials(seed, host.peer_key, HIVE_KEY, client_certificate(seed))
        async with converse(stream, who, time.time_ns()) as client:
            yield client


async def addresses_at(address: str) -> dict[bytes, tuple[str, ...]]:
    async with talking(address) as client:
        return {e.membership.subject: e.address.addresses for e in await client.get_roster()}


async def until_known(at: str, node_id: bytes, addresses: tuple[str, ...]) -> None:
    while (await addresses_at(at)).get(node_id) != addresses:
        await trio.sleep(0.05)


def test_a_node_that_moved_is_found_again_through_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B moves while C is away. A hears it from B; C, whose bootstrap address is the one that B left, hears it from A,
    whom it remembers: C asks in its first round, the second is an hour away.
    """
    monkeypatch.setattr(gossip, "EVERY_SECONDS", 3600.0)

    async def body() -> None:
        a = make(tmp_path / "a", "a")
        async with running(tmp_path / "a") as at_a:
            b = make(tmp_path / "b", "b", at_a.addresses)
            async with running(tmp_path / "b") as at_b:
                make(tmp_path / "c", "c", at_b.addresses)
                await until_known(at_a.addresses[0], b, at_b.addresses)
                async with running(tmp_path / "c") as at_c:
                    await until_known(at_c.addresses[0], a, at_a.addresses)
                old = at_b.addresses
            edit(tmp_path / "b", load_node(tmp_path / "b")[0].listen[0], f"/ip4/127.0.0.1/tcp/{free_port()}")
            async with running(tmp_path / "b") as at_b:
                assert at_b.addresses != old and at_b.node_id == b
                await until_known(at_a.addresses[0], b, at_b.addresses)
                async with running(tmp_path / "c") as at_c:
                    await until_known(at_c.addresses[0], b, at_b.addresses)

    within(body)


def test_a_node_with_another_key_is_not_the_node_that_it_was(tmp_path: Path) -> None:
    """Its seed was exchanged: its own certificate does not fit any more. With a certificate of the hive for the new key it
    runs, and is then another node, which nobody takes for the old one.
    """

    async def body() -> None:
        a = make(tmp_path / "a", "a")
        async with running(tmp_path / "a") as serving:
            address = serving.addresses[0]
        seed = tmp_path / "a" / SEED
        seed.write_bytes(seed_of("another"))
        with pytest.raises(NodeProblem, match="not that of this node"):
            load_node(tmp_path / "a")
        port = address.split("/")[4]
        create_node(
            tmp_path / "b",
            listen=(f"/ip4/127.0.0.1/tcp/{port}",),
            capacity=1 << 30,
            hive_seed=HIVE,
            seed=seed_of("another"),
            now_ns=2,
        )
        async with running(tmp_path / "b") as serving:
            assert serving.node_id != a and serving.addresses[0].split("/")[4] == port
            with pytest.raises(PeerIdentityMismatch):
                async with talking(address):
                    pass

    within(body)
