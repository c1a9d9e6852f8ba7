"""Relays, in real processes: a node that is told of nowhere else is used through one, and what strangers get there."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.cli import main as cli
from hivefs.cli.relay_serve import MOST_CIRCUITS, MOST_NODES
from hivefs.crypto import keys
from hivefs.crypto.keys import VaultKeys
from hivefs.daemon import node_control
from hivefs.daemon.network import Conversations
from hivefs.daemon.relay import SERVE_LIMITS, own_place
from hivefs.errors import BadSetting, HivefsError, PeerUnreachable, Refused
from hivefs.formats.member import entry_from_bytes, sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Attribute, Membership, Role, RosterEntry
from hivefs.node.config import NodeConfig, create_node, load_node
from hivefs.testing.ports import free_ports
from hivefs.transport import open_host, peer_id_from_key
from hivefs.transport.circuit import reserve
from hivefs.transport.circuit_messages import HOP

HIVE, NEAR, HIDDEN, OWNER = (bytes([number]) * 32 for number in (1, 2, 3, 4))
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


def local(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}"


def make(directory: Path, seed: bytes, port: int, *bootstrap: str, announce: str = "") -> None:
    create_node(
        directory,
        listen=(local(port),),
        capacity=1 << 30,
        attributes=(Attribute("country", "DE"),),
        hive_seed=HIVE,
        seed=seed,
        bootstrap=bootstrap,
        announce=(announce,) if announce else (),
        now_ns=1,
    )


def entry_of(directory: Path) -> RosterEntry:
    return entry_from_bytes(node_control.call(directory, "entry"))


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@asynccontextmanager
async def owner(relays: bool = True) -> AsyncIterator[Conversations]:
    """As an engine speaks with nodes."""
    vault = VaultKeys(OWNER)
    bare = Membership(b"", vault.owner_key, Role.CLIENT, (), issued_ns=1)
    async with Conversations.open(os.urandom(32), vault, keys.public_key(HIVE), sign_member(HIVE, bare)) as made:
        made.relays = relays
        yield made


async def put_and_get(client: NodeClient, count: int) -> None:
    for _ in range(count):
        data = os.urandom(1 << 20)
        share_id = ShareId(hashlib.sha256(data).digest())
        await client.put(share_id, data, time.time_ns() + 10**16)
        assert await client.get(share_id) == data


class Hive:
    """A node that others reach, a relay beside it, and a node that tells an address where nobody listens."""

    def __init__(self, root: Path, start: Start, *relay_options: object) -> None:
        self.root, self.start, self.options = root, start, relay_options
        self.ports = free_ports(4)
        self.near, self.hidden = root / "near", root / "hidden"
        make(self.near, NEAR, self.ports[0])
        _, said = start("node", "run", self.near)
        nearby = said.removeprefix("Serving at ").split(" ")[0]
        make(self.hidden, HIDDEN, self.ports[1], nearby, announce=f"/dns4/localhost/tcp/{self.ports[3]}")
        self.node, _ = start("node", "run", self.hidden)
        self.relay, self.address = self.serve()

    def serve(self) -> tuple[subprocess.Popen[str], str]:
        words = ("relay", "serve", "--listen", local(self.ports[2]), "--node", self.near, *self.options)
        process, said = self.start(*words)
        assert said.startswith("Relaying at ")
        return process, said.removeprefix("Relaying at ").split(",")[0]

    def accept(self) -> subprocess.Popen[str]:
        process, said = self.start("relay", "accept", "--node", self.hidden, "--relay", self.address)
        assert said == f"Reached through {self.address} (Ctrl-C stops it)\n"
        return process

    def log(self, what: str) -> str:
        """Of the process whose log has this in it."""
        return "".join(text for path in sorted(self.root.glob("log-*")) if what in (text := path.read_text()))


def test_a_node_that_nobody_dials_is_used_through_a_relay(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    hive = Hive(tmp_path, start)
    assert entry_of(hive.hidden).address.relays == ()
    accepting = hive.accept()
    until(lambda: entry_of(hive.hidden).address.relays)
    entry = entry_of(hive.hidden)
    assert entry.address.relays == (hive.address,) == tuple(node_control.status(hive.hidden)["relays"])
    assert entry.address.reachable[0].startswith(f"/dns4/localhost/tcp/{hive.ports[3]}/"), "where nobody listens"

    async def use() -> None:
        async with owner() as engine, engine.with_node(entry) as client:
            assert client.relayed and client.node_id == keys.public_key(HIDDEN)
            await put_and_get(client, 8)
        async with owner(relays=False) as engine:
            with pytest.raises(PeerUnreachable):
                async with engine.with_node(entry):
                    raise AssertionError
        another = replace(entry, address=replace(entry.address, node_id=keys.public_key(OWNER)))
        async with owner() as engine:
            with pytest.raises(PeerUnreachable, match="no reservation"):
                async with engine.with_node(another):
                    raise AssertionError
        async with open_host(os.urandom(32)) as stranger:  # who is no node of the hive
            connection = await stranger.dial(hive.address)
            with pytest.raises(Refused, match="does not know it as a node of its hive"):
                await reserve(connection)

    with_deadline(use)
    assert node_control.status(hive.hidden)["shares"] == 8
    assert cli.run(["relay", "accept", "--node", str(hive.hidden), "--relay", hive.address]) == 39
    assert "another 'hivefs relay accept' runs" in capsys.readouterr().err
    for process in (hive.relay, accepting):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert f" {512 << 20} " in next(line for line in limits.splitlines() if line.startswith("Max data size"))
    accepting.kill()
    accepting.wait(100)
    assert entry_of(hive.hidden).address.relays == (hive.address,), "it stays in the settings until it is taken back"
    accepting = hive.accept()
    accepting.send_signal(signal.SIGTERM)
    assert accepting.wait(100) == 0
    assert entry_of(hive.hidden).address.relays == () == load_node(hive.hidden)[0].relays, "told no more"


@pytest.mark.slow
def test_strangers_at_a_relay_keep_nobody_out(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold all circuits that they can have, from two places, ask for reservations with many keys and send garbage."""
    hive = Hive(tmp_path, start)
    hive.accept()
    until(lambda: entry_of(hive.hidden).address.relays)
    entry, place = entry_of(hive.hidden), "127.0.0.1"

    async def connect(host: str, port: int) -> trio.SocketStream:
        made = trio.socket.socket()
        await made.bind((place, 0))
        await made.connect((host, port))
        return trio.SocketStream(made)

    monkeypatch.setattr("hivefs.transport.host._connect", connect)

    async def use() -> None:
        nonlocal place
        async with open_host(os.urandom(32)) as stranger, trio.open_nursery() as nursery:
            refused = held = 0
            for elsewhere in ("127.0.1.1", "127.9.1.1"):
                place = elsewhere
                for _ in range(40):
                    try:
                        await stranger.dial_through(hive.address, entry.address.node_id)
                        held += 1
                    except HivefsError:
                        refused += 1
            assert refused and held

            async def storm() -> None:
                async with open_host(os.urandom(32)) as other:
                    connection = await other.dial(hive.address)
                    for sent in (b"\x7f" + os.urandom(127), b"\xff" * 20, b""):
                        stream = await connection.open_stream(HOP)
                        if sent:
                            await stream.send_all(sent)
                    with pytest.raises(Refused):
                        await reserve(connection)

            for _ in range(30):
                nursery.start_soon(storm)
            place = "127.77.0.1"
            async with owner() as engine, engine.with_node(entry) as client:
                assert client.relayed
                await put_and_get(client, 16)

    with_deadline(use, 400.0)
    status = Path(f"/proc/{hive.relay.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    assert peak < 200_000, "kB"
    log = hive.log("reached through this relay")
    assert "Traceback" not in log and log.count("\n") < 30, log


def with_deadline(body: Callable[[], object], seconds: float = 100.0) -> None:
    async def bounded() -> None:
        with trio.fail_after(seconds):
            await body()  # type: ignore[misc]

    trio.run(bounded)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["accept", "--relay", "/ip4/127.0.0.1/tcp/1"], 41, "/ip4/127.0.0.1/tcp/1"),
        (["accept", *["--relay", "/ip4/127.0.0.1/tcp/{}/p2p/" + peer_id_from_key(HIVE)] * 5], 0, ""),
        (["serve", "--listen", "/ip4/127.0.0.1/udp/1"], 41, "udp"),
        (["serve", "--listen", "/ip4/127.0.0.1/tcp/0", "--circuit-bytes", "much"], 0, ""),
        (["serve", "--listen", "/ip4/127.0.0.1/tcp/0", "--circuits", str(MOST_CIRCUITS + 1)], 0, ""),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: none of it may get as far as binding its memory."""
    words = [word.format(number) for number, word in enumerate(words)]
    node = ["--node", str(tmp_path / "node")]
    if code:
        assert cli.run(["relay", *words, *node]) == 39, "there is no node"
        capsys.readouterr()
    make(tmp_path / "node", HIDDEN, 4001)
    found = cli.run(["relay", *words, *node])
    error = capsys.readouterr().err
    assert found and found == (code or found) and said in error and "Traceback" not in error
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 512 << 20


def test_a_relay_has_connections_for_all_that_it_may_be_asked_to_hold() -> None:
    assert SERVE_LIMITS.max_connections * 3 // 4 >= MOST_NODES + MOST_CIRCUITS
    assert SERVE_LIMITS.max_streams_in_total >= MOST_CIRCUITS + MOST_NODES


def test_where_a_node_is_on_its_own_machine() -> None:
    def place(*listen: str) -> tuple[str, int]:
        return own_place(NodeConfig(listen, 1, None))

    assert place("/ip4/0.0.0.0/tcp/4001") == ("127.0.0.1", 4001)
    assert place("/ip6/::/tcp/4001") == ("::1", 4001)
    assert place("/ip4/127.0.0.1/tcp/0", "/ip4/10.0.0.7/tcp/4002") == ("10.0.0.7", 4002)
    with pytest.raises(BadSetting):
        place("/ip4/127.0.0.1/tcp/0")
