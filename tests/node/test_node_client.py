"""The client against a node that the test plays: order, lateness, cancelling, loss, lies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio
import trio.testing
from hive_tools import HIVE, HIVE_KEY, client_certificate, seed_of, share, within

from hivefs.chunkstore.conversation import Early
from hivefs.chunkstore.node_client import NodeClient, converse, credentials, login
from hivefs.content import merkle
from hivefs.crypto import keys
from hivefs.errors import ConnectionLost, Corrupt, NodeBusy, PeerTimeout, Refused
from hivefs.formats.member import sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Membership, Role
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind
from hivefs.protocol.node_side import NodeHandshake
from hivefs.testing.streams import MemoryStream, stream_pair

NODE = keys.public_key(seed_of("node"))
DEVICE = keys.public_key(seed_of("device"))
NODE_CERTIFICATE = sign_member(HIVE, Membership(b"", NODE, Role.NODE, (), 1))
WHO = credentials(seed_of("owner"), DEVICE, HIVE_KEY, client_certificate(seed_of("owner")))


@dataclass
class PlayedNode:
    """The node's end after its greeting."""

    stream: MemoryStream
    decoder: FrameDecoder

    async def frame(self) -> Frame:
        while (frame := self.decoder.next_frame()) is None:
            data = await self.stream.receive_some()
            assert data, "the client ended the conversation"
            self.decoder.feed(data)
        return frame

    async def request(self) -> tuple[int, requests.Request]:
        frame = await self.frame()
        assert frame.kind != Kind.CANCEL
        return frame.request, requests.from_frame(frame)

    async def send(self, *sent: Frame) -> None:
        for frame in sent:
            await self.stream.send_all(frames.to_bytes(frame))

    async def answer(self, number: int, answer: answers.Answer) -> None:
        await self.send(answers.to_frame(answer, number))


async def play_greeting(stream: MemoryStream) -> PlayedNode:
    handshake = NodeHandshake(NODE_CERTIFICATE, stream.peer_key, bytes(32), lambda subject: None, 8)
    node = PlayedNode(stream, FrameDecoder(frozenset(Kind)))
    while handshake.session is None:
        await node.send(handshake.receive(await node.frame(), time.time_ns()))
    return node


@asynccontextmanager
async def pair(window: int = 1 << 20) -> AsyncIterator[tuple[NodeClient, PlayedNode]]:
    mine, theirs = stream_pair(DEVICE, NODE, window)
    played: list[PlayedNode] = []

    async def greet() -> None:
        played.append(await play_greeting(theirs))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(greet)
        async with converse(mine, WHO, time.time_ns()) as client:
            while not played:
                await trio.lowlevel.checkpoint()
            yield client, played[0]


def test_answers_may_come_in_any_order() -> None:
    async def body() -> None:
        async with pair() as (client, node):
            results: dict[bytes, list[int]] = {}

            async def have(byte: int) -> None:
                share_id = ShareId(bytes([byte]) * 32)
                results[share_id] = await client.have([share_id])

            async with trio.open_nursery() as nursery:
                for byte in range(5):
                    nursery.start_soon(have, byte)
                asked = [await node.request() for _ in range(5)]
                for number, request in reversed(asked):
                    assert isinstance(request, requests.Have)
                    await node.answer(number, answers.Sizes((request.share_ids[0][0] + 10,)))
            assert results == {bytes([b]) * 32: [b + 10] for b in range(5)}

    within(body)


def test_a_late_answer_is_a_timeout_and_is_dropped_when_it_comes() -> None:
    async def body() -> None:
        async with pair() as (client, node):
            with pytest.raises(PeerTimeout, match=r"a ping within 0\.05 s"):
                await client.ping(timeout=0.05)
            number, _ = await node.request()
            cancel = await node.frame()
            assert (cancel.kind, cancel.request) == (Kind.CANCEL, number)
            await node.answer(number, answers.Done())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.ping)
                again, _ = await node.request()
                assert again != number
                await node.answer(again, answers.Done())

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))  # it is asked before its time is over


def test_a_cancelled_put_in_the_middle_of_its_bytes_leaves_the_wire_whole() -> None:
    async def body() -> None:
        async with pair(window=4096) as (client, node):
            share_id, data = share(1 << 20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.put, share_id, data, 1)
                await trio.testing.wait_all_tasks_blocked()  # the window is full, most bytes wait
                nursery.cancel_scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.ping)
                number, request = await node.request()
                assert isinstance(request, requests.Put) and request.data == data
                assert await node.frame() == Frame(Kind.CANCEL, number)
                number, request = await node.request()
                assert request == requests.Ping()
                await node.answer(number, answers.Done())

    within(body)


def test_a_call_cancelled_in_the_queue_is_never_sent() -> None:
    async def body() -> None:
        async with pair(window=4096) as (client, node):
            one, two = share(1 << 20), share(1 << 20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.put, *one, 1)
                await trio.testing.wait_all_tasks_blocked()
                with trio.move_on_after(0.01) as scope:
                    await client.put(*two, 1)
                assert scope.cancelled_caught
                nursery.start_soon(client.ping)
                number, first = await node.request()
                assert isinstance(first, requests.Put) and first.share_id == one[0]
                await node.answer(number, answers.Kept(1))
                number, second = await node.request()
                assert second == requests.Ping()
                await node.answer(number, answers.Done())

    within(body)


def test_small_requests_pass_the_bulk_that_waits() -> None:
    async def body() -> None:
        async with pair(window=4096) as (client, node), trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.put, *share(1 << 20), 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(client.ping)
            await trio.testing.wait_all_tasks_blocked()
            kinds = []
            for _ in range(4):
                number, request = await node.request()
                kinds.append(type(request))
                put = isinstance(request, requests.Put)
                await node.answer(number, answers.Kept(1) if put else answers.Done())
            assert kinds == [requests.Put, requests.Ping, requests.Put, requests.Put]

    within(body)


@pytest.mark.parametrize("how", ["end", "reset", "farewell", "garbage", "nobody asked", "request"])
def test_all_calls_fail_when_the_conversation_ends(how: str) -> None:
    async def body() -> None:
        lost: list[ConnectionLost] = []

        async with pair() as (client, node):

            async def ping() -> None:
                with pytest.raises(ConnectionLost) as caught:
                    await client.ping()
                lost.append(caught.value)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ping)
                for _ in range(3):
                    await node.request()
                match how:
                    case "end":
                        await node.stream.aclose()
                    case "reset":
                        await node.stream.reset()
                    case "farewell":
                        header = failures.to_header(Refusal(Code.BUSY, "going home"))
                        await node.send(Frame(Kind.FAILURE, 0, header))
                    case "garbage":
                        await node.stream.send_all(b"\xff" * 20)
                    case "nobody asked":
                        await node.answer(77, answers.Done())
                    case "request":
                        await node.send(requests.to_frame(requests.Ping(), 1))
                await client.wait_closed()
            assert client.closed and len({id(error) for error in lost}) == 3
            if how == "farewell":
                assert "going home" in str(lost[0])
            with pytest.raises(ConnectionLost):
                await client.stat()

    within(body)


def test_refusals_reach_the_one_who_asked() -> None:
    async def body() -> None:
        async with pair() as (client, node):

            async def refuse() -> None:
                number, _ = await node.request()
                await node.send(Frame(Kind.FAILURE, number, failures.to_header(Refusal(Code.BUSY, "later"))))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse)
                with pytest.raises(NodeBusy, match="later") as caught:
                    await client.stat()
            assert caught.value.transient

    within(body)


def asked(node: PlayedNode, make_answer: object) -> object:
    async def answer() -> None:
        number, request = await node.request()
        made = make_answer(request)  # type: ignore[operator]
        await node.send(made if isinstance(made, Frame) else answers.to_frame(made, number))

    return answer


@pytest.mark.parametrize("lie", ["other range", "cut", "longer", "bytes", "size", "path", "empty", "type"])
def test_lies_about_a_range_are_found(lie: str) -> None:
    share_id, data = share(5 * merkle.LEAF_BYTES)
    leaves, root = merkle.leaf_hashes(data), merkle.merkle_root(data)

    def part(first: int, last: int) -> answers.Part:
        piece = data[first * merkle.LEAF_BYTES : last * merkle.LEAF_BYTES]
        return answers.Part(len(data), first, tuple(merkle.prove(leaves, first, last)), piece)

    honest = part(1, 2)
    lies = {
        "other range": part(2, 3),
        "cut": answers.Part(len(data), 1, honest.path, honest.data[:-1]),
        "longer": answers.Part(len(data), 1, honest.path, honest.data + b"x"),
        "bytes": answers.Part(len(data), 1, honest.path, b"x" + honest.data[1:]),
        "size": answers.Part(len(data) - 1, 1, honest.path, honest.data),
        "path": answers.Part(len(data), 1, honest.path[:-1], honest.data),
        "empty": answers.Part(len(data), 1, honest.path, b""),
        "type": answers.Done(),
    }

    async def body() -> None:
        async with pair() as (client, node), trio.open_nursery() as nursery:
            nursery.start_soon(asked(node, lambda request: lies[lie]))  # type: ignore[arg-type]
            with pytest.raises(Corrupt):
                await client.get(share_id, merkle.LEAF_BYTES + 5, merkle.LEAF_BYTES - 5, merkle_root=root)
        async with pair() as (client, node), trio.open_nursery() as nursery:
            nursery.start_soon(asked(node, lambda request: honest))  # type: ignore[arg-type]
            got = await client.get(share_id, merkle.LEAF_BYTES + 5, merkle.LEAF_BYTES - 5, merkle_root=root)
            assert got == data[merkle.LEAF_BYTES + 5 : 2 * merkle.LEAF_BYTES]

    within(body)


def test_lies_about_a_whole_share_are_found() -> None:
    share_id, data = share(1000)

    async def body() -> None:
        for lie in (data[:-1], data + b"x", b"x" + data[1:], b""):
            for root in (None, merkle.merkle_root(data)):
                async with pair() as (client, node), trio.open_nursery() as nursery:
                    made = answers.Part(max(1, len(lie)), 0, (), lie)
                    nursery.start_soon(asked(node, lambda request, made=made: made))  # type: ignore[arg-type]
                    with pytest.raises(Corrupt):
                        await client.get(share_id, merkle_root=root)

    within(body)


def test_lists_of_another_length_and_pages_without_end_are_refused() -> None:
    ids = [ShareId(hashlib.sha256(bytes([i])).digest()) for i in range(3)]

    async def body() -> None:
        async with pair() as (client, node), trio.open_nursery() as nursery:
            nursery.start_soon(asked(node, lambda request: answers.Sizes((1, 2))))  # type: ignore[arg-type]
            with pytest.raises(Corrupt):
                await client.have(ids)
        async with pair() as (client, node), trio.open_nursery() as nursery:
            nursery.start_soon(asked(node, lambda request: answers.Flags((True,) * 4)))  # type: ignore[arg-type]
            with pytest.raises(Corrupt):
                await client.delete(ids)
        async with pair() as (client, node), trio.open_nursery() as nursery:
            nursery.start_soon(asked(node, lambda request: answers.Page(False, (b"no head",))))  # type: ignore[arg-type]
            with pytest.raises(Corrupt):
                await client.get_heads()

    within(body)


def test_the_greeting_has_a_deadline_and_resets_the_stream() -> None:
    async def body() -> None:
        mine, theirs = stream_pair(DEVICE, NODE)
        with pytest.raises(PeerTimeout, match="greeting"):
            await login(mine, WHO, time.time_ns(), timeout=0.05)
        with pytest.raises(ConnectionLost):
            await theirs.send_all(b"x")

    within(body)


@pytest.mark.parametrize("said", [b"\xff" * 30, b"", frames.to_bytes(Frame(Kind.CHALLENGE, 0, b"\xff"))])
def test_a_peer_that_does_not_greet_as_it_should_is_refused(said: bytes) -> None:
    async def body() -> None:
        mine, theirs = stream_pair(DEVICE, NODE)
        await theirs.send_all(said)
        if not said:
            await theirs.aclose()
        with pytest.raises((Refused, ConnectionLost)):
            await login(mine, WHO, time.time_ns(), timeout=60)

    within(body)


def test_errors_of_the_block_pass_out_of_converse_as_they_are() -> None:
    class Mine(Exception):
        pass

    async def body() -> None:
        mine, theirs = stream_pair(DEVICE, NODE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play_greeting, theirs)
            with pytest.raises(Mine):
                async with converse(mine, WHO, time.time_ns()):
                    raise Mine

    within(body)


def test_silence_is_broken_by_a_sign_of_life_and_a_dead_node_is_noticed() -> None:
    async def body() -> None:
        async with pair() as (client, node):
            number, request = await node.request()
            assert request == requests.Ping()
            await node.answer(number, answers.Done())
            assert (await node.request())[1] == requests.Ping()
            await client.wait_closed()
            with pytest.raises(ConnectionLost):
                await client.ping()

    async def main() -> None:
        await body()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def dripping(body) -> None:  # type: ignore[no-untyped-def]
    """Run with a pair whose window is so small that frames come in pieces, under a clock that jumps."""

    async def main() -> None:
        async with pair(window=64 << 10) as (client, node):
            await body(client, node)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("ahead", [0, 1000, -500])
def test_what_counts_of_a_lease_is_what_was_asked_for_or_less_if_less_was_granted(ahead: int) -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(50)
        for granted, counts in ((70_000, 70_000), (1 << 62, 70_000), (69_999, 69_999), (501, 501), (0, 0)):
            client.ahead_ns, got = ahead, list[int]()

            async def put(got: list[int] = got) -> None:
                got.append(await client.put(share_id, data, 70_000))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(put)
                number, _ = await node.request()
                client.ahead_ns = 7  # it tells another time meanwhile
                await node.answer(number, answers.Kept(max(0, granted + ahead)))
            assert got == [max(counts, -ahead)]

    dripping(body)


def test_leases_go_by_the_nodes_clock_when_ours_is_far_behind() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        client.ahead_ns = 1000
        share_id, data = share(50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.put, share_id, data, 7)
            number, asked = await node.request()
            assert isinstance(asked, requests.Put) and asked.lease_ns == 1007
            await node.answer(number, answers.Kept(1007))
            nursery.start_soon(client.renew, [share_id], 7)
            number, asked = await node.request()
            assert isinstance(asked, requests.Renew) and asked.lease_ns == 1007
            await node.answer(number, answers.Flags([True]))

    dripping(body)


async def drip(node: PlayedNode, number: int, data: bytes, pause: float) -> None:
    """An answer in five pieces, with a pause before each."""
    root = answers.Part(len(data), 0, (), data)
    whole = frames.to_bytes(answers.to_frame(root, number))
    fifth = -(-len(whole) // 5)
    for start in range(0, len(whole), fifth):
        await trio.sleep(pause)
        await node.stream.send_all(whole[start : start + fifth])


def test_bytes_of_shares_are_seen_and_teach_patience() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(50_000)
        before, limit = client.moved, client.patience.limit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.stat)
            number, _ = await node.request()
            await node.answer(number, answers.NodeStat(1, 1, 1, 1, 1, 1, ""))
        assert client.moved == before, "a small answer is no share"
        got: list[bytes] = []

        async def get() -> None:
            got.append(await client.get(share_id, merkle_root=merkle.merkle_root(data)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            number, _ = await node.request()
            await drip(node, number, data, 0.7)
        assert got == [data] and client.moved == trio.current_time()
        assert client.patience.limit == pytest.approx(2 * 0.7) and client.patience.limit > limit

    dripping(body)


def test_a_request_has_left_when_what_was_sent_before_it_has() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(50_000)
        mine = client._conversation._stream
        assert isinstance(mine, MemoryStream)
        asked = trio.current_time()
        assert client.departed(share_id, asked) == (asked, True), "nobody asked for it"
        limit = client.patience.limit
        async with trio.open_nursery() as nursery:
            mine.sent_bytes += 1_000_000
            mine.unsent = 700_000
            nursery.start_soon(partial(client.get, share_id, timeout=3.0))
            number, _ = await node.request()
            for _ in range(4):  # 700 kB leave at 100 kB/s: far more than the time-out of the request, and no silence
                await trio.sleep(1)
                mine.unsent -= 100_000
                assert client.departed(share_id, asked) == (trio.current_time(), False)
            await trio.sleep(2)
            assert client.departed(share_id, asked) == (trio.current_time() - 2, False), "what does not move counts"
            mine.unsent = 0
            left = trio.current_time()
            assert client.departed(share_id, asked) == (left, True)
            await trio.sleep(0.3)
            assert client.departed(share_id, asked) == (left, True)
            await node.answer(number, answers.Part(len(data), 0, (), data))
        assert limit < client.patience.limit == pytest.approx(2 * 0.3), "only the node's own silence teaches"

    dripping(body)


def test_a_share_that_moves_may_take_longer_than_its_time_out_and_a_still_one_not() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(50_000)
        got: list[bytes] = []

        async def get(timeout: float) -> None:
            got.append(await client.get(share_id, timeout=timeout))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get, 3.0)
            number, _ = await node.request()
            await drip(node, number, data, 2.0)
        assert got == [data]
        with pytest.raises(PeerTimeout):
            await client.get(share_id, timeout=3.0)
        assert (await node.request())[1] == requests.Get(share_id)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def too_slow() -> None:
                with pytest.raises(PeerTimeout):
                    await client.get(share_id, timeout=1.0)
                assert trio.current_time() - began <= 10.0, "not for ever, however it drips"
                nursery.cancel_scope.cancel()

            nursery.start_soon(too_slow)
            while True:
                frame = await node.frame()
                if frame.kind == Kind.GET:
                    break
            whole = frames.to_bytes(answers.to_frame(answers.Part(len(data), 0, (), data), frame.request))
            for byte in whole:
                await trio.sleep(0.9)
                await node.stream.send_all(bytes([byte]))

    dripping(body)


def test_a_share_on_its_way_out_may_take_as_long_as_it_moves() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(1 << 20)
        done: list[bool] = []

        async def put() -> None:
            await client.put(share_id, data, 1, timeout=3.0)
            done.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            while (frame := node.decoder.next_frame()) is None:
                await trio.sleep(0.5)  # 17 pieces: more than eight seconds
                node.decoder.feed(await node.stream.receive_some(64 << 10))
            await node.answer(frame.request, answers.Kept(1))
        assert done and trio.current_time() > 6

        with pytest.raises(PeerTimeout):
            await client.put(share_id, data, 1, timeout=3.0)  # nobody reads it

    dripping(body)


def test_the_first_bytes_of_a_range_are_here_before_its_proof() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        share_id, data = share(60_000)
        early = Early(20_000)

        async def get() -> None:
            with pytest.raises(Corrupt):
                await client.get(share_id, 0, 20_000, merkle_root=bytes(32), early=early)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            number, _ = await node.request()
            whole = frames.to_bytes(answers.to_frame(answers.Part(len(data), 0, (), data), number))
            head = len(whole) - len(data)
            await node.stream.send_all(whole[: head + 19_999])
            await trio.sleep(1)
            assert not early.done.is_set()
            await node.stream.send_all(whole[head + 19_999 : head + 20_000])
            await trio.sleep(1)
            assert early.done.is_set() and early.data == data[:20_000]
            await node.stream.send_all(whole[head + 20_000 :])

    dripping(body)


def test_a_refusal_is_no_first_byte() -> None:
    async def body(client: NodeClient, node: PlayedNode) -> None:
        early = Early(1)

        async def get() -> None:
            with pytest.raises(NodeBusy):
                await client.get(share()[0], 0, 1, merkle_root=bytes(32), early=early)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            number, _ = await node.request()
            whole = frames.to_bytes(Frame(Kind.FAILURE, number, failures.to_header(Refusal(Code.BUSY, "x" * 200))))
            await node.stream.send_all(whole[:100])
            await trio.sleep(1)
            await node.stream.send_all(whole[100:])
        assert not early.done.is_set()

    dripping(body)
