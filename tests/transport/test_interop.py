"""Stock py-libp2p in another process speaks with us, both ways: what is on the wire is libp2p."""

from __future__ import annotations

import os

import pytest
import trio

from hivefs.transport import open_host, peer_id_from_key

STOCK = """
    import hashlib, os, sys, trio
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
    from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as NoiseTransport
    from libp2p.security.tls.transport import PROTOCOL_ID as TLS, TLSTransport
    from libp2p.stream_muxer.yamux.yamux import Yamux
    from multiaddr import Multiaddr

    pair = create_new_key_pair(bytes(range(32)))
    security = {TLS: lambda: TLSTransport(pair), NOISE: lambda: NoiseTransport(pair, create_noise_key().private_key)}
    secure = sys.argv.pop(1)
    host = new_host(key_pair=pair, sec_opt={secure: security[secure]()}, muxer_opt={"/yamux/1.0.0": Yamux})

    async def echo(stream):
        try:
            while data := await stream.read(65536):
                await stream.write(data)
        except Exception:
            pass
        await stream.close()

    async def main():
        async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            host.set_stream_handler("/echo/1", echo)
            if len(sys.argv) == 1:
                print(f"{host.get_addrs()[0]}", flush=True)
                await trio.sleep_forever()
            await host.connect(info_from_p2p_addr(Multiaddr(sys.argv[1])))
            stream = await host.new_stream(info_from_p2p_addr(Multiaddr(sys.argv[1])).peer_id, ["/echo/1"])
            message = os.urandom(1_000_000)
            back = bytearray()

            async def read():
                while len(back) < len(message):
                    back.extend(await stream.read(65536))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stream.write(message)
            print("same" if back == message else "different", flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


SECURITY = pytest.mark.parametrize("secure", ["/tls/1.0.0", "/noise"], ids=["tls", "noise"])


@SECURITY
def test_we_dial_stock_libp2p(kit, run, secure):
    async def test():
        async with kit.subprocess(STOCK, secure) as process, open_host(os.urandom(32)) as client:
            address = await kit.line(process)
            connection = await client.dial(address)
            assert address.endswith(peer_id_from_key(connection.peer_key))
            assert connection.security == secure
            stream = await connection.open_stream("/echo/1")
            message = os.urandom(1_000_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, message)
                assert await kit.receive_exactly(stream, len(message)) == message
            assert await kit.ask(connection, b"another stream") == b"another stream"

    run(test)


@SECURITY
def test_stock_libp2p_dials_us(kit, run, secure):
    async def test():
        async with kit.server() as host, kit.subprocess(STOCK, secure, host.addresses[0]) as process:
            assert await kit.line(process) == "same"
            (connection,) = host._connections
            assert not connection.closed and connection.security == secure

    run(test)
