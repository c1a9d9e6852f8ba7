"""Real node processes, one of which has a tenth of its shares damaged on disk: audits find it, and all is whole again."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.memory_vault import MemoryVault
from engine.test_engine import content, drop_cache, settle, until

from hivefs.crypto.keys import public_key
from hivefs.daemon.engine_core import opened
from hivefs.daemon.home import Home
from hivefs.daemon.network import Conversations
from hivefs.model.stripe import Level

from .live import Live, live

pytestmark = pytest.mark.slow
DAMAGED = 0.1


def damage(directory: Path, names: list[str]) -> None:
    """One byte of each file is another one."""
    for name in names:
        path = directory / "shares" / name[:2] / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


async def audited(hive: Live) -> None:
    home = Home.load(hive.home)
    secrets = home.unlock(b"")
    vault = MemoryVault()
    keys = secrets.keys()
    async with (
        Conversations.open(secrets.device_seed, keys, home.vault.hive_key, home.vault.membership) as conversations,
        opened(home, secrets, conversations.with_node) as engine,
        trio.open_nursery() as nursery,
    ):
        engine.placing._stage = vault
        async with conversations.with_address(home.vault.nodes[0]) as client:
            engine.learn(await client.get_roster())
        nursery.start_soon(engine.serve_vault, vault, vault.snapshot)
        await until(lambda: len(engine.pool.online()) == 8)
        plain = {slot: os.urandom(150_000) for slot in range(120)}
        for slot, data in plain.items():
            vault.write(9, slot, data)
            if slot % 3 == 2:
                await settle(engine, vault)
        await settle(engine, vault)
        directory = max(hive.node_directories(), key=lambda d: len(list((d / "shares").glob("*/*"))))
        node_id = public_key((directory / "node.seed").read_bytes())
        named = {s.share_id.hex() for stripe in engine.store.stripes() for s in stripe.shares if s.node == node_id}
        chosen = random.Random(7).sample(sorted(named), max(4, int(len(named) * DAMAGED)))
        damage(directory, chosen)
        member = next(m for m in engine.pool.members.values() if m.node_id == node_id)
        for _ in range(600):  # what the loop does in nine days
            await engine.audit.audit(member.node_id)
            row = engine.trust.row(member.node_id)
            if row.sweep or row.suspended:
                break
        assert row.sweep or row.suspended, "44 samples find a tenth with 99 %"
        with trio.fail_after(120):
            while engine.trust.row(member.node_id).sweep:
                client_now = engine.pool.client(member.node_id)
                if client_now is None:
                    await trio.sleep(0.2)
                    continue
                await engine.audit.look(member.node_id, client_now)

        def still_named() -> set[str]:
            shares = (s for stripe in engine.store.stripes() for s in stripe.shares if s.node == node_id)
            return {share.share_id.hex() for share in shares} & set(chosen)

        await until(lambda: not still_named())
        await until(lambda: all(engine.store.health(s).level == Level.GUARANTEED for s in engine.store.stripes()))
        # Nobody else lost trust by it, and every byte is right.
        assert not [m for m in engine.pool.members if m != node_id and engine.trust.row(m).bad]
        drop_cache(engine)
        for slot, data in plain.items():
            assert await content(engine, vault, 9, slot) == data
        nursery.cancel_scope.cancel()


def test_a_node_whose_disk_damaged_a_tenth_is_found_out(tmp_path: Path) -> None:
    with live(tmp_path, mount=False) as hive:

        async def bounded() -> None:
            with trio.fail_after(280):
                await audited(hive)

        trio.run(bounded)
