"""The network between two nodes, and between a client and one of them, is cut and comes back: everything goes on by itself.

Two namespaces with a link that loses every packet while it is down, as a pulled cable does: nobody is told.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hive_tools import HIVE, seed_of

from hivefs.crypto.keys import public_key
from hivefs.node.config import create_node
from hivefs.testing.bench.wan import link
from hivefs.testing.bench.wan.emulator import FAR, NEAR
from hivefs.transport import peer_id_from_key

CLIENT = Path(__file__).parent / "partition_client.py"
DEVICE = "hivewan"
PATIENCE = 120.0
"""Seconds for anything that is to happen; all of it takes a few."""

State = dict[str, Any]


@contextmanager
def started(side: Sequence[str], words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*side, sys.executable, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()


class Client:
    """What the client says, a line at a time."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def next(self, seconds: float) -> State:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        assert line, self._log.read_text()
        found: State = json.loads(line)
        return found

    def until(self, holds: Callable[[State], object]) -> State:
        end = time.monotonic() + PATIENCE
        while not holds(state := self.next(PATIENCE)):
            assert time.monotonic() < end, (state, self._log.read_text())
        return state

    def last(self) -> State:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.stdin = None
        return self.until(lambda state: "read" in state)


def set_link(side: Sequence[str], state: str) -> None:
    done = link.run(side, ["ip", "link", "set", DEVICE, state], 20)
    assert done.returncode == 0, done.stderr


def partition(root: Path, seconds: float) -> State:
    """Cut for so long while the client works with both nodes; what it says in the end."""
    addresses: dict[str, str] = {}
    ids = {name: public_key(seed_of(name)) for name in ("here", "there")}
    here, there = (ids[name].hex() for name in ("here", "there"))
    with ExitStack() as stack:
        line = stack.enter_context(link.opened(link.Shape(0.002, 0.0, 100e6)))
        for name, ip, port, side in (("there", FAR, 4001, line.far), ("here", NEAR, 4002, line.near)):
            addresses[name] = f"/ip4/{ip}/tcp/{port}/p2p/{peer_id_from_key(ids[name])}"
            create_node(
                root / name,
                listen=(f"/ip4/{ip}/tcp/{port}",),
                capacity=1 << 30,
                hive_seed=HIVE,
                seed=seed_of(name),
                bootstrap=tuple(addresses[other] for other in addresses if other != name),
                now_ns=1,
            )
            words = ["-m", "hivefs", "node", "run", str(root / name)]
            node = stack.enter_context(started(side, words, root / f"{name}.log"))
            assert node.stdout is not None
            assert "Serving" in node.stdout.readline(), (root / f"{name}.log").read_text()
        words = [str(CLIENT), addresses["here"]]
        client = Client(stack.enter_context(started(line.near, words, root / "client.log")), root / "client.log")
        client.until(lambda s: s[here]["rounds"] > 5 and s[there]["rounds"] > 5)

        set_link(line.far, "down")
        cut = time.monotonic()
        # What it said before is still in the pipe, and what was on its way may yet be counted.
        at_cut = client.until(lambda s: s["at"] > cut + 0.5)
        # The node that is here must not be held up.
        state = client.until(lambda s: s["at"] > cut + seconds and s[here]["rounds"] > at_cut[here]["rounds"] + 5)
        assert state[there]["rounds"] <= at_cut[there]["rounds"] + 2, "the link was not cut"

        set_link(line.far, "up")
        client.until(lambda s: s[there]["online"] and s[there]["rounds"] > state[there]["rounds"] + 10)
        last = client.last()
        assert last["read"] > 4
        for name in ("here", "there"):
            lines = (root / f"{name}.log").read_text().splitlines()
            assert len(lines) < 12, lines
            assert not re.search("ERROR|Traceback", "\n".join(lines))
        return {"here": last[here], "there": last[there]}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [2.0, pytest.param(25.0, marks=pytest.mark.slow)])
def test_a_partition_that_heals_is_forgotten(tmp_path: Path, seconds: float) -> None:
    """Two seconds are shorter than what takes a conversation for lost, 25 s longer: then it is begun anew."""
    try:
        last = partition(tmp_path, seconds)
    except link.NoLink as reason:
        pytest.skip(str(reason))
    assert last["here"]["lost"] == 0
    if seconds > 15:
        assert last["there"]["lost"] > 0
