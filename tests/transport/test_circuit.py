"""Circuits through a relay: the messages against the library's own, and what a relay gives to whom and where it ends."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.errors import BadAddress, ConnectionLost, HivefsError, PeerIdentityMismatch, PeerUnreachable, Refused
from hivefs.transport import Connection, Host, Stream, circuit_messages, open_host
from hivefs.transport.addresses import binary_peer_id, key_from_binary_peer_id, peer_id_from_key
from hivefs.transport.circuit import reserve, waiting
from hivefs.transport.circuit_messages import HOP, STOP, BadMessage, Hop, Message, Status, Stop, from_bytes, to_bytes
from hivefs.transport.relay import Bounds, Relay

KEY = bytes(range(32))


def library() -> Any:
    """py-libp2p's generated code for the messages, without the package around it."""
    found = importlib.util.find_spec("libp2p")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0], "relay", "circuit_v2", "pb", "circuit_pb2.py")
    spec = importlib.util.spec_from_file_location("circuit_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NUMBERS = st.integers(0, 2**63)
MESSAGES = st.builds(
    Message,
    st.sampled_from([0, 1]),
    st.binary(max_size=60),
    NUMBERS,
    st.integers(0, 2**32 - 1),
    NUMBERS,
    st.sampled_from([-1, 100, 204, 401]),
)


@given(MESSAGES, st.booleans())
def test_messages_are_the_librarys(message: Message, hop: bool) -> None:
    pb = library()
    if not hop:
        message = Message(message.kind, message.peer, 0, message.duration, message.data, message.status)
    theirs = (pb.HopMessage if hop else pb.StopMessage)()
    body = body_of(message, hop)
    theirs.ParseFromString(body)
    assert (theirs.type, theirs.peer.id, theirs.limit.data) == (message.kind, message.peer, message.data)
    assert theirs.limit.duration == message.duration
    assert theirs.HasField("status") == (message.status >= 0) and (message.status < 0 or theirs.status == message.status)
    if hop:
        assert theirs.reservation.expire == message.expire
        theirs.reservation.voucher = b"v" * 300
        theirs.reservation.addrs.append(b"a")
    theirs.peer.addrs.append(b"somewhere")
    assert from_bytes(theirs.SerializeToString(), hop) == message, "and what is not used is passed over"
    assert from_bytes(body, hop) == message


def body_of(message: Message, hop: bool) -> bytes:
    """Without its length."""
    data = to_bytes(message, hop)
    return data[1:] if data[0] < 128 else data[2:]


CUT = st.tuples(MESSAGES, st.integers(0, 200)).map(lambda made: body_of(made[0], True)[: made[1]])


@settings(max_examples=500)
@given(st.binary(max_size=200) | CUT, st.booleans())
def test_what_is_read_is_a_message_or_refused(data: bytes, hop: bool) -> None:
    try:
        made = from_bytes(data, hop)
    except BadMessage:
        return
    assert from_bytes(body_of(made, hop), hop) == made


@pytest.mark.parametrize(
    "data",
    [b"", b"\x0a\x01x", b"\x08", b"\x08" + b"\xff" * 10 + b"\x01", b"\x08\x00\x12\x05abc", b"\x08\x00\x10\x01", b"\x0b"],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        from_bytes(data, True)


def test_binary_peer_ids() -> None:
    assert key_from_binary_peer_id(binary_peer_id(KEY)) == KEY
    for wrong in (b"", KEY, binary_peer_id(KEY)[:-1], binary_peer_id(KEY) + b"x", b"\x00\x24\x08\x02" + bytes(34)):
        with pytest.raises(BadAddress):
            key_from_binary_peer_id(wrong)
    with pytest.raises(ValueError, match="32"):
        binary_peer_id(b"short")
    relay = f"/ip4/192.0.2.7/tcp/4001/p2p/{peer_id_from_key(KEY)}"
    assert circuit_messages.circuit_address(relay, KEY) == f"{relay}/p2p-circuit/p2p/{peer_id_from_key(KEY)}"
    with pytest.raises(BadAddress):
        circuit_messages.circuit_address("/ip4/192.0.2.7/tcp/4001", KEY)


# ---- a relay, a node behind it, and others --------------------------------------------------------------------------


async def anybody(key: bytes) -> bool:
    return True


class Net:
    """A relay, and nodes that wait behind it."""

    def __init__(self, relay: Relay, host: Host, stack: AsyncExitStack, kit: Any) -> None:
        self.relay, self.host, self.address = relay, host, host.addresses[0]
        self._stack, self._kit = stack, kit

    async def node(self) -> SimpleNamespace:
        """One that has reserved: its ``key``, and ``connection`` to the relay."""
        seed = os.urandom(32)
        node = await self._stack.enter_async_context(
            open_host(seed, listen=[self._kit.local], handlers={"/echo/1": self._kit.echo})
        )

        async def near() -> trio.SocketStream:
            return await trio.open_tcp_stream("127.0.0.1", int(node.addresses[0].split("/")[4]))

        waits = await self._stack.enter_async_context(open_host(seed, handlers={STOP: waiting(near)}))
        connection = await waits.dial(self.address)
        return SimpleNamespace(key=node.peer_key, connection=connection, renew=await reserve(connection), host=node)

    async def engine(self) -> Host:
        return await self._stack.enter_async_context(open_host(os.urandom(32)))


@asynccontextmanager
async def net(
    kit: Any, bounds: Bounds | None = None, may: Callable[[bytes], Awaitable[bool]] = anybody
) -> AsyncIterator[Net]:
    relay = Relay(may, bounds or Bounds())
    async with (
        open_host(os.urandom(32), listen=[kit.local], handlers={HOP: relay.serve}) as host,
        AsyncExitStack() as stack,
    ):
        relay.host = host
        yield Net(relay, host, stack, kit)
    assert relay.circuits == 0


async def empty(relay: Relay, circuits: int = 0) -> None:
    with trio.fail_after(60):
        while relay.circuits != circuits:
            await trio.sleep(0.01)


def test_bytes_go_through_whole_and_circuits_are_apart(run: Callable[..., None], kit: Any, security: str) -> None:
    async def test() -> None:
        async with net(kit) as all_:
            node, other = await all_.node(), await all_.node()
            assert 1700 < node.renew <= 1800 and set(all_.relay.nodes) == {node.key, other.key}
            engine = await all_.engine()
            first, second, third = [await engine.dial_through(all_.address, n.key) for n in (node, node, other)]
            assert first.peer_key == node.key and first.address.endswith("/p2p-circuit/p2p/" + peer_id_from_key(node.key))
            message = os.urandom(200_000)
            assert await kit.ask(first, message) == message == await kit.ask(third, message)
            assert all_.relay.circuits == 3
            await first.aclose()
            await empty(all_.relay, 2)
            assert await kit.ask(second, message) == message, "the end of one is not the end of another to the same node"
            third.drop("test")
            await empty(all_.relay, 1)
            assert await kit.ask(second, b"yes") == b"yes"

    run(test)


def test_who_has_not_reserved_or_may_not_is_not_there(run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async def none(key: bytes) -> bool:
            return False

        async with net(kit, may=none) as all_:
            with pytest.raises(Refused, match="does not know it as a node of its hive"):
                await all_.node()
            engine = await all_.engine()
            with pytest.raises(PeerUnreachable, match="no reservation"):
                await engine.dial_through(all_.address, os.urandom(32))
            assert all_.relay.nodes == []
        async with net(kit, Bounds(nodes=1)) as all_:
            node = await all_.node()
            with pytest.raises(Refused, match="takes no reservation"):
                await all_.node()
            await reserve(node.connection)  # who has one may renew it
            await node.connection.aclose()
            with trio.fail_after(60):
                while all_.relay.nodes:
                    await trio.sleep(0.01)
            with pytest.raises(PeerUnreachable, match="no reservation"):
                await (await all_.engine()).dial_through(all_.address, node.key)
            await all_.node()  # there is room again

    run(test)


def test_a_reservation_ends_when_it_is_not_renewed(run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async with net(kit, Bounds(ttl=0)) as all_:
            node = await all_.node()
            assert node.renew == 30, "a relay whose clock is wrong is not asked without end"
            with pytest.raises(PeerUnreachable, match="no reservation"):
                await (await all_.engine()).dial_through(all_.address, node.key)

    run(test)


@pytest.mark.parametrize("bounds", [Bounds(circuits=1), Bounds(circuits_of_node=1), Bounds(circuits_of_place=1)])
def test_circuits_are_bounded(bounds: Bounds, run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async with net(kit, bounds) as all_:
            node, other = await all_.node(), await all_.node()
            engine, stranger = await all_.engine(), await all_.engine()
            first = await engine.dial_through(all_.address, node.key)
            with pytest.raises(PeerUnreachable, match="the relay is full"):
                await stranger.dial_through(all_.address, node.key)
            if bounds.circuits_of_node == 1:
                await engine.dial_through(all_.address, other.key)
            assert await kit.ask(first, b"still") == b"still"
            await first.aclose()
            await empty(all_.relay, int(bounds.circuits_of_node == 1))
            await stranger.dial_through(all_.address, node.key)

    run(test)


@pytest.mark.parametrize("bounds", [Bounds(circuit_bytes=1_000_000), Bounds(circuit_seconds=1), Bounds(idle=1.0)])
def test_a_circuit_ends_at_its_bounds_and_can_be_had_again(bounds: Bounds, run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async with net(kit, bounds) as all_:
            node, engine = await all_.node(), await all_.engine()
            connection = await used(engine, all_.address, node.key, kit)
            if bounds.circuit_bytes == 1_000_000:
                with pytest.raises(HivefsError):
                    for _ in range(30):
                        await kit.ask(connection, os.urandom(100_000))
            await connection.wait_closed()
            await empty(all_.relay)
            await used(engine, all_.address, node.key, kit)

    run(test)


async def used(engine: Host, relay: str, key: bytes, kit: Any) -> Connection:
    """A circuit that has carried something; on a busy machine the first may be over before."""
    while True:
        try:
            connection = await engine.dial_through(relay, key)
            assert await kit.ask(connection, b"x" * 50_000) == b"x" * 50_000
        except HivefsError:
            continue
        return connection


class Places:
    """Who dials from now on comes from the address ``now``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = "127.0.0.1"
        monkeypatch.setattr("hivefs.transport.host._connect", self._connect)

    async def _connect(self, host: str, port: int) -> trio.SocketStream:
        made = trio.socket.socket()
        await made.bind((self.now, 0))
        await made.connect((host, port))
        return trio.SocketStream(made)


def test_one_place_does_not_keep_others_out(run: Callable[..., None], kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(monkeypatch)

    async def test() -> None:
        async with net(kit, Bounds(circuits_of_node=4, circuits_of_place=3)) as all_:
            node, stranger, engine = await all_.node(), await all_.engine(), await all_.engine()
            places.now = "127.0.1.1"
            held = [await stranger.dial_through(all_.address, node.key) for _ in range(3)]
            with pytest.raises(PeerUnreachable, match="the relay is full"):
                await stranger.dial_through(all_.address, node.key)
            made = []
            for elsewhere in ("127.0.2.1", "127.0.3.1"):
                places.now = elsewhere
                made.append(await engine.dial_through(all_.address, node.key))
            with trio.fail_after(60):
                await held[0].wait_closed()
            places.now = "127.0.4.1"
            made.append(await engine.dial_through(all_.address, node.key))
            for connection in made:
                assert await kit.ask(connection, b"here") == b"here"
            await empty(all_.relay, 4)  # a place is free when its circuit is over, a moment after it was given away
            places.now = "127.0.5.1"
            with pytest.raises(PeerUnreachable, match="the relay is full"):
                await engine.dial_through(all_.address, node.key)
            await empty(all_.relay, 4)

    run(test)


def test_one_place_does_not_take_all_reservations(
    run: Callable[..., None], kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members only may reserve, but who may invite nodes has as many keys as he likes."""
    places = Places(monkeypatch)

    async def test() -> None:
        async with net(kit, Bounds(nodes=3)) as all_:
            places.now = "127.0.1.1"
            greedy = [await all_.node() for _ in range(3)]
            with pytest.raises(Refused, match="takes no reservation"):
                await all_.node()
            places.now = "127.0.2.1"
            other = await all_.node()
            with trio.fail_after(60):
                await greedy[0].connection.wait_closed()  # so that it does not go on telling others of this relay
            assert set(all_.relay.nodes) == {greedy[1].key, greedy[2].key, other.key}
            with pytest.raises(Refused, match="takes no reservation"):
                await all_.node()  # a place that has one already gets no other one for that of somebody with two
            places.now = "127.0.3.1"
            third = await all_.node()
            places.now = "127.0.4.1"
            with pytest.raises(Refused, match="takes no reservation"):
                await all_.node()  # each has one
            await reserve(greedy[2].connection)
            assert set(all_.relay.nodes) == {greedy[2].key, other.key, third.key}
            for node in (other, third):
                circuit = await (await all_.engine()).dial_through(all_.address, node.key)
                assert await kit.ask(circuit, b"here") == b"here"
                await circuit.aclose()
            await empty(all_.relay)

    run(test)


def test_who_is_pushed_out_while_a_circuit_is_opened_leaves_no_stream_to_the_node(
    run: Callable[..., None], kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be one of the few streams that the waiting end may have, for as long as its reservation lasts."""
    monkeypatch.setattr("hivefs.transport.relay.ASK_SECONDS", 1000.0)
    places = Places(monkeypatch)

    async def test() -> None:
        asked, lost = [], trio.Event()

        async def silent(stream: Stream) -> None:
            asked.append(await circuit_messages.receive(stream, hop=False))
            try:
                await stream.receive_some()
            except ConnectionLost:
                lost.set()
                raise

        async with (
            net(kit, Bounds(circuits_of_node=2)) as all_,
            open_host(os.urandom(32), handlers={STOP: silent}) as waits,
            open_host(os.urandom(32)) as stranger,
        ):
            await reserve(await waits.dial(all_.address))

            async def through(place: str) -> None:
                places.now = place
                with suppress(HivefsError):
                    await stranger.dial_through(all_.address, waits.peer_key, timeout=1000.0)

            async with trio.open_nursery() as nursery:
                for place in ("127.0.1.1", "127.0.1.1", "127.0.2.1"):
                    seen = len(asked)
                    nursery.start_soon(through, place)
                    while len(asked) == seen:
                        await trio.sleep(0.01)
                await lost.wait()
                nursery.cancel_scope.cancel()

    run(test)


def test_a_relay_that_leads_to_somebody_else_is_found_out(run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async with net(kit) as all_:
            node, other = await all_.node(), await all_.node()
            reserved = all_.relay._reserved
            reserved[other.key].connection, reserved[node.key].connection = (
                reserved[node.key].connection,
                reserved[other.key].connection,
            )
            with pytest.raises(PeerIdentityMismatch):
                await (await all_.engine()).dial_through(all_.address, node.key)
            await empty(all_.relay)

    run(test)


def test_a_node_that_does_not_answer_is_no_circuit(run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async def nowhere() -> trio.SocketStream:
            raise OSError("the node does not answer")

        async def garbage(stream: Stream) -> None:
            await stream.send_all(b"\xff" * 10)

        async with net(kit) as all_:
            engine = await all_.engine()
            for handler in (waiting(nowhere), garbage):
                async with open_host(os.urandom(32), handlers={STOP: handler}) as waits:
                    await reserve(await waits.dial(all_.address))
                    with pytest.raises(PeerUnreachable, match="the relay does not reach it"):
                        await engine.dial_through(all_.address, waits.peer_key)
            async with open_host(os.urandom(32)) as waits:  # it does not even know the protocol
                await reserve(await waits.dial(all_.address))
                with pytest.raises(PeerUnreachable, match="the relay does not reach it"):
                    await engine.dial_through(all_.address, waits.peer_key)

    run(test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x7fgarbage" + bytes(200), Status.MALFORMED_MESSAGE),
        (b"\xff\xff\xff\x7f", Status.MALFORMED_MESSAGE),
        (to_bytes(Message(Hop.STATUS), True), Status.UNEXPECTED_MESSAGE),
        (to_bytes(Message(Hop.CONNECT, b"nobody"), True), Status.MALFORMED_MESSAGE),
        (to_bytes(Message(Hop.CONNECT, binary_peer_id(KEY)), True), Status.NO_RESERVATION),
    ],
)
def test_what_a_stranger_sends_has_one_answer(sent: bytes, status: int, run: Callable[..., None], kit: Any) -> None:
    async def test() -> None:
        async with net(kit) as all_:
            connection = await (await all_.engine()).dial(all_.address)
            stream = await connection.open_stream(HOP)
            await stream.send_all(sent)
            answer = await circuit_messages.receive(stream, hop=True)
            assert (answer.kind, answer.status) == (Hop.STATUS, status)
            assert await kit.receive_all(stream) == b""

    run(test)


def test_a_relay_that_lies_or_is_silent_is_given_up(
    run: Callable[..., None], kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        wrong_kind, odd = to_bytes(Message(Hop.CONNECT), True), to_bytes(Message(Hop.STATUS, status=7), True)
        answers = [b"\x05\x08\x00", wrong_kind, b"", odd]

        async def lie(stream: Stream) -> None:
            await circuit_messages.receive(stream, hop=True)
            await stream.send_all(answers[0])

        async def silent(stream: Stream) -> None:
            await trio.sleep_forever()

        async with kit.server({HOP: lie}) as relay, open_host(os.urandom(32)) as engine:
            while answers:
                with pytest.raises(PeerUnreachable, match="the relay"):
                    await engine.dial_through(relay.addresses[0], KEY)
                connection: Connection = await engine.dial(relay.addresses[0])
                with pytest.raises((PeerUnreachable, Refused), match="the relay"):
                    await reserve(connection)
                answers.pop(0)
        async with kit.server({HOP: silent}) as relay, open_host(os.urandom(32)) as engine:
            with pytest.raises(PeerUnreachable, match="no answer within"):
                await engine.dial_through(relay.addresses[0], KEY, timeout=0.5)

    run(test)


def test_only_a_relays_words_are_taken(run: Callable[..., None], kit: Any) -> None:
    """A relay that asks the one who waits for anything but a circuit."""

    async def test() -> None:
        async def nowhere() -> trio.SocketStream:
            raise AssertionError

        asked: list[Any] = []

        async def ask(stream: Stream) -> None:
            relay = hosts[0]
            connection = relay.connection_of(stream)
            assert connection is not None
            for sent in (to_bytes(Message(Stop.STATUS, status=100), False), b"\xff" * 8):
                far = await connection.open_stream(STOP)
                await far.send_all(sent)
                try:
                    asked.append((await circuit_messages.receive(far, hop=False)).status)
                except (ConnectionLost, BadMessage) as error:
                    asked.append(type(error))
            await stream.send_all(to_bytes(Message(Hop.STATUS, status=100), True))

        hosts: list[Host] = []
        async with kit.server({HOP: ask}) as relay, open_host(os.urandom(32), handlers={STOP: waiting(nowhere)}) as waits:
            hosts.append(relay)
            await reserve(await waits.dial(relay.addresses[0]))
        assert asked == [Status.UNEXPECTED_MESSAGE, ConnectionLost]

    run(test)
