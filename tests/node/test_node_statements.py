"""What nodes say of themselves, and what their owner says anew, spreads from node to node; nobody can say it for them."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import reduce
from operator import xor
from pathlib import Path

import pytest
import trio
from hive_tools import HIVE, HIVE_KEY, make, running, seed_of, talking, within

from hivefs.chunkstore import node_client
from hivefs.chunkstore.node_client import NodeClient
from hivefs.crypto import keys
from hivefs.errors import Corrupt
from hivefs.formats import attestation, member, revoked
from hivefs.formats.member import sign_address, sign_member
from hivefs.model.attestation import Attestation, Said, Statement
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute, Membership, Role, RosterEntry
from hivefs.node import answering, gossip, session
from hivefs.node import statements as statements_module
from hivefs.node.config import change_settings, load_node
from hivefs.node.fresh import CHANGES, CHANGES_NS, Pace
from hivefs.node.statements import Statements
from hivefs.node.store import ShareStore
from hivefs.node.sums import digest_of
from hivefs.protocol import frames
from hivefs.protocol.frames import Kind
from hivefs.testing.memory_net import MemoryNetwork

NOTARY = seed_of("notary")


def vouch(subject: bytes, country: str = "DE") -> Attestation:
    said: Said = (("country", country),)
    return attestation.sign_attestation(NOTARY, Attestation(b"", subject, said, time.time_ns()))


def statement(name: str, *vouched: Attestation, sequence: int = 5, claims: Said = ()) -> bytes:
    made = Statement(NodeId(bytes(32)), sequence, claims, vouched)
    return attestation.statement_to_bytes(attestation.sign_statement(seed_of(name), made))


def configure(directory: Path, claims: Said = (), *vouched: Attestation) -> None:
    blobs = tuple(attestation.attestation_to_bytes(made) for made in vouched)
    change_settings(directory, lambda config: replace(config, claims=claims, attestations=blobs))


async def statements_of(client: NodeClient) -> list[Statement]:
    found: list[Statement] = []

    async def take(page: list[Statement]) -> None:
        found.extend(page)

    await client.get_statements(take)
    return found


async def heard(network: MemoryNetwork, at: bytes, of: bytes, wanted: Said) -> Statement:
    """Ask a node until it knows that statement of another."""
    async with talking(network, at) as client:
        while True:
            for made in await statements_of(client):
                if made.node_id == of and made.claims == wanted:
                    return made
            await trio.sleep(0.02)


def test_a_statement_goes_from_node_to_node_survives_a_restart_and_follows_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four nodes in a chain. The first has an attestation and a claim; the last hears of both, and of the change soon."""
    monkeypatch.setattr(gossip, "LEAST_SECONDS", 0.05)
    names = [f"node {i}" for i in range(4)]

    async def body() -> None:
        network = MemoryNetwork()
        ids: list[bytes] = []
        for name in names:
            ids.append(make(tmp_path / name, name, bootstrap=(network.address(ids[-1]),) if ids else ()))
        vouched = vouch(ids[0])
        configure(tmp_path / names[0], (("parent", "X"),), vouched)
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(running(network, tmp_path / names[0]))
            for name in names[1:]:
                await stack.enter_async_context(running(network, tmp_path / name))
            made = await heard(network, ids[3], ids[0], (("parent", "X"),))
            assert made.attestations == (vouched,) and attestation.statement_valid(made)
            configure(tmp_path / names[0], (("parent", "Y"), ("parent_country", "US")), vouched)
            await first.reload()  # every minute would be too late: news do not wait for it
            await heard(network, ids[3], ids[0], (("parent", "Y"), ("parent_country", "US")))
            configure(tmp_path / names[0])
            await first.reload()
            assert not (await heard(network, ids[3], ids[0], ())).attestations
        async with running(network, tmp_path / names[3]):
            assert (await heard(network, ids[3], ids[0], ())).sequence > made.sequence

    within(body)


def test_nobody_says_it_for_another_node_and_of_strangers_nothing_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            own = vouch(node_id)
            other = vouch(keys.public_key(seed_of("other")))
            forged = attestation.statement_to_bytes(
                replace(attestation.statement_from_bytes(statement("node", own)), claims=(("country", "CH"),))
            )
            fake = replace(own, said=(("country", "CH"),))
            bad = [statement("stranger"), statement("node", other), statement("node", fake), forged, b"garbage"]
            before = await client.news()
            assert await client.put_statements(bad) == 0
            assert await client.news() == before
            assert await client.put_statements([statement("node", own, sequence=7)]) == 1
            assert await client.put_statements([statement("node", sequence=6)]) == 0, "an older one brought back"
            assert await client.put_statements([statement("node", sequence=(1 << 63) - 1)]) == 0, "it would be the last"
            (kept,) = await statements_of(client)
            assert kept.attestations == (own,)
            after = await client.news()
            assert after.statements != before.statements and after.roster == before.roster

    within(body)


def test_a_certificate_that_the_owner_signed_anew_reaches_the_node_by_another_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip, "LEAST_SECONDS", 0.05)

    async def body() -> None:
        network = MemoryNetwork()
        first = make(tmp_path / "a", "a")
        second = make(tmp_path / "b", "b", bootstrap=(network.address(first),))
        async with running(network, tmp_path / "a"), running(network, tmp_path / "b") as moved:
            async with talking(network, first) as client:
                while len(roster := await client.get_roster()) < 2:
                    await trio.sleep(0.02)
                entry = next(e for e in roster if e.membership.subject == second)
                news = (await client.news()).roster
                said = (Attribute("country", "DE"), Attribute("parent_country", "US"))
                made = sign_member(HIVE, replace(entry.membership, attributes=said, epoch=1))
                thief = sign_member(seed_of("another hive"), replace(made, epoch=9, attributes=()))
                assert await client.put_roster([RosterEntry(thief, entry.address)]) == 0
                assert await client.put_roster([RosterEntry(made, entry.address)]) == 1
                assert (await client.news()).roster != news
            while moved.config.membership != made:
                await trio.sleep(0.02)
            async with talking(network, second) as client:
                assert client.greeted.node_membership == made, "it shows the new one to who greets it"
        config, _ = load_node(tmp_path / "b")
        assert config.membership == made and made.hive_key == HIVE_KEY
        async with running(network, tmp_path / "b") as again:
            assert again.entry.membership == made

    within(body)


def test_a_node_of_before_there_were_statements_is_asked_once_and_gossip_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the conversation at a kind that it does not know, after the rosters were exchanged."""
    monkeypatch.setattr(gossip, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(gossip, "LEAST_SECONDS", 0.05)
    known = frames.FROM_CLIENT - {Kind.NEWS, Kind.STATEMENTS_GET, Kind.STATEMENTS_PUT}
    monkeypatch.setattr(frames, "FROM_CLIENT", known)
    ended: list[str] = []
    say = session.Events.say
    monkeypatch.setattr(
        session.Events, "say", lambda self, *args, **more: (ended.append(args[0]), say(self, *args, **more))[1]
    )

    async def body() -> None:
        network = MemoryNetwork()
        first = make(tmp_path / "a", "a")
        second = make(tmp_path / "b", "b", bootstrap=(network.address(first),))
        configure(tmp_path / "b", (("hoster", "R"),))
        async with running(network, tmp_path / "a"), running(network, tmp_path / "b"):
            async with talking(network, first) as client:
                while {e.membership.subject for e in await client.get_roster()} != {first, second}:
                    await trio.sleep(0.02)
            while "no news" not in ended:
                await trio.sleep(0.02)
            await trio.sleep(1.0)  # some rounds more
        assert ended.count("no news") <= 2, "once by each of the two"

    within(body)


def test_statements_without_end_are_handed_on_page_by_page_and_come_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that makes statements of nodes that nobody knows, as many as it likes."""

    def endless(self: Statements, after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
        first = int.from_bytes(after, "big") + 1
        made = (Statement(NodeId((first + i).to_bytes(32, "big")), 1, (), (), bytes(64)) for i in range(10))
        return True, [attestation.statement_to_bytes(one) for one in made]

    monkeypatch.setattr(Statements, "page", endless)

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        sizes: list[int] = []

        async def take(page: list[Statement]) -> None:
            sizes.append(len(page))
            assert len(sizes) < 1000, "it has no end"

        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            with monkeypatch.context() as patch:
                patch.setattr(node_client, "MAX_ROSTER", 95)
                with pytest.raises(Corrupt, match="have no end"):
                    await client.get_statements(take)
            assert sizes == [10] * 9
            sizes.clear()
            with monkeypatch.context() as patch:
                patch.setattr(node_client, "MAX_STATEMENT_BYTES", 6000)
                with pytest.raises(Corrupt, match="have no end"):
                    await client.get_statements(take)
            assert 1 < len(sizes) < 9 and set(sizes) == {10}

    within(body)


def test_ranges_come_to_what_all_comes_to_and_are_given_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with the entries of 300 others, so that some ranges have several; its answers are small."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        others = [
            member.entry_to_bytes(
                RosterEntry(
                    sign_member(HIVE, Membership(b"", keys.public_key(seed_of(f"o{i}")), Role.NODE, (), 1)),
                    sign_address(seed_of(f"o{i}"), ("/ip4/192.0.2.1/tcp/1/p2p/x",), 1),
                )
            )
            for i in range(300)
        ]
        async with running(network, tmp_path / "n") as serving, talking(network, node_id) as client:
            assert await serving.answerer.take_roster(others) == 300
            await serving.answerer.take_statements([statement(f"o{i}", claims=(("parent", "P"),)) for i in range(300)])
            monkeypatch.setattr(answering, "PAGE_BYTES", 600)
            news = await client.news()
            for statements, told in ((False, news.roster), (True, news.statements)):
                pages, found = [0], list[bytes]()

                async def take(page: list[RosterEntry] | list[Statement]) -> None:
                    pages[0] += 1  # noqa: B023 - called in this turn
                    for one in page:
                        is_entry = isinstance(one, RosterEntry)
                        found.append(  # noqa: B023
                            member.entry_to_bytes(one) if is_entry else attestation.statement_to_bytes(one)  # type: ignore[arg-type]
                        )

                sums = await client.ranges(statements)
                ask = client.get_statement_range if statements else client.get_roster_range
                for first in range(256):
                    before = len(found)
                    await ask(first, take)
                    assert reduce(xor, map(digest_of, found[before:]), 0) == int.from_bytes(sums[first], "big")
                assert reduce(xor, map(digest_of, found)) == int.from_bytes(told, "big")
                assert len(found) == len(set(found)) == (300 if statements else 301) and pages[0] > 256

    within(body)


def test_a_range_that_holds_others_or_has_no_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        given: list[tuple[bool, list[bytes]]] = []
        monkeypatch.setattr(Statements, "page", lambda self, after, most_bytes, within=b"": given[0])

        async def take(page: list[Statement]) -> None:
            assert all(made.node_id[0] == 7 for made in page)

        def blob(key: bytes) -> bytes:
            return attestation.statement_to_bytes(Statement(NodeId(key), 1, (), (), bytes(64)))

        one, two, far = (bytes([first, number]) + bytes(30) for first, number in ((7, 1), (7, 2), (8, 1)))
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            for answer in ((False, [one, far]), (False, [two, one]), (False, [one, one]), (True, [one]), (True, [])):
                given[:] = [(answer[0], [blob(key) for key in answer[1]])]
                with pytest.raises(Corrupt):
                    await client.get_statement_range(7, take)
            given[:] = [(False, [blob(one), blob(two)])]
            assert await client.get_statement_range(7, take) == len(blob(one)) + len(blob(two))

    within(body)


def test_what_a_revoked_node_said_is_forgotten_so_gossip_settles_with_who_joins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(gossip, "LEAST_SECONDS", 0.05)

    async def body() -> None:
        network = MemoryNetwork()
        first, gone = make(tmp_path / "a", "a"), keys.public_key(seed_of("gone"))
        configure(tmp_path / "a", (("hoster", "R"),))
        certificate = sign_member(HIVE, Membership(b"", gone, Role.NODE, (), issued_ns=1))
        entry = RosterEntry(certificate, sign_address(seed_of("gone"), ("/nowhere",), 1))
        listed = revoked.revocations_to_bytes(revoked.sign_revocations(HIVE, 1, time.time_ns(), [gone], []))
        async with running(network, tmp_path / "a"):
            async with talking(network, first) as client:
                assert await client.put_roster([entry]) == 1
                assert await client.put_statements([statement("gone", claims=(("country", "US"),))]) == 1
                assert len(await statements_of(client)) == 2
                assert await client.put_revoked(listed)
                while len(await statements_of(client)) > 1:
                    await trio.sleep(0.02)
                assert await client.put_statements([statement("gone", sequence=6)]) == 0
            late = make(tmp_path / "b", "b", bootstrap=(network.address(first),))
            async with (
                running(network, tmp_path / "b"),
                talking(network, late) as other,
                talking(network, first) as client,
            ):
                while (await client.news()).statements != (await other.news()).statements:
                    await trio.sleep(0.02)
                assert len(await statements_of(other)) == 1
        # Also when the process ended between the list and that.
        store = ShareStore(tmp_path / "a")
        with store.index.writing() as change:
            change.save_statement(NodeId(gone), statement("gone"))
        store.close()
        async with running(network, tmp_path / "a"), talking(network, first) as client:
            await client.news()
            assert {made.node_id for made in await statements_of(client)} == {first}

    within(body)


def test_one_node_that_says_something_else_all_the_time_does_not_flood_the_others(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id, loud = make(tmp_path / "n"), keys.public_key(seed_of("loud"))
        certificate = sign_member(HIVE, Membership(b"", loud, Role.NODE, (), issued_ns=1))
        addresses = [sign_address(seed_of("loud"), (f"/at/{i}",), i + 1) for i in range(12)]
        async with running(network, tmp_path / "n") as node, talking(network, node_id) as client:
            assert await client.put_roster([RosterEntry(certificate, addresses[0])]) == 1
            said = [await client.put_statements([statement("loud", sequence=i)]) for i in range(1, 10)]
            assert said == [1] * (1 + CHANGES) + [0] * (8 - CHANGES)
            told = [await client.put_roster([RosterEntry(certificate, made)]) for made in addresses[1:10]]
            assert told == [1] * CHANGES + [0] * (9 - CHANGES)
            renewed = sign_member(HIVE, replace(certificate, epoch=1))
            assert await client.put_roster([RosterEntry(renewed, addresses[10])]) == 1, "the owner's word always"
            (entry,) = [e for e in await client.get_roster() if e.membership.subject == loud]
            assert entry == RosterEntry(renewed, addresses[CHANGES])
            # The comparison, which comes once a minute, carries it.
            assert await node.answerer.take_statements([statement("loud", sequence=20)]) == 1
            assert await node.answerer.take_roster([member.entry_to_bytes(RosterEntry(renewed, addresses[11]))]) == 1

    within(body)


def test_the_pace_of_a_node_does_not_hang_on_others_nor_on_a_clock_that_was_set_back() -> None:
    pace, one, other = Pace(), NodeId(bytes(32)), NodeId(bytes([1]) * 32)
    now = time.time_ns()
    for _ in range(CHANGES):
        assert pace.allows(one, now)
        pace.note(one, now)
    assert not pace.allows(one, now + CHANGES_NS - 1) and pace.allows(other, now)
    assert pace.allows(one, now + CHANGES_NS) and pace.allows(one, now - 1)
    for number in range(3000):
        pace.note(NodeId(number.to_bytes(32, "big")), now + number * CHANGES_NS)
    assert len(pace._changed) <= 1024


class Everybody:
    """A roster of all."""

    def holds(self, node_id: NodeId) -> bool:
        return True


def test_who_stole_a_key_does_not_silence_its_owner_for_ever(tmp_path: Path) -> None:
    """A store may have such a statement from a release that took it."""
    store = ShareStore(tmp_path)
    try:
        node_id, now = NodeId(keys.public_key(seed_of("n"))), time.time_ns()
        with store.index.writing() as change:
            change.save_statement(node_id, statement("n", sequence=(1 << 63) - 1, claims=(("country", "US"),)))
        said = Statements(store, Everybody())  # type: ignore[arg-type]
        assert said.say(seed_of("n"), node_id, (("country", "DE"),), (), now)
        (kept,) = map(attestation.statement_from_bytes, said.page(b"", 1 << 20)[1])
        assert kept.claims == (("country", "DE"),) and kept.sequence == now // 10**9
    finally:
        store.close()


def test_what_compares_all_statements_reads_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements_module, "_AT_A_TIME", 1000)
    store = ShareStore(tmp_path)
    try:
        blobs = [statement(f"n{i}", claims=(("parent", f"P{i}"),)) for i in range(40)]
        with store.index.writing() as change:
            for blob in blobs:
                change.save_statement(attestation.statement_from_bytes(blob).node_id, blob)
        said = Statements(store, Everybody())  # type: ignore[arg-type]
        asked: list[int] = []
        real = store.index.statements

        def spy(after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
            asked.append(most_bytes)
            return real(after, most_bytes, within)

        monkeypatch.setattr(store.index, "statements", spy)
        whole = 0
        for blob in blobs:
            whole ^= digest_of(blob)
        assert said.sums().whole == whole.to_bytes(32, "big")
        known = set(map(digest_of, blobs[3:]))
        assert set(said.others(known)) == set(blobs[:3])
        rest = said.others(set())
        assert 1 < len(rest) < 40 and sum(map(len, rest)) <= 1000, "the next comparison gives more"
        assert set(asked) == {1000}
    finally:
        store.close()
