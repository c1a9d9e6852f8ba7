"""`/ipfs/id/1.0.0` and `/ipfs/ping/1.0.0`: what any libp2p peer asks of another before they speak of anything else.

Both answer whoever proved a key, members or not, so they tell nothing that a stranger who has our address could not find
out by trying: which protocols we speak and where we listen. No version, since that would tell whom an old mistake fits.

identify is one message behind its length as a varint, and the end of the stream:

    1 public key (protobuf)   2 listen address (multiaddr), repeated   3 protocol, repeated
    4 the asker's address as seen here (multiaddr)   5 protocol family   6 agent

py-libp2p's own `identify` module imports a peer store, a resource manager and an HTTP server for it (4 MB), and to parse
one address `multiaddr` takes half a millisecond, which strangers could make us spend.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import islice

import trio
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.utils.varint import encode_uvarint

from hivefs.errors import BadAddress

from .addresses import split_listen_address
from .stream import Stream

IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"

FAMILY = "hivefs/1"
AGENT = "hivefs"
MOST_ADDRESSES = 16
"""js-libp2p reads messages of up to 8 KiB; this many addresses of any kind and length are 5."""

PING_SIZE = 32
PING_PATIENCE = 60.0
"""Seconds that a stream of pings may stay silent, as in go-libp2p; then it is reset and its place is free."""


def identify_message(
    public_key: bytes, addresses: Iterable[str], protocols: Iterable[str], remote: tuple[str, int]
) -> bytes:
    """What identify answers, with its length before it. ``addresses`` may end with /p2p/ID, which is left away.

    Addresses that are not an IP address or name with a TCP port are not told.
    """
    told = islice((binary for binary in map(_multiaddr, addresses) if binary is not None), MOST_ADDRESSES)
    host, port = remote
    seen = _multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}")
    fields: list[tuple[int, bytes]] = [
        (1, bytes(Ed25519PublicKey.from_bytes(public_key).serialize())),
        *((2, address) for address in told),
        *((3, protocol.encode()) for protocol in protocols),
        *([(4, seen)] if seen is not None else []),
        (5, FAMILY.encode()),
        (6, AGENT.encode()),
    ]
    body = b"".join(encode_uvarint(number << 3 | 2) + encode_uvarint(len(value)) + value for number, value in fields)
    return bytes(encode_uvarint(len(body)) + body)


def _multiaddr(address: str) -> bytes | None:
    """Binary form: code and value of each part. 4 ip4, 41 ip6, 54 dns4 (with its length), 6 tcp; None for others."""
    try:
        kind, host, port = split_listen_address(address.partition("/p2p/")[0])
    except BadAddress:
        return None
    if kind == "dns4":
        name = host.encode("ascii")
        where = bytes((54,)) + encode_uvarint(len(name)) + name
    else:
        where = bytes((4 if kind == "ip4" else 41,)) + ipaddress.ip_address(host).packed
    return bytes(where + b"\x06" + port.to_bytes(2, "big"))


async def answer_pings(stream: Stream) -> None:
    """Send back 32 bytes for 32 bytes until the other end has enough; the stream is reset when it falls silent."""
    while True:
        ping = b""
        with trio.move_on_after(PING_PATIENCE) as patience:
            while len(ping) < PING_SIZE:
                more = await stream.receive_some(PING_SIZE - len(ping))
                if not more:
                    return  # also in the middle of a ping: nobody waits for the answer to half of one
                ping += more
            await stream.send_all(ping)
        if patience.cancelled_caught:
            await stream.reset()
            return
