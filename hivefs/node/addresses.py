"""What a node tells others of where it listens."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence


def announced(listening: Sequence[str], announce: Sequence[str]) -> tuple[str, ...]:
    """Full addresses to tell. ``announce`` wins when it is not empty (a missing peer id is added); of addresses that
    mean "every interface" the one is told from which packets would leave.
    """
    suffix = next((address[address.index("/p2p/") :] for address in listening if "/p2p/" in address), "")
    if announce:
        return tuple(address if "/p2p/" in address else address + suffix for address in announce)
    return tuple(_reachable(address) for address in listening)


def beyond_this_machine(addresses: Sequence[str]) -> tuple[str, ...]:
    """Those that are not loopback addresses: what others dial there is their own machine."""

    def loopback(address: str) -> bool:
        parts = address.split("/")
        try:
            return len(parts) > 2 and ipaddress.ip_address(parts[2]).is_loopback
        except ValueError:
            return False

    return tuple(address for address in addresses if not loopback(address))


def _reachable(address: str) -> str:
    for kind, everything, family, somewhere in (
        ("ip4", "0.0.0.0", socket.AF_INET, "192.0.2.1"),  # noqa: S104 - compared, not bound
        ("ip6", "::", socket.AF_INET6, "2001:db8::1"),
    ):
        start = f"/{kind}/{everything}/"
        if address.startswith(start):
            return f"/{kind}/{_own_ip(family, somewhere)}/" + address[len(start) :]
    return address


def _own_ip(family: socket.AddressFamily, somewhere: str) -> str:
    """Our address on the way to a documentation address; connecting a datagram socket sends nothing."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((somewhere, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1" if family == socket.AF_INET else "::1"
