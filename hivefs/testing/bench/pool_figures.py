"""What it costs the engine to know very many nodes: ``python -m hivefs.testing.bench.pool_figures``, or ``scripts/bench
--only pool``.

The engine is the real one over a real store, which knows of each node what it would after some weeks; LIVE of its nodes
answer (a conversation that says how much room there is), and the others refuse. For each number of nodes, in processes of
their own: how long the engine takes to load them and how much memory it is, tasks of the loop, and the longest gaps of the
loop (in processor time, see loop_figures) while the pool does what it does some times a second, during ``hivefs status``,
and while what ``df`` tells is counted. With ``--steps`` the longest steps of tasks are told too, and where they were seen
(long_steps.py).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import trio

from hivefs.daemon.engine_core import Engine
from hivefs.daemon.home import Home, Lock
from hivefs.daemon.memory import collect_nothing, collect_often, keep_small, settled, switch_often
from hivefs.errors import PeerUnreachable
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.reputation import Reputation
from hivefs.testing.bench.long_steps import LongSteps
from hivefs.testing.bench.loop_figures import COUNTRIES, SECRETS, anonymous, watched
from hivefs.testing.bench.rounds import say
from hivefs.testing.sim.nodes import HIVE_SEED, SimNode

COUNTS: Final = (100, 1_000, 10_000, 100_000, 320_000)
LIVE: Final = 64
WATCHED_S: Final = 15.0
BATCH: Final = 2000
TOLD: Final = 8
CODE: Final = (10, 16)


class _Client:
    """A node that answers what the pool asks."""

    def __init__(self, entry: RosterEntry) -> None:
        self.node_id = NodeId(entry.membership.subject)
        self.relayed = False
        self.way = ""
        self.ahead_ns = 0
        self.greeted = SimpleNamespace(node_membership=entry.membership)

    async def stat(self) -> Any:
        await trio.lowlevel.checkpoint()
        return SimpleNamespace(free_bytes=1 << 39, capacity=1 << 40, dropped=0, time_ns=0)

    async def wait_closed(self) -> None:
        await trio.sleep_forever()


def filled(path: Path, nodes: int) -> Engine:
    """An engine over a new store that knows so many nodes."""

    @asynccontextmanager
    async def dial(entry: RosterEntry) -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        if entry.membership.subject not in live:
            raise PeerUnreachable(address="a node", reason="it is not there")
        yield _Client(entry)

    live: set[bytes] = set()
    home = Home.create(path, SECRETS, Lock("none"), HIVE_SEED, (), *CODE, {"node_gone_after_s": 86_400})
    engine = Engine(home, SECRETS, cast("Any", dial))
    store, dice, now = engine.store, random.Random(1), time.time_ns()
    for first in range(0, nodes, BATCH):
        with store.writing():
            for i in range(first, min(nodes, first + BATCH)):
                country = COUNTRIES[i % len(COUNTRIES)]
                node = SimNode(i, country, f"operator {i // 2}", country, 1 << 40, 0.0)
                if i % max(1, nodes // LIVE) == 0:
                    live.add(node.node_id)
                store.save_node(node.entry(), time.time_ns())
                store.save_node_row(node.node_id, NodeRow(NodeState.ONLINE, 1, 1 << 39, 1 << 40))
                engine.evidence.weigh([node.node_id])
                store.save_reputations({node.node_id: _conduct(now, dice)})
    return engine


def _conduct(now: int, dice: random.Random) -> Reputation:
    """Of a node that was audited, and away up to three times."""
    outages = tuple((now // 10**9 - 86_400 * (9 - i), dice.randrange(5000)) for i in range(dice.randrange(4)))
    audits, known = dice.randrange(500), dice.randrange(10**9, 2 * 10**9)
    return Reputation(now - dice.randrange(10**16), now, 1000 * audits, 0, audits, False, 10**9, known, outages=outages)


async def _nothing(client: Any) -> None:
    await trio.lowlevel.checkpoint()


async def _rest() -> None:
    await trio.sleep(WATCHED_S)


async def _figures(engine: Engine, nodes: int, before: int, begun: float, steps: LongSteps | None) -> dict[str, Any]:
    pool = engine.pool
    pool._on_connect = _nothing
    found: dict[str, Any] = {"nodes": nodes, "steps": {}}
    async with trio.open_nursery() as nursery:
        await engine.trust.load()
        await nursery.start(pool.run)
        await engine._warm()
        found["load_s"] = time.process_time() - begun
        found["loaded"] = anonymous() - before
        while len(pool.online()) < min(LIVE, nodes):  # noqa: ASYNC110
            await trio.sleep(0.1)
        settled()
        collect_often()
        switch_often()
        nursery.start_soon(keep_small)
        found["memory"] = anonymous() - before
        found["tasks"] = trio.lowlevel.current_statistics().tasks_living
        async with engine.thinker.running():
            for name, work in (("ticks", _rest), ("status", engine.told), ("df", engine.room.count)):
                if steps is not None:
                    steps.forget()
                got = await watched(work)
                found |= {name: got["gap_cpu"], f"{name}_s": got["seconds"]}
                if steps is not None:
                    found["steps"][name] = steps.worst(TOLD)
            found["used"] = anonymous() - before
        nursery.cancel_scope.cancel()
    return found


def one(nodes: int, tell: bool = False) -> dict[str, Any]:
    """The figures for one number of nodes, in this process."""
    with tempfile.TemporaryDirectory(prefix="hivefs-pool-", dir="/var/tmp") as root:
        engine = filled(Path(root) / "home", nodes)
        path = engine.home
        engine.close()
        dial = engine.pool._dial
        del engine
        settled()
        collect_nothing()
        before, begun = anonymous(), time.process_time()
        engine = Engine(path, SECRETS, dial)
        steps = LongSteps() if tell else None
        try:
            return trio.run(_figures, engine, nodes, before, begun, steps, instruments=[steps] if steps else [])
        finally:
            engine.close()


def figures(counts: Sequence[int], tell: bool = False) -> Iterator[dict[str, Any]]:
    """Each in a process of its own: what one leaves of memory is not another's."""
    for count in counts:
        command = [sys.executable, "-m", "hivefs.testing.bench.pool_figures", "--one", str(count)]
        command += ["--steps"] if tell else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        yield json.loads(done.stdout)


COLUMNS: Final = (
    ("load_s", "s", "loading them", 1.0),
    ("loaded", "MiB", "memory", 1 << 20),
    ("used", "MiB", "after all", 1 << 20),
    ("tasks", "", "tasks", 1.0),
    ("ticks", "ms", "gap, ticks", 1.0),
    ("status", "ms", "gap, status", 1.0),
    ("df", "ms", "gap, df", 1.0),
    ("df_s", "s", "count of df", 1.0),
)


def rows(counts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The rows for the table of scripts/bench."""
    found: dict[str, dict[str, Any]] = {}
    for got in figures(counts):
        for key, unit, what, by in COLUMNS:
            value = got[key] / by
            title = f"{got['nodes']:.0f} nodes known: {what}"
            name = f"pool_{got['nodes']:.0f}_{key}"
            found[name] = {"title": title, "unit": unit, "value": value, "values": [value], "against": ""}
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default=",".join(map(str, COUNTS)), help="numbers with commas")
    parser.add_argument("--one", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--steps", action="store_true", help="tell the longest steps, too (which costs time)")
    chosen = parser.parse_args()
    if chosen.one:
        sys.stdout.write(json.dumps(one(chosen.one, chosen.steps)))
        return 0
    say(f"{LIVE} nodes answer")
    sys.stdout.write(f"{'nodes':>8} " + " ".join(f"{what + ' ' + unit:>16}" for _, unit, what, _ in COLUMNS) + "\n")
    for got in figures([int(word) for word in chosen.nodes.split(",")], chosen.steps):
        sys.stdout.write(f"{got['nodes']:8.0f} " + " ".join(f"{got[key] / by:16.2f}" for key, _, _, by in COLUMNS) + "\n")
        for name, told in got["steps"].items():
            for words in told:
                sys.stdout.write(f"    {name:8}{words}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
