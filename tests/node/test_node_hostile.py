"""What a hostile or broken peer sends to a real node, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hive_tools import HIVE_KEY, lease, make, running, seed_of, share, talking, within
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_peer import PATIENT, SHORT, Raw, raw

from hivefs.chunkstore.node_client import NodeClient
from hivefs.crypto import keys
from hivefs.errors import ConnectionLost, Refused
from hivefs.formats import strict
from hivefs.node.answering import Answerer
from hivefs.node.session import Bounds
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.failures import Code
from hivefs.protocol.frames import Frame, Kind
from hivefs.protocol.node_side import Session
from hivefs.testing.memory_net import MemoryNetwork
from hivefs.testing.streams import stream_pair


@asynccontextmanager
async def node_and_peer(directory: Path, bounds: Bounds = SHORT) -> AsyncIterator[tuple[Raw, NodeClient]]:
    """A node, a hostile peer on it, and an honest client that must go on working."""
    network = MemoryNetwork()
    node_id = make(directory / "n")
    patient = replace(bounds, greeting_seconds=60.0, frame_seconds=60.0, idle_seconds=60.0, send_seconds=60.0)
    async with running(network, directory / "n", patient) as serving, talking(network, node_id, "honest") as honest:
        serving.streams.bounds = bounds  # for those who come from now on
        async with raw(network, node_id) as peer:
            yield peer, honest
            share_id, data = share(100)
            await honest.put(share_id, data, lease())
            assert await honest.get(share_id) == data


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(40),
        struct.pack(">IBIH", 2**32 - 1, Kind.HELLO, 0, 0),
        struct.pack(">IBIH", 7 + 3000, Kind.HELLO, 0, 3000),
        struct.pack(">IBIH", 8, Kind.HELLO, 0, 0),
        struct.pack(">IBIH", 7, 200, 0, 0),
        frames.to_bytes(Frame(Kind.HELLO, 0, b"\xff")),
        frames.to_bytes(Frame(Kind.PING, 1)),
        frames.to_bytes(requests.to_frame(requests.Put(bytes(32), 1, b"x"), 1)),
        frames.to_bytes(Frame(Kind.WELCOME, 0)),
        frames.to_bytes(Frame(Kind.ANSWER, 0)),
    ],
)
def test_garbage_or_a_request_before_the_greeting_ends_the_conversation(tmp_path: Path, sent: bytes) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.send(sent)
            assert (await peer.refusal()).code == Code.BAD_REQUEST

    within(body)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), st.booleans())
def test_random_bytes_never_hurt_the_node(
    tmp_path_factory: pytest.TempPathFactory, sent: list[bytes], inside: bool
) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path_factory.mktemp("fuzz"), PATIENT) as (peer, _):
            if inside:
                await peer.login()
            for data in sent:
                try:
                    await peer.send(data)
                except ConnectionLost:
                    break
            await peer.stream.aclose()

    within(body)


def test_a_version_that_is_not_spoken_is_refused_in_words(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.send(Frame(Kind.HELLO, 0, strict.encode("hello", 1, [2, 3], HIVE_KEY)))
            refusal = await peer.refusal()
            assert refusal.code == Code.VERSION and "speaks version 1" in refusal.text

    within(body)


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">IBIH", 2**31, Kind.PUT, 1, 0),
        struct.pack(">IBIH", 7 + (2 << 20) + 1, Kind.PUT, 1, 0),
        struct.pack(">IBIH", 7 + 33 * 1024, Kind.HAVE, 1, 0),
        struct.pack(">IBIH", 7, 99, 1, 0),
        frames.to_bytes(Frame(Kind.HELLO, 0)),
        frames.to_bytes(Frame(Kind.ANSWER, 1)),
        frames.to_bytes(requests.to_frame(requests.Ping(), 0)),
    ],
)
def test_a_frame_that_no_client_sends_ends_the_conversation(tmp_path: Path, sent: bytes) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.login()
            await peer.send(sent)
            refusal = await peer.refusal()
            assert refusal.code == Code.BAD_REQUEST and "protocol violation" in refusal.text

    within(body)


def test_a_damaged_request_is_answered_and_the_conversation_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.login()
            await peer.send(Frame(Kind.STAT, 5, b"\xff"), requests.to_frame(requests.Ping(), 6))
            first, second = await peer.receive(), await peer.receive()
            assert first is not None and second is not None
            assert (first.kind, first.request) == (Kind.FAILURE, 5)
            assert failures.from_header(first.header).code == Code.BAD_REQUEST
            assert answers.from_frame(answers.Done, second) == answers.Done() and second.request == 6

    within(body)


def test_a_deletion_without_the_owners_signature_deletes_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, honest):
            share_id, data = share(100)
            await honest.put(share_id, data, lease())
            await peer.login("thief")
            await peer.send(requests.to_frame(requests.Delete(1, bytes(64), (share_id,)), 1))
            answer = await peer.receive()
            assert answer is not None and failures.from_header(answer.header).code == Code.FORBIDDEN
            assert await honest.get(share_id) == data

    within(body)


def test_a_recorded_deletion_does_not_work_again(tmp_path: Path) -> None:
    """The owner deletes and puts again; who has the bytes of the deletion cannot delete it once more."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        share_id, data = share(100)
        async with running(network, tmp_path / "n", PATIENT):
            async with talking(network, node_id) as client:
                await client.put(share_id, data, lease())
                stream = client._conversation._stream
                recorded: list[bytes] = []
                real = stream.send_all

                async def recording(sent: bytes) -> None:
                    recorded.append(bytes(sent))
                    await real(sent)

                stream.send_all = recording  # type: ignore[method-assign, assignment]
                assert await client.delete([share_id]) == [True]
                await client.put(share_id, data, lease())
                (deletion,) = (sent for sent in recorded if sent[4] == Kind.DELETE)
                client._conversation._last_request = 1000  # so that the answer to the replay is no surprise
                await stream.send_all(deletion[:5] + struct.pack(">I", 999) + deletion[9:])
                await client.ping()
                assert await client.get(share_id) == data
            async with raw(network, node_id) as peer:
                await peer.login("owner")
                await peer.send(deletion)
                answer = await peer.receive()
                assert answer is not None and failures.from_header(answer.header).code == Code.FORBIDDEN
            async with talking(network, node_id) as client:
                assert await client.get(share_id) == data

    within(body)


# ---- peers that are slow or take too much ---------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [b"", b"\x00\x00", frames.to_bytes(Frame(Kind.HELLO, 0, bytes(50)))[:-1]])
def test_a_greeting_that_does_not_come_is_waited_for_a_while_only(tmp_path: Path, begin: bytes) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, replace(SHORT, greeting_seconds=0.3)) as (peer, _):
            await peer.send(begin)
            assert await peer.receive() is None

    within(body)


def test_a_frame_that_drips_in_has_an_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path) as (peer, _):
            await peer.login()
            with pytest.raises(ConnectionLost):
                await peer.send(struct.pack(">IBIH", 7 + 1000, Kind.PUT, 1, 0))
                while True:
                    await peer.send(b"x")
                    await trio.sleep(0.02)
            assert await peer.receive() is None

    within(body)


def test_a_silent_peer_is_let_go(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path) as (peer, _):
            await peer.login()
            assert await peer.receive() is None

    within(body)


def test_a_peer_that_asks_for_much_and_reads_nothing_holds_little_and_is_let_go(tmp_path: Path) -> None:
    async def body() -> None:
        bounds = replace(SHORT, idle_seconds=60.0, bytes_per_conversation=4 << 20, bytes_in_all=6 << 20)
        async with node_and_peer(tmp_path, bounds) as (peer, honest):
            share_id, data = share(2 << 20)
            await honest.put(share_id, data, lease())
            await peer.login()
            with pytest.raises(ConnectionLost):
                for number in range(1, 100_000):
                    await peer.send(requests.to_frame(requests.Get(share_id), number))
                    if number == 40:
                        assert await honest.get(share_id) == data

    within(body)


def test_shares_that_nobody_takes_hold_no_memory_that_others_wait_for(tmp_path: Path) -> None:
    """Nobody is let go for it either (here nobody would be within the hour): who was slow gets its shares in the end."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = Bounds(send_seconds=3600, still_seconds=3600, bytes_per_conversation=4 << 20, bytes_in_all=4 << 20)
        shares = [share(2 << 20) for _ in range(3)]
        async with (
            running(network, tmp_path / "n", bounds) as serving,
            talking(network, node_id, "honest") as honest,
            raw(network, node_id) as peer,
        ):
            for share_id, data in shares:
                await honest.put(share_id, data, lease())
            memory = serving.streams.memory
            while memory.free != memory.total:
                await trio.sleep(0.01)
            await peer.login("slow")
            for number, (share_id, _) in enumerate(shares, 1):
                await peer.send(requests.to_frame(requests.Get(share_id), number))
                while number == 2 and memory.free:  # the third waits for memory, and makes the node forget the others
                    await trio.sleep(0.01)
            for share_id, data in shares:
                assert await honest.get(share_id) == data
            await memory.take(memory.total)  # what nobody takes holds nothing that somebody waits for
            memory.give(memory.total)
            for number in range(4, 20):
                await peer.send(requests.to_frame(requests.Get(shares[0][0]), number))
            for share_id, data in shares:
                assert await honest.get(share_id) == data
            await memory.take(memory.total)
            memory.give(memory.total)
            got = {}
            while len(got) < 19:
                frame = await peer.receive()
                assert frame is not None
                got[frame.request] = frame.payload
            assert got == {number: shares[number - 1 if number < 4 else 0][1] for number in range(1, 20)}
            await peer.send(requests.to_frame(requests.Get(shares[0][0]), 20))
            frame = await peer.receive()
            assert frame is not None and frame.payload == shares[0][1]

    within(body)


def test_a_share_that_goes_while_it_is_on_its_way_ends_the_conversation(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = Bounds(send_seconds=3600, still_seconds=3600, bytes_per_conversation=4 << 20, bytes_in_all=4 << 20)
        (share_id, data), (other_id, other) = share(2 << 20), share(2 << 20)
        async with (
            running(network, tmp_path / "n", bounds) as serving,
            talking(network, node_id, "honest") as honest,
            raw(network, node_id) as peer,
        ):
            await honest.put(share_id, data, lease())
            await honest.put(other_id, other, lease())
            await peer.login("slow")
            for number in (1, 2):
                await peer.send(requests.to_frame(requests.Get(share_id), number))
            while serving.streams.memory.free:
                await trio.sleep(0.01)
            assert await honest.get(other_id) == other
            assert await honest.delete([share_id]) == [True]
            whole = 0
            while (frame := await peer.receive()) is not None:
                assert frame.payload == data
                whole += 1
            assert whole < 2
            assert await honest.get(other_id) == other

    within(body)


def test_who_takes_no_answers_that_cannot_be_made_again_is_let_go_and_stays_away(tmp_path: Path) -> None:
    """Pages of heads and rosters: without that they would hold all memory until SEND_SECONDS are over, here an hour."""

    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        bounds = Bounds(send_seconds=3600, still_seconds=0.3, away_seconds=3600, bytes_in_all=4 << 20)
        share_id, data = share(2 << 20)
        async with running(network, tmp_path / "n", bounds) as serving, talking(network, node_id, "honest") as honest:
            await honest.put(share_id, data, lease())
            streams = serving.streams
            mine, _ = stream_pair(seed_of("a"), seed_of("b"), 1000)
            subject = keys.public_key(seed_of("thief"))

            async def page() -> None:
                await streams.memory.take(3 << 20)
                try:
                    with pytest.raises(trio.TooSlowError):
                        await streams.send_piece(mine, memoryview(bytes(4000)), subject)
                finally:
                    streams.memory.give(3 << 20)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(page)
                await trio.testing.wait_all_tasks_blocked()
                assert await honest.get(share_id) == data
            async with raw(network, node_id, "another key") as peer:
                await peer.login("thief")
                assert (await peer.refusal()).code == Code.BUSY
            async with talking(network, node_id) as other:
                assert await other.get(share_id) == data

    within(body)


def test_one_number_cannot_be_used_twice_at_a_time(tmp_path: Path) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.login()
            share_id, data = share(1 << 20)
            put = requests.to_frame(requests.Put(share_id, lease(), data), 1)
            await peer.send(put, requests.to_frame(requests.Ping(), 1))
            kinds = []
            while (frame := await peer.receive()) is not None:
                kinds.append((frame.kind, frame.request))
            assert kinds[-1] == (Kind.FAILURE, 0)

    within(body)


def test_a_cancelled_request_is_dropped_and_its_number_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with node_and_peer(tmp_path, PATIENT) as (peer, _):
            await peer.login()
            real = Answerer.answer
            begun = trio.Event()

            async def stuck(self: Answerer, session: Session, request: requests.Request) -> answers.Answer:
                begun.set()
                await trio.sleep_forever()
                raise AssertionError

            with monkeypatch.context() as patch:
                patch.setattr(Answerer, "answer", stuck)
                await peer.send(requests.to_frame(requests.Stat(), 1))
                await begun.wait()
            assert Answerer.answer is real
            await peer.send(Frame(Kind.CANCEL, 1), Frame(Kind.CANCEL, 77), requests.to_frame(requests.Ping(), 2))
            answer = await peer.receive()
            assert answer is not None and (answer.kind, answer.request) == (Kind.ANSWER, 2)
            await peer.send(requests.to_frame(requests.Ping(), 1))
            answer = await peer.receive()
            assert answer is not None and (answer.kind, answer.request) == (Kind.ANSWER, 1)

    within(body)


def test_a_stranger_of_another_hive_learns_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = make(tmp_path / "n")
        async with running(network, tmp_path / "n", PATIENT):
            with pytest.raises(Refused) as caught:
                async with talking(network, node_id, hive_seed=seed_of("another hive")):
                    pass
            assert caught.value.code == Code.NOT_MEMBER
            async with raw(network, node_id) as peer:
                await peer.send(Frame(Kind.HELLO, 0, strict.encode("hello", 1, [1], b"")))
                challenge = await peer.receive()
                assert challenge is not None and challenge.kind == Kind.CHALLENGE
                assert HIVE_KEY not in frames.to_bytes(challenge)

    within(body)
