"""Room for conversations and greetings is shared by peer, member, invitation and place: nobody keeps others out."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import HIVE_KEY, make, running, seed_of, talking, within
from raw_peer import PATIENT, raw

from hivefs.chunkstore.node_client import PROTOCOL
from hivefs.errors import ConnectionLost, HivefsError, NodeBusy
from hivefs.model.node import Invitation, Membership, Role
from hivefs.protocol import answers, requests
from hivefs.protocol.failures import Code
from hivefs.protocol.frames import Frame, Kind
from hivefs.protocol.node_side import Session
from hivefs.testing.memory_net import MemoryNetwork


def test_there_are_only_so_many_conversations_for_one_peer(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = replace(PATIENT, conversations_per_peer=2)
        async with (
            running(network, tmp_path / "n", bounds),
            talking(network, node_id) as one,
            talking(network, node_id) as two,
            talking(network, node_id) as three,
        ):
            await one.ping()
            await two.ping()
            with pytest.raises(HivefsError) as caught:
                await three.ping()
            assert caught.value.transient and isinstance(caught.value, ConnectionLost | NodeBusy)
            async with talking(network, node_id, "another") as other:
                await other.ping()

    within(body)


def test_one_member_with_many_keys_keeps_nobody_out(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = replace(PATIENT, conversations=4)
        async with running(network, tmp_path / "n", bounds) as serving, AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(raw(network, node_id, f"key {number}")) for number in range(6)]
            for peer in crowd[:4]:
                await peer.login("thief")
            await crowd[4].login("thief")
            assert (await crowd[4].refusal()).code == Code.BUSY, "it would only push out itself"
            honest = [await stack.enter_async_context(talking(network, node_id, f"honest {n}")) for n in range(2)]
            for client in honest:
                await client.ping()
            assert [await peer.receive() for peer in crowd[:2]] == [None, None], "the oldest of it were ended"
            while serving.streams.conversations != 4:
                await trio.sleep(0.01)
            await crowd[5].login("thief")
            assert (await crowd[5].refusal()).code == Code.BUSY, "two and two are fair"
            await crowd[3].send(Frame(Kind.PING, 1))
            assert await crowd[3].receive() is not None
            for client in honest:
                await client.ping()

    within(body)


HERE = ("memory", "memory")
"""Where all peers in memory are."""


def test_who_came_by_one_invitation_counts_together(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        make(tmp_path / "n")
        key = seed_of("an invitation of many uses")

        def session(name: str, invited: bool) -> Session:
            invitation = Invitation(HIVE_KEY, key, Role.CLIENT) if invited else None
            member = Membership(b"", b"", Role.CLIENT, (), 1, invitation=invitation)
            return Session(b"", seed_of(name), seed_of(name), member, b"", None)

        async with running(network, tmp_path / "n", replace(PATIENT, conversations=5)) as serving:
            streams = serving.streams
            scopes = {name: trio.CancelScope() for name in ("a", "b", "c", "d", "one", "other")}
            for name in ("one", "a", "b", "c", "d"):
                streams._open[scopes[name]] = session(name, name in "abcd")
                streams._peers[seed_of(name)] += 1
            assert not streams._place_for(session("e", True), HERE), "invited by the same one"
            assert streams._place_for(session("other", False), HERE)
            ended = [name for name, scope in scopes.items() if scope.cancel_called]
            assert ended == ["a"], "one of the four, although each of them has only one"
            streams._open.clear()
            streams._peers.clear()

    within(body)


def test_one_place_cannot_hold_all_conversations(tmp_path: Path) -> None:
    """What is over its bound ends conversations of that place alone; from elsewhere there is room."""

    async def body() -> None:
        network = MemoryNetwork()
        make(tmp_path / "n")

        def session(name: str) -> Session:
            return Session(b"", seed_of(name), seed_of(name), Membership(b"", b"", Role.CLIENT, (), 1), b"", None)

        elsewhere = ("192.0.2.0/24", "192.0.2.1")
        async with running(network, tmp_path / "n", replace(PATIENT, conversations_per_place=6)) as serving:
            streams = serving.streams
            scopes = []
            for name in ("far", "a", "a", "a", "a", "b", "c"):
                scopes.append(trio.CancelScope())
                streams._open[scopes[-1]] = session(name)
                streams._sites[scopes[-1]] = elsewhere if name == "far" else HERE
                streams._peers[seed_of(name)] += 1
            assert streams._place_for(session("d"), elsewhere)
            assert not any(scope.cancel_called for scope in scopes)
            assert not streams._place_for(session("a"), HERE), "it is the one that has most"
            assert streams._place_for(session("d"), HERE)
            assert [number for number, scope in enumerate(scopes) if scope.cancel_called] == [1]
            streams._open.clear()
            streams._sites.clear()
            streams._peers.clear()

    within(body)


def test_greetings_with_many_keys_from_one_place_push_out_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty strangers with a key each; a member at another place is older than all of them and says nothing yet."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = replace(PATIENT, greetings=8, greeting_seconds=50.0)
        async with AsyncExitStack() as stack:
            serving = await stack.enter_async_context(running(network, tmp_path / "n", bounds))
            member = await stack.enter_async_context(raw(network, node_id, "slow member"))
            await trio.testing.wait_all_tasks_blocked()
            (scope,) = serving.streams._greeting
            serving.streams._greeting[scope] = (("192.0.2.0/24", "192.0.2.1"), serving.streams._greeting[scope][1])
            for number in range(50):
                host = await stack.enter_async_context(network.open_host(seed_of(f"stranger {number}")))
                connection = await host.dial(network.address(node_id))
                await connection.open_stream(PROTOCOL)
                await trio.testing.wait_all_tasks_blocked()
            assert scope in serving.streams._greeting and len(serving.streams._greeting) <= 8
            await member.login()

    within(body)


def test_half_open_greetings_do_not_keep_members_out(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = replace(PATIENT, greetings=4, greeting_seconds=0.3)
        async with running(network, tmp_path / "n", bounds) as serving, network.open_host(seed_of("flood")) as host:
            connection = await host.dial(network.address(node_id))
            streams = [await connection.open_stream(PROTOCOL) for _ in range(10)]
            # At most four wait; the others are reset, and the four when their time is up.
            for stream in streams:
                with pytest.raises(ConnectionLost):
                    await stream.receive_some()
            serving.streams.bounds = PATIENT
            async with talking(network, node_id) as client:
                await client.ping()

    within(body)


def test_who_holds_many_greetings_pushes_out_his_own(tmp_path: Path) -> None:
    """A member's greeting is done while a stranger fills every place again and again."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = replace(PATIENT, greetings=4, greeting_seconds=50.0)
        async with (
            running(network, tmp_path / "n", bounds),
            network.open_host(seed_of("flood")) as host,
            raw(network, node_id, "slow member") as member,
        ):
            connection = await host.dial(network.address(node_id))
            held = [await connection.open_stream(PROTOCOL) for _ in range(50)]
            await member.login()  # its stream is older than all of them
            await member.send(requests.to_frame(requests.Ping(), 1))
            answer = await member.receive()
            assert answer is not None and answers.from_frame(answers.Done, answer) == answers.Done()
            for stream in held[:46]:
                with pytest.raises(ConnectionLost):
                    await stream.receive_some()
            async with talking(network, node_id, "another") as client:
                await client.ping()

    within(body)
