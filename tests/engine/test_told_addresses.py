"""Addresses count as measured because a node is used where it answers: who tells others is dialled there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio.testing

from hivefs.formats.member import sign_address
from hivefs.model.node import RELAY_MARK, RosterEntry
from hivefs.protocol.answers import NodeStat
from hivefs.testing.memory_hive import MemoryClient, MemoryHive, MemoryNode

from .test_engine import make_home, run, running, until

RELAY = "/ip4/192.0.2.7/tcp/4001/p2p/relay"


def telling(node: MemoryNode, sequence: int, *addresses: str) -> RosterEntry:
    return replace(node.entry(), address=sign_address(node.seed, addresses, sequence))


@pytest.mark.parametrize("relayed", [True, False])
def test_a_conversation_ends_when_the_node_does_not_tell_its_way_any_more(tmp_path: Path, relayed: bool) -> None:
    """Else a node behind a relay could take the relay out of its record, and tell addresses in any country."""

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        node = hive.nodes[0]
        false, direct = "/ip4/203.0.113.9/tcp/4001", node.entry().address.reachable[0]
        way, told = (RELAY, RELAY_MARK + RELAY) if relayed else (direct, direct)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            member = engine.pool.members
            await until(lambda: node.node_id in member and member[node.node_id].client is not None)
            engine.learn([telling(node, 10, told)])
            client = engine.pool.client(node.node_id)
            assert client is not None
            client.relayed, client.way = relayed, way
            engine.learn([telling(node, 11, told, false)])
            await trio.testing.wait_all_tasks_blocked()
            assert engine.pool.client(node.node_id) is client, "its way is still one of those that it tells"
            engine.learn([telling(node, 12, false)])
            await until(lambda: engine.pool.client(node.node_id) is not client)

    run(test)


def test_one_that_told_others_while_it_was_dialled_is_dialled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        hive = MemoryHive(per_country=1)
        node, false = hive.nodes[0], "/ip4/203.0.113.9/tcp/4001"
        direct = node.entry().address.reachable[0]
        ways: list[str] = []
        dial, stat = hive.dial, hive.stat

        @asynccontextmanager
        async def noting(entry: RosterEntry) -> AsyncIterator[MemoryClient]:
            async with dial(entry) as client:
                client.way = entry.address.reachable[0]
                if client.node_id == node.node_id:
                    ways.append(client.way)
                yield client

        def told_meanwhile(of: MemoryNode) -> NodeStat:
            if of is node and ways == [direct]:
                engine.learn([telling(node, 20, false)])
            return stat(of)

        monkeypatch.setattr(hive, "dial", noting)
        monkeypatch.setattr(hive, "stat", told_meanwhile)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            await until(lambda: engine.pool.client(node.node_id) is not None)
            client = engine.pool.client(node.node_id)
            assert client is not None and client.way == false
            assert ways == [direct, false]

    run(test)


def test_who_uses_no_relays_any_more_has_no_conversation_that_was_just_begun_through_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        hive = MemoryHive(per_country=1)
        node, dial = hive.nodes[0], hive.dial
        relays, begun, go_on = True, trio.Event(), trio.Event()

        @asynccontextmanager
        async def through(entry: RosterEntry) -> AsyncIterator[MemoryClient]:
            async with dial(entry) as client:
                if client.node_id == node.node_id:
                    client.relayed = relays
                    begun.set()
                    await go_on.wait()
                yield client

        monkeypatch.setattr(hive, "dial", through)
        async with running(make_home(tmp_path / "home"), hive, None) as engine:
            with trio.fail_after(90):
                await begun.wait()
            relays = False
            engine.pool.leave_relays()
            go_on.set()
            await until(lambda: (client := engine.pool.client(node.node_id)) is not None and not client.relayed)

    run(test)
