"""Membership certificates, address records and roster entries. See docs/formats/member.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hivefs.crypto import keys
from hivefs.formats import strict
from hivefs.model.ids import KEY_BYTES, NodeId
from hivefs.model.node import ATTRIBUTE_NAMES, AddressRecord, Attribute, Evidence, Membership, Role, RosterEntry

VERSION = 1
MAX_BYTES = 16 << 10
_MEMBER, _ADDRESS, _ENTRY = "HVmember", "HVaddress", "HVroster"


def _member_items(member: Membership) -> list[Any]:
    return [
        member.hive_key,
        member.subject,
        int(member.roles),
        [[a.name, a.value, int(a.evidence)] for a in member.attributes],
        member.issued_ns,
        member.expires_ns,
        member.epoch,
    ]


def _member_from_items(fields: list[Any], signature: Any) -> Membership:
    hive_key, subject, roles, attributes, issued, expires, epoch = strict.items(fields, 7)
    made = tuple(
        Attribute(strict.text(name, 64), strict.text(value, 256), Evidence(strict.number(evidence)))
        for name, value, evidence in (strict.items(a, 3) for a in strict.items(attributes, 64))
    )
    if any(a.name not in ATTRIBUTE_NAMES for a in made):
        raise ValueError("unknown attribute")
    return Membership(
        strict.blob(hive_key, KEY_BYTES),
        strict.blob(subject, KEY_BYTES),
        Role(strict.number(roles, 1, 3)),
        made,
        strict.number(issued),
        strict.number(expires),
        strict.number(epoch),
        strict.blob(signature, 64),
    )


def sign_member(hive_seed: bytes, member: Membership) -> Membership:
    """The same certificate, signed by the hive's owner (whose key replaces ``hive_key``)."""
    bare = replace(member, hive_key=keys.public_key(hive_seed), signature=b"")
    signature = keys.sign(hive_seed, strict.encode(_MEMBER, VERSION, _member_items(bare)))
    return replace(bare, signature=signature)


def member_valid(member: Membership, hive_key: bytes, now_ns: int, skew_ns: int = 86_400_000_000_000) -> bool:
    """Whether that hive's owner signed it and it has not expired (with a day of clock skew allowed)."""
    return (
        member.hive_key == hive_key
        and (not member.expires_ns or now_ns - skew_ns < member.expires_ns)
        and keys.verify(hive_key, member.signature, strict.encode(_MEMBER, VERSION, _member_items(member)))
    )


def member_to_bytes(member: Membership) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(_MEMBER, VERSION, _member_items(member), member.signature)


def member_from_bytes(data: bytes) -> Membership:
    """Raises Corrupt or UnknownVersion; the signature is not checked here."""
    parts = strict.items_of("a membership certificate", _MEMBER, VERSION, data)
    return strict.exactly("a membership certificate", data, lambda: _member_from_items(parts[0], parts[1]), member_to_bytes)


def sign_address(node_seed: bytes, addresses: tuple[str, ...], sequence: int) -> AddressRecord:
    """What a node says of where it listens."""
    node_id = NodeId(keys.public_key(node_seed))
    message = strict.encode(_ADDRESS, VERSION, node_id, list(addresses), sequence)
    return AddressRecord(node_id, addresses, sequence, keys.sign(node_seed, message))


def address_valid(record: AddressRecord) -> bool:
    """Whether the node itself signed it."""
    message = strict.encode(_ADDRESS, VERSION, record.node_id, list(record.addresses), record.sequence)
    return keys.verify(record.node_id, record.signature, message)


def entry_to_bytes(entry: RosterEntry) -> bytes:
    """Canonical CBOR: certificate bytes, address fields."""
    a = entry.address
    return strict.encode(
        _ENTRY,
        VERSION,
        member_to_bytes(entry.membership),
        [a.node_id, list(a.addresses), a.sequence, a.signature],
    )


def entry_from_bytes(data: bytes) -> RosterEntry:
    """Raises Corrupt or UnknownVersion; check with entry_valid."""
    what = "a roster entry"
    parts = strict.items_of(what, _ENTRY, VERSION, data)

    def build() -> RosterEntry:
        node_id, addresses, sequence, signature = strict.items(parts[1], 4)
        return RosterEntry(
            member_from_bytes(strict.blob(parts[0])),
            AddressRecord(
                NodeId(strict.blob(node_id, KEY_BYTES)),
                tuple(strict.text(a, 256) for a in strict.items(addresses, 16)),
                strict.number(sequence),
                strict.blob(signature, 64),
            ),
        )

    return strict.exactly(what, data, build, entry_to_bytes)


def entry_valid(entry: RosterEntry, hive_key: bytes, now_ns: int) -> bool:
    """Whether both signatures hold and speak of the same node, a node of that hive."""
    return (
        entry.membership.subject == entry.address.node_id
        and bool(entry.membership.roles & Role.NODE)
        and member_valid(entry.membership, hive_key, now_ns)
        and address_valid(entry.address)
    )
