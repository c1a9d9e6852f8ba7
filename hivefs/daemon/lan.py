"""The local network, wired: places that discovery/ finds become addresses that the transport dials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hivefs.discovery import lan
from hivefs.errors import BadAddress
from hivefs.model.ids import NodeId
from hivefs.transport.addresses import join_address, split_address


async def announce(hive_key: bytes, addresses: Sequence[str], found: Callable[[str], None]) -> None:
    """The node.ports.Lan. Multicasts leave only through the interfaces on which the node listens."""
    places = []
    for address in addresses:
        try:
            host, port, key = split_address(address)
        except BadAddress:
            continue
        if not address.startswith("/dns4/"):
            places.append(lan.Place(host, port, NodeId(key)))
    if places:
        await lan.run(hive_key, _joined(found), tell=places, interfaces=sorted({place.ip for place in places}))


async def search(hive_key: bytes, found: Callable[[str], None], interfaces: Sequence[str] = ()) -> None:
    """Look only, on all interfaces unless some are said."""
    await lan.run(hive_key, _joined(found), interfaces=interfaces)


def _joined(found: Callable[[str], None]) -> Callable[[lan.Place], None]:
    return lambda place: found(join_address(place.ip, place.port, place.node_id))
