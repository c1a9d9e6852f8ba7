"""How long the engine's duties hold its loop with a book of many stripes and files: ``python -m
hivefs.testing.bench.loop_figures``, or ``scripts/bench --only loop``.

The engine is the real one over real stores, which are filled directly (one directory with all files, one chunk each); no
node answers and no share exists. What looks at all of it for a user does so in a process of its own (daemon/looker.py): its
memory is in a column beside the engine's.

Beside each duty a probe takes a turn of the loop whenever it can. What passes between two of its turns is a gap: in time of
the clock, and in processor time of the loop's thread, which other programs of the machine do not make longer. The probe
takes turns without end, so a duty that only gives turns gets as many as it would alone.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import trio

from hivefs.daemon.control import Methods
from hivefs.daemon.engine_core import Engine
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.daemon.looker import Looker
from hivefs.daemon.memory import collect_often, settled
from hivefs.daemon.policy_book import EngineBook
from hivefs.daemon.policy_control import PolicyControl
from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.formats import records
from hivefs.formats.local import local_inode_to_bytes
from hivefs.maintenance.rebalance_plan import Fill
from hivefs.metadata.store import MetadataStore
from hivefs.model.ids import ROOT_INO, ChunkId, NodeId, ShareId, StripeId
from hivefs.model.inode import ChunkRef, Dirent, Inode, MapExtent, SlotKind
from hivefs.model.stripe import ChunkPlace, Purpose, Share, Stripe
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules
from hivefs.testing.bench.rounds import say
from hivefs.testing.sim.nodes import HIVE_SEED, SimNode

SECRETS: Final = Secrets(bytes(range(32)), bytes([9]) * 32)
CODE: Final = (10, 16)
COUNTRIES: Final = ("DE", "FR", "GB", "NL", "CH", "SE", "NO", "FI", "JP", "CA", "BR", "IS")
BATCH: Final = 2000
SETS: Final = 500
"""Different sets of nodes that the stripes lie on."""

SHARE_BYTES: Final = 1 << 20
NEVER: Final = Policy(*CODE, (Rules("jurisdiction", 3, 3), Rules("operator", 3, 3)), (("jurisdiction", 1),))
SHORTEST: Final = 0.1
"""Milliseconds; shorter gaps are turns in which nobody else did anything."""


async def _never(*_: Any) -> Any:
    await trio.sleep_forever()


def filled(path: Path, nodes: int, stripes: int, files: int) -> Engine:
    """An engine over a new store with so many nodes, stripes without certificates, and files of one chunk."""
    home = Home.create(path, SECRETS, Lock("none"), HIVE_SEED, (), *CODE, {"node_gone_after_s": 86_400})
    engine = Engine(home, SECRETS, cast("Any", _never))
    store, dice = engine.store, random.Random(1)
    made = [
        SimNode(i, COUNTRIES[i % len(COUNTRIES)], f"operator {i // 2}", COUNTRIES[i % len(COUNTRIES)], 1 << 40, 0.0)
        for i in range(nodes)
    ]
    with store.writing():
        for node in made:
            store.save_node(node.entry(), time.time_ns())
            store.save_node_row(node.node_id, NodeRow(NodeState.ONLINE, 1, 1 << 39, 1 << 40))
    engine.pool.refresh()
    some = [replace(engine.pool.candidate(n, engine.policy), usable=True) for n in engine.pool.members]
    sets = [choose(engine.policy, some, seed) for seed in range(SETS)]
    for first in range(0, stripes, BATCH):
        with store.writing():
            for number in range(first, min(stripes, first + BATCH)):
                store._put_stripe(_stripe(number, sets[number % SETS], dice))
    for first in range(0, files, BATCH):
        with store.writing():
            for number in range(first, min(files, first + BATCH)):
                place = ChunkPlace(_stripe_id(number * stripes // files), 0, number, 1)
                store.save_place(_chunk_id(number), place, number + 2, 0)
    drive(home, engine, files)
    return engine


def _stripe_id(number: int) -> StripeId:
    return StripeId(number.to_bytes(16, "big"))


def _chunk_id(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(16, "big"))


def _stripe(number: int, holders: list[NodeId], dice: random.Random) -> Stripe:
    shares = tuple(Share(ShareId(dice.randbytes(32)), dice.randbytes(32), node) for node in holders)
    return Stripe(_stripe_id(number), Purpose.DATA, CODE[0], SHARE_BYTES, shares)


def drive(home: Home, engine: Engine, files: int) -> None:
    """The committed metadata of a drive with all its files in the root directory, a chunk each, as the mount writes it."""
    store = MetadataStore(home.metadata, engine.keys, create=True)

    def put(key: bytes, value: bytes) -> None:
        store.put(key, value, quiet=True)

    try:
        put(records.inode_key(ROOT_INO), local_inode_to_bytes(Inode(ROOT_INO, 0o40755), 1, 1))
        for number in range(files):
            name, ino = b"file %d" % number, number + 2
            chunk = ChunkRef(_chunk_id(number), bytes(32), 1, 0)
            put(records.inode_key(ino), local_inode_to_bytes(Inode(ino, 0o100644, size=1), 1, 1))
            key = records.dirent_key(ROOT_INO, records.name_hash(engine.keys.names_key, ROOT_INO, name))
            put(key, records.dirent_to_bytes(Dirent(name, ino, 0o10)))
            put(records.map_key(ino, 0), records.extent_to_bytes(MapExtent(0, 1, SlotKind.CHUNK, chunk)))
            if number % BATCH == 0:
                store.commit()
        store.commit()
    finally:
        store.close()


def anonymous(pid: int | None = None) -> int:
    """Bytes of memory of a process (this one) that are not mapped from files; 0 when it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid or 'self'}/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) << 10 if found else 0


def children() -> list[int]:
    """Processes that this one has started."""
    return [int(word) for path in Path("/proc/self/task").glob("*/children") for word in path.read_text().split()]


async def watched(work: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Do it with the probe beside it: seconds and processor seconds it took, gaps in milliseconds, memory in bytes."""
    walls, cpus = array("d"), array("d")
    memory = most = anonymous()
    child = 0
    done = trio.Event()

    async def probe(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal most, child
        turns = 0
        task_status.started()
        wall, cpu = time.perf_counter(), time.thread_time()
        while not done.is_set():
            await trio.lowlevel.checkpoint()
            now, used = time.perf_counter(), time.thread_time()
            turns += 1
            if now - wall >= SHORTEST / 1000:  # what is kept of each turn would in the end be a gap itself
                walls.append(1000 * (now - wall))
                cpus.append(1000 * (used - cpu))
            wall, cpu = now, used
            if turns % 4096 == 0:
                most = max(most, anonymous())
                child = max(child, *(anonymous(pid) for pid in children()), 0)
                wall, cpu = time.perf_counter(), time.thread_time()

    begun, used = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(probe)
        await work()
        await trio.lowlevel.checkpoint()
        done.set()
    wall, cpu = ([0.0, *sorted(gap for gap in gaps if gap >= SHORTEST)] for gaps in (walls, cpus))
    return {
        "seconds": time.perf_counter() - begun,
        "processor": time.process_time() - used,
        "gaps": float(len(wall) - 1),
        "gap_median": wall[len(wall) // 2],
        "gap": wall[-1],
        "gap_cpu_median": cpu[len(cpu) // 2],
        "gap_cpu": cpu[-1],
        "memory": float(max(most, anonymous()) - memory),
        "child": float(child),
    }


async def _first_round(duty: Callable[[], Awaitable[Any]], over: Callable[[], bool]) -> None:
    """Run a duty that goes on for ever until it has done what there is."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(duty)
        while not over():  # noqa: ASYNC110
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def _nothing(_: Any) -> None:
    await trio.lowlevel.checkpoint()


def duties(engine: Engine) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    """What is measured, in this order: the first scan of repair finds stripes without certificates, the second none."""

    async def scan() -> None:
        waits = trio.Event()

        class Changed:
            async def wait(self) -> None:
                waits.set()
                await trio.sleep_forever()

        engine.repair._changed = cast("Any", Changed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.repair.unproved.run)
            await _first_round(engine.repair._watch, lambda: waits.is_set() and not engine.repair.unproved.queue)
            nursery.cancel_scope.cancel()

    async def measure() -> None:
        before = engine.rules.levels
        await _first_round(engine.rules.measure, lambda: engine.rules.levels is not before)

    methods, looker = Methods(), Looker(engine.home, engine.keys.reading())
    PolicyControl(EngineBook(engine), looker.ask, trio.lowlevel.checkpoint).add_to(methods)

    async def rebalance() -> None:
        rows = [(m.node_id, m.row.capacity) for m in engine.pool.members.values()]
        fills = [Fill(n, capacity, capacity // (2 if i % 2 else 32), 0) for i, (n, capacity) in enumerate(rows)]
        engine.moving.rebalance._nodes = lambda: fills
        engine.moving.rebalance._takes = lambda node_id: True
        await engine.moving.rebalance.round()

    async def repack() -> None:
        engine.moving.repack.young_ns = 0
        await engine.moving.repack.look()

    async def infeasible() -> None:
        engine.pool.candidates(NEVER)
        for member in engine.pool.members.values():
            member.client = cast("Any", engine)  # it answers, as far as the pool knows
            engine.pool.listing.changed(member.node_id)
        some = _stripe(0, [], random.Random(2))
        some = replace(some, shares=tuple(Share(ShareId(bytes(32)), bytes(32), None) for _ in range(CODE[1])))
        async with engine.thinker.running():
            for _ in range(3):
                with contextlib.suppress(PolicyInfeasible, TooFewNodes):
                    await engine.writer.choose(some, NEVER, {}, range(CODE[1]))

    asked = {"path": "/", "lose": ["DE"], "seize": ["US", "CA"], "nodes_gone": 2}
    yield "certify", scan
    yield "scan", scan
    yield "measure", measure
    yield "check", lambda: looker.ask("check_placement", {"whole": True}, (), _nothing)
    yield "rebalance", rebalance
    yield "repack", repack
    yield "explain", lambda: methods.answer("policy_explain", {"path": "/"}, _nothing)
    yield "simulate", lambda: methods.answer("policy_simulate", asked, _nothing)
    yield "infeasible", infeasible


TITLES: Final = {
    "certify": "repair's first scan, which certifies all",
    "scan": "repair's scan",
    "measure": "counting levels for status",
    "check": "check --placement",
    "rebalance": "a plan of rebalancing",
    "repack": "a look of repacking",
    "explain": "policy explain /",
    "simulate": "policy simulate",
    "infeasible": "a policy that no nodes can keep, three times",
}


def rows(nodes: int, stripes: int, files: int) -> dict[str, dict[str, Any]]:
    """The rows for the table of scripts/bench."""
    found: dict[str, dict[str, Any]] = {}
    for name, got in figures(nodes, stripes, files):
        for what, unit, key, by in (
            ("", "s", "processor", 1.0),
            (": median gap of the loop", "ms", "gap_cpu_median", 1.0),
            (": longest gap of the loop", "ms", "gap_cpu", 1.0),
            (": memory", "MiB", "memory", 1 << 20),
            (": memory of its process", "MiB", "child", 1 << 20),
        ):
            value = got[key] / by
            title = f"{TITLES[name]}, {stripes} stripes, {files} files{what}"
            found[f"loop_{name}_{key}"] = {"title": title, "unit": unit, "value": value, "values": [value], "against": ""}
    return found


def figures(nodes: int, stripes: int, files: int, only: Collection[str] = ()) -> Iterator[tuple[str, dict[str, float]]]:
    """One after the other, each with what watched() says."""
    with tempfile.TemporaryDirectory(prefix="hivefs-loop-", dir="/var/tmp") as root:
        engine = filled(Path(root) / "home", nodes, stripes, files)
        settled()
        collect_often()
        try:
            for name, work in duties(engine):
                if only and name not in only:
                    continue
                yield name, trio.run(watched, work)
        finally:
            engine.close()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--stripes", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--duties", default="", help="only these, with commas: " + ", ".join(TITLES))
    chosen = parser.parse_args()
    only = [word for word in chosen.duties.split(",") if word]
    say(f"{chosen.nodes} nodes, {chosen.stripes} stripes {CODE[0]}/{CODE[1]}, {chosen.files} files")
    write = sys.stdout.write
    write(f"{'':42} {'s':>7} {'cpu s':>7} {'gaps':>8}   ms: median, worst  of cpu: median, worst      MiB  child MiB\n")
    for name, got in figures(chosen.nodes, chosen.stripes, chosen.files, only):
        write(
            f"{TITLES[name]:42} {got['seconds']:7.1f} {got['processor']:7.1f} {got['gaps']:8.0f} "
            f"{got['gap_median']:13.2f} {got['gap']:8.2f} {got['gap_cpu_median']:14.2f} {got['gap_cpu']:8.2f} "
            f"{got['memory'] / (1 << 20):8.1f} {got['child'] / (1 << 20):10.1f}\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
