"""TLS 1.3 with libp2p identities, as fast as the machine's AES.

py-libp2p decides what is proved (certificate extension, signature, peer id) and this module moves the bytes. The
library's own ``TLSReadWriter`` reads 4 KiB at a time, stops after 100 attempts, turns read errors into a clean end and
can leave its handshake loop unfinished (``libp2p/security/tls/io.py:145,291,307``), so `TlsTransport` keeps the
library's class as its base and returns a `TlsChannel` instead.

What is common to all channels is in `channel`. Everything goes through OpenSSL in slices of 64 KiB: larger ones are no
faster, and a memory BIO never gives back the largest size it ever had, which would be memory for each of several hundred
idle peers.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
from collections.abc import Callable

from cryptography import x509
from cryptography.x509.oid import NameOID
from libp2p.crypto.keys import KeyPair, KeyType
from libp2p.peer.id import ID
from libp2p.security.tls.certificate import ALPN_PROTOCOL, verify_certificate_chain
from libp2p.security.tls.openssl_verify import install_skip_pkix_peer_verification
from libp2p.security.tls.transport import PROTOCOL_ID, IdentityConfig, TLSTransport

from .channel import SLICE, Channel, HandshakeProblem, WrongPeer, cipher_scratch
from .raw import EndOfConnection, RawSocket

__all__ = ["PROTOCOL_ID", "TlsChannel", "TlsTransport"]

HEADER_BYTES = 5
"""Of a TLS record, type, version and length; the length is in the last two (RFC 8446, 5.1)."""

_plain_scratch = memoryview(bytearray(SLICE))


def _certificate_template() -> x509.CertificateBuilder:
    """A certificate with no extension of its own, so that the library's libp2p extension is the first: js-libp2p
    refuses others. The validity does not look at a clock, so neither does a peer with a wrong one stumble over it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC))
        .subject_name(name)
        .issuer_name(name)
    )


class TlsTransport(TLSTransport):  # type: ignore[misc]
    """py-libp2p's TLS transport with contexts made once, no key on disk, and `TlsChannel` as its connection."""

    def __init__(self, keypair: KeyPair) -> None:
        super().__init__(keypair, identity_config=IdentityConfig(cert_template=_certificate_template()))
        self._contexts = {side: self._make_context(side) for side in (True, False)}

    def create_ssl_context(self, server_side: bool = False) -> ssl.SSLContext:
        """The context of one side (the base class makes one for each connection, through temporary files)."""
        return self._contexts[server_side]

    def _make_context(self, server_side: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        # No PKI: whom the certificate names is proved by its libp2p extension, in `_prove`. CERT_OPTIONAL with the
        # library's callback is how a Python server asks for a certificate without wanting a chain for it.
        context.verify_mode = ssl.CERT_OPTIONAL if server_side else ssl.CERT_NONE
        context.set_alpn_protocols([ALPN_PROTOCOL])
        if server_side:
            context.num_tickets = 0  # nobody resumes: each handshake proves the key anew
            install_skip_pkix_peer_verification(context)
        # load_cert_chain only takes file names; an anonymous memory file has one and never touches a disk.
        handle = os.memfd_create("hivefs-tls")
        try:
            os.write(handle, (self._key_pem + self._cert_pem).encode())
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        return context

    async def secure_inbound(self, conn: RawSocket) -> TlsChannel:
        """Answer a handshake; the peer must bring a certificate that proves an Ed25519 key."""
        channel = TlsChannel(conn, self.create_ssl_context(True), server_side=True)
        await channel.handshake()
        channel.peer_key = _prove(channel)
        return channel

    async def secure_outbound(self, conn: RawSocket, peer_id: ID) -> TlsChannel:
        """Start a handshake; the peer must prove the key that ``peer_id`` names."""
        channel = TlsChannel(conn, self.create_ssl_context(False), server_side=False)
        await channel.handshake()
        channel.peer_key = _prove(channel)
        if ID.from_pubkey(channel.remote_public_key) != peer_id:
            raise WrongPeer(channel.peer_key)
        return channel


def _prove(channel: TlsChannel) -> bytes:
    """The Ed25519 key that the other end's certificate proves."""
    der = channel.peer_certificate()
    if der is None:
        raise HandshakeProblem("it showed no certificate")
    try:
        key = verify_certificate_chain([x509.load_der_x509_certificate(der)])
    except Exception as error:  # hostile DER makes the library and cryptography raise many types
        raise HandshakeProblem(f"its certificate proves nothing ({type(error).__name__})") from error
    if key.get_type() != KeyType.Ed25519:
        raise HandshakeProblem("its key is not an Ed25519 key")
    channel.remote_public_key = key
    return bytes(key.to_bytes())


class TlsChannel(Channel):
    """One TLS connection: seals and opens synchronously."""

    security = PROTOCOL_ID
    slice_size = SLICE

    def __init__(self, raw: RawSocket, context: ssl.SSLContext, *, server_side: bool) -> None:
        super().__init__(raw)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._header = bytearray()
        self._record_left = 0

    @property
    def missing(self) -> int:
        return self._record_left or HEADER_BYTES - len(self._header)

    def _came(self, data: bytes | memoryview) -> None:
        """Bytes from the socket go to OpenSSL; where they end inside of a record is remembered."""
        self._incoming.write(data)
        position, end, left, header = 0, len(data), self._record_left, self._header
        while position < end:
            if left:
                step = min(left, end - position)
                left -= step
            else:
                step = min(HEADER_BYTES - len(header), end - position)
                header += data[position : position + step]
                if len(header) == HEADER_BYTES:
                    left = int.from_bytes(header[3:], "big")
                    header.clear()
            position += step
        self._record_left = left

    # ---- handshake and negotiation: waits, under the caller's deadline --------------------------------------

    async def handshake(self) -> None:
        """Finish the TLS handshake or raise ssl.SSLError, OSError or EndOfConnection."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.raw.write(self._outgoing.read())
                self._came(await self.raw.read(SLICE))
            except ssl.SSLError:
                # The alert says why; sending it is a courtesy that may fail like everything else here.
                await self.raw.write(self._outgoing.read())
                raise
            else:
                break
        await self.raw.write(self._outgoing.read())

    def peer_certificate(self) -> bytes | None:
        """The DER certificate that the other end showed."""
        return self._tls.getpeercert(binary_form=True)

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes of plaintext, for py-libp2p's negotiation; raises at the end instead of returning b""."""
        if n is None or not 0 < n <= SLICE:
            raise EndOfConnection("a negotiation message is too long")
        while True:
            try:
                data = self._tls.read(n)
            except ssl.SSLWantReadError:
                self._came(await self.raw.read(SLICE))
            except ssl.SSLZeroReturnError:
                data = b""
                break
            else:
                break
        if not data:
            raise EndOfConnection("the other end closed the connection")
        return data

    async def write(self, data: bytes) -> None:
        """All of ``data``, for py-libp2p's negotiation."""
        self._tls.write(data)
        await self.raw.write(self._outgoing.read())

    # ---- the hot path: never waits --------------------------------------------------------------------------

    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        # A memory BIO always has room, so OpenSSL takes the whole slice at once.
        self._tls.write(data)
        self._collect()

    def _collect(self) -> None:
        sealed = self._outgoing.read()
        if sealed:
            self._keep(sealed)

    def open_buffered(self, consume: Callable[[memoryview], None]) -> bool:
        read = self._tls.read
        while True:
            filled = 0
            ended = False
            try:
                while filled < SLICE:
                    got = int(read(SLICE - filled, _plain_scratch[filled:]))  # typeshed says bytes
                    if not got:
                        ended = True
                        break
                    filled += got
            except ssl.SSLWantReadError:
                if filled:
                    consume(_plain_scratch[:filled])
                # The peer's key updates and the like make OpenSSL answer by itself.
                if self._outgoing.pending:
                    self._collect()
                return True
            except ssl.SSLZeroReturnError:
                ended = True
            if filled:
                consume(_plain_scratch[:filled])
            if ended:
                return False

    def fill(self, consume: Callable[[memoryview], None]) -> int | None:
        try:
            got = self._socket.recv_into(cipher_scratch)
        except (BlockingIOError, InterruptedError):
            return None
        for start in range(0, got, SLICE):
            self._came(cipher_scratch[start : min(start + SLICE, got)])
            if not self.open_buffered(consume):
                return 0
        return got

    def say_goodbye(self) -> None:
        """Add TLS's close_notify behind everything accepted so far."""
        self._seal_plain()
        with contextlib.suppress(ssl.SSLError):  # it wants the other end's answer, which nobody waits for
            self._tls.unwrap()
        self._collect()
