"""What is known of a node, with the evidence that is justified for one vault. Pure; signatures were checked before.

Who says something of a node, and what it counts for (docs/decisions/0019):

    an attestation       ATTESTED when the user trusts its attester, else nothing at all
    the hive's owner     what it signed in a membership or fixed in an invitation: as the owner wrote it (attested,
                         claimed, ...) when the user trusts the hive's key, else CLAIMED
    the node itself      CLAIMED: what it added to an invitation, or says in its statement (which replaces the former)
    the user's table     REGISTRY: country, network and hoster of its public addresses

What is contradicted is unknown: two of the first three say different things; or the table does, and no attestation stands
against it. A country that is none (ISO 3166-1) is unknown too. What is refuted (by a round-trip time) is unknown whoever
said it. Unknown is an attribute with an empty value, which counts against every authority. Subnets come from the
addresses and from nobody's word: a node is only used where it answers, so the subnet where it really is is among them
(MEASURED); the caller adds the one at which it answered last, for a node that is away (docs/decisions/0034). Addresses of
a node that names a relay say nothing: it may answer through that, wherever it is (docs/decisions/0032).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivefs.formats.attestation import early, expired
from hivefs.model.attestation import Attestation, Said
from hivefs.model.node import ATTRIBUTE_NAMES, JURISDICTION_NAMES, Attribute, Evidence, Membership
from hivefs.model.words import showable
from hivefs.placement.countries import COUNTRIES
from hivefs.placement.networks import V4_PREFIX, V6_PREFIX, network_number

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SUBNET = "subnet"
FROM_TABLE = ("country", "asn", "hoster")
MOST_SUBNETS = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table says of an address; empty is nothing."""

    country: str = ""
    asn: str = ""
    hoster: str = ""


class Table(Protocol):
    """A table of networks (placement/registry.py)."""

    def find(self, address: Address) -> Origin | None: ...


@dataclass(frozen=True, slots=True)
class Weighed:
    """``attributes`` in the order of ATTRIBUTE_NAMES; ``problems`` say in words what is contradicted or refuted."""

    attributes: tuple[Attribute, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Word:
    evidence: Evidence
    value: str
    who: str


def known(
    membership: Membership,
    attestations: Iterable[Attestation] = (),
    trusted: Collection[bytes] = (),
    refuted: Mapping[str, str] | None = None,
    registry: Table | None = None,
    *,
    addresses: Sequence[str] = (),
    claims: Said = (),
    now_ns: int = 0,
) -> tuple[Attribute, ...]:
    """The attributes of ``weigh``."""
    return weigh(
        membership, attestations, trusted, refuted, registry, addresses=addresses, claims=claims, now_ns=now_ns
    ).attributes


def weigh(
    membership: Membership,
    attestations: Iterable[Attestation] = (),
    trusted: Collection[bytes] = (),
    refuted: Mapping[str, str] | None = None,
    registry: Table | None = None,
    *,
    addresses: Sequence[str] = (),
    claims: Said = (),
    now_ns: int = 0,
) -> Weighed:
    """See the head of the file. ``trusted`` are keys of attesters, the hive's own among them when the user trusts the
    owner; ``refuted`` maps attribute names to the reason in words; ``claims`` and ``addresses`` (multiaddrs) are what the
    node says of itself; ``now_ns`` is ns since 1970, a day of skew is forgiven.
    """
    public = public_addresses(addresses)
    words = _words(membership, current(attestations, membership.subject, trusted, now_ns), trusted, claims)
    table = _from_table(public, registry)
    found: list[Attribute] = []
    problems: list[str] = []
    for name in ATTRIBUTE_NAMES:
        if name == SUBNET:
            found += _subnets(public, words.get(SUBNET, []))
            continue
        attribute, problem = _decide(name, words.get(name, []), table.get(name, []))
        reason = (refuted or {}).get(name, "")
        if reason and attribute is not None and attribute.value:
            attribute, problem = Attribute(name, "", Evidence.MEASURED), f"{name} {attribute.value} is refuted: {reason}"
        if attribute is not None and attribute.value and name in JURISDICTION_NAMES and attribute.value not in COUNTRIES:
            # It still contradicts what others say: who says that knows the node as something else.
            problem = f"{name} {attribute.value} is no country (ISO 3166-1)"
            attribute = Attribute(name, "", attribute.evidence)
        if attribute is not None:
            found.append(attribute)
        if problem:
            problems.append(problem)
    return Weighed(tuple(found), tuple(problems))


def current(
    attestations: Iterable[Attestation], subject: bytes, trusted: Collection[bytes], now_ns: int
) -> list[Attestation]:
    """Those that count: of trusted attesters other than the node itself, for this node, in their time; of each attester the
    newest, also when that one has expired meanwhile (it took the older one's place).
    """
    newest: dict[bytes, Attestation] = {}
    for made in attestations:
        if made.subject != subject or made.attester == subject or made.attester not in trusted:
            continue
        if early(made, now_ns):
            continue
        before = newest.get(made.attester)
        if before is None or (before.issued_ns, before.signature) < (made.issued_ns, made.signature):
            newest[made.attester] = made
    good = [made for made in newest.values() if not expired(made, now_ns)]
    return sorted(good, key=lambda made: made.attester)


def same(name: str, one: str, other: str) -> bool:
    """Whether two values of an attribute mean the same."""
    return _plain(name, one) == _plain(name, other)


def _plain(name: str, value: str) -> str:
    value = value.strip().casefold()
    return network_number(value) or value if name == "asn" else value


def _words(
    membership: Membership, attested: Iterable[Attestation], trusted: Collection[bytes], claims: Said
) -> dict[str, list[_Word]]:
    """Everything that is said, by name, the strongest first."""
    found: dict[str, list[_Word]] = {}

    def say(name: str, value: str, evidence: Evidence, who: str) -> None:
        value = value.strip()
        if not showable(value):
            value = ""  # nobody is called so: it would steer a terminal, or write a line of a log
        if name.endswith("country"):
            value = value.upper() if len(value) == 2 and value.isascii() and value.isalpha() else ""
        if name == "asn":
            value = network_number(value)  # AS64500 and 64500 are the same, and rules name the latter
        found.setdefault(name, []).append(_Word(evidence, value, who))

    for made in attested:
        for name, value in made.said:
            say(name, value, Evidence.ATTESTED, f"attester {made.attester.hex()[:12]}")
    invitation = membership.invitation
    fixed = membership.attributes if invitation is None else invitation.attributes
    believed = membership.hive_key in trusted
    for attribute in fixed:
        say(attribute.name, attribute.value, attribute.evidence if believed else Evidence.CLAIMED, "the hive's owner")
    own = {a.name: a.value for a in membership.attributes[len(fixed) :]}
    for name, value in claims:
        if value.strip():
            own[name] = value
        else:
            own.pop(name, None)
    for name, value in own.items():
        say(name, value, Evidence.CLAIMED, "the node")
    for said in found.values():
        said.sort(key=lambda word: -word.evidence)
    return found


def _decide(name: str, words: list[_Word], table: list[str]) -> tuple[Attribute | None, str]:
    """(the attribute or None when nothing is said, the problem in words or "")."""
    said = [word for word in words if word.value]
    strongest = said[0] if said else None
    for other in said[1:]:
        if strongest is not None and not same(name, strongest.value, other.value):
            problem = f"{name} is contradicted: {strongest.who} says {strongest.value}, {other.who} says {other.value}"
            return Attribute(name, "", strongest.evidence), problem
    if not table:
        if strongest is None:
            return (Attribute(name, ""), "") if words else (None, "")
        return Attribute(name, strongest.value, strongest.evidence), ""
    listed = " and ".join(table)
    if strongest is not None and strongest.evidence == Evidence.ATTESTED:
        if len(table) == 1 and same(name, table[0], strongest.value):
            return Attribute(name, strongest.value, strongest.evidence), ""
        problem = f"the table says {name} {listed} for its addresses; {strongest.value} is attested, and stands"
        return Attribute(name, strongest.value, strongest.evidence), problem
    if len(table) > 1:
        return Attribute(name, "", Evidence.REGISTRY), f"{name} is contradicted: its addresses lie in {listed}"
    if strongest is None:
        return Attribute(name, table[0], Evidence.REGISTRY), ""
    if same(name, table[0], strongest.value):
        return Attribute(name, strongest.value, max(strongest.evidence, Evidence.REGISTRY)), ""
    problem = f"{name} is contradicted: {strongest.who} says {strongest.value}, the table says {listed} for its addresses"
    return Attribute(name, "", Evidence.REGISTRY), problem


# ---- addresses ------------------------------------------------------------------------------------------------------


def public_addresses(addresses: Iterable[str]) -> list[Address]:
    """The IP addresses of multiaddrs that are reachable in the whole internet, in order and each once. Names, private and
    loopback addresses say nothing of where a node is.
    """
    found: dict[Address, None] = {}
    for text in addresses:
        parts = text.split("/")
        if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
            continue
        try:
            address = ipaddress.ip_address(parts[2])
        except ValueError:
            continue
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        address = mapped or address
        if address.is_global and not address.is_multicast:
            found[address] = None
    return list(found)


def subnet(address: Address) -> str:
    """The /24 or /48 that an address lies in."""
    prefix = V4_PREFIX if address.version == 4 else V6_PREFIX
    return str(ipaddress.ip_network(f"{address}/{prefix}", strict=False))


def _subnets(public: Sequence[Address], words: list[_Word]) -> list[Attribute]:
    """One attribute for each; where there is no public address nothing is said (a claim of it stays a claim)."""
    made = list(dict.fromkeys(subnet(address) for address in public))[:MOST_SUBNETS]
    if made:
        return [Attribute(SUBNET, value, Evidence.MEASURED) for value in made]
    return [Attribute(SUBNET, word.value, Evidence.CLAIMED) for word in words[:1] if word.value]


def _from_table(public: Sequence[Address], registry: Table | None) -> dict[str, list[str]]:
    """What the table says of the addresses: the different values by attribute name."""
    found: dict[str, dict[str, str]] = {}
    for address in public if registry is not None else ():
        origin = registry.find(address) if registry is not None else None
        if origin is None:
            continue
        for name in FROM_TABLE:
            value = getattr(origin, name)
            if value:
                found.setdefault(name, {}).setdefault(_plain(name, value), value)
    return {name: sorted(values.values()) for name, values in found.items()}
