"""Nodes, their attributes, and who vouches for them."""

from __future__ import annotations

import enum
from bisect import bisect_left
from dataclasses import dataclass, field

from hivefs.model.ids import ID_BYTES, NodeId


class Evidence(enum.IntEnum):
    """How well an attribute is known, weakest first."""

    CLAIMED = 1
    REGISTRY = 2
    MEASURED = 3
    ATTESTED = 4


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing said of a node: ``name`` is one of ATTRIBUTE_NAMES; an empty value means unknown."""

    name: str
    value: str
    evidence: Evidence = Evidence.CLAIMED


ATTRIBUTE_NAMES = ("country", "operator", "operator_country", "parent", "parent_country", "hoster", "asn", "subnet")

JURISDICTION_NAMES = ("country", "operator_country", "parent_country")
"""The attributes whose values are authorities of the family ``jurisdiction``: a node is under each of them."""


class Role(enum.IntFlag):
    """What a member of a hive may do."""

    CLIENT = 1
    NODE = 2


@dataclass(frozen=True, slots=True)
class Invitation:
    """A certificate: the hive's owner says that who holds the seed of ``key`` (Ed25519) may let ``uses`` newcomers in.

    ``attributes`` are fixed: each newcomer has exactly these, and may only add what it claims itself. ``expires_ns`` is
    when joining ends, ``until_ns`` when the memberships end (0: never). Times are nanoseconds since 1970.
    """

    hive_key: bytes
    key: bytes
    roles: Role
    attributes: tuple[Attribute, ...] = ()
    issued_ns: int = 0
    expires_ns: int = 0
    uses: int = 1
    until_ns: int = 0
    signature: bytes = b""


@dataclass(frozen=True, slots=True, repr=False)
class Ticket:
    """What a newcomer is given: an invitation, the 32-byte seed that proves it, and addresses of nodes to ask first."""

    invitation: Invitation
    seed: bytes
    addresses: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Ticket({self.invitation.key.hex()[:12]})"


@dataclass(frozen=True, slots=True)
class Membership:
    """A certificate: ``subject`` (Ed25519 key) belongs to the hive, with these roles and attributes.

    ``hive_key`` is the owner's public key; the hive id is that key. Times are nanoseconds since 1970; 0 is no end.
    Without ``invitation`` the owner signed it. With one, the invitation's key did, and the subject itself (``consent``).
    """

    hive_key: bytes
    subject: bytes
    roles: Role
    attributes: tuple[Attribute, ...] = ()
    issued_ns: int = 0
    expires_ns: int = 0
    epoch: int = 0
    signature: bytes = b""
    invitation: Invitation | None = None
    consent: bytes = b""


def key_of_invitation(membership: Membership) -> bytes:
    """The key of the invitation by which a member joined; empty for who the owner let in itself."""
    return b"" if membership.invitation is None else membership.invitation.key


@dataclass(frozen=True, slots=True)
class Revocations:
    """The hive's owner says who does not belong any more: all of them, in one list. The higher ``sequence`` wins.

    ``members`` are subject keys, ``invitations`` keys of invitations (with all who joined by them); both sorted.
    """

    hive_key: bytes
    sequence: int = 0
    issued_ns: int = 0
    members: tuple[bytes, ...] = ()
    invitations: tuple[bytes, ...] = ()
    signature: bytes = b""

    def covers(self, membership: Membership) -> bool:
        """Whether that member, or the invitation by which it joined, is revoked."""
        return self.covers_keys(membership.subject, key_of_invitation(membership))

    def covers_keys(self, subject: bytes, invitation: bytes) -> bool:
        """The same for the keys; ``invitation`` is empty for who the owner let in itself."""
        return _holds(self.members, subject) or _holds(self.invitations, invitation)


def _holds(ordered: tuple[bytes, ...], key: bytes) -> bool:
    at = bisect_left(ordered, key)
    return at < len(ordered) and ordered[at] == key


MARK = "/hivefs-"
"""What no transport address begins with. Such an item of an address record is no address but says something of the node;
who does not know it cannot dial it and goes on to the next (formats/member.md).
"""

LEAVING_MARK = "/hivefs-leaving/"
"""And the time since when, in seconds since 1970."""


CREDITS_MARK = "/hivefs-credits/"
"""And the id of the vault (32 hex digits) to which the node's operator gives credit for what the node contributes."""


RELAY_MARK = "/hivefs-relay"
"""And the full address of a relay at which the node has a reservation, when others cannot dial it, or not all of them."""

MOST_RELAYS = 4
"""Of one node; further ones are passed over."""


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """Where a node says it listens, signed by the node itself; the higher sequence wins. ``addresses`` are the items as
    they are signed, marks among them.
    """

    node_id: NodeId
    addresses: tuple[str, ...]
    sequence: int
    signature: bytes = b""

    @property
    def reachable(self) -> tuple[str, ...]:
        """The addresses to dial: all that are no marks."""
        return tuple(address for address in self.addresses if not address.startswith(MARK))

    @property
    def telling(self) -> tuple[str, ...]:
        """The addresses that say where the node is: those at which whoever uses it reaches it. None when it names a relay,
        since then it may be used without being at any of its addresses.
        """
        return () if self.relays else self.reachable

    @property
    def leaving_s(self) -> int:
        """Since when (seconds since 1970) the node says that it leaves; 0 when it does not."""
        for address in self.addresses:
            said = address.removeprefix(LEAVING_MARK)
            if said != address and said.isascii() and said.isdigit() and len(said) <= 12:
                return int(said)
        return 0

    @property
    def credits(self) -> str:
        """The id of the vault that the node's operator credits, in hex; empty when none."""
        for address in self.addresses:
            said = address.removeprefix(CREDITS_MARK)
            if said != address and len(said) == 2 * ID_BYTES and not set(said) - set("0123456789abcdef"):
                return said
        return ""

    @property
    def relays(self) -> tuple[str, ...]:
        """The addresses of relays through which the node is reached, as it says; each may be none that can be dialled."""
        start = RELAY_MARK + "/"
        found = [address.removeprefix(RELAY_MARK) for address in self.addresses if address.startswith(start)]
        return tuple(found[:MOST_RELAYS])


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """All that one member passes on about a node: certificate and addresses, both signed, so anyone may relay them."""

    membership: Membership
    address: AddressRecord


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it. ``authorities`` maps a family ("jurisdiction", "operator", ...) to the authorities
    that have power over the node; UNKNOWN in a set counts against every authority of that family.

    ``weight`` scales its chance to be chosen (1: by its free space alone); a node that is not ``vetted`` yet gets only a
    small part of what it could.
    """

    node_id: NodeId
    authorities: dict[str, frozenset[str]] = field(hash=False)
    free_bytes: int = 0
    usable: bool = True
    weight: float = 1.0
    vetted: bool = True


UNKNOWN = "?"
