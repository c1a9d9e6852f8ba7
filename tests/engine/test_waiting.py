"""A stripe that misses few of many shares waits, is guaranteed meanwhile, and is repaired when it has to be."""

from __future__ import annotations

import os
from pathlib import Path

from hivefs.daemon.engine_core import Engine
from hivefs.model.stripe import Level, Purpose, Stripe
from hivefs.placement.health import NodeState
from hivefs.testing.memory_hive import MemoryHive, MemoryNode

from .memory_vault import MemoryVault
from .test_engine import make_home, run, running, settle, until

COUNTRIES = ("DE", "FR", "CH", "IS", "NO", "SE")


def data(engine: Engine) -> Stripe:
    (stripe,) = [stripe for stripe in engine.store.stripes() if stripe.purpose == Purpose.DATA]
    return stripe


async def give_up(engine: Engine, hive: MemoryHive, count: int) -> list[MemoryNode]:
    """Of different countries, so that no_hostage keeps its margin."""
    holders = {share.node for share in data(engine).shares}
    nodes = [node for node in hive.nodes if node.node_id in holders][::6][:count]
    for node in nodes:
        node.stop()
    await until(lambda: all(engine.pool.members[n.node_id].row.state == NodeState.GONE for n in nodes))
    return nodes


def test_10_of_20_waits_until_17_are_left(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault = MemoryHive(COUNTRIES, 6), MemoryVault()
        home = make_home(tmp_path / "home", gone_after=1, needed=10, total=20)
        async with running(home, hive, vault) as engine:
            vault.write(9, 0, os.urandom(100_000))
            await settle(engine, vault)
            await until(lambda: engine.store.health(data(engine)).counted == 20)
            before = data(engine)
            first, second = await give_up(engine, hive, 2)
            # Metadata does not wait: when its stripes are whole again, repair has looked at everything.
            await until(
                lambda: (
                    all(engine.store.health(s).counted == s.total for s in engine.store.metadata_stripes())
                    and not engine.repair.queue
                )
            )
            health = engine.store.health(before)
            assert data(engine).shares == before.shares, "nothing was made again"
            assert (health.counted, health.waits, health.level) == (18, True, Level.GUARANTEED)
            await until(lambda: engine.status()["repair"]["later"] == 1)
            await until(lambda: engine.levels["guaranteed"] > 0 == engine.levels["remote"])
            first.start()  # one that comes back costs nothing
            await until(lambda: engine.store.health(before).counted == 19)
            assert data(engine).shares == before.shares
            first.stop()
            third = next(n for n in hive.nodes if n.up and n.node_id in {s.node for s in before.shares})
            third.stop()
            await until(lambda: engine.store.health(data(engine)).counted == 20)
            assert not {first.node_id, second.node_id, third.node_id} & {s.node for s in data(engine).shares}
            await until(lambda: engine.status()["repair"]["later"] == 0)

    run(test)
