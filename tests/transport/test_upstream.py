"""Facts about py-libp2p that this room builds on. When one of these fails after an upgrade, read the module named beside
it before changing the pin."""

from __future__ import annotations

import inspect
import os
import ssl
from importlib.metadata import version

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise import io as stock_io
from libp2p.security.noise import messages
from libp2p.security.noise import transport as stock_noise
from libp2p.security.tls.certificate import LIBP2P_EXTENSION_OID, verify_certificate_chain
from libp2p.security.tls.transport import PROTOCOL_ID, TLSTransport
from libp2p.stream_muxer.yamux import yamux as stock
from noise.connection import Keypair, NoiseConnection

from hivefs.transport import frames, noise
from hivefs.transport.host import YAMUX
from hivefs.transport.tls import TlsTransport


def test_the_pinned_version():
    assert version("libp2p") == "0.8.1"


def test_names_on_the_wire():
    assert PROTOCOL_ID == "/tls/1.0.0"
    assert YAMUX == stock.PROTOCOL_ID
    assert frames.HEADER.format == stock.YAMUX_HEADER_FORMAT
    assert (frames.SYN, frames.ACK, frames.FIN, frames.RST) == (
        stock.FLAG_SYN,
        stock.FLAG_ACK,
        stock.FLAG_FIN,
        stock.FLAG_RST,
    )
    assert (frames.DATA, frames.WINDOW_UPDATE, frames.PING, frames.GO_AWAY) == (
        stock.TYPE_DATA,
        stock.TYPE_WINDOW_UPDATE,
        stock.TYPE_PING,
        stock.TYPE_GO_AWAY,
    )


def test_our_certificate_carries_the_libp2p_extension_first_and_proves_our_key():
    """tls._certificate_template relies on generate_certificate adding to the template it is given."""
    pair = create_new_key_pair(bytes(range(32)))
    certificate = x509.load_pem_x509_certificate(TlsTransport(pair).get_certificate_pem().encode())
    assert [extension.oid for extension in certificate.extensions] == [LIBP2P_EXTENSION_OID]
    assert verify_certificate_chain([certificate]).to_bytes() == pair.public_key.to_bytes()


def test_the_stock_certificate_has_it_last():
    """When this fails, upstream was mended and the template of our own is no longer needed for js-libp2p."""
    pair = create_new_key_pair(bytes(range(32)))
    certificate = x509.load_pem_x509_certificate(TLSTransport(pair).get_certificate_pem().encode())
    assert next(extension.oid for extension in certificate.extensions) != LIBP2P_EXTENSION_OID


def test_a_certificate_whose_extension_was_signed_by_another_key_proves_nothing():
    """tls._prove leaves this check to the library."""
    pair, other = create_new_key_pair(bytes(32)), create_new_key_pair(bytes([1]) * 32)

    class Liar(type(pair.private_key)):
        def get_public_key(self):
            return other.public_key

    lying = TlsTransport(type(pair)(Liar(pair.private_key.impl), pair.public_key))
    certificate = x509.load_pem_x509_certificate(lying.get_certificate_pem().encode())
    with pytest.raises(ValueError, match="signature"):
        verify_certificate_chain([certificate])


def test_contexts_speak_tls_13_only_and_no_key_touches_the_disk(monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    transport = TlsTransport(create_new_key_pair(os.urandom(32)))
    for side in (True, False):
        context = transport.create_ssl_context(side)
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context is transport.create_ssl_context(side)


def test_noiseprotocol_ends_with_two_keys_that_begin_at_nonce_0():
    """noise.Handshake.ciphers takes the keys out of it, since its own encrypt wants and gives copies."""
    assert version("noiseprotocol") == "0.3.1"
    first, second = (NoiseConnection.from_name(noise.NAME) for _ in range(2))
    for end, key in ((first, 1), (second, 2)):
        end.set_keypair_from_private_bytes(Keypair.STATIC, bytes([key]) * 32)
    first.set_as_initiator()
    second.set_as_responder()
    first.start_handshake()
    second.start_handshake()
    second.read_message(first.write_message())
    first.read_message(second.write_message())
    second.read_message(first.write_message())
    for a, b in ((first, second), (second, first)):
        sender, receiver = a.noise_protocol.cipher_state_encrypt, b.noise_protocol.cipher_state_decrypt
        assert (sender.n, receiver.n) == (0, 0) and sender.k == receiver.k and len(sender.k) == 32
        assert a.encrypt(b"hello") == ChaCha20Poly1305(sender.k).encrypt(bytes(12), b"hello", None)
        assert a.encrypt(b"again") == ChaCha20Poly1305(sender.k).encrypt(noise._nonce(1), b"again", None)


def test_noise_has_the_name_and_the_signed_text_of_the_specification():
    assert noise.PROTOCOL_ID == stock_noise.PROTOCOL_ID == "/noise"
    assert messages.SIGNED_DATA_PREFIX == "noise-libp2p-static-key:"
    assert noise.MOST_PLAIN == stock_io.MAX_PLAINTEXT_LENGTH == 65519


def test_negotiation_has_the_shape_we_call():
    assert list(inspect.signature(Multiselect.negotiate).parameters) == ["self", "communicator", "negotiate_timeout"]
    assert list(inspect.signature(MultiselectClient.handshake).parameters) == ["self", "communicator"]
    assert list(inspect.signature(MultiselectClient.try_select).parameters) == ["self", "communicator", "protocol"]


def test_an_unknown_protocol_has_its_own_error():
    """connection.open_stream turns exactly this one into Refused."""

    class Wire:
        def __init__(self):
            self.incoming = bytearray(b"\x03na\n")

        async def write(self, data):
            pass

        async def read(self, n):
            data, self.incoming = bytes(self.incoming[:n]), self.incoming[n:]
            return data

    async def test():
        with pytest.raises(ProtocolNotSupportedError):
            await MultiselectClient().try_select(MultiselectCommunicator(Wire()), "/x/1")

    trio.run(test)


LEAN = """
    import sys
    import hivefs.transport
    print(*sorted({name.partition(".")[0] for name in sys.modules} & {"aioquic", "aiortc", "zeroconf", "libp2p"}))
    import logging
    from hivefs.transport.lean import STAND_INS
    names = [name for name in logging.root.manager.loggerDict if name.startswith("libp2p.")]
    print(*{logging.getLogger(name).level for name in names})
    print(*[type(sys.modules[name]).__name__ for name in STAND_INS])
    from libp2p.stream_muxer.yamux.yamux import Yamux
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    print(new_host(key_pair=create_new_key_pair(bytes(range(32)))).get_id())
    print(hivefs.transport.peer_id_from_key(create_new_key_pair(bytes(range(32))).public_key.to_bytes()))
"""


def test_only_the_needed_part_is_imported_and_the_rest_on_demand(kit, run):
    """lean.prepare; it relies on custom_types needing QUICStream for an alias only."""

    async def test():
        async with kit.subprocess(LEAN) as process:
            assert await kit.line(process) == "libp2p"
            assert await kit.line(process) == "0"  # open_host silences them all through their parent
            assert await kit.line(process) == "_StandIn _StandIn _StandIn"
            assert await kit.line(process) == await kit.line(process)

    run(test)


def test_the_type_alias_is_all_that_needs_quic():
    """When this fails, upstream was mended (the import is gone) or needs the class for real."""
    from libp2p import custom_types

    source = inspect.getsource(custom_types)
    assert "from libp2p.transport.quic.stream import QUICStream" in source
    assert source.count("QUICStream") == 2 + source.count("TQUICStream")
