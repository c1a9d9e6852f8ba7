"""Real node processes over the real transport, killed with SIGKILL while shares are on their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hive_tools import HIVE, HIVE_KEY, client_certificate, lease, seed_of, share, within

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.content.merkle import merkle_root
from hivefs.crypto.keys import public_key
from hivefs.errors import HivefsError, PeerUnreachable
from hivefs.model.ids import ShareId
from hivefs.node.config import create_node
from hivefs.node.service import run_node
from hivefs.testing.ports import free_port
from hivefs.transport import open_host, peer_id_from_key

RUN = """
import functools, signal, sys, trio
from pathlib import Path
from hivefs.node.service import run_node
from hivefs.transport import open_host

async def main():
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(functools.partial(run_node, Path(sys.argv[1]), open_host))
            print(serving.addresses[0], flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()

trio.run(main)
"""


class Process:
    """One node process."""

    def __init__(self, directory: Path) -> None:
        self._running = subprocess.Popen(
            [sys.executable, "-c", RUN, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._running.stdout is not None
        self.address = self._running.stdout.readline().strip()
        assert self.address, self._running.communicate(timeout=60)[1]

    def kill(self) -> None:
        self._running.send_signal(signal.SIGKILL)
        self._running.communicate(timeout=60)

    def stop(self) -> int:
        self._running.send_signal(signal.SIGINT)
        self._running.communicate(timeout=60)
        return self._running.returncode


@asynccontextmanager
async def talking_to(address: str, owner: str = "owner") -> AsyncIterator[NodeClient]:
    seed = seed_of(owner)
    async with open_host(seed_of("device")) as host:
        connection = await host.dial(address, timeout=60)
        stream = await connection.open_stream(PROTOCOL)
        who = credentials(seed, host.peer_key, HIVE_KEY, client_certificate(seed))
        async with converse(stream, who, time.time_ns()) as client:
            yield client


def node_in(directory: Path) -> bytes:

    return create_node(
        directory, listen=("/ip4/127.0.0.1/tcp/0",), capacity=1 << 30, hive_seed=HIVE, seed=seed_of("node"), now_ns=1
    )


def test_a_node_over_libp2p_keeps_and_gives(tmp_path: Path) -> None:
    node_id = node_in(tmp_path / "n")
    process = Process(tmp_path / "n")

    async def body() -> None:
        share_id, data = share(2 << 20)
        async with talking_to(process.address) as client:
            assert client.node_id == node_id == public_key(seed_of("node"))
            await client.put(share_id, data, lease())
            assert await client.get(share_id) == data
            part = await client.get(share_id, 1_000_000, 5, merkle_root=merkle_root(data))
            assert part == data[1_000_000:1_000_005]
            assert [e.address.addresses for e in await client.get_roster()] == [(process.address,)]
            assert await client.delete([share_id]) == [True]

    try:
        within(body)
    finally:
        process.kill()


def test_strangers_are_told_the_announced_address_and_no_other(tmp_path: Path) -> None:
    """identify, which libp2p peers ask before anything else, answers with what the roster says."""
    port = free_port()
    announced = "/dns4/node.example/tcp/4001"
    create_node(
        tmp_path / "n",
        listen=(f"/ip4/127.0.0.1/tcp/{port}",),
        capacity=1 << 30,
        hive_seed=HIVE,
        seed=seed_of("node"),
        announce=(announced,),
        now_ns=1,
    )

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            serving = await nursery.start(run_node, tmp_path / "n", open_host)
            peer = peer_id_from_key(public_key(seed_of("node")))
            assert serving.addresses == (f"{announced}/p2p/{peer}",)
            async with open_host(seed_of("stranger")) as host:
                connection = await host.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}", timeout=20)
                stream = await connection.open_stream("/ipfs/id/1.0.0")
                told = b""
                while more := await stream.receive_some():
                    told += more
            assert b"\x0cnode.example" in told and b"/hivefs/node/1" in told
            assert bytes([127, 0, 0, 1]) + b"\x06" + port.to_bytes(2, "big") not in told
            nursery.cancel_scope.cancel()

    within(body)


@pytest.mark.parametrize("rounds", [4])
def test_every_acknowledged_share_survives_kill_9(tmp_path: Path, rounds: int) -> None:
    node_in(tmp_path / "n")
    acknowledged: dict[ShareId, bytes] = {}
    deleted: set[ShareId] = set()

    async def fill(process: Process, least: int) -> None:
        """Put and delete without end; kill the process once so many puts were acknowledged in this round."""
        count = 0

        async def worker(client: NodeClient) -> None:
            nonlocal count
            try:
                while True:
                    share_id, data = share(100_000)
                    await client.put(share_id, data, lease())
                    acknowledged[share_id] = data
                    count += 1
                    if count % 7 == 0:
                        victim = next(iter(acknowledged))
                        del acknowledged[victim]  # from now on it may or may not be there
                        if await client.delete([victim]) == [True]:
                            deleted.add(victim)
            except HivefsError:
                return

        async with talking_to(process.address) as client, trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(worker, client)
            while count < least:
                await trio.sleep(0.001)
            process.kill()

    async def look(process: Process) -> None:
        async with talking_to(process.address) as client:
            ids = list(acknowledged)
            assert await client.have(ids) == [100_000] * len(ids)
            for share_id in ids:
                assert await client.get(share_id) == acknowledged[share_id]
            assert await client.have(list(deleted)) == [0] * len(deleted)
            stat = await client.stat()
            assert stat.used == 100_000 * stat.shares and stat.dropped == 0

    for number in range(rounds):
        process = Process(tmp_path / "n")
        try:
            within(fill, process, 15 + 10 * number)
            process = Process(tmp_path / "n")
            within(look, process)
        finally:
            process.kill()
    assert len(acknowledged) > 40
    on_disk = {path.name for path in (tmp_path / "n" / "shares").rglob("*") if path.is_file()}
    assert on_disk >= {share_id.hex() for share_id in acknowledged}


@pytest.mark.stops
def test_a_node_that_is_frozen_costs_a_deadline_and_no_more(tmp_path: Path) -> None:
    node_in(tmp_path / "n")
    process = Process(tmp_path / "n")

    async def body() -> None:
        async with talking_to(process.address) as client:
            await client.ping()
            os.kill(process._running.pid, signal.SIGSTOP)
            try:
                with pytest.raises(HivefsError) as caught:
                    await client.ping(timeout=0.3)
                assert caught.value.transient
            finally:
                os.kill(process._running.pid, signal.SIGCONT)
            await client.ping()

    try:
        within(body)
    finally:
        process.kill()


def test_nobody_answers_at_a_stopped_nodes_address(tmp_path: Path) -> None:
    node_in(tmp_path / "n")
    process = Process(tmp_path / "n")
    process.stop()

    async def body() -> None:
        with pytest.raises(PeerUnreachable):
            async with talking_to(process.address):
                pass

    within(body)
