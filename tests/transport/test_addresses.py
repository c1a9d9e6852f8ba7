"""Addresses name a place and the key that must be found there."""

from __future__ import annotations

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from hivefs.errors import BadAddress
from hivefs.transport import key_from_peer_id, peer_id_from_key, split_address

PAIR = create_new_key_pair(bytes(range(32)))
KEY = PAIR.public_key.to_bytes()
PEER = str(ID.from_pubkey(PAIR.public_key))


def test_peer_ids_are_those_of_the_library():
    assert peer_id_from_key(KEY) == PEER
    assert PEER.startswith("12D3KooW")
    assert key_from_peer_id(PEER) == KEY


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_has_32_bytes(key):
    with pytest.raises(ValueError, match="32"):
        peer_id_from_key(key)


@pytest.mark.parametrize(
    "peer_id", ["", "12D3KooW", PEER[:-1], PEER + "1", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0" * 52, "ä" * 52]
)
def test_other_peer_ids_are_refused(peer_id):
    with pytest.raises(BadAddress):
        key_from_peer_id(peer_id)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("/ip4/192.0.2.7/tcp/4001", "192.0.2.7", 4001),
        ("/ip6/2001:db8::1/tcp/65535", "2001:db8::1", 65535),
        ("/dns4/node-1.example.org/tcp/1", "node-1.example.org", 1),
    ],
)
def test_good_addresses(address, host, port):
    assert split_address(f"{address}/p2p/{PEER}") == (host, port, KEY)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "192.0.2.7:4001",
        "/ip4/192.0.2.7/tcp/4001",
        "/ip4/192.0.2.7/tcp/4001/p2p/",
        f"/ip4/192.0.2.7/tcp/0/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/65536/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/-1/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/１/p2p/{PEER}",
        f"/ip4/192.0.2.7/udp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.777/tcp/4001/p2p/{PEER}",
        f"/ip6/192.0.2.7/tcp/4001/p2p/{PEER}",
        f"/dns6/example.org/tcp/4001/p2p/{PEER}",
        f"/dns4/exa mple/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/tls/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}\n",
    ],
)
def test_bad_addresses(address):
    with pytest.raises(BadAddress):
        split_address(address)
