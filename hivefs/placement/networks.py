"""Numbers of networks and subnets, as they stand in what is known of nodes, and as a user writes them. Pure.

Names of authorities are compared letter by letter, so a rule for one that is written in another way, or for a subnet of
another size than nodes are in, would hold for ever and mean nothing.
"""

from __future__ import annotations

import ipaddress

V4_PREFIX, V6_PREFIX = 24, 48
"""A node is in the subnets of this length that its public addresses lie in."""

MOST_NUMBER = 2**32 - 1
"""RFC 6793. 0 is nobody's (RFC 7607)."""

WRONG = {
    "asn": 'no network: a number from 1 to 4294967295, as in "asn:64500"',
    "subnet": 'no subnet that a node can be in: an IPv4 network of /24 or an IPv6 network of /48 ("subnet:192.0.2.0/24")',
}
"""What is to be said by family when there is no name, after "'asn:abc' is"."""


def network_number(text: str) -> str:
    """The number of a network without "AS" and zeros in front; "" when it is none."""
    digits = text.strip().upper().removeprefix("AS")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and 0 < int(digits) <= MOST_NUMBER):
        return ""
    return str(int(digits))


def subnet_name(text: str) -> str:
    """The subnet as nodes have it; "" when no node can be in it: bits set behind the prefix, another length."""
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError:
        return ""
    if "/" not in text or network.prefixlen != (V4_PREFIX if network.version == 4 else V6_PREFIX):
        return ""
    return str(network)


def written(family: str, name: str) -> str:
    """The name of an authority of a family as it is compared; "" when there is none of that name."""
    if family == "asn":
        return network_number(name)
    return subnet_name(name) if family == "subnet" else name
