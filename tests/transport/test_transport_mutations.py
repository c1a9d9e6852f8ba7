"""Whatever a stranger sends before and behind the handshake: mutants of what a good peer sends.

Certificates, Noise messages and payloads, frames of the multiplexer. (The decoders of HiveFS's own bytes are under mutants
in formats/test_mutations.py.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import X25519PublicKey
from libp2p.security.noise.messages import NoiseHandshakePayload, make_handshake_payload_sig

sys.path.append(str(Path(__file__).parents[1] / "formats"))
from mutating import mutants

from hivefs.transport.addresses import binary_peer_id
from hivefs.transport.channel import HandshakeProblem
from hivefs.transport.circuit_messages import BadMessage, Message, from_bytes, to_bytes
from hivefs.transport.frames import ACK, DATA, FIN, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_UPDATE, ProtocolViolation
from hivefs.transport.limits import Limits
from hivefs.transport.noise import Handshake
from hivefs.transport.tls import TlsTransport, _prove
from hivefs.transport.yamux import Session

FEW, MANY = 600, 20_000
KEYS = create_new_key_pair(bytes(32))
OWN = KEYS.public_key.to_bytes()


def certificate() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(TlsTransport(KEYS)._cert_pem.encode()).public_bytes(Encoding.DER)


def certificates(count: int) -> None:
    """No mutant proves another key than the one whose owner signed; one that proves the same gains nothing."""
    good = certificate()
    proved = SimpleNamespace(peer_certificate=lambda: good)
    assert _prove(proved) == OWN
    for data in mutants([good], count, "certificate"):
        try:
            found = _prove(SimpleNamespace(peer_certificate=lambda data=data: data))
        except HandshakeProblem:
            continue
        assert found == OWN


def payloads(count: int) -> None:
    """Of a Noise handshake, as they are inside the sealed message."""
    static = X25519PrivateKey.generate().public_key().public_bytes_raw()
    signature = make_handshake_payload_sig(KEYS.private_key, X25519PublicKey.from_bytes(static))
    good = NoiseHandshakePayload(KEYS.public_key, signature).serialize()

    def prove(data: bytes) -> bytes:
        handshake, channel = Handshake(os.urandom(32), initiator=False), SimpleNamespace()
        handshake._state = SimpleNamespace(rs=SimpleNamespace(public_bytes=static))
        handshake.prove(channel, data)
        return bytes(channel.peer_key)

    assert prove(good) == OWN
    for data in mutants([good], count, "payload"):
        try:
            found = prove(data)
        except HandshakeProblem:
            continue
        assert found == OWN


def noise_messages(count: int) -> None:
    """The first message has no seal: any 32 bytes are a key. The third one is sealed in all its parts."""
    keys = [X25519PrivateKey.generate().private_bytes_raw() for _ in range(2)]
    first = Handshake(keys[0], initiator=True).make(b"")
    for data in mutants([first], count, "first"):
        try:
            handshake = Handshake(keys[1], initiator=False)
            handshake.take(data)
            handshake.make(b"payload")
        except HandshakeProblem:
            continue
        assert len(data) >= 32
    for round_ in range(max(1, count // 50)):
        dialler, listener = Handshake(keys[0], initiator=True), Handshake(keys[1], initiator=False)
        listener.take(dialler.make(b""))
        dialler.take(listener.make(b"payload"))
        good = dialler.make(b"payload")
        (data,) = mutants([good], 1, f"third {round_}")
        if data != good:
            with pytest.raises(HandshakeProblem):
                listener.take(data)


LIMITS = Limits(max_streams=16, max_buffered_bytes=1 << 20)
BODY = bytes(range(256)) * 4


def frame(kind: int, flags: int, number: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, number, length) + body


TALKS = [
    frame(WINDOW_UPDATE, SYN, 1, 0) + frame(DATA, 0, 1, 1024, BODY) + frame(WINDOW_UPDATE, FIN, 1, 0),
    frame(DATA, SYN, 3, 1024, BODY) + frame(DATA, FIN, 3, 1024, BODY) + frame(WINDOW_UPDATE, RST, 3, 0),
    frame(PING, SYN, 0, 7) + frame(PING, ACK, 0, 1) + frame(WINDOW_UPDATE, 0, 2, 1 << 20) + frame(DATA, ACK, 2, 4, b"back"),
    b"".join(frame(WINDOW_UPDATE, SYN | (RST if n % 4 == 1 else 0), n, 0) for n in range(1, 60, 2)),
    frame(WINDOW_UPDATE, SYN, 1, 0) + b"".join(frame(DATA, 0, 1, 1, b"x") for _ in range(50)) + frame(GO_AWAY, 0, 0, 0),
]


def multiplexer(count: int) -> None:
    """A violation or frames; counts stay within the bounds, and answers are no longer than what was asked with."""
    for number, data in enumerate(mutants(TALKS, count, "yamux")):
        sent: list[bytes] = []
        streams: list[object] = []
        session = Session(
            initiator=False,
            peer="peer",
            limits=LIMITS,
            clock=lambda: 0.0,
            put=lambda head, body=b"", sent=sent: sent.append(bytes(head) + bytes(body)),
            accept=streams.append,
        )
        session.open().send(b"hello")
        opened = len(b"".join(sent))
        cut = len(data) * (number % 10) // 10
        try:
            for piece in (data[:cut], data[cut:]):
                session.receive(memoryview(piece))
        except ProtocolViolation:
            pass
        assert 0 <= session.buffered <= min(LIMITS.max_buffered_bytes, len(data))
        assert len(session._inbound) <= LIMITS.max_streams
        assert len(b"".join(sent)) - opened <= 2 * len(data)


def circuits(count: int) -> None:
    """Messages between a relay and those who want something of it: a message with one form, or BadMessage."""
    made = [Message(1, binary_peer_id(OWN), 0, 60, 1 << 20), Message(2, b"", 1 << 33, 60, 1 << 20, 100), Message(0)]
    for hop in (True, False):
        for data in mutants([to_bytes(message, hop)[1:] for message in made], count // 2, f"circuits {hop}"):
            try:
                found = from_bytes(data, hop)
            except BadMessage:
                continue
            again = to_bytes(found, hop)
            assert from_bytes(again[1:] if again[0] < 128 else again[2:], hop) == found


ATTACKS: dict[str, Callable[[int], None]] = {
    "certificates": certificates,
    "payloads": payloads,
    "noise messages": noise_messages,
    "multiplexer": multiplexer,
    "circuits": circuits,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_mutants_of_what_peers_send(name: str) -> None:
    ATTACKS[name](FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_many_mutants_of_what_peers_send(name: str) -> None:
    ATTACKS[name](MANY)
