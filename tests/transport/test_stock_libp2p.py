"""What py-libp2p's DHT, relay and AutoNAT do in the pinned version, in real processes on loopback: the evidence for
docs/decisions/0021. When one of these fails after an update of the library, the decision is to be looked at again.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
