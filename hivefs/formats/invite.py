"""Invitations: the owner's certificate, and the ticket that carries it to a newcomer. See docs/formats/member.md."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import replace
from typing import Any

from hivefs.crypto import keys
from hivefs.errors import BadInvitation, Corrupt, UnknownVersion
from hivefs.formats import strict
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import ATTRIBUTE_NAMES, Attribute, Evidence, Invitation, Role, Ticket

VERSION = 1
SKEW_NS = 86_400 * 10**9
"""How far clocks may be apart: what ended less than a day ago still counts."""

MAX_USES = 10_000
MAX_ADDRESSES = 16
MAX_TEXT = 32 << 10
PREFIX = "HIVEFS-INVITE:"
_INVITE, _TICKET = "HVinvite", "HVticket"
_WHAT = "an invitation"
_CHECK_BYTES = 4


def attributes_to_items(attributes: tuple[Attribute, ...]) -> list[list[Any]]:
    """For CBOR."""
    return [[a.name, a.value, int(a.evidence)] for a in attributes]


def attributes_from_items(value: Any) -> tuple[Attribute, ...]:
    """The inverse; ValueError or TypeError."""
    made = tuple(
        Attribute(strict.text(name, 64), strict.text(value, 256), Evidence(strict.number(evidence)))
        for name, value, evidence in (strict.items(a, 3) for a in strict.items(value, 64))
    )
    if any(a.name not in ATTRIBUTE_NAMES for a in made):
        raise ValueError("unknown attribute")
    return made


def _items(invitation: Invitation) -> list[Any]:
    i = invitation
    return [
        i.hive_key,
        i.key,
        int(i.roles),
        attributes_to_items(i.attributes),
        i.issued_ns,
        i.expires_ns,
        i.uses,
        i.until_ns,
    ]


def sign_invitation(hive_seed: bytes, invitation: Invitation) -> Invitation:
    """The same invitation, signed by the hive's owner (whose key replaces ``hive_key``)."""
    bare = replace(invitation, hive_key=keys.public_key(hive_seed), signature=b"")
    return replace(bare, signature=keys.sign(hive_seed, strict.encode(_INVITE, VERSION, _items(bare))))


def invitation_valid(invitation: Invitation, hive_key: bytes) -> bool:
    """Whether that hive's owner signed it. Times are not looked at."""
    message = strict.encode(_INVITE, VERSION, _items(invitation))
    return invitation.hive_key == hive_key and keys.verify(hive_key, invitation.signature, message)


def invitation_to_bytes(invitation: Invitation) -> bytes:
    """Canonical CBOR, signature last."""
    return strict.encode(_INVITE, VERSION, _items(invitation), invitation.signature)


def invitation_from_bytes(data: bytes) -> Invitation:
    """Raises Corrupt or UnknownVersion; the signature is not checked here."""
    parts = strict.items_of(_WHAT, _INVITE, VERSION, data)

    def build() -> Invitation:
        fields, signature = parts
        hive_key, key, roles, attributes, issued, expires, uses, until = strict.items(fields, 8)
        made = attributes_from_items(attributes)
        if len({a.name for a in made}) != len(made):
            raise ValueError("an attribute is fixed twice")
        return Invitation(
            strict.blob(hive_key, KEY_BYTES),
            strict.blob(key, KEY_BYTES),
            Role(strict.number(roles, 1, 3)),
            made,
            strict.number(issued),
            strict.number(expires, 1),
            strict.number(uses, 1, MAX_USES),
            strict.number(until),
            strict.blob(signature, 64),
        )

    return strict.exactly(_WHAT, data, build, invitation_to_bytes)


# ---- the ticket -------------------------------------------------------------------------------------------------


def ticket_to_bytes(ticket: Ticket) -> bytes:
    """Canonical CBOR. Secret: it holds the seed."""
    return strict.encode(_TICKET, VERSION, invitation_to_bytes(ticket.invitation), ticket.seed, list(ticket.addresses))


def ticket_from_bytes(data: bytes) -> Ticket:
    """Raises Corrupt or UnknownVersion; nothing is proved here."""
    parts = strict.items_of(_WHAT, _TICKET, VERSION, data)

    def build() -> Ticket:
        invitation, seed, addresses = parts
        return Ticket(
            invitation_from_bytes(strict.blob(invitation)),
            strict.blob(seed, KEY_BYTES),
            tuple(strict.text(a, 256) for a in strict.items(addresses, MAX_ADDRESSES)),
        )

    return strict.exactly(_WHAT, data, build, ticket_to_bytes)


def ticket_to_text(ticket: Ticket) -> str:
    """One line of capital letters, digits and ``-:`` (what a QR code holds best)."""
    data = ticket_to_bytes(ticket)
    return PREFIX + base64.b32encode(data + _check(data)).decode("ascii").rstrip("=")


def _check(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK_BYTES]


def is_ticket(text: str) -> bool:
    """Whether a text means to be an invitation."""
    return text.strip()[: len(PREFIX)].upper() == PREFIX


def ticket_from_text(text: str) -> Ticket:
    """A ticket that fits together: the owner signed it and the seed is the invitation's. White space and small letters,
    as mail and people make them, do no harm. Raises BadInvitation, whose text never repeats the invitation.
    """
    if len(text) > MAX_TEXT or not is_ticket(text):
        raise BadInvitation(reason=f"it does not begin with {PREFIX}")
    body = "".join(text.split())[len(PREFIX) :].upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        raise BadInvitation(reason="it is cut off or was changed on its way") from None
    data, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if _check(data) != check:
        raise BadInvitation(reason="it is cut off or was changed on its way")
    try:
        ticket = ticket_from_bytes(data)
    except UnknownVersion:
        raise BadInvitation(reason="a newer HiveFS made it") from None
    except Corrupt:
        raise BadInvitation(reason="its form is wrong") from None
    if not invitation_valid(ticket.invitation, ticket.invitation.hive_key):
        raise BadInvitation(reason="the hive's owner did not sign it")
    if keys.public_key(ticket.seed) != ticket.invitation.key:
        raise BadInvitation(reason="the secret in it belongs to another invitation")
    return ticket
