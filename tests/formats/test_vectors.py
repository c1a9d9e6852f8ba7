"""Byte vectors: what every later release must read, and write the same. Never change a vector; add a version."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hivefs.content import coding
from hivefs.content.merkle import merkle_root
from hivefs.crypto import keys, seal
from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import head, member, page, policy, receipt, records, standing, stripe
from hivefs.model.head import Root
from hivefs.model.ids import ChunkId, DeviceId, NodeId, ShareId, StripeId
from hivefs.model.inode import ChunkRef, Dirent, Inode, MapExtent, SlotKind
from hivefs.model.node import Attribute, Evidence, Membership, Role, RosterEntry
from hivefs.model.page import Child, InnerPage
from hivefs.model.receipt import Receipt
from hivefs.model.stripe import ChunkPlace, PageRef, Purpose, Share, Stripe
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

VECTORS = Path(__file__).parent.parent / "vectors"


def fill(first: int, count: int) -> bytes:
    return bytes((first + i) % 256 for i in range(count))


OWNER, DEVICE, HIVE, NODE = (bytes([i]) * 32 for i in (1, 2, 3, 4))
KEYS = keys.VaultKeys(fill(0, 32))
INODE = Inode((2 << 40) | 7, 0o100644, 2, 1000, 1001, 0, 3_000_000, 2 << 20, 1, -2, 1_700_000_000_123_456_789, 4, 1, 0, b"")
LINK = Inode(9, 0o120777, 1, 0, 0, 0, 6, 0, 1, 2, 3, 4, 1, 0, b"target")
CHUNK = MapExtent(3, 1, SlotKind.CHUNK, ChunkRef(ChunkId(fill(10, 16)), fill(30, 32), 1 << 20, 1))
PLACE = ChunkPlace(StripeId(fill(50, 16)), 3, 4096, 1_049_088)
STRIPE = Stripe(
    StripeId(fill(50, 16)),
    Purpose.DATA,
    2,
    4096,
    tuple(Share(ShareId(fill(i, 32)), fill(100 + i, 32), NodeId(fill(200 + i, 32)) if i else None) for i in range(3)),
    fill(7, 16),
    1_700_000_000_000_000_000,
)
CERTIFIED = replace(
    STRIPE, shares=tuple(replace(s, standing=fill(150 + i, 16) if s.node else b"") for i, s in enumerate(STRIPE.shares))
)
META = replace(CERTIFIED, purpose=Purpose.METADATA)
INNER = InnerPage(
    1,
    (Child(b"d1", PageRef(PLACE, fill(60, 32), 30_000, 1), 12), Child(b"i2", PageRef(PLACE, fill(61, 32), 9, 0), 1)),
    {META.stripe_id: META},
)
PLAIN = Policy(2, 3)
AUTO = Policy(0, 0, auto=True)
STRICT = Policy(
    4,
    8,
    (Rules(), Rules("operator", 2, 1, 1)),
    (("operator", 2), ("subnet", 1)),
    Evidence.ATTESTED,
    ("CH", "DE"),
    ("US", "asn:64500"),
    "strict",
    repair_at=6,
)
KNOWN = (
    Attribute("country", "DE", Evidence.ATTESTED),
    Attribute("operator", "Müller"),
    Attribute("country", "DE", Evidence.CLAIMED),
)
PAGE = PageRef(PLACE, fill(60, 32), 30_000, 1)
ROOT = Root(PAGE, 2, 12_345, (STRIPE,), 99, ((1, 17), (2, 3)), fill(80, 32))
CERTIFICATE = head.sign_certificate(OWNER, DeviceId(keys.public_key(DEVICE)), 2, 1_700_000_000_000_000_000)
HEAD = head.sign_head(DEVICE, CERTIFICATE, 1, None, 1_700_000_000_000_000_001, b"sealed root")
MEMBER = member.sign_member(
    HIVE,
    Membership(
        b"",
        keys.public_key(NODE),
        Role.NODE,
        (Attribute("country", "DE"), Attribute("operator", "Müller", Evidence.ATTESTED)),
        1_700_000_000_000_000_000,
        0,
        5,
    ),
)
ENTRY = RosterEntry(MEMBER, member.sign_address(NODE, ("/ip4/127.0.0.1/tcp/4001",), 8))
MARKED = ("/ip4/127.0.0.1/tcp/4001", "/hivefs-leaving/1700000000")
LEAVING = RosterEntry(MEMBER, member.sign_address(NODE, MARKED, 9))
CREDITING = RosterEntry(MEMBER, member.sign_address(NODE, (*MARKED, "/hivefs-credits/" + "0123456789abcdef" * 2), 10))
RELAY = "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"
RELAYED = RosterEntry(MEMBER, member.sign_address(NODE, (*MARKED, "/hivefs-relay" + RELAY), 11))

RECEIPT = receipt.sign_receipt(
    Receipt(NodeId(keys.public_key(NODE)), keys.public_key(OWNER), 7, 1_700_000_000_000_000_000, fill(3, 32), 12, 49_152),
    partial(keys.sign, NODE),
)
COUNTERSIGNED = receipt.countersign(RECEIPT, partial(keys.sign, OWNER))


def sealed_chunk(size: int) -> bytes:
    return seal.seal_chunk(fill(5, 32), fill(9, 16), Purpose.DATA, hashlib.shake_128(b"noise").digest(size))[0]


def made() -> dict[str, dict[str, str]]:
    data = [fill(i, 64) for i in range(4)]
    return {
        "records": {
            "inode": records.inode_to_bytes(INODE).hex(),
            "symlink": records.inode_to_bytes(LINK).hex(),
            "dirent": records.dirent_to_bytes(Dirent(b"caf\xe9.jpg", 77, 8)).hex(),
            "hole": records.extent_to_bytes(MapExtent(0, 1 << 20, SlotKind.HOLE)).hex(),
            "pending": records.extent_to_bytes(MapExtent(5, 2, SlotKind.PENDING)).hex(),
            "chunk": records.extent_to_bytes(CHUNK).hex(),
            "place": records.place_to_bytes(PLACE).hex(),
            "xattr": records.xattr_to_bytes(b"user.comment", b"\x00value").hex(),
            "name_hash": records.name_hash(KEYS.names_key, 1, b"photo.jpg").hex(),
        },
        "stripe": {"stripe": stripe.to_bytes(STRIPE).hex(), "certified": stripe.to_bytes(CERTIFIED).hex()},
        "head": {
            "head": head.to_bytes(HEAD).hex(),
            "root": head.root_to_bytes(ROOT).hex(),
            "certified root": head.root_to_bytes(replace(ROOT, stripes=(CERTIFIED,))).hex(),
            "vault_id": KEYS.vault_id.hex(),
            "owner_key": KEYS.owner_key.hex(),
            "head_key": KEYS.head_key.hex(),
        },
        "page_certified": {"inner": page.to_bytes(INNER).hex()},
        "policy": {
            "plain": policy.to_bytes(PLAIN).hex(),
            "auto": policy.to_bytes(AUTO).hex(),
            "all": policy.to_bytes(STRICT).hex(),
            "text": policy.text_to_bytes('[paths]\n"/Fotos/Müller" = "strict"\n').hex(),
            "digest of auto": policy.digest(AUTO).hex(),
            "digest of all": policy.digest(STRICT).hex(),
        },
        "standing": {
            "standing": standing.to_bytes(KNOWN).hex(),
            "nothing": standing.to_bytes(()).hex(),
            "digest": standing.digest(KNOWN).hex(),
        },
        "member": {
            "certificate": member.member_to_bytes(MEMBER).hex(),
            "entry": member.entry_to_bytes(ENTRY).hex(),
            "leaving": member.entry_to_bytes(LEAVING).hex(),
            "credits": member.entry_to_bytes(CREDITING).hex(),
            "relay": member.entry_to_bytes(RELAYED).hex(),
        },
        "receipt": {
            "signed": receipt.receipt_to_bytes(RECEIPT).hex(),
            "countersigned": receipt.receipt_to_bytes(COUNTERSIGNED).hex(),
        },
        "chunk": {
            "small": sealed_chunk(100).hex(),
            "segments_sha256": hashlib.sha256(sealed_chunk(100_000)).hexdigest(),
            "parity_4_6": b"".join(coding.encode(4, 6, data)).hex(),
            "merkle_root": merkle_root(fill(0, 200_000)).hex(),
        },
    }


NAMES = ("records", "stripe", "head", "page_certified", "policy", "standing", "member", "receipt", "chunk")


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_written_and_read_the_same(name: str) -> None:
    kept: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    assert kept["version"] == 1
    assert made()[name] == kept["vectors"]


def test_vectors_are_read() -> None:
    def kept(name: str, item: str) -> bytes:
        return bytes.fromhex(json.loads((VECTORS / f"{name}.json").read_text())["vectors"][item])

    assert records.inode_from_bytes(kept("records", "inode")) == INODE
    assert records.inode_from_bytes(kept("records", "symlink")) == LINK
    assert records.dirent_from_bytes(kept("records", "dirent")) == Dirent(b"caf\xe9.jpg", 77, 8)
    assert records.extent_from_bytes(3, kept("records", "chunk")) == CHUNK
    assert records.extent_from_bytes(5, kept("records", "pending")) == MapExtent(5, 2, SlotKind.PENDING)
    assert records.place_from_bytes(kept("records", "place")) == PLACE
    assert records.xattr_from_bytes(kept("records", "xattr")) == (b"user.comment", b"\x00value")
    assert stripe.from_bytes(kept("stripe", "stripe")) == STRIPE
    assert stripe.from_bytes(kept("stripe", "certified")) == CERTIFIED
    assert page.from_bytes(kept("page_certified", "inner")) == INNER
    assert head.root_from_bytes(kept("head", "certified root")) == replace(ROOT, stripes=(CERTIFIED,))
    assert [policy.from_bytes(kept("policy", name)) for name in ("plain", "auto", "all")] == [PLAIN, AUTO, STRICT]
    assert policy.digest(AUTO) == policy.digest(AUTO.resolved(4, 8)) != policy.digest(Policy(4, 8))
    assert set(standing.from_bytes(kept("standing", "standing"))) == set(KNOWN)
    assert standing.digest(KNOWN) == standing.digest(KNOWN[::-1])
    assert head.from_bytes(kept("head", "head")) == HEAD and head.head_valid(HEAD, CERTIFICATE.vault_id)
    assert head.root_from_bytes(kept("head", "root")) == ROOT
    assert member.member_from_bytes(kept("member", "certificate")) == MEMBER
    assert receipt.receipt_from_bytes(kept("receipt", "signed")) == RECEIPT and receipt.receipt_valid(RECEIPT)
    assert receipt.receipt_from_bytes(kept("receipt", "countersigned")) == COUNTERSIGNED
    assert receipt.counter_valid(COUNTERSIGNED) and not receipt.counter_valid(RECEIPT)
    assert member.entry_from_bytes(kept("member", "entry")) == ENTRY
    assert member.entry_valid(ENTRY, keys.public_key(HIVE), 1)
    assert member.entry_from_bytes(kept("member", "leaving")) == LEAVING
    assert member.entry_valid(LEAVING, keys.public_key(HIVE), 1)
    assert LEAVING.address.leaving_s == 1_700_000_000 and LEAVING.address.reachable == ENTRY.address.addresses
    assert ENTRY.address.leaving_s == 0 and ENTRY.address.credits == LEAVING.address.credits == ""
    assert member.entry_from_bytes(kept("member", "credits")) == CREDITING
    assert CREDITING.address.credits == "0123456789abcdef" * 2
    assert CREDITING.address.reachable == ENTRY.address.addresses and CREDITING.address.leaving_s
    for wrong in ("0123", "0123456789ABCDEF" * 2, "x" * 32, ""):
        assert replace(CREDITING.address, addresses=("/hivefs-credits/" + wrong,)).credits == ""
    assert member.entry_from_bytes(kept("member", "relay")) == RELAYED
    assert RELAYED.address.relays == (RELAY,) and RELAYED.address.reachable == ENTRY.address.addresses
    assert ENTRY.address.relays == CREDITING.address.relays == ()
    many = replace(RELAYED.address, addresses=("/hivefs-relayed/x", *("/hivefs-relay" + RELAY for _ in range(9))))
    assert many.relays == (RELAY,) * 4 and many.reachable == ()
    opened = seal.open_chunk(fill(5, 32), fill(9, 16), Purpose.DATA, 100, 0, kept("chunk", "small"))
    assert opened == hashlib.shake_128(b"noise").digest(100)


DECODERS = {
    "stripe": (stripe.from_bytes, stripe.to_bytes(STRIPE)),
    "certified": (stripe.from_bytes, stripe.to_bytes(CERTIFIED)),
    "head": (head.from_bytes, head.to_bytes(HEAD)),
    "inner": (page.from_bytes, page.to_bytes(INNER)),
    "policy": (policy.from_bytes, policy.to_bytes(STRICT)),
    "standing": (standing.from_bytes, standing.to_bytes(KNOWN)),
    "root": (head.root_from_bytes, head.root_to_bytes(ROOT)),
    "receipt": (receipt.receipt_from_bytes, receipt.receipt_to_bytes(COUNTERSIGNED)),
    "member": (member.member_from_bytes, member.member_to_bytes(MEMBER)),
    "entry": (member.entry_from_bytes, member.entry_to_bytes(ENTRY)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_no_changed_byte_passes_unnoticed(name: str) -> None:
    """A flipped bit either does not decode, or decodes to something that encodes to exactly those other bytes."""
    decode, data = DECODERS[name]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        try:
            value = decode(bytes(changed))
        except (Corrupt, UnknownVersion):
            continue
        assert value != decode(data)
    for cut in range(len(data)):
        with pytest.raises((Corrupt, UnknownVersion)):
            decode(data[:cut])
    with pytest.raises(Corrupt):
        decode(data + b"\x00")


def test_other_versions_are_named() -> None:
    other = stripe.to_bytes(STRIPE).replace(b"HVstripe\x01", b"HVstripe\x03")
    with pytest.raises(UnknownVersion):
        stripe.from_bytes(other)
    with pytest.raises(UnknownVersion):
        records.inode_from_bytes(b"\x02" + records.inode_to_bytes(INODE)[1:])


def test_heads_of_strangers_and_changed_heads_are_not_valid() -> None:
    vault = CERTIFICATE.vault_id
    assert head.head_valid(HEAD, vault)
    assert not head.head_valid(replace(HEAD, sequence=2), vault)
    assert not head.head_valid(replace(HEAD, sealed_root=b"other"), vault)
    assert not head.head_valid(HEAD, KEYS.vault_id)
    stranger = head.sign_certificate(HIVE, CERTIFICATE.device, 2, 0)
    planted = replace(stranger, vault_id=vault)
    assert not head.head_valid(head.sign_head(DEVICE, stranger, 1, None, 1, b""), vault)
    assert not head.head_valid(head.sign_head(DEVICE, planted, 1, None, 1, b""), vault)
    swapped = replace(CERTIFICATE, device=DeviceId(keys.public_key(NODE)))
    assert not head.head_valid(head.sign_head(NODE, swapped, 1, None, 1, b""), vault), "a device nobody enrolled"


def test_a_root_opens_only_under_its_own_head() -> None:
    sealer = seal.RecordSealer(KEYS.head_key, lambda n: bytes(n))
    first = head.sign_head(DEVICE, CERTIFICATE, 1, None, 1, head.seal_root(sealer, CERTIFICATE.device, 1, ROOT))
    assert head.open_root(sealer, first) == ROOT
    replayed = head.sign_head(DEVICE, CERTIFICATE, 2, first, 2, first.sealed_root)
    with pytest.raises(Corrupt):
        head.open_root(sealer, replayed)
