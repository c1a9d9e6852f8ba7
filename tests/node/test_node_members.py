"""Who gets in by an invitation, who does not, and what nodes remember of it; who is revoked, and what that ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hive_tools import HIVE, HIVE_KEY, client_certificate, lease, make, running, seed_of, share, talking, within

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.crypto import keys
from hivefs.errors import ConnectionLost, HivefsError, Refused
from hivefs.formats import member, revoked
from hivefs.formats.invite import sign_invitation
from hivefs.formats.member import accept, sign_address, sign_member
from hivefs.model.node import Attribute, Evidence, Invitation, Membership, Role, RosterEntry, Ticket
from hivefs.node import gossip
from hivefs.node.config import create_node
from hivefs.node.members import Members
from hivefs.node.store import ShareStore
from hivefs.protocol.failures import Code, Refusal
from hivefs.testing.memory_net import MemoryNetwork

DAY = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9


def ticket(
    name: str = "invitation", *, roles: Role = Role.CLIENT | Role.NODE, hive: bytes = HIVE, **changes: int
) -> Ticket:
    now = time.time_ns()
    ends = {"issued_ns": now - 9 * DAY, "expires_ns": now + DAY, **changes}
    bare = Invitation(b"", keys.public_key(seed_of(name)), roles, (Attribute("country", "DE", Evidence.ATTESTED),), **ends)
    return Ticket(sign_invitation(hive, bare), seed_of(name))


def joined(by: Ticket, name: str, role: Role = Role.CLIENT, now_ns: int = 0) -> Membership:
    return accept(by, seed_of(name), role, (), now_ns or time.time_ns())


@asynccontextmanager
async def as_member(
    network: MemoryNetwork, node_id: bytes, name: str, membership: Membership, **more: object
) -> AsyncIterator[NodeClient]:
    """A conversation under the key of ``name`` (a node's is its transport key too)."""
    transport = seed_of(name) if membership.roles == Role.NODE else seed_of(name + "/device")
    async with network.open_host(transport) as host:
        connection = await host.dial(network.address(node_id))
        stream = await connection.open_stream(PROTOCOL)
        who = credentials(seed_of(name), host.peer_key, HIVE_KEY, membership, **more)  # type: ignore[arg-type]
        async with converse(stream, who, time.time_ns()) as client:
            yield client


async def refusal(network: MemoryNetwork, node_id: bytes, name: str, membership: Membership, **more: object) -> Refused:
    with pytest.raises(Refused) as caught:
        async with as_member(network, node_id, name, membership, **more):
            pass
    return caught.value


def revocation(sequence: int, members: tuple[bytes, ...] = (), invitations: tuple[bytes, ...] = ()) -> bytes:
    made = revoked.sign_revocations(HIVE, sequence, NOW, members, invitations)
    return revoked.revocations_to_bytes(made)


def key(name: str) -> bytes:
    return keys.public_key(seed_of(name))


# ---- joining ----------------------------------------------------------------------------------------------------


def test_a_newcomer_gets_in_keeps_shares_and_comes_back_with_the_phrase_alone(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share()
        membership = joined(ticket(), "newcomer")
        async with running(network, tmp_path / "n"), as_member(network, node_id, "newcomer", membership) as client:
            await client.put(share_id, data, lease())
        async with running(network, tmp_path / "n"), talking(network, node_id, "newcomer", recover=True) as client:
            assert client.greeted.membership == membership
            assert await client.get(share_id) == data

    within(body)


@pytest.mark.parametrize(
    ("by", "role", "words"),
    [
        (ticket(issued_ns=1, expires_ns=time.time_ns() - 2 * DAY), Role.CLIENT, "expired"),
        (ticket(hive=seed_of("another hive")), Role.CLIENT, "not valid"),
    ],
    ids=["expired", "wrong hive"],
)
def test_who_does_not_get_in(tmp_path: Path, by: Ticket, role: Role, words: str) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        membership = joined(by, "newcomer", role, by.invitation.issued_ns)
        async with running(network, tmp_path / "n"):
            error = await refusal(network, node_id, "newcomer", membership)
            assert words in str(error) and error.code == Code.NOT_MEMBER

    within(body)


def test_a_client_by_an_invitation_for_clients_is_no_node_and_the_other_way_round(tmp_path: Path) -> None:
    """The holder of the seed signs the role that it was not given."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"):
            for allowed, wanted in ((Role.CLIENT, Role.NODE), (Role.NODE, Role.CLIENT)):
                by = ticket(roles=allowed)
                fixed = by.invitation.attributes
                bare = Membership(HIVE_KEY, key("newcomer"), wanted, fixed, time.time_ns(), invitation=by.invitation)
                message = member._signed(bare)
                consent = keys.sign(seed_of("newcomer"), message)
                forged = replace(bare, signature=keys.sign(by.seed, message), consent=consent)
                assert "not valid" in str(await refusal(network, node_id, "newcomer", forged))

    within(body)


def test_a_day_of_clock_skew_is_forgiven_and_more_is_not(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    members = Members(store, HIVE_KEY)
    by = ticket(issued_ns=NOW - 5 * DAY, expires_ns=NOW)
    made = joined(by, "newcomer", now_ns=NOW)
    members.check(made, NOW + DAY - 1)
    with pytest.raises(Refusal, match="expired"):
        members.check(made, NOW + DAY)
    assert members.admit(made, NOW) and not members.admit(made, NOW + 99 * DAY)  # who joined in time stays
    store.close()


def test_a_stolen_certificate_is_worth_nothing_without_its_key(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"):
            error = await refusal(network, node_id, "thief", joined(ticket(), "victim"))
            assert "somebody else" in str(error)
            async with as_member(network, node_id, "victim", joined(ticket(), "victim")):
                pass  # and it did not use the invitation up

    within(body)


def test_an_invitation_is_used_up_also_when_many_come_at_the_same_time(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        by = ticket(uses=3)
        let_in: list[str] = []
        refused: list[Refused] = []

        async def come(name: str) -> None:
            try:
                async with as_member(network, node_id, name, joined(by, name)):
                    let_in.append(name)
            except Refused as error:
                refused.append(error)

        async with running(network, tmp_path / "n"):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(come, f"newcomer {number}")
            assert len(let_in) == 3 and len(refused) == 5
            assert all("used up" in str(error) for error in refused)
            again = let_in[0]  # the replay of one's own use is no new use, also with a new certificate
            async with as_member(network, node_id, again, joined(by, again)):
                pass
        async with running(network, tmp_path / "n"):
            assert "used up" in str(await refusal(network, node_id, "late", joined(by, "late")))

    within(body)


async def _known_everywhere(network: MemoryNetwork, ids: list[bytes], digest: bytes) -> None:
    for node_id in ids:
        async with talking(network, node_id) as client:
            while (await client.hive_state()).members != digest:
                await trio.sleep(0.02)


def test_a_use_is_known_to_all_nodes_soon_without_waiting_for_the_minute(tmp_path: Path) -> None:
    """The newcomer came to one node only; it does not get in by the same invitation under another key anywhere. A node
    that was away, and learns of it after the invitation ended, lets the newcomer in.
    """

    async def body() -> None:
        network = MemoryNetwork()
        ids: list[bytes] = []
        for number in range(3):
            before = (network.address(ids[0]),) if ids else ()
            ids.append(make(tmp_path / str(number), f"node {number}", bootstrap=before))
        by = ticket(uses=1)
        first = joined(by, "first")
        async with AsyncExitStack() as stack:
            for number in range(3):
                await stack.enter_async_context(running(network, tmp_path / str(number)))
            for node_id in ids:
                async with talking(network, node_id) as client:
                    while len(await client.get_roster()) < 3:
                        await trio.sleep(0.02)
            async with as_member(network, ids[2], "first", first), talking(network, ids[2]) as client:
                digest = (await client.hive_state()).members
            assert digest != bytes(32)
            await _known_everywhere(network, ids, digest)
            for node_id in ids:
                assert "used up" in str(await refusal(network, node_id, "second", joined(by, "second")))

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(gossip, "EVERY_SECONDS", 2.0)
        patch.setattr(gossip, "LEAST_SECONDS", 0.05)
        within(body)


def test_members_are_taken_from_nodes_after_the_invitation_ended_but_not_from_clients(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        now = time.time_ns()
        by = ticket(issued_ns=now - 30 * DAY, expires_ns=now - 20 * DAY, uses=2)
        made = [member.member_to_bytes(joined(by, name, now_ns=now - 25 * DAY)) for name in ("a", "b", "c")]
        other = sign_member(HIVE, Membership(b"", key("other"), Role.NODE, (), 1))
        async with running(network, tmp_path / "n"):
            async with talking(network, node_id) as client:
                for asking in (client.put_members(made), client.get_members(), client.get_members(everyone=True)):
                    with pytest.raises(Refused, match="only nodes"):
                        await asking
            assert "expired" in str(await refusal(network, node_id, "a", member.member_from_bytes(made[0])))
            async with as_member(network, node_id, "other", other) as node:
                garbage = [b"garbage", made[0][:-1], member.member_to_bytes(other)]
                assert await node.put_members([*garbage, *made]) == 2  # no more than it was for
                assert await node.put_members(made) == 0
                assert {m.subject for m in await node.get_members()} == {key("a"), key("b")}
                with pytest.raises(Refused, match="owner"):
                    await node.get_members(everyone=True)
            async with as_member(network, node_id, "a", member.member_from_bytes(made[0])):
                pass

    within(body)


def test_a_node_by_invitation_is_in_the_roster_only_when_its_use_is_known(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        made = joined(ticket(), "other", Role.NODE)
        entry = RosterEntry(made, sign_address(seed_of("other"), ("/a",), 1))
        async with running(network, tmp_path / "n"):
            async with talking(network, node_id) as client:
                assert await client.put_roster([entry]) == 0  # a client may not bring in a hundred of one invitation
            async with as_member(network, node_id, "other", made) as node:
                assert await node.put_roster([entry]) == 1
                (mine,) = [e for e in await node.get_roster() if e.membership.subject == key("other")]
                assert mine.membership.attributes == (Attribute("country", "DE", Evidence.ATTESTED),)

    within(body)


def test_a_node_by_invitation_runs_and_serves_after_its_invitation_ended(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        now = time.time_ns()
        by = ticket(issued_ns=now - 30 * DAY, expires_ns=now - 20 * DAY)
        made = joined(by, "old", Role.NODE, now - 25 * DAY)
        node_id = create_node(tmp_path / "n", listen=("/memory",), capacity=1 << 30, membership=made, seed=seed_of("old"))
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            assert client.greeted.node_membership == made
            assert [e.membership for e in await client.get_roster()] == [made]

    within(body)


# ---- revocation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["member", "invitation"])
def test_a_revoked_member_is_cut_off_in_mid_conversation_and_not_let_in_again(tmp_path: Path, what: str) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        by = ticket(uses=5)
        mallory, alice = joined(by, "mallory"), client_certificate(seed_of("alice"))
        listed = revocation(1, (key("mallory"),)) if what == "member" else revocation(1, (), (by.invitation.key,))
        share_id, data = share()
        async with running(network, tmp_path / "n"):
            async with (
                as_member(network, node_id, "alice", alice) as good,
                as_member(network, node_id, "mallory", mallory) as bad,
            ):
                await bad.put(share_id, data, lease())
                assert await good.put_revoked(listed)
                with trio.fail_after(100):
                    await bad.wait_closed()
                with pytest.raises(ConnectionLost):
                    await bad.get(share_id)
                await good.ping()
                assert await good.have([share_id]) == [len(data)]  # kept until its lease ends
            error = await refusal(network, node_id, "mallory", mallory)
            assert error.code == Code.REVOKED and "revoked" in str(error)
        async with running(network, tmp_path / "n"):  # also after a restart
            assert (await refusal(network, node_id, "mallory", mallory)).code == Code.REVOKED
            with pytest.raises(Refused):  # and with the phrase alone
                async with talking(network, node_id, "mallory", recover=True):
                    pass
            if what == "invitation":
                error = await refusal(network, node_id, "friend", joined(by, "friend"))
                assert error.code == Code.REVOKED
                again = joined(ticket("another invitation"), "mallory")
                async with as_member(network, node_id, "mallory", again) as client:
                    assert await client.get(share_id) == data

    within(body)


def test_an_older_or_forged_list_is_not_taken(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            assert (await client.hive_state()).revoked == 0 and await client.get_revoked() is None
            second = revocation(2, (key("mallory"),))
            assert await client.put_revoked(second)
            forged = revoked.sign_revocations(seed_of("mallory"), 9, NOW, [], [])
            for old in (revocation(1), second, revoked.revocations_to_bytes(forged), b"garbage"):
                assert not await client.put_revoked(old)
            assert (await client.hive_state()).revoked == 2 and await client.get_revoked() == second
            assert await client.put_revoked(revocation(3))
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            assert not await client.put_revoked(second)
            assert (await client.hive_state()).revoked == 3
            async with as_member(network, node_id, "mallory", client_certificate(seed_of("mallory"))):
                pass  # the owner took it off the list

    within(body)


def test_a_revoked_node_is_not_spoken_to_and_not_told_of(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        other = make(tmp_path / "other", "other", bootstrap=(network.address(node_id),))
        made = revoked.revocations_from_bytes(revocation(1, (key("other"),)))
        async with running(network, tmp_path / "n"), running(network, tmp_path / "other"), talking(network, node_id) as me:
            while len(await me.get_roster()) < 2:
                await trio.sleep(0.02)
            await me.put_revoked(revoked.revocations_to_bytes(made))
            assert [e.membership.subject for e in await me.get_roster()] == [node_id]
            alice = client_certificate(seed_of("alice"))
            error = await refusal(network, other, "alice", alice, revoked=made.covers)
            assert error.code == Code.REVOKED and "revoked its membership" in str(error)
            async with as_member(network, node_id, "alice", alice, revoked=made.covers):
                pass
            own = sign_member(HIVE, Membership(b"", key("other"), Role.NODE, (Attribute("country", "DE"),), 1))
            assert (await refusal(network, node_id, "other", own)).code == Code.REVOKED

    within(body)


def test_a_list_reaches_all_nodes_by_gossip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given to one of five; the chain is five long, and the minute of the roster is not waited for."""
    monkeypatch.setattr(gossip, "LEAST_SECONDS", 0.05)
    monkeypatch.setattr(gossip, "EVERY_SECONDS", 2.0)

    async def body() -> None:
        network = MemoryNetwork()
        ids: list[bytes] = []
        for number in range(5):
            before = (network.address(ids[-1]),) if ids else ()
            ids.append(make(tmp_path / str(number), f"node {number}", bootstrap=before))
        async with AsyncExitStack() as stack:
            for number in range(5):
                await stack.enter_async_context(running(network, tmp_path / str(number)))
            async with talking(network, ids[4]) as client:
                await client.put_revoked(revocation(4, (key("mallory"),)))
            for node_id in ids:
                async with talking(network, node_id) as client:
                    while (await client.hive_state()).revoked != 4:
                        await trio.sleep(0.02)
                error = await refusal(network, node_id, "mallory", client_certificate(seed_of("mallory")))
                assert error.code == Code.REVOKED

    within(body)


def test_the_owner_sees_all_members_and_nobody_else_does(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        own = sign_member(HIVE, Membership(b"", HIVE_KEY, Role.CLIENT))
        async with running(network, tmp_path / "n"):
            async with as_member(network, node_id, "bob", joined(ticket(), "bob")), talking(network, node_id, "alice"):
                pass
            async with network.open_host(seed_of("any")) as host:
                connection = await host.dial(network.address(node_id))
                stream = await connection.open_stream(PROTOCOL)
                async with converse(stream, credentials(HIVE, host.peer_key, HIVE_KEY, own), time.time_ns()) as client:
                    found = {m.subject for m in await client.get_members(everyone=True)}
                    assert found == {node_id, key("bob"), key("alice"), HIVE_KEY}
            forged = sign_member(seed_of("thief"), Membership(b"", HIVE_KEY, Role.CLIENT))
            with pytest.raises(HivefsError):
                async with as_member(network, node_id, "thief", forged):
                    pass

    within(body)


def test_pages_of_members_are_bounded_and_leave_out_the_revoked(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    members = Members(store, HIVE_KEY)
    by = ticket(issued_ns=NOW, expires_ns=NOW + DAY, uses=400)
    for number in range(300):
        members.admit(joined(by, f"m{number}", now_ns=NOW), NOW)
    full = members.digest
    assert members.take_revoked(revocation(1, (key("m7"), key("m8"))))
    assert members.digest != full
    found: list[bytes] = []
    after, more = b"", True
    while more:
        more, page = members.page(after, 5_000)
        assert page and sum(map(len, page)) <= 5_000
        found += [member.member_from_bytes(blob).subject for blob in page]
        after = found[-1]
    assert found == sorted({key(f"m{n}") for n in range(300)} - {key("m7"), key("m8")})
    assert Members(store, HIVE_KEY).digest == members.digest
    assert members.take_revoked(revocation(2)) and members.digest == full
    store.close()


def test_a_node_that_is_revoked_says_so_in_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n"), talking(network, node_id) as client:
            await client.put_revoked(revocation(1, (node_id,)))
        async with running(network, tmp_path / "n"):
            assert any("revoked this node" in record.getMessage() for record in caplog.records)

    within(body)
