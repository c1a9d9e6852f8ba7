"""What is TLS's own."""

from __future__ import annotations

import ssl

import pytest
import trio


def test_bare_tls_without_libp2p_identity_is_refused(kit, run):
    async def test():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["libp2p"])
        async with kit.server() as host:
            raw = await trio.open_tcp_stream("127.0.0.1", int(host.addresses[0].split("/")[4]))
            for line in (b"/multistream/1.0.0\n", b"/tls/1.0.0\n"):
                await raw.send_all(bytes([len(line)]) + line)
            answer = b""
            while len(answer) < 32:
                answer += await raw.receive_some(32 - len(answer))
            assert answer == b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"
            stream = trio.SSLStream(raw, context)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await trio.aclose_forcefully(stream)

    run(test)
