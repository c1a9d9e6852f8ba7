"""The experimental DHT: what is taken for a node's address, and real processes in which a node that moved is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from hivefs.cli import main as cli
from hivefs.crypto import keys
from hivefs.daemon import dht
from hivefs.daemon.dht import judge, known
from hivefs.errors import PeerUnreachable
from hivefs.formats.member import entry_to_bytes, sign_address, sign_member
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute, Membership, Role, RosterEntry
from hivefs.node.config import change_settings, create_node
from hivefs.testing.ports import free_ports
from hivefs.transport.dht import Dht

HIVE, NODE, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
KEY = keys.public_key(NODE)
FIND = """
    import json, sys, time
    from hivefs.daemon import dht
    peer, hive, *nodes = sys.argv[1:]
    found = dht.find([peer], [bytes.fromhex(n) for n in nodes], bytes.fromhex(hive), time.time_ns())
    print(json.dumps({node.hex(): list(entry.address.reachable) for node, entry in found.items()}))
"""


def entry(seed: bytes = NODE, sequence: int = 1, role: Role = Role.NODE) -> RosterEntry:
    bare = Membership(b"", keys.public_key(seed), role, (Attribute("country", "DE"),), 1)
    return RosterEntry(sign_member(HIVE, bare), sign_address(seed, ("/ip4/192.0.2.7/tcp/4001",), sequence))


def test_only_what_the_node_itself_signed_is_its_address() -> None:
    assert judge(KEY, entry_to_bytes(entry(sequence=7))) == 7
    assert judge(KEY, entry_to_bytes(entry(sequence=1 << 40))) == 0, "it gives way, and is better than none"
    unsigned = replace(entry(), address=replace(entry().address, sequence=8))
    another = replace(entry(), address=entry(OTHER).address)
    for wrong in (
        b"",
        os.urandom(100),
        entry_to_bytes(entry(OTHER)),
        entry_to_bytes(unsigned),
        entry_to_bytes(another),
        entry_to_bytes(entry(role=Role.CLIENT)),
        entry_to_bytes(entry()) + b"x",
    ):
        with pytest.raises(ValueError, match=r"."):
            judge(KEY, wrong)


def test_only_nodes_that_are_away_are_looked_for() -> None:
    rows = [{"id": "aa", "state": "online"}, {"id": "bb", "state": "offline"}, {"id": "cc", "state": "gone"}]
    assert known(rows) == [b"\xbb", b"\xcc"]


@pytest.mark.parametrize(
    ("address", "code"),
    [("/ip4/203.0.113.1/tcp/4101", 60), ("/ip4/127.0.0.1/udp/4101", 60), ("/ip4/nowhere/tcp/1", 41), ("\udcff", 41)],
)
def test_an_address_where_nothing_can_listen_is_refused(address: str, code: int) -> None:
    """And the one beside it, where it could, does not hide that."""
    (port,) = free_ports(1)
    words = ["dht", "serve", "--listen", f"/ip4/127.0.0.1/tcp/{port}", "--listen", address]
    done = subprocess.run(
        [sys.executable, "-m", "hivefs", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code and not done.stdout, done.stderr
    assert done.stderr.count("\n") == 1 and (address.isprintable() <= (address in done.stderr))


def test_a_member_says_where_it_serves_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dht, "serve", lambda listen, peers, nodes, told: told([f"{listen[0]}/p2p/x"]))
    assert cli.run(["dht", "serve", "--listen", "/ip4/127.0.0.1/tcp/1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"]}


class Broken:
    """The library, when it fails in one of its ways."""

    def __init__(self, good: bytes | None = None) -> None:
        self.asked = 0
        self.good = good

    async def get_value(self, key: str) -> bytes | None:
        self.asked += 1
        if self.asked == 1 or self.good is None:
            raise ExceptionGroup("nursery", [KeyError("stream reset")])
        return self.good

    async def put_value(self, key: str, value: bytes) -> None:
        self.asked += 1
        raise trio.BrokenResourceError if self.asked < 3 else Enough


class Enough(BaseException):
    """Ends the test."""


def in_dht(table: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def joined(*_: object) -> AsyncIterator[Dht]:
        yield Dht(SimpleNamespace(get_addrs=list), table, judge)

    monkeypatch.setattr("hivefs.transport.dht.joined", joined)
    monkeypatch.setattr(dht, "bound_memory", lambda: None)


def test_a_failure_of_the_library_for_one_node_does_not_hide_another(monkeypatch: pytest.MonkeyPatch) -> None:
    in_dht(Broken(entry_to_bytes(entry())), monkeypatch)
    assert list(dht.find((), [bytes(32), KEY], keys.public_key(HIVE), 1)) == [KEY]
    in_dht(Broken(), monkeypatch)
    with pytest.raises(PeerUnreachable, match="nursery"):
        dht.find((), [bytes(32), KEY], keys.public_key(HIVE), 1)


def test_a_failure_of_the_library_does_not_end_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    async def here(directory: Path) -> RosterEntry:
        return entry()

    table = Broken()
    in_dht(table, monkeypatch)
    monkeypatch.setattr(dht, "_entry_of", here)
    monkeypatch.setattr(dht, "TRY_AGAIN", 0.0)
    with pytest.raises(Enough):
        dht.serve((), (), [Path("node")], lambda addresses: None)
    assert table.asked == 3


@pytest.mark.slow
def test_a_node_that_moved_is_found(tmp_path: Path, start: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    ports = free_ports(4)
    first, said = start("dht", "serve", "--listen", f"/ip4/127.0.0.1/tcp/{ports[0]}")
    member = said.removeprefix("Serving at ").split(" ")[0]
    assert "/p2p/" in member

    def listen(port: int) -> tuple[str]:
        return (f"/ip4/127.0.0.1/tcp/{port}",)

    node = tmp_path / "node"
    node_id = create_node(node, listen=listen(ports[1]), capacity=1 << 30, hive_seed=HIVE, seed=NODE, now_ns=1)
    assert node_id == NodeId(KEY)
    running, _ = start("node", "run", node)

    def find() -> list[str] | None:
        words = [sys.executable, "-c", textwrap.dedent(FIND), member, keys.public_key(HIVE).hex(), KEY.hex()]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, list[str]] = json.loads(done.stdout)
        return found.get(KEY.hex())

    def until(port: int) -> None:
        end = time.monotonic() + 100
        while not (addresses := find()) or f"/tcp/{port}/" not in addresses[0]:
            assert time.monotonic() < end, addresses
            time.sleep(1)

    assert find() is None
    teller, _ = start("dht", "serve", "--listen", f"/ip4/127.0.0.1/tcp/{ports[2]}", "--peer", member, "--node", node)
    until(ports[1])
    running.terminate()
    running.wait(60)
    teller.kill()
    teller.wait(30)
    change_settings(node, lambda config: replace(config, listen=listen(ports[3])))
    start("node", "run", node)
    assert find() is not None, "the old one is still there"
    start("dht", "serve", "--peer", member, "--node", node)
    until(ports[3])
    first.kill()
    first.wait(30)
    words = [sys.executable, "-c", textwrap.dedent(FIND), member, keys.public_key(HIVE).hex(), KEY.hex()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode and "PeerUnreachable" in done.stderr, "nobody is there"
