"""One host of py-libp2p as it comes, in a process of its own: ``python stock_peer.py WHAT SEED PORT RELAYS-DATA PEERS...``

WHAT is dht, autonat or relay. It connects to the addresses PEERS and says who it is; then it does what it is told, one line
of JSON each on standard input, and answers with one line. Used by test_stock_libp2p.py only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

SINK = "/hivefs-test/sink/1"
Do = Callable[[dict[str, Any]], Awaitable[Any]]


def say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def obey(host: Any, do: Do) -> None:
    say(id=host.get_id().to_string(), addresses=[str(address) for address in host.get_addrs()])
    async for line in trio.wrap_file(sys.stdin):
        try:
            with trio.fail_after(40):
                say(result=await do(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - told to the test
            say(error=f"{type(error).__name__}: {error}"[:300])


async def dht(host: Any, listens: bool) -> None:
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT

    table = KadDHT(host, DHTMode.SERVER if listens else DHTMode.CLIENT)
    for peer in host.get_peerstore().peer_ids():
        await table.routing_table.add_peer(peer)

    async def do(told: dict[str, Any]) -> Any:
        if "provide" in told:
            return await table.provide(told["provide"])
        if "find" in told:
            found = await table.find_providers(told["find"])
            return [[one.peer_id.to_string(), [str(address) for address in one.addrs]] for one in found]
        found_peer = await table.find_peer(ID.from_string(told["peer"]))
        return found_peer and [str(address) for address in found_peer.addrs]

    async with background_trio_service(table):
        await obey(host, do)


async def autonat(host: Any) -> None:
    from libp2p.host.autonat.autonat import AutoNATService

    service = AutoNATService(host)

    async def do(told: dict[str, Any]) -> Any:
        addresses = [Multiaddr(address).to_bytes() for address in told["addresses"]]
        return (await service.query_server(ID.from_string(told["server"]), addresses))[0]

    await obey(host, do)


async def sink(stream: Any) -> None:
    """Take so many bytes, answer with their SHA-256."""
    left, digest = int.from_bytes(await stream.read(8), "big"), hashlib.sha256()
    while left and (data := await stream.read(min(left, 65536))):
        left -= len(data)
        digest.update(data)
    await stream.write(digest.digest())
    await stream.close()


async def relay(host: Any, data: int, hop: bool) -> None:
    from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
    from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, STOP_PROTOCOL_ID, CircuitV2Protocol
    from libp2p.relay.circuit_v2.resources import RelayLimits
    from libp2p.relay.circuit_v2.transport import CircuitV2Transport

    limits = RelayLimits(duration=600, data=data, max_circuit_conns=10, max_reservations=5)
    roles = RelayRole.STOP | RelayRole.CLIENT | (RelayRole.HOP if hop else RelayRole.STOP)
    protocol = CircuitV2Protocol(host, limits=limits, allow_hop=hop)
    transport = CircuitV2Transport(host, protocol, RelayConfig(roles=roles, limits=limits))
    host.set_stream_handler(SINK, sink)
    host.set_stream_handler(PROTOCOL_ID, protocol._handle_hop_stream)
    host.set_stream_handler(STOP_PROTOCOL_ID, protocol._handle_stop_stream)

    async def do(told: dict[str, Any]) -> Any:
        if "reserve" in told:
            peer = ID.from_string(told["reserve"])
            return await transport._make_reservation(await host.new_stream(peer, [PROTOCOL_ID]), peer)
        if "dial" in told:
            await transport.dial(Multiaddr(told["dial"]))
            return True
        stream = await host.new_stream(ID.from_string(told["send"]), [SINK])
        piece, digest = os.urandom(65536), hashlib.sha256()
        await stream.write((told["mib"] << 20).to_bytes(8, "big"))
        for _ in range(told["mib"] << 4):
            await stream.write(piece)
            digest.update(piece)
        return await stream.read(32) == digest.digest()

    async with background_trio_service(protocol):
        await obey(host, do)


async def main(what: str, seed: str, port: int, data: int, *peers: str) -> None:
    key = create_new_key_pair(bytes.fromhex(seed))
    host = new_host(key_pair=key, sec_opt={NOISE: Noise(key, noise_privkey=create_noise_key().private_key)})
    listen = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")] if port else []
    async with host.run(listen_addrs=listen):
        for peer in peers:
            info = info_from_p2p_addr(Multiaddr(peer))
            host.get_peerstore().add_addrs(info.peer_id, info.addrs, 3600)
            await host.connect(info)
        if what == "dht":
            await dht(host, bool(port))
        elif what == "autonat":
            await autonat(host)
        else:
            await relay(host, data, hop=not peers)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.CRITICAL)
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
