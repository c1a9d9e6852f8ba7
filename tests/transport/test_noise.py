"""What is Noise's own: whom a handshake proves, what a message may be, and how little is held of it."""

from __future__ import annotations

import contextlib
import os

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1
from libp2p.crypto.x25519 import X25519PublicKey
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig

from hivefs.transport import Limits, open_host, peer_id_from_key
from hivefs.transport.channel import HandshakeProblem, WrongPeer
from hivefs.transport.noise import (
    LAST_NONCE,
    MOST_HANDSHAKE,
    MOST_PLAIN,
    BrokenSeal,
    Handshake,
    NoiseChannel,
    NoiseTransport,
)
from hivefs.transport.raw import EndOfConnection

ONE, TWO = create_new_key_pair(bytes(32)), create_new_key_pair(bytes([1]) * 32)


class Wire:
    """A raw connection in memory that remembers what was written to it."""

    socket = None

    def __init__(self, stream, *, is_initiator):
        self.stream = stream
        self.is_initiator = is_initiator
        self.written = b""

    async def read(self, n):
        data = await self.stream.receive_some(n)
        if not data:
            raise EndOfConnection("the other end closed the connection")
        return data

    async def write(self, data):
        self.written += data
        await self.stream.send_all(data)

    async def end(self):
        await self.stream.send_stream.aclose()


def wires():
    left, right = trio.testing.memory_stream_pair()
    return Wire(left, is_initiator=True), Wire(right, is_initiator=False)


def joined(dialler=ONE, listener=TWO):
    """Two channels after their handshake."""

    async def shake():
        a, b = wires()
        channels = {}

        async def inbound():
            channels["in"] = await NoiseTransport(listener).secure_inbound(b)

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(inbound)
                channels["out"] = await NoiseTransport(dialler).secure_outbound(a, ID.from_pubkey(listener.public_key))
        return channels["out"], channels["in"]

    return trio.run(shake)


def sealed(channel, data):
    """What the channel would send of this."""
    channel.put(data)
    channel.say_goodbye()
    pieces = [bytes(piece) for piece in channel._sealed]
    channel._sealed.clear()
    channel._sealed_bytes = 0
    return pieces


def opened(channel, *parts):
    got = bytearray()
    for part in parts:
        channel._take(memoryview(part), got.extend)
    return bytes(got)


def test_both_ends_learn_the_others_key():
    out, inside = joined()
    assert out.peer_key == TWO.public_key.to_bytes()
    assert inside.peer_key == ONE.public_key.to_bytes()
    assert (out.is_initiator, inside.is_initiator) == (True, False)


def test_the_dialler_shows_nothing_of_itself_to_somebody_else():
    async def test():
        a, b = wires()

        async def inbound():
            with pytest.raises(EndOfConnection):
                await NoiseTransport(TWO).secure_inbound(b)

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(inbound)
                with pytest.raises(WrongPeer) as caught:
                    await NoiseTransport(ONE).secure_outbound(a, ID.from_pubkey(ONE.public_key))
                await a.end()
        assert caught.value.found == TWO.public_key.to_bytes()
        assert len(a.written) == 2 + 32  # its ephemeral key, and that is all

    trio.run(test)


def liar(payload):
    """A transport that shows this payload instead of its own."""
    transport = NoiseTransport(ONE)
    transport._payload = payload(transport)
    return transport


def signed_by(keypair, *, shown=None):
    def payload(transport):
        public = Handshake(transport._static, initiator=True)._noise.noise_protocol.keypairs["s"].public_bytes
        signature = make_handshake_payload_sig(keypair.private_key, X25519PublicKey.from_bytes(public))
        return NoiseHandshakePayload((shown or keypair).public_key, signature).serialize()

    return payload


LIES = {
    "no payload": lambda _: b"",
    "garbage": lambda _: b"\xff" * 300,
    "no signature": lambda _: b"\x0a\x24\x08\x01\x12\x20" + bytes(32),
    "another's key": signed_by(ONE, shown=TWO),
    "another's payload": lambda _: NoiseTransport(TWO)._payload,
    "a key that is not Ed25519": signed_by(create_secp256k1(bytes([7]) * 32)),
    "a key of another length": lambda _: b"\x0a\x23\x08\x01\x12\x1f" + bytes(31) + b"\x12\x40" + bytes(64),
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("dials", [True, False], ids=["the liar dials", "the liar answers"])
def test_a_payload_that_proves_no_ed25519_key_is_refused(what, dials):
    async def test():
        a, b = wires()
        honest, bad = NoiseTransport(TWO), liar(LIES[what])
        expected = ID.from_pubkey(ONE.public_key if not dials else TWO.public_key)

        async def lie():
            with contextlib.suppress(EndOfConnection):
                await (bad.secure_outbound(a, expected) if dials else bad.secure_inbound(b))

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lie)
                with pytest.raises(HandshakeProblem):
                    await (honest.secure_inbound(b) if dials else honest.secure_outbound(a, expected))
                await (b if dials else a).end()

    trio.run(test)


@pytest.mark.parametrize("message", [b"", bytes(31), bytes(32), b"\xff" * 200], ids=["empty", "short", "zero key", "long"])
@pytest.mark.parametrize("after", [0, 1], ids=["first", "second"])
def test_messages_that_are_no_handshake_are_refused(message, after):
    ours = Handshake(bytes(range(32)), initiator=bool(after))
    if after:
        ours.make(b"")
    try:
        ours.take(message)
        ours.make(b"")  # a key of small order shows here at the latest
    except HandshakeProblem:
        return
    assert message == b"\xff" * 200 and not after  # 32 bytes of a key and a payload in the clear, which nobody uses


@settings(max_examples=60, deadline=None)
@example(0, 31, 0x80)  # a bit of an ephemeral key that X25519 does not look at
@example(1, 31, 0x80)
@given(st.integers(0, 2), st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_of_a_handshake_goes_through(number, position, change):
    """Not even in the first message, which is in the clear: the second no longer opens."""
    first, second = Handshake(bytes(range(32)), initiator=True), Handshake(bytes(range(1, 33)), initiator=False)
    ends = [first, second]
    with pytest.raises(HandshakeProblem):
        for turn in range(3):
            message = bytearray(ends[0].make(b"payload"))
            if turn == number:
                message[position % len(message)] ^= change
            ends[1].take(bytes(message))
            ends.reverse()
    assert not (first._noise.handshake_finished and second._noise.handshake_finished)


def test_a_handshake_message_without_end_is_refused_at_its_length():
    async def test():
        a, b = wires()
        await a.write((MOST_HANDSHAKE + 1).to_bytes(2, "big"))
        with trio.fail_after(100), pytest.raises(HandshakeProblem, match="too long"):
            await NoiseTransport(TWO).secure_inbound(b)

    trio.run(test)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * MOST_PLAIN), min_size=1, max_size=4), st.data())
def test_bytes_arrive_whole_however_they_are_cut(sizes, data):
    out, inside = joined()
    sent = [os.urandom(size) for size in sizes]
    wire = b"".join(piece for message in sent for piece in sealed(out, message))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    parts = [wire[i:j] for i, j in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert opened(inside, *parts) == b"".join(sent)
    assert not inside._partial


def test_one_byte_at_a_time():
    out, inside = joined()
    wire = b"".join(sealed(out, b"x" * 300) + sealed(out, b"y"))
    assert opened(inside, *(bytes([byte]) for byte in wire)) == b"x" * 300 + b"y"


def test_messages_have_the_largest_size_and_no_more():
    out, inside = joined()
    pieces = sealed(out, bytes(2 * MOST_PLAIN + 1))
    assert [len(piece) for piece in pieces] == [65537, 65537, 19]
    assert opened(inside, *pieces) == bytes(2 * MOST_PLAIN + 1)


def test_what_is_not_complete_is_all_that_is_held():
    out, inside = joined()
    pieces = sealed(out, bytes(MOST_PLAIN))
    assert opened(inside, pieces[0][:-1]) == b""
    assert len(inside._partial) == 65536
    assert opened(inside, pieces[0][-1:]) == bytes(MOST_PLAIN)
    assert len(inside._partial) == 0


def changed(pieces):
    return [pieces[0], pieces[1][:-1] + bytes([pieces[1][-1] ^ 1]), pieces[2]]


FORGERIES = {
    "a changed byte": changed,
    "a message left out": lambda p: [p[0], p[2]],
    "a message twice": lambda p: [p[0], p[0]],
    "two messages swapped": lambda p: [p[1], p[0]],
    "an empty message": lambda p: [b"\x00\x00"],
    "a message shorter than a tag": lambda p: [b"\x00\x0f" + bytes(15)],
    "another length": lambda p: [b"\x00\x13" + p[0][2:] + p[1]],
    "plaintext": lambda p: [b"\x00\x20" + bytes(32)],
}


@pytest.mark.parametrize("what", FORGERIES)
def test_only_what_the_peer_sealed_in_its_order_opens(what):
    out, inside = joined()
    pieces = [piece for letter in (b"a", b"b", b"c") for piece in sealed(out, letter * 5)]
    with pytest.raises(BrokenSeal):
        opened(inside, *FORGERIES[what](pieces))


def test_our_own_messages_do_not_open_as_the_peers():
    out, _ = joined()
    with pytest.raises(BrokenSeal):
        opened(out, *sealed(out, b"hello"))


def test_nonces_end_and_do_not_begin_again():
    out, inside = joined()
    out._sent = inside._received = LAST_NONCE
    assert opened(inside, *sealed(out, b"the last one")) == b"the last one"
    with pytest.raises(BrokenSeal, match="nonces"):
        sealed(out, b"one too many")


def test_every_process_has_a_noise_key_of_its_own():
    assert NoiseTransport(ONE)._static != NoiseTransport(ONE)._static


def test_half_a_handshake_and_silence_ends_at_the_deadline(kit, run):
    async def test():
        async with kit.server() as host:
            stream = await trio.open_tcp_stream("127.0.0.1", int(host.addresses[0].split("/")[4]))
            async with stream:
                for line in (b"/multistream/1.0.0\n", b"/noise\n"):
                    await stream.send_all(bytes([len(line)]) + line)
                await stream.send_all(b"\x00\x20" + bytes(range(32)))
                received = b""
                while not received.startswith(said):
                    more = await stream.receive_some()
                    assert more
                    received += more
                clock.jump(Limits().handshake_timeout)
                while await stream.receive_some():
                    pass
            while host._half_open:
                await trio.lowlevel.checkpoint()

    said = b"\x13/multistream/1.0.0\n\x07/noise\n"
    clock = trio.testing.MockClock()
    run(test, clock=clock)


def test_tls_is_proposed_first_and_noise_when_there_is_no_tls(kit, run, monkeypatch):
    import hivefs.transport.host as module

    everything = dict(module.SECURITY)

    async def test():
        monkeypatch.setattr(module, "SECURITY", {"/noise": everything["/noise"]})
        async with kit.server() as noise:
            monkeypatch.setattr(module, "SECURITY", everything)
            async with kit.server() as both, open_host(os.urandom(32)) as client:
                first = await client.dial(both.addresses[0])
                second = await client.dial(noise.addresses[0])
                assert (first.security, second.security) == ("/tls/1.0.0", "/noise")
                assert second.peer_id == peer_id_from_key(noise.peer_key)
                for connection in (first, second):
                    assert await kit.ask(connection, b"hello") == b"hello"

    run(test)


def test_a_noise_channel_holds_nothing_of_a_connection_that_is_idle(kit, run, monkeypatch):
    import hivefs.transport.host as module

    monkeypatch.setattr(module, "SECURITY", {"/noise": module.SECURITY["/noise"]})

    async def test():
        async with kit.pair() as (host, connection):
            assert await kit.ask(connection, os.urandom(200_000))
            (server,) = host._connections
            for channel in (connection._channel, server._channel):
                assert isinstance(channel, NoiseChannel)
                while (channel.backlog, len(channel._partial), len(channel._opened)) != (0, 0, 0):
                    await trio.sleep(0.01)

    run(test)
