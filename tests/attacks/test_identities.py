"""Public-key substitution at nodes, and clocks that are wrong: who a peer is, and for how long it is believed."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from engine.memory_vault import MemoryVault
from engine.test_engine import make_home, run, running
from hive_tools import DAY, HIVE, HIVE_KEY, client_certificate, make, seed_of, share, within
from hive_tools import running as serving

from hivefs.chunkstore.node_client import PROTOCOL, converse, credentials
from hivefs.crypto import keys
from hivefs.daemon.network import Conversations
from hivefs.errors import PeerIdentityMismatch, Refused
from hivefs.formats.member import entry_valid, sign_address, sign_member
from hivefs.model.ids import NodeId
from hivefs.model.node import AddressRecord, Attribute, Membership, Role, RosterEntry
from hivefs.testing.memory_hive import HIVE_SEED, MemoryHive
from hivefs.testing.memory_net import MemoryNetwork


def entry_of(name: str, addresses: tuple[str, ...], hive_seed: bytes = HIVE) -> RosterEntry:
    """A roster entry that the named node could really have, with the addresses that it likes."""
    node_id = keys.public_key(seed_of(name))
    member = Membership(b"", node_id, Role.NODE, (Attribute("country", "FR"),), 1, 0, 1)
    return RosterEntry(sign_member(hive_seed, member), sign_address(seed_of(name), addresses, 1))


def test_a_node_that_tells_the_address_of_another_is_not_taken_for_itself(tmp_path: Path) -> None:
    """Else one node would hold two shares of a stripe, under two names and two jurisdictions."""

    async def body() -> None:
        network = MemoryNetwork()
        honest = make(tmp_path / "honest", "honest")
        owner = keys.VaultKeys(bytes(range(32)))
        async with serving(network, tmp_path / "honest"), network.open_host(seed_of("device")) as host:
            certificate = client_certificate(owner.owner_seed)
            conversations = Conversations(host, owner, HIVE_KEY, certificate)  # type: ignore[arg-type]
            true = entry_of("honest", (network.address(honest),))
            async with conversations.with_node(true) as client:
                assert client.node_id == honest
            with pytest.raises(PeerIdentityMismatch):
                async with conversations.with_node(entry_of("liar", (network.address(honest),))):
                    pytest.fail("taken for the liar")

    within(body)


def test_forged_roster_entries_are_not_learnt(tmp_path: Path) -> None:
    async def test() -> None:
        hive = MemoryHive()
        async with running(make_home(tmp_path / "home"), hive, MemoryVault()) as engine:
            known = len(engine.pool.members)
            own = hive.nodes[0].entry()
            other = hive.nodes[1].entry()
            stranger = seed_of("stranger")
            key = NodeId(keys.public_key(stranger))
            client_only = sign_member(HIVE_SEED, Membership(b"", key, Role.CLIENT, (), 1, 0, 1))
            ended = sign_member(HIVE_SEED, Membership(b"", key, Role.NODE, (), 1, 2, 1))
            member = sign_member(HIVE_SEED, Membership(b"", key, Role.NODE, (), 1, 0, 1))
            address = sign_address(stranger, ("/ip4/127.0.0.1/tcp/1",), 1)
            moved = AddressRecord(own.address.node_id, ("/ip4/6.6.6.6/tcp/1",), 9, own.address.signature)
            attributes = replace(own.membership, attributes=(Attribute("country", "XX"),), epoch=9)
            forged = [
                entry_of("stranger", ("/ip4/127.0.0.1/tcp/1",), hive_seed=stranger),  # a hive of its own
                RosterEntry(replace(entry_of("stranger", ()).membership, hive_key=keys.public_key(HIVE_SEED)), address),
                RosterEntry(client_only, address),  # a client is no node
                RosterEntry(ended, address),
                RosterEntry(replace(other.membership, subject=key), address),  # another's certificate under this key
                RosterEntry(member, other.address),  # one node's certificate, another's address
                RosterEntry(own.membership, moved),  # an address that the node did not sign
                RosterEntry(attributes, own.address),  # attributes that the hive's owner did not sign
                RosterEntry(replace(own.membership, signature=os.urandom(64)), own.address),
            ]
            assert engine.learn(forged) == 0
            assert len(engine.pool.members) == known
            assert engine.store.roster_entry(own.address.node_id) == own
            assert entry_valid(RosterEntry(member, address), keys.public_key(HIVE_SEED), time.time_ns()), (
                "the parts are good"
            )

    run(test)


@pytest.mark.parametrize("skew", [-DAY, -DAY // 2, DAY // 2, DAY])
def test_a_clock_that_is_a_day_off_keeps_nobody_out(tmp_path: Path, skew: int) -> None:
    """Client and node disagree by a day: greeting, keeping, reading, renewing and deleting work all the same."""

    async def body() -> None:
        network, now = MemoryNetwork(), time.time_ns() + skew
        node_id = make(tmp_path / "n")
        owner = seed_of("owner")
        certificate = sign_member(
            HIVE, Membership(b"", keys.public_key(owner), Role.CLIENT, (), now, time.time_ns() + DAY // 4, 1)
        )
        async with serving(network, tmp_path / "n"), network.open_host(seed_of("device")) as host:
            stream = await (await host.dial(network.address(node_id))).open_stream(PROTOCOL)
            who = credentials(owner, host.peer_key, HIVE_KEY, certificate)
            async with converse(stream, who, now) as client:
                share_id, data = share(5000)
                await client.put(share_id, data, now + 120 * DAY)
                assert await client.get(share_id) == data
                assert await client.renew([share_id], now + 130 * DAY) == [True]
                assert await client.delete([share_id]) == [True]

    within(body)


def test_a_certificate_that_ended_long_ago_is_refused_whatever_the_client_thinks(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        owner, then = seed_of("owner"), time.time_ns() - 3 * DAY
        certificate = sign_member(HIVE, Membership(b"", keys.public_key(owner), Role.CLIENT, (), 1, then, 1))
        async with serving(network, tmp_path / "n"), network.open_host(seed_of("device")) as host:
            stream = await (await host.dial(network.address(node_id))).open_stream(PROTOCOL)
            with pytest.raises(Refused):
                async with converse(stream, credentials(owner, host.peer_key, HIVE_KEY, certificate), then - DAY):
                    pytest.fail("let in")

    within(body)
