"""What py-libp2p's DHT, relay and AutoNAT do in the pinned version, in real processes on loopback: the evidence for
docs/decisions/0021 and 0032, with circuits between our ends and its relay, and its ends and ours. When one of these fails
after an update of the library, the decision is to be looked at again.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hivefs.testing.ports import free_port
from hivefs.transport import Connection, Stream, circuit_messages, open_host
from hivefs.transport.addresses import binary_peer_id
from hivefs.transport.circuit import reserve, waiting
from hivefs.transport.circuit_messages import HOP, STOP, Hop, Message

pytestmark = pytest.mark.slow
OK = 0


class Peer:
    """One process of stock_peer.py."""

    def __init__(self, what: str, number: int, *peers: str, port: int = 0, data: int = 100 << 20) -> None:
        words = [what, number.to_bytes(32, "big").hex(), str(port), str(data), *peers]
        program = Path(__file__).with_name("stock_peer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        said = json.loads(self._lines.get(timeout=120))
        self.id, self.addresses = said["id"], said["addresses"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def tell(self, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._lines.get(timeout=90))
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(100)


@pytest.fixture
def start() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def one(*arguments: Any, **more: Any) -> Peer:
        peers.append(Peer(*arguments, **more))
        return peers[-1]

    yield one
    for peer in peers:
        peer.kill()


def test_the_dht_finds_a_provider_also_after_its_address_changed(start: Callable[..., Peer]) -> None:
    first = start("dht", 1, port=free_port())
    old = start("dht", 2, *first.addresses, port=free_port())
    other = start("dht", 3, *first.addresses, port=free_port())
    assert old.tell(provide="a node of a hive") == {"result": True}
    assert [old.id, old.addresses] in other.tell(find="a node of a hive")["result"]
    old.kill()
    new = start("dht", 2, *first.addresses, port=free_port())
    assert new.id == old.id and new.addresses != old.addresses
    assert new.tell(provide="a node of a hive") == {"result": True}
    stranger = start("dht", 4, *first.addresses)
    found = stranger.tell(find="a node of a hive")["result"]
    assert found and all(one == [new.id, new.addresses] for one in found), "nobody gives the old address any more"
    # Finding the peer itself still gives the old address, from the peer store: only the provider records are good.
    assert other.tell(peer=new.id)["result"] == old.addresses


def test_autonat_calls_an_address_reachable_where_nobody_listens(start: Callable[..., Peer]) -> None:
    """Its server does not dial: ``BasicHost.connect`` returns at once since the client's own connection is there."""
    server = start("autonat", 1, port=free_port())
    client = start("autonat", 2, *server.addresses)
    nobody = f"/ip4/127.0.0.1/tcp/{free_port()}"
    assert client.tell(server=server.id, addresses=[nobody]) == {"result": OK}


def test_a_relay_carries_bytes_whole_within_its_limits_and_only_to_who_reserved(start: Callable[..., Peer]) -> None:
    relay = start("relay", 1, port=free_port(), data=12 << 20)
    hidden = start("relay", 2, *relay.addresses)
    dialler = start("relay", 3, *relay.addresses)
    through = f"{relay.addresses[0]}/p2p-circuit/p2p/{hidden.id}"
    assert "204" in dialler.tell(dial=through)["error"], "NO_RESERVATION"
    assert hidden.tell(reserve=relay.id) == {"result": True}
    assert dialler.tell(dial=through) == {"result": True}
    assert dialler.tell(send=hidden.id, mib=4) == {"result": True}
    assert "error" in dialler.tell(send=hidden.id, mib=16), "the relay's limit on bytes"


OUR_RELAY = """
    import os, trio
    from hivefs.transport import open_host
    from hivefs.transport.circuit_messages import HOP
    from hivefs.transport.relay import Relay

    async def anybody(key):
        return True

    async def main():
        relay = Relay(anybody)
        async with open_host(os.urandom(32), listen=["/ip4/127.0.0.1/tcp/0"], handlers={HOP: relay.serve}) as host:
            relay.host = host
            print(host.addresses[0], flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


def test_its_ends_meet_at_our_relay(start: Callable[..., Peer]) -> None:
    words = [sys.executable, "-c", textwrap.dedent(OUR_RELAY)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as ours:
        try:
            assert ours.stdout is not None
            address = ours.stdout.readline().strip()
            hidden, dialler = start("relay", 2, address), start("relay", 3, address)
            assert hidden.tell(reserve=address.rpartition("/")[2]) == {"result": True}
            assert dialler.tell(dial=f"{address}/p2p-circuit/p2p/{hidden.id}") == {"result": True}
            assert dialler.tell(send=hidden.id, mib=4) == {"result": True}
        finally:
            ours.kill()


def test_our_ends_meet_at_its_relay_where_one_circuit_ends_another(start: Callable[..., Peer]) -> None:
    """Why it is not the relay that ``hivefs relay serve`` is: it keeps the streams of one circuit for each peer."""
    relay = start("relay", 1, port=free_port())

    async def echo(stream: Stream) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async def ask(connection: Connection) -> bytes:
        stream = await connection.open_stream("/echo/1")
        await stream.send_all(b"there?" * 10_000)
        await stream.send_eof()
        answer = b""
        while data := await stream.receive_some():
            answer += data
        return answer

    async def test() -> None:
        seed = os.urandom(32)
        async with open_host(seed, listen=["/ip4/127.0.0.1/tcp/0"], handlers={"/echo/1": echo}) as node:

            async def near() -> trio.SocketStream:
                return await trio.open_tcp_stream("127.0.0.1", int(node.addresses[0].split("/")[4]))

            async with (
                open_host(seed, handlers={STOP: waiting(near)}) as waits,
                open_host(os.urandom(32)) as one,
                open_host(os.urandom(32)) as other,
            ):
                assert await reserve(await waits.dial(relay.addresses[0])) > 30
                first = await one.dial_through(relay.addresses[0], node.peer_key)
                second = await other.dial_through(relay.addresses[0], node.peer_key)
                assert await ask(first) == await ask(second) == b"there?" * 10_000
                await first.aclose()
                with trio.fail_after(60):
                    await second.wait_closed()

    trio.run(test)


def test_its_relay_takes_a_reservation_for_somebody_else(start: Callable[..., Peer]) -> None:
    """The other reason: it believes the peer id in the message. Here the one who reserves is not the one it is for."""
    relay = start("relay", 1, port=free_port())

    async def test() -> None:
        async with open_host(os.urandom(32)) as victim, open_host(os.urandom(32)) as stranger:
            await victim.dial(relay.addresses[0])
            connection = await stranger.dial(relay.addresses[0])
            stream = await connection.open_stream(HOP)
            wanted = Message(Hop.RESERVE, binary_peer_id(victim.peer_key))
            await circuit_messages.send(stream, wanted, hop=True)
            with trio.fail_after(30):
                answer = await circuit_messages.receive(stream, hop=True)
            assert answer.status == 100

    trio.run(test)
