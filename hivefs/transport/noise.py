"""Noise with libp2p identities: `/noise`, the second choice beside TLS.

libp2p wants Noise_XX_25519_ChaChaPoly_SHA256, each message behind its length in two bytes, and in the second and third
message of the handshake a payload in which the Ed25519 identity signs the Noise static key. The package `noiseprotocol`
(which py-libp2p is built on) knows the handshake, py-libp2p knows the payload, `cryptography` has the cipher. What is
written here is what they do not give: py-libp2p's own classes read through four layers of awaits and copy each message
as often (`libp2p/security/noise/io.py`), and raise half a dozen unrelated types at hostile bytes.

    initiator                                        responder
    e                                         ->
                                             <-      e, ee, s, es, payload
    s, se, payload                            ->

The initiator looks at the payload before its own identity leaves this machine.

Noise has no end of its own: who cuts the TCP connection looks like who closes it. Streams above do not mind, since their
ends are Yamux frames, and a stream that ends with its connection is never reported as complete.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import ISecureTransport
from libp2p.crypto.keys import KeyPair, KeyType
from libp2p.crypto.x25519 import X25519PublicKey
from libp2p.peer.id import ID
from libp2p.security.noise.messages import (
    NoiseHandshakePayload,
    make_handshake_payload_sig,
    verify_handshake_payload_sig,
)
from noise.connection import Keypair, NoiseConnection

from .channel import SLICE, Channel, HandshakeProblem, WrongPeer, cipher_scratch
from .raw import EndOfConnection, RawSocket

__all__ = ["PROTOCOL_ID", "NoiseChannel", "NoiseTransport"]

PROTOCOL_ID = "/noise"
NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"

TAG = 16
MOST_PLAIN = 65535 - TAG
"""Bytes of plaintext in one message: its length with the tag has to fit into two bytes."""

MOST_HANDSHAKE = 8 * 1024
"""Bytes of a message of the handshake. An honest one has some 250, more when it names multiplexers or certificates."""

LAST_NONCE = 2**64 - 2
"""The nonce above it is reserved by the specification. Nobody gets there; nobody may go round either."""


class BrokenSeal(OSError):
    """What came was not sealed by the peer, or not in this order."""


class NoiseTransport(ISecureTransport):  # type: ignore[misc]
    """Makes a `NoiseChannel` of a TCP connection. The Noise static key lives as long as the process and is signed once."""

    def __init__(self, keypair: KeyPair) -> None:
        static = X25519PrivateKey.generate()
        self._static = static.private_bytes_raw()
        signature = make_handshake_payload_sig(
            keypair.private_key, X25519PublicKey.from_bytes(static.public_key().public_bytes_raw())
        )
        # Without extensions: the multiplexer is negotiated inside, as under TLS.
        self._payload = NoiseHandshakePayload(keypair.public_key, signature).serialize()

    async def secure_inbound(self, conn: RawSocket) -> NoiseChannel:
        """Answer a handshake; the peer must bring a payload that proves an Ed25519 key."""
        channel, handshake = NoiseChannel(conn), Handshake(self._static, initiator=False)
        handshake.take(await channel.receive_message())
        await channel.send_message(handshake.make(self._payload))
        handshake.prove(channel, handshake.take(await channel.receive_message()))
        channel.begin(*handshake.ciphers())
        return channel

    async def secure_outbound(self, conn: RawSocket, peer_id: ID) -> NoiseChannel:
        """Start a handshake; the peer must prove the key that ``peer_id`` names, before ours is shown."""
        channel, handshake = NoiseChannel(conn), Handshake(self._static, initiator=True)
        await channel.send_message(handshake.make(b""))
        handshake.prove(channel, handshake.take(await channel.receive_message()))
        if ID.from_pubkey(channel.remote_public_key) != peer_id:
            raise WrongPeer(channel.peer_key)
        await channel.send_message(handshake.make(self._payload))
        channel.begin(*handshake.ciphers())
        return channel


class Handshake:
    """The three messages of XX without I/O; HandshakeProblem for everything that is not one."""

    def __init__(self, static: bytes, *, initiator: bool) -> None:
        self._noise = NoiseConnection.from_name(NAME)
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, static)
        if initiator:
            self._noise.set_as_initiator()
        else:
            self._noise.set_as_responder()
        self._noise.start_handshake()
        self._state = self._noise.noise_protocol.handshake_state  # the library forgets it with the last message

    def make(self, payload: bytes) -> bytes:
        """Our next message."""
        try:
            return bytes(self._noise.write_message(payload))
        except ValueError as error:  # no secret comes of the other end's key: it is of small order
            raise HandshakeProblem("its key is no key") from error

    def take(self, message: bytes) -> bytes:
        """The payload of the other end's next message."""
        try:
            return bytes(self._noise.read_message(message))
        except Exception as error:  # hostile bytes: InvalidTag, ValueError, and whatever the library trips over
            raise HandshakeProblem("its message does not open") from error

    def prove(self, channel: NoiseChannel, payload: bytes) -> None:
        """Note the Ed25519 key that signs the other end's static key."""
        try:
            said = NoiseHandshakePayload.deserialize(payload)
            signed = verify_handshake_payload_sig(said, X25519PublicKey.from_bytes(self._state.rs.public_bytes))
        except Exception as error:  # hostile protobuf and keys make the library raise many types
            raise HandshakeProblem(f"its payload proves nothing ({type(error).__name__})") from error
        if not signed:
            raise HandshakeProblem("its payload is not signed by the key in it")
        if said.id_pubkey.get_type() != KeyType.Ed25519:
            raise HandshakeProblem("its key is not an Ed25519 key")
        channel.remote_public_key = said.id_pubkey
        channel.peer_key = bytes(said.id_pubkey.to_bytes())

    def ciphers(self) -> tuple[bytes, bytes]:
        """The keys for what we send and for what we receive; both begin with nonce 0."""
        if not self._noise.handshake_finished:
            raise HandshakeProblem("it is not finished")
        protocol = self._noise.noise_protocol
        return protocol.cipher_state_encrypt.k, protocol.cipher_state_decrypt.k


class NoiseChannel(Channel):
    """One Noise connection. What it holds of incoming bytes is at most one message that is not complete yet."""

    security = PROTOCOL_ID
    slice_size = MOST_PLAIN

    _sender: ChaCha20Poly1305
    _receiver: ChaCha20Poly1305

    def __init__(self, raw: RawSocket) -> None:
        super().__init__(raw)
        self._partial = bytearray()
        self._opened = bytearray()  # plaintext that the negotiation did not ask for yet

    # ---- handshake and negotiation: waits, under the caller's deadline --------------------------------------

    async def send_message(self, message: bytes) -> None:
        """A message of the handshake."""
        await self.raw.write(len(message).to_bytes(2, "big") + message)

    async def receive_message(self) -> bytes:
        """The next message of the handshake. Raises HandshakeProblem, OSError or EndOfConnection."""
        partial = self._partial
        while len(partial) < 2 or len(partial) < 2 + int.from_bytes(partial[:2], "big"):
            if len(partial) >= 2 and int.from_bytes(partial[:2], "big") > MOST_HANDSHAKE:
                raise HandshakeProblem("its message is too long")
            partial += await self.raw.read(SLICE)
        end = 2 + int.from_bytes(partial[:2], "big")
        message = bytes(partial[2:end])
        del partial[:end]
        return message

    def begin(self, send_key: bytes, receive_key: bytes) -> None:
        """The handshake is over; what came behind it is sealed already."""
        self._sender, self._receiver = ChaCha20Poly1305(send_key), ChaCha20Poly1305(receive_key)
        self._sent = self._received = 0
        came, self._partial = self._partial, bytearray()
        self._take(memoryview(came), self._opened.extend)

    async def read(self, n: int | None = None) -> bytes:
        if n is None or not 0 < n <= SLICE:
            raise EndOfConnection("a negotiation message is too long")
        while not self._opened:
            self._take(memoryview(await self.raw.read(SLICE)), self._opened.extend)
        data = bytes(self._opened[:n])
        del self._opened[:n]
        return data

    async def write(self, data: bytes) -> None:
        self._seal(data)
        while self._sealed:
            piece = self._sealed.popleft()
            self._sealed_bytes -= len(piece)
            await self.raw.write(bytes(piece))

    # ---- the hot path: never waits --------------------------------------------------------------------------

    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), MOST_PLAIN):
            sealed = self._sender.encrypt(_nonce(self._sent), view[start : start + MOST_PLAIN], None)
            self._sent += 1
            self._keep(len(sealed).to_bytes(2, "big") + sealed)

    def _open(self, message: bytes | memoryview) -> bytes:
        try:
            plain = self._receiver.decrypt(_nonce(self._received), message, None)
        except InvalidTag:
            raise BrokenSeal("a message was not sealed by the peer") from None
        self._received += 1
        return plain

    def _take(self, view: memoryview, consume: Callable[[memoryview], object]) -> None:
        """Open every message that is complete with these bytes; keep the rest."""
        partial = self._partial
        position, end = 0, len(view)
        while position < end:
            if not partial and end - position >= 2:
                after = position + 2 + int.from_bytes(view[position : position + 2], "big")
                if after <= end:
                    consume(memoryview(self._open(view[position + 2 : after])))
                    position = after
                    continue
            wanted = 2 if len(partial) < 2 else 2 + int.from_bytes(partial[:2], "big")
            missing = min(wanted - len(partial), end - position)
            partial += view[position : position + missing]
            position += missing
            if len(partial) >= 2 and len(partial) == 2 + int.from_bytes(partial[:2], "big"):
                message = bytes(partial[2:])
                partial.clear()
                consume(memoryview(self._open(message)))

    @property
    def missing(self) -> int:
        partial = self._partial
        return (2 if len(partial) < 2 else 2 + int.from_bytes(partial[:2], "big")) - len(partial)

    def open_buffered(self, consume: Callable[[memoryview], None]) -> bool:
        if self._opened:
            opened, self._opened = self._opened, bytearray()
            consume(memoryview(opened))
        return True

    def fill(self, consume: Callable[[memoryview], None]) -> int | None:
        try:
            got = self._socket.recv_into(cipher_scratch)
        except (BlockingIOError, InterruptedError):
            return None
        self._take(cipher_scratch[:got], consume)
        return got

    def say_goodbye(self) -> None:
        self._seal_plain()


def _nonce(number: int) -> bytes:
    if number > LAST_NONCE:
        raise BrokenSeal("the connection has used up its nonces")
    return bytes(4) + number.to_bytes(8, "little")
