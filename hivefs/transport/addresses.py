"""Node addresses: ``/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...`` and the peer ids at their end.

Only Ed25519 identities are accepted. Their peer id holds the whole key (an identity multihash), so the address of a
node names the key that its handshake must prove.
"""

from __future__ import annotations

import ipaddress
import re

from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.peer.id import ID

from hivefs.errors import BadAddress

_ED25519_ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes, then the protobuf of an Ed25519 public key: type 1, 32 bytes."""

_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")


def peer_id_from_key(public_key: bytes) -> str:
    """The base58 peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    return str(ID.from_pubkey(Ed25519PublicKey.from_bytes(public_key)))


def key_from_peer_id(peer_id: str) -> bytes:
    """The Ed25519 public key inside a peer id; BadAddress for anything else."""
    if not 40 <= len(peer_id) <= 64:
        raise BadAddress(address=peer_id)
    try:
        raw = ID.from_base58(peer_id).to_bytes()
    except ValueError:
        raise BadAddress(address=peer_id) from None
    # The way back must give the same text: base58 decoding forgives white space.
    if len(raw) != 38 or not raw.startswith(_ED25519_ID_PREFIX) or str(ID(raw)) != peer_id:
        raise BadAddress(address=peer_id)
    return bytes(raw[6:])


def key_from_binary_peer_id(raw: bytes) -> bytes:
    """The Ed25519 public key inside a peer id in its binary form; BadAddress for anything else."""
    if len(raw) != 38 or not raw.startswith(_ED25519_ID_PREFIX):
        raise BadAddress(address=raw.hex()[:80])
    return raw[6:]


def binary_peer_id(public_key: bytes) -> bytes:
    """The peer id of a 32-byte Ed25519 public key in its binary form."""
    if len(public_key) != 32:
        raise ValueError("an Ed25519 public key has 32 bytes")
    return _ED25519_ID_PREFIX + public_key


def split_listen_address(address: str) -> tuple[str, str, int]:
    """Protocol (ip4, ip6, dns4), host and port of an address without a peer id."""
    parts = address.split("/")
    if len(parts) != 5 or parts[0] or parts[3] != "tcp":
        raise BadAddress(address=address)
    _, kind, host, _, port_text = parts
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise BadAddress(address=address)
    try:
        if kind == "ip4":
            ipaddress.IPv4Address(host)
        elif kind == "ip6":
            ipaddress.IPv6Address(host)
        elif kind != "dns4" or not _DNS_NAME.fullmatch(host):
            raise BadAddress(address=address)
    except ValueError:
        raise BadAddress(address=address) from None
    return kind, host, int(port_text)


def split_address(address: str) -> tuple[str, int, bytes]:
    """Host, port and public key of a full address; the peer id is mandatory."""
    before, mark, peer_id = address.partition("/p2p/")
    if not mark:
        raise BadAddress(address=address)
    try:
        _, host, port = split_listen_address(before)
        key = key_from_peer_id(peer_id)
    except BadAddress:
        raise BadAddress(address=address) from None
    if port == 0:
        raise BadAddress(address=address)
    return host, port, key


def join_address(host: str, port: int, public_key: bytes) -> str:
    """The address of a peer at an IP address."""
    kind = "ip6" if ":" in host else "ip4"
    return f"/{kind}/{host}/tcp/{port}/p2p/{peer_id_from_key(public_key)}"
