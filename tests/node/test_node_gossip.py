"""Nodes learn of each other, and believe nobody but the hive's owner and each other's signatures."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import HIVE, make, running, seed_of, talking, within

from hivefs.chunkstore.node_client import PROTOCOL, converse, credentials
from hivefs.crypto import keys
from hivefs.errors import Refused
from hivefs.formats import member
from hivefs.formats.member import newest, sign_address, sign_member
from hivefs.model.node import Membership, Role, RosterEntry
from hivefs.node import gossip
from hivefs.node.config import load_node
from hivefs.node.members import Members
from hivefs.node.roster import Roster
from hivefs.node.running import own_entry
from hivefs.node.store import ShareStore
from hivefs.testing.memory_net import MemoryNetwork

NOW = 1_800_000_000 * 10**9


def entry(
    name: str, sequence: int = 1, hive: bytes = HIVE, addresses: tuple[str, ...] = ("/a",), epoch: int = 0
) -> RosterEntry:
    seed = seed_of(name)
    certificate = sign_member(hive, Membership(b"", keys.public_key(seed), Role.NODE, (), 1, 0, epoch))
    return RosterEntry(certificate, sign_address(seed, addresses, sequence))


def blob(made: RosterEntry) -> bytes:
    return member.entry_to_bytes(made)


def test_a_chain_of_bootstraps_becomes_a_full_roster_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of six nodes knows only the one before it; all know all some rounds later."""
    monkeypatch.setattr(gossip, "EVERY_SECONDS", 0.05)
    names = [f"node {i}" for i in range(6)]

    async def body() -> None:
        network = MemoryNetwork()
        ids: list[bytes] = []
        for name in names:
            before = (network.address(ids[-1]),) if ids else ()
            ids.append(make(tmp_path / name, name, bootstrap=before))
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(running(network, tmp_path / name))
            for node_id in ids:
                async with talking(network, node_id) as client:
                    while len(roster := await client.get_roster()) < len(ids):
                        await trio.sleep(0.02)
                assert {e.membership.subject for e in roster} == set(ids)
                for made in roster:
                    assert made.address.addresses == (network.address(made.membership.subject),)
                    assert member.entry_valid(made, keys.public_key(HIVE), time.time_ns())

    within(body)


def test_a_roster_given_by_a_client_is_checked_entry_by_entry(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        good = entry("other")
        foreign = entry("foreign", hive=seed_of("another hive"))
        liar = RosterEntry(good.membership, sign_address(seed_of("liar"), ("/evil",), 99))
        forged = RosterEntry(good.membership, replace(good.address, addresses=("/evil",), sequence=99))
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            assert await client.put_roster([foreign, liar, forged]) == 0
            assert await client.put_roster([good, foreign]) == 1
            assert await client.put_roster([good]) == 0
            roster = await client.get_roster()
            assert sorted(e.membership.subject for e in roster) == sorted([node_id, good.membership.subject])

    within(body)


def test_the_newest_address_and_the_newest_certificate_win_each_for_itself() -> None:
    old, moved, renewed = entry("n", 1), entry("n", 2, addresses=("/b",)), entry("n", 1, epoch=3)
    for first, second in ((moved, renewed), (renewed, moved)):
        both = newest(newest(None, first, NOW), second, NOW)
        assert both.address == moved.address and both.membership == renewed.membership
        assert newest(both, old, NOW) == both


def test_who_stole_a_key_does_not_silence_its_owner_for_ever() -> None:
    """Addresses more than a day ahead give way to the owner's; a clock may be a day behind, and years behind at a start."""
    day = 86_400 * 10**9
    owners = entry("n", NOW // 10**9)
    for sequence in ((NOW + day) // 10**9 + 1, (1 << 63) - 1):
        stolen = entry("n", sequence, addresses=("/thief",))
        assert newest(stolen, owners, NOW) == newest(owners, stolen, NOW) == owners
        assert newest(None, stolen, NOW) == stolen, "nothing else is known"
    skewed = entry("n", NOW // 10**9 + 86_000, addresses=("/moved",))
    assert newest(owners, skewed, NOW) == newest(skewed, owners, NOW) == skewed
    assert newest(owners, skewed, 0) == newest(skewed, owners, 0) == skewed, "a machine whose clock begins at 1970"


def test_a_node_whose_key_was_used_from_far_ahead_is_found_again(tmp_path: Path) -> None:
    """Its own entry, that another signed, is in its roster and in that of another node."""
    for name in "ab":
        (tmp_path / name).mkdir()
    store, other = ShareStore(tmp_path / "a"), ShareStore(tmp_path / "b")
    hive_key = keys.public_key(HIVE)
    rosters = [Roster(s, hive_key, Members(s, hive_key)) for s in (store, other)]
    stolen = entry("n", (1 << 63) - 1, addresses=("/thief",))
    assert all(roster.take([blob(stolen)], NOW) == 1 for roster in rosters)
    make(tmp_path / "n")
    config = replace(load_node(tmp_path / "n")[0], membership=stolen.membership)
    for addresses in (("/mine",), ("/thief",)):
        made = own_entry(store.index, config, seed_of("n"), stolen.address.node_id, addresses, NOW)
        assert made.address.sequence == NOW // 10**9
    mine = own_entry(store.index, config, seed_of("n"), stolen.address.node_id, ("/mine",), NOW)
    assert all(roster.take([blob(mine)], NOW) == 1 and roster.entries() == [mine] for roster in rosters)
    assert all(roster.take([blob(stolen)], NOW) == 0 and roster.entries() == [mine] for roster in rosters)
    assert rosters[0].sums().ranges() == rosters[1].sums().ranges()
    store.close()
    other.close()


def test_entries_stay_sorted_paged_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ShareStore(tmp_path)
    roster = Roster(store, keys.public_key(HIVE), Members(store, keys.public_key(HIVE)))
    made = [entry(f"node {i}") for i in range(12)]
    assert roster.take([blob(e) for e in made] + [b"garbage"], NOW) == 12
    subjects = []
    after, more = b"", True
    while more:
        more, page = roster.page(after, 1000)
        assert page
        subjects += [member.entry_from_bytes(b).membership.subject for b in page]
        after = subjects[-1]
    assert subjects == sorted(e.membership.subject for e in made)
    monkeypatch.setattr("hivefs.node.roster.MAX_ENTRIES", 13)
    assert roster.take([blob(entry(f"more {i}")) for i in range(5)], NOW) == 1
    assert roster.take([blob(entry("node 3", 9))], NOW) == 1
    store.close()


def test_an_entry_keeps_its_sequence_until_the_addresses_change(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        sequences = []
        for announce in ((), (), ("/elsewhere",)):
            config = tmp_path / "n" / "node.json"
            config.write_text(
                config.read_text().replace('"announce": []', f'"announce": {list(announce)}'.replace("'", '"'))
            )
            async with running(network, tmp_path / "n"), talking(network, node_id) as client:
                (mine,) = await client.get_roster()
                sequences.append(mine.address.sequence)
        assert load_node(tmp_path / "n")[0].announce == ("/elsewhere",)
        assert sequences[0] == sequences[1] < sequences[2]
        assert mine.address.addresses == ("/elsewhere",)

    within(body)


def test_another_node_gets_the_roster_but_no_shares(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        other = entry("other")
        async with running(network, tmp_path / "n"), network.open_host(seed_of("other")) as host:
            connection = await host.dial(network.address(node_id))
            stream = await connection.open_stream(PROTOCOL)
            who = credentials(seed_of("other"), host.peer_key, keys.public_key(HIVE), other.membership)
            async with converse(stream, who, time.time_ns()) as client:
                assert len(await client.get_roster()) == 1
                assert client.vault_id is None
                for asking in (client.get(bytes(32)), client.put(bytes(32), b"x", 1), client.have([bytes(32)])):  # type: ignore[arg-type]
                    with pytest.raises(Refused):
                        await asking

    within(body)
