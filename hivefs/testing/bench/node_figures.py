"""One real node process that fills with small shares: does anything slow down or grow?

Told at each number of shares: the rate of puts just before it, of reads of any of them, the time of a question for 1024
and of STAT, and memory; each also as a ratio to the first number. At the end the node is killed and started again.

The last LAST shares before each number are put over a real conversation, and timed; those before them are put into the
store while no node runs, by the store's own code with one sync for all of them instead of several for each: a million
shares that are synced one by one take hours on a busy disk.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.crypto import keys
from hivefs.crypto.keys import vault_id_of
from hivefs.daemon import hive
from hivefs.daemon.node_process import Labels
from hivefs.formats.member import sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Membership, Role
from hivefs.node.store import PutJob, ShareStore
from hivefs.node.upkeep import SWEPT
from hivefs.testing.bench.bounded import Failed, Overrun, run_bounded
from hivefs.testing.bench.processes import memory, wait_idle
from hivefs.testing.bench.rounds import Record, say
from hivefs.testing.bench.tools import sync_filesystem

T = TypeVar("T")
SHARE_BYTES: Final = 1024
IN_FLIGHT: Final = 64
LAST: Final = 5000
"""Puts before each number that are timed."""

BATCH: Final = 1000
"""Shares that are filled in with one commit of the index."""

READS: Final = 2000
ASKED: Final = 1024
TIMES: Final = 20
SLOWEST: Final = 50
"""Shares a second; what is slower counts as hanging."""

READY_S: Final = 120.0
QUIET_S: Final = 300.0
Talking = Callable[[], AbstractAsyncContextManager[NodeClient]]
LEASE_NS: Final = 100 * 86_400 * 10**9
_SEED, _DEVICE = bytes([21]) * 32, bytes([22]) * 32
_ROWS: Final = (
    ("put", "puts", "1/s"),
    ("get", "reads", "1/s"),
    ("have", f"question for {ASKED} shares", "ms"),
    ("stat", "STAT", "ms"),
    ("resident", "memory", "MiB"),
    ("anonymous", "memory, not mapped from files", "MiB"),
)


def measure(root: Path, counts: Sequence[int], record: Record) -> dict[str, dict[str, Any]]:
    """The figures; what does not work is recorded."""
    counts = sorted(counts)
    try:
        found = run_bounded(
            partial(_run, root / "node", counts), 60 + (READY_S + QUIET_S) * (1 + len(counts)) + counts[-1] / SLOWEST
        )
    except (Overrun, Failed, OSError) as problem:
        record.problem("node", str(problem))
        return {}
    figures: dict[str, dict[str, Any]] = {}
    for key, title, unit in _ROWS:
        first = found["steps"][0][key]
        for count, step in zip(counts, found["steps"], strict=True):
            value = step[key]
            figures[f"node_{key}_{count}"] = {
                "title": f"a node with {count} shares of 1 KiB: {title}",
                "unit": unit,
                "value": value,
                "values": [value],
                "against": f"{value / first:.2f} of the first" if first else "",
            }
    figures["node_start"] = {
        "title": f"start of a node with {counts[-1]} shares after SIGKILL",
        "unit": "s",
        "value": found["start_s"],
        "values": [found["start_s"]],
        "against": f"{found['start_s'] / found['first_start_s']:.2f} of an empty one",
    }
    return figures


def _run(directory: Path, counts: Sequence[int]) -> dict[str, Any]:
    """In a child of its own."""
    address, key = _make(directory)
    talking = partial(_talking, address, key)
    process, first_start = _start(directory)
    steps, done = [], 0
    try:
        for count in counts:
            timed = max(done, count - LAST)
            if timed > done:
                process.terminate()
                process.wait(60)
                _fill(directory, done, timed)
                said = _log(directory).stat().st_size
                process, _ = _start(directory)
                _until_swept(_log(directory), said)
                wait_idle([process.pid], QUIET_S)
            steps.append(trio.run(_put_and_look, talking, process.pid, timed, count))
            done = count
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process, start = _start(directory)
        held = trio.run(_count, talking)
        if held != counts[-1]:
            raise RuntimeError(f"{held} of {counts[-1]} shares are there after SIGKILL")
        return {"steps": steps, "first_start_s": first_start, "start_s": start}
    finally:
        process.kill()
        process.wait(30)


def _make(directory: Path) -> tuple[str, hive.HiveKey]:
    from hivefs.daemon.embedded import _free_ports
    from hivefs.daemon.node import make_node

    key = hive.create(directory.with_name("hive.key"))
    port = _free_ports(1)[0]
    address = make_node(directory, key, f"/ip4/127.0.0.1/tcp/{port}", 1 << 40, Labels("DE", "bench"), ())
    return address, key


def _start(directory: Path) -> tuple[subprocess.Popen[str], float]:
    began = time.perf_counter()
    words = [sys.executable, "-m", "hivefs", "node", "run", str(directory)]
    with _log(directory).open("a") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True)
    if process.stdout is None or "Serving" not in process.stdout.readline():
        raise RuntimeError("the node does not start")
    return process, time.perf_counter() - began


def _log(directory: Path) -> Path:
    return directory.with_name("node.log")


def _until_swept(log: Path, start: int) -> None:
    """Wait until the node says that it has gone through its files: on a busy disk it may look idle long before. It goes on
    after QUIET_S seconds all the same.
    """
    end = time.monotonic() + QUIET_S
    while time.monotonic() < end:
        with log.open("rb") as file:
            file.seek(start)
            if SWEPT.encode() in file.read():
                return
        time.sleep(0.2)
    say("  the node is still going through its files")


@asynccontextmanager
async def _talking(address: str, key: hive.HiveKey) -> AsyncIterator[NodeClient]:
    from hivefs.transport import open_host

    async with open_host(_DEVICE) as host:
        connection = await host.dial(address, timeout=20)
        stream = await connection.open_stream(PROTOCOL)
        bare = Membership(b"", keys.public_key(_SEED), Role.CLIENT, (), issued_ns=1)
        me = credentials(_SEED, host.peer_key, keys.public_key(key.seed), sign_member(key.seed, bare))
        async with converse(stream, me, time.time_ns()) as client:
            yield client


def _share(number: int) -> tuple[ShareId, bytes]:
    data = hashlib.shake_128(number.to_bytes(8, "big")).digest(SHARE_BYTES)
    return ShareId(hashlib.sha256(data).digest()), data


async def _each(numbers: Iterator[int], do: Callable[[int], Any]) -> None:
    """``do`` for every number, IN_FLIGHT at a time."""

    async def worker() -> None:
        for number in numbers:
            await do(number)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(worker)


class _Filling(ShareStore):
    """Syncs no single file: all of them are synced before a node opens it."""

    def _all_at_once(self, sync: Callable[[T], OSError | None], items: Sequence[T]) -> list[OSError | None]:
        return [None] * len(items)


def _fill(directory: Path, first: int, end: int) -> None:
    """Shares [first, end), while no node runs."""
    store, vault, now = _Filling(directory), vault_id_of(keys.public_key(_SEED)), time.time_ns()
    began = time.perf_counter()
    for start in range(first, end, BATCH):
        shares = [_share(number) for number in range(start, min(start + BATCH, end))]
        results = store.put_many([PutJob(vault, share_id, now + LEASE_NS, data) for share_id, data in shares], now)
        if not all(isinstance(result, int) for result in results):
            raise RuntimeError("the store does not take all shares")
        if (start - first) // BATCH % 100 == 99:
            say(f"  filled {start + BATCH} shares, {(start + BATCH - first) / (time.perf_counter() - began):.0f} a second")
    store.close()
    sync_filesystem(directory)


async def _put_and_look(talking: Talking, pid: int, timed: int, count: int) -> dict[str, float]:
    async with talking() as client:

        async def put(number: int) -> None:
            share_id, data = _share(number)
            await client.put(share_id, data, time.time_ns() + LEASE_NS, timeout=120)

        async def get(number: int) -> None:
            share_id, data = _share(number)
            if await client.get(share_id, timeout=120) != data:
                raise RuntimeError("a share is not what was put")

        began = time.perf_counter()
        await _each(iter(range(timed, count)), put)
        step = {"put": (count - timed) / (time.perf_counter() - began)}
        chance = random.Random(count)
        wanted = [chance.randrange(count) for _ in range(READS)]
        began = time.perf_counter()
        await _each(iter(wanted), get)
        step["get"] = READS / (time.perf_counter() - began)
        some = [_share(chance.randrange(count))[0] for _ in range(ASKED)]
        step["have"] = await _milliseconds(partial(client.have, some))
        step["stat"] = await _milliseconds(client.stat)
        held = (await client.stat()).shares
        if held != count:
            raise RuntimeError(f"the node has {held} of {count} shares")
        await trio.sleep(1)  # mapped pages are let go
        step |= memory(pid)
        say(f"  {count} shares: " + ", ".join(f"{name} {value:.4g}" for name, value in step.items()))
        return step


async def _milliseconds(ask: Callable[[], Any]) -> float:
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        await ask()
        times.append(time.perf_counter() - began)
    return sorted(times)[TIMES // 2] * 1000


async def _count(talking: Talking) -> int:
    async with talking() as client:
        return (await client.stat()).shares
