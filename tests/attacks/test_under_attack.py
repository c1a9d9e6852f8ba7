"""One real node process, an honest member on it, and attackers in a process of their own.

In every case: what the member gets is right, the node's memory stays small, and its log has a line of a kind and no flood.
With --slow also: the member keeps at least half of the throughput that it had a moment before.

The member comes from another address than the attackers: of those who have the same one, who is slow is pushed out by who
comes after, and on a busy machine that is the member as well (transport/sites.py).
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from hive_tools import HIVE, HIVE_KEY, client_certificate, lease, seed_of, share, within

from attacks.attackers import KINDS
from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.daemon.node_process import running_node
from hivefs.node.config import create_node
from hivefs.protocol.frames import Kind
from hivefs.transport import open_host

pytestmark = pytest.mark.timeout(900)
ATTACKERS = Path(__file__).parent / "attackers.py"
MOST_MORE_RSS = 32 << 20
"""Bytes that an attack may cost the node, at its worst moment."""
BY_KIND = {"hold_streams": 96 << 20, "unread_shares": 112 << 20, "unread_answers": 112 << 20}
"""4096 streams, each with its task; the 16 MiB for answers, which are sealed once more, beside shares that come in;
requests that the node does not read, up to 16 MiB of each connection and 128 MiB in all (transport/limits.py)."""
MOST_OF_A_KIND = 2
"""Lines of one kind in a log while an attack lasts (a few seconds; Events writes one in EVERY seconds)."""
EVERY = 30.0
SAID = {
    "half_open": "too many half-open connections",
    "drip_tls": "too many half-open connections",
    "drip_greeting": "too many greetings",
    "garbage": "protocol violation",
    "four_gib": "protocol violation",
    "stolen_certificate": "refused a peer",
    "replayed_login": "refused a peer",
    "replayed_delete": "refused a request",
    "hold_streams": "too many streams",
}
"""The line that tells of an attack. (What the others do is within what any peer may do, and costs them only their turn.)"""
SHORT, LONG = 0.4, 7.0
STAMP = re.compile(r"^\S+ \S+ (?P<level>[A-Z]+) (?P<kind>[\w.]+: [^:]*)")


class Node:
    """``hivefs node run`` with its log in a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        create_node(
            directory, listen=("/ip4/127.0.0.1/tcp/0",), capacity=1 << 30, hive_seed=HIVE, seed=seed_of("node"), now_ns=1
        )
        self.log = directory / "run.log"
        with self.log.open("wb") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "hivefs", "node", "run", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._running.stdout is not None
        said = self._running.stdout.readline()
        found = re.search(r"/ip4/\S+/p2p/\w+", said)
        assert found, self.log.read_text()
        self.address = found[0]

    def stop(self) -> None:
        self._running.terminate()
        try:
            self._running.communicate(timeout=60)
        finally:
            self._running.kill()
            self._running.wait()
        assert self._running.returncode == 0, self.log.read_text()

    def alive(self) -> bool:
        return self._running.poll() is None and running_node(self.directory) is not None

    def rss(self, name: str = "VmHWM") -> int:
        """Bytes of memory: VmRSS now, VmHWM at most since ``forget_peak``."""
        status = Path(f"/proc/{self._running.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) << 10

    def forget_peak(self) -> None:
        Path(f"/proc/{self._running.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    found = Node(tmp_path_factory.mktemp("attacked") / "n")
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(host: str, port: int) -> trio.SocketStream:
        made = trio.socket.socket()
        await made.bind(("127.0.9.9", 0))
        await made.connect((host, port))
        return trio.SocketStream(made)

    monkeypatch.setattr("hivefs.transport.host._connect", connect)


@asynccontextmanager
async def member(address: str, recorded: list[bytes] | None = None) -> AsyncIterator[NodeClient]:
    """A fresh connection and greeting; ``recorded`` gets every frame that leaves."""
    seed = seed_of("owner")
    async with open_host(os.urandom(32)) as host:
        connection = await host.dial(address, timeout=60)
        stream = await connection.open_stream(PROTOCOL)
        if recorded is not None:
            real = stream.send_all

            async def recording(data: bytes | bytearray | memoryview) -> None:
                recorded.append(bytes(data))
                await real(data)

            stream.send_all = recording  # type: ignore[method-assign]
        who = credentials(seed, host.peer_key, HIVE_KEY, client_certificate(seed))
        async with converse(stream, who, time.time_ns()) as client:
            yield client


class Honest:
    """Puts, gets and deletes; begins a new conversation now and then, as somebody who just came does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.rounds = 0

    async def work(self, seconds: float) -> float:
        """Rounds per second. Whatever is not as it must be ends the test."""
        began = trio.current_time()
        first = self.rounds
        while trio.current_time() < began + seconds:
            async with member(self.address) as client:
                for _ in range(20):
                    share_id, data = share(64 << 10)
                    await client.put(share_id, data, lease())
                    assert await client.get(share_id) == data
                    assert await client.have([share_id]) == [len(data)]
                    assert await client.delete([share_id]) == [True]
                    assert await client.have([share_id]) == [0]
                    self.rounds += 1
                    if trio.current_time() >= began + seconds:
                        break
        return (self.rounds - first) / (trio.current_time() - began)


@contextmanager
def attacked(kind: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The attack is under way inside the block, and has an end behind it."""
    process = subprocess.Popen(
        [sys.executable, str(ATTACKERS), kind, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 120)
        if not ready or process.stdout.readline() != "under way\n":
            process.kill()
            raise AssertionError(process.communicate()[1])
        yield process
        said, wrong = process.communicate(timeout=60)
        assert process.returncode == 0, wrong
        assert '"done"' in said, wrong
    finally:
        process.kill()
        process.wait()


async def recordings(address: str, kept: list[bytes]) -> list[bytes]:
    """LOGIN and DELETE as they were on the wire, of shares that are there (again) afterwards."""
    recorded: list[bytes] = []
    async with member(address, recorded) as client:
        for data in kept:
            share_id, _ = share(len(data), data)
            await client.put(share_id, data, lease())
            assert await client.delete([share_id]) == [True]
            await client.put(share_id, data, lease())
    whole = (data for data in recorded if 4 < len(data) < 4096)  # not the pieces of a share's bytes
    found = [data for data in whole if data[4] in (Kind.LOGIN, Kind.DELETE)]
    assert [data[4] for data in found] == [Kind.LOGIN] + [Kind.DELETE] * len(kept)
    return found


async def all_there(address: str, kept: list[bytes]) -> None:
    async with member(address) as client:
        for data in kept:
            assert await client.get(share(len(data), data)[0]) == data


def under(node: Node, kind: str, seconds: float, file: Path) -> tuple[float, float]:
    """Throughput of the honest member before and during the attack; everything else is asserted here."""
    honest = Honest(node.address)
    kept = [os.urandom(100_000) for _ in range(3)]
    recorded = within(recordings, node.address, kept)
    file.write_text("\n".join(data.hex() for data in recorded))
    before = within(honest.work, seconds)
    node.forget_peak()
    memory, log, began = node.rss("VmRSS"), node.log.stat().st_size, time.monotonic()
    with attacked(kind, node.address, str(file)):
        during = within(honest.work, seconds)
        within(all_there, node.address, kept)
        end = time.monotonic() + 60
        while f": {SAID.get(kind, '')}" not in node.log.read_text():  # of this attack or, within 30 s, an earlier one
            assert time.monotonic() < end, node.log.read_text()
            time.sleep(0.05)
    peak, more = node.rss(), int((time.monotonic() - began) / EVERY)
    lines = node.log.read_bytes()[log:].decode().splitlines()
    print(f"{kind}: {before:.0f} -> {during:.0f} rounds/s, RSS +{(peak - memory) >> 10} KiB, {len(lines)} lines")
    assert node.alive()
    assert peak - memory < BY_KIND.get(kind, MOST_MORE_RSS)
    kinds = Counter(found["kind"] if (found := STAMP.match(line)) else line for line in lines)
    assert not kinds or max(kinds.values()) <= MOST_OF_A_KIND + more, kinds
    assert len(lines) <= 6 + 3 * more, lines
    return before, during


@pytest.mark.parametrize("kind", KINDS)
def test_under_attack_data_memory_and_log_are_as_always(node: Node, tmp_path: Path, kind: str) -> None:
    under(node, kind, SHORT, tmp_path / "recorded")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_under_attack_half_of_the_throughput_stays(node: Node, tmp_path: Path, kind: str) -> None:
    before, during = under(node, kind, LONG, tmp_path / "recorded")
    assert during >= before / 2
