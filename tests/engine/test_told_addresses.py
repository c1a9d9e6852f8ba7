"""Addresses count as measured because a node is used where it answers: who tells others is dialled there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio.testing

from hivefs.daemon.engine_core import Engine
from hivefs.errors import PeerUnreachable
from hivefs.formats.member import sign_address
from hivefs.model.node import RELAY_MARK, Evidence, RosterEntry
from hivefs.placement.evidence import Address, Origin
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


HOME, FALSE = "/ip4/198.41.0.4/tcp/4001", "/ip4/199.7.91.13/tcp/4001"
COUNTRIES = {ip_address("198.41.0.4"): "DE", ip_address("199.7.91.13"): "FR"}


class Places:
    """A table of two addresses."""

    def find(self, address: Address) -> Origin | None:
        return Origin(country=COUNTRIES[address]) if address in COUNTRIES else None


def place(engine: Engine, node: MemoryNode) -> tuple[str, set[str]]:
    """The country of a node ("" is unknown) and its measured subnets, as everybody sees them."""
    view = engine.store.node_view(node.node_id)
    assert view is not None
    known = [a for a in view.attributes if a.evidence >= Evidence.REGISTRY or not a.value]
    country = next((a.value for a in known if a.name == "country"), "said only")
    return country, {a.value for a in known if a.name == "subnet"}


@pytest.mark.parametrize("hides", ["at another address", "behind a relay that it never uses"])
def test_who_signs_another_place_and_goes_silent_still_counts_where_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hides: str
) -> None:
    """It says FR and is in DE, which the table knows. At an address in FR it is believed once it is reached there, and not
    before; a restart of the engine changes nothing.
    """

    async def test() -> None:
        hive = MemoryHive(per_country=1)
        node, dial = hive.nodes[1], hive.dial
        assert node.country == "FR"
        answers_at = {HOME}

        @asynccontextmanager
        async def there_only(entry: RosterEntry) -> AsyncIterator[MemoryClient]:
            if entry.membership.subject != node.node_id:
                async with dial(entry) as client:
                    yield client
                return
            way = next((way for way in entry.address.reachable if way in answers_at), None)
            if way is None:
                raise PeerUnreachable(address="it", reason="nobody answers there")
            async with dial(entry) as client:
                client.way = way
                yield client

        monkeypatch.setattr(hive, "dial", there_only)
        home = make_home(tmp_path / "home")
        moved = (FALSE,) if hides == "at another address" else (FALSE, RELAY_MARK + RELAY)
        both = {"198.41.0.0/24", "199.7.91.0/24"} if hides == "at another address" else {"198.41.0.0/24"}
        async with running(home, hive, None) as engine:
            engine.evidence.use_registry(Places())
            engine.learn([telling(node, 10, HOME)])
            await until(lambda: engine.pool.client(node.node_id) is not None)
            await until(lambda: place(engine, node) == ("", {"198.41.0.0/24"}))
            node.stop()
            await until(lambda: engine.pool.client(node.node_id) is None)
            engine.learn([telling(node, 11, *moved)])
            assert place(engine, node) == ("", both)
        async with running(home, hive, None) as engine:
            engine.evidence.use_registry(Places())
            await engine.evidence.weigh_all()
            assert place(engine, node) == ("", both)
            answers_at.add(FALSE)
            if hides == "at another address":
                node.start()
                await until(lambda: engine.pool.client(node.node_id) is not None)
                await until(lambda: place(engine, node) == ("FR", {"199.7.91.0/24"}))
            engine.store.forget_node(node.node_id, 1)
            engine._forgot(node.node_id)  # in the same step, as forgetting does it: else it is dialled
            assert engine.store.info("answered-" + node.node_id.hex()) is None

    run(test)
