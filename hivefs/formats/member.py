"""Membership certificates, address records and roster entries. See docs/formats/member.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hivefs.crypto import keys
from hivefs.errors import BadInvitation, Corrupt, UnknownVersion
from hivefs.formats import invite, strict
from hivefs.formats.invite import SKEW_NS
from hivefs.model.ids import KEY_BYTES, NodeId
from hivefs.model.node import AddressRecord, Attribute, Evidence, Invitation, Membership, Role, RosterEntry, Ticket

VERSION = 1
INVITED = 2
"""The version of a certificate that an invitation's key signed."""

MAX_BYTES = 16 << 10
_WHAT = "a membership certificate"
_MEMBER, _ADDRESS, _ENTRY = "HVmember", "HVaddress", "HVroster"


def _member_items(member: Membership) -> list[Any]:
    return [
        member.hive_key,
        member.subject,
        int(member.roles),
        invite.attributes_to_items(member.attributes),
        member.issued_ns,
        member.expires_ns,
        member.epoch,
    ]


def _signed(member: Membership) -> bytes:
    """What is signed: by the owner, or by the invitation's key and the subject."""
    if member.invitation is None:
        return strict.encode(_MEMBER, VERSION, _member_items(member))
    return strict.encode(_MEMBER, INVITED, _member_items(member), invite.invitation_to_bytes(member.invitation))


def _member_from_items(fields: list[Any]) -> Membership:
    hive_key, subject, roles, attributes, issued, expires, epoch = strict.items(fields, 7)
    return Membership(
        strict.blob(hive_key, KEY_BYTES),
        strict.blob(subject, KEY_BYTES),
        Role(strict.number(roles, 1, 3)),
        invite.attributes_from_items(attributes),
        strict.number(issued),
        strict.number(expires),
        strict.number(epoch),
    )


def sign_member(hive_seed: bytes, member: Membership) -> Membership:
    """The same certificate, signed by the hive's owner (whose key replaces ``hive_key``)."""
    bare = replace(member, hive_key=keys.public_key(hive_seed), signature=b"")
    signature = keys.sign(hive_seed, strict.encode(_MEMBER, VERSION, _member_items(bare)))
    return replace(bare, signature=signature)


def accept(
    ticket: Ticket, subject_seed: bytes, role: Role, claimed: tuple[Attribute, ...] = (), now_ns: int = 0
) -> Membership:
    """The certificate of a newcomer, signed with the ticket's seed and its own. ``claimed`` is what it says of itself, all
    of it becomes CLAIMED. Raises BadInvitation when the invitation has ended, is for another role, or fixes an
    attribute that is claimed otherwise.
    """
    invitation = ticket.invitation
    if now_ns - SKEW_NS >= invitation.expires_ns:
        raise BadInvitation(reason="it has expired; ask for a new one")
    if not role & invitation.roles:
        kind = "storage nodes" if invitation.roles == Role.NODE else "clients"
        raise BadInvitation(reason=f"it is for {kind} only")
    fixed = {a.name: a.value for a in invitation.attributes}
    for attribute in claimed:
        if fixed.get(attribute.name, attribute.value) != attribute.value:
            raise BadInvitation(reason=f"the hive's owner fixed {attribute.name} as '{fixed[attribute.name]}' in it")
    own = tuple(Attribute(a.name, a.value, Evidence.CLAIMED) for a in claimed if a.name not in fixed)
    bare = Membership(
        invitation.hive_key,
        keys.public_key(subject_seed),
        role,
        invitation.attributes + own,
        min(max(now_ns, invitation.issued_ns), invitation.expires_ns),
        invitation.until_ns,
        invitation=invitation,
    )
    message = _signed(bare)
    return replace(bare, signature=keys.sign(ticket.seed, message), consent=keys.sign(subject_seed, message))


def _fits(member: Membership, invitation: Invitation) -> bool:
    """Whether a certificate says no more than its invitation allows."""
    fixed = len(invitation.attributes)
    names = {a.name for a in invitation.attributes}
    return (
        member.hive_key == invitation.hive_key
        and not member.roles & ~invitation.roles
        and member.epoch == 0
        and member.expires_ns == invitation.until_ns
        and invitation.issued_ns <= member.issued_ns <= invitation.expires_ns
        and member.attributes[:fixed] == invitation.attributes
        and all(a.evidence == Evidence.CLAIMED and a.name not in names for a in member.attributes[fixed:])
    )


def member_valid(member: Membership, hive_key: bytes, now_ns: int, skew_ns: int = SKEW_NS) -> bool:
    """Whether that hive's owner signed it, or it is an invitation of that owner that did and the subject agreed; and it
    has not expired (with a day of clock skew allowed). Whether the invitation still lets newcomers in, or was revoked,
    is not asked here.
    """
    if member.hive_key != hive_key or (member.expires_ns and now_ns - skew_ns >= member.expires_ns):
        return False
    message = _signed(member)
    invitation = member.invitation
    if invitation is None:
        return keys.verify(hive_key, member.signature, message)
    return (
        _fits(member, invitation)
        and keys.verify(invitation.key, member.signature, message)
        and keys.verify(member.subject, member.consent, message)
        and invite.invitation_valid(invitation, hive_key)
    )


def age(member: Membership) -> tuple[int, bool, int, bytes]:
    """Of two certificates of one subject the greater by this counts. What the owner signed stands above what anybody with
    an invitation did: else a node could change what the owner says of it by joining again.
    """
    return member.epoch, member.invitation is None, member.issued_ns, member.signature


def member_to_bytes(member: Membership) -> bytes:
    """Canonical CBOR, signatures last."""
    if member.invitation is None:
        return strict.encode(_MEMBER, VERSION, _member_items(member), member.signature)
    invitation = invite.invitation_to_bytes(member.invitation)
    return strict.encode(_MEMBER, INVITED, _member_items(member), invitation, member.signature, member.consent)


def member_from_bytes(data: bytes) -> Membership:
    """Raises Corrupt or UnknownVersion; the signatures are not checked here."""
    try:
        parts = strict.items_of(_WHAT, _MEMBER, VERSION, data)
    except UnknownVersion as error:
        if error.version != INVITED:
            raise
        return _invited_from_bytes(data)

    def build() -> Membership:
        fields, signature = parts
        return replace(_member_from_items(fields), signature=strict.blob(signature, 64))

    return strict.exactly(_WHAT, data, build, member_to_bytes)


def _invited_from_bytes(data: bytes) -> Membership:
    parts = strict.items_of(_WHAT, _MEMBER, INVITED, data)

    def build() -> Membership:
        fields, invitation, signature, consent = parts
        return replace(
            _member_from_items(fields),
            invitation=invite.invitation_from_bytes(strict.blob(invitation)),
            signature=strict.blob(signature, 64),
            consent=strict.blob(consent, 64),
        )

    return strict.exactly(_WHAT, data, build, member_to_bytes)


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


def outline_from_bytes(data: bytes) -> tuple[AddressRecord, bytes]:
    """Of an entry that was read once (and kept where nobody changes it) the addresses without their signature, and the key
    of the invitation by which the member joined, empty when there is none. A fifth of what ``entry_from_bytes`` costs:
    nothing is compared. Raises Corrupt or UnknownVersion.
    """
    what = "a roster entry"
    try:
        member, (node_id, addresses, sequence, _) = strict.items_of(what, _ENTRY, VERSION, data)
        parts = strict.items_of_any(_WHAT, _MEMBER, (VERSION, INVITED), strict.blob(member))
        key = invite.invitation_from_bytes(strict.blob(parts[1])).key if len(parts) > 2 else b""
        told = tuple(strict.text(address, 256) for address in strict.items(addresses, 16))
        return AddressRecord(NodeId(strict.blob(node_id, KEY_BYTES)), told, strict.number(sequence)), key
    except (ValueError, TypeError, IndexError) as error:
        raise Corrupt(what=what, reason=f"a field has a wrong type or value ({type(error).__name__})") from None


def entry_valid(entry: RosterEntry, hive_key: bytes, now_ns: int) -> bool:
    """Whether both signatures hold and speak of the same node, a node of that hive."""
    return (
        entry.membership.subject == entry.address.node_id
        and bool(entry.membership.roles & Role.NODE)
        and member_valid(entry.membership, hive_key, now_ns)
        and address_valid(entry.address)
    )


def ahead(address: AddressRecord, now_ns: int) -> bool:
    """Whether its number (seconds since 1970) is more than a day ahead of the clock. Such a one gives way to any that is
    not: whoever stole the node's key could otherwise silence its owner for ever.
    """
    return address.sequence > (now_ns + SKEW_NS) // 10**9


def newest(known: RosterEntry | None, other: RosterEntry, now_ns: int) -> RosterEntry:
    """The newer certificate with the newer addresses; both are signed by themselves, so they may be combined. Addresses
    that are ahead of the clock count only where no others are known, so a machine whose clock is years behind still
    finds its nodes.
    """
    if known is None:
        return other
    return RosterEntry(
        max(known.membership, other.membership, key=age),
        max(known.address, other.address, key=lambda a: (not ahead(a, now_ns), a.sequence, a.signature)),
    )
