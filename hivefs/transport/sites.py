"""Who counts together when room is short: addresses that one household, or one customer of a provider, has for nothing.

An IPv4 address is one place, and its /24 often belongs to one owner. Of IPv6 everybody has a /64 with 2^64 addresses and
many have a /48 (RFC 6177), so single addresses say nothing there. An IPv4 address mapped into IPv6 (RFC 4291, 2.5.5.2) is
that IPv4 address.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

S = TypeVar("S")


class Site(NamedTuple):
    """Where a peer is: ``place`` is an IPv4 address or an IPv6 /64, ``network`` an IPv4 /24 or an IPv6 /48."""

    network: str
    place: str


def site_of(address: str) -> Site:
    """The site of an IP address as text; of anything else, itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Site(address, address)
    if isinstance(ip, ipaddress.IPv6Address):
        mapped = ip.ipv4_mapped
        if mapped is None:
            return Site(_prefix(ip, 48), _prefix(ip, 64))
        ip = mapped
    return Site(_prefix(ip, 24), str(ip))


def _prefix(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    return str(ipaddress.ip_network((ip, bits), strict=False))


def crowd(held: Mapping[S, Site]) -> list[S]:
    """Those of ``held`` who are at the fullest places of the fullest network, in their order; none of none."""
    if not held:
        return []
    network = Counter(site.network for site in held.values()).most_common(1)[0][0]
    places = Counter(site for site in held.values() if site.network == network)
    most = max(places.values())
    return [who for who, site in held.items() if places[site] == most]
