"""Telling and looking for nodes on the local network by mDNS, through python-zeroconf.

zeroconf has threads of its own; what they find is handed to trio through its token, and whatever blocks runs in a worker
thread. Everything here is a convenience: where the network does not allow it, one line says so and nothing else happens.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio
from zeroconf import Error, InterfaceChoice, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from hivefs.formats import lan
from hivefs.model.ids import NodeId

log = logging.getLogger("hivefs.discovery")

MOST_FOUND = 256
"""Places that one process hands on; more cannot come from strangers, who do not know the hive's key."""

INFO_MS = 2000
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node of the hive says it listens: an IP address, a TCP port, and the key that it must prove."""

    ip: str
    port: int
    node_id: NodeId


async def run(
    hive_key: bytes,
    found: Callable[[Place], None],
    *,
    tell: Sequence[Place] = (),
    interfaces: Sequence[str] = (),
) -> None:
    """Until cancelled: announce the places of one node (all with its key), call ``found`` in trio for each other place.

    ``interfaces`` are IP addresses of this machine; nothing is sent anywhere else. Empty means all of them.
    """
    zeroconf: Zeroconf | None = None
    try:
        zeroconf = await trio.to_thread.run_sync(_open, tuple(interfaces))
        seeker = _Seeker(hive_key, found, {place.node_id for place in tell}, trio.lowlevel.current_trio_token())
        # Ended by close(); it must be kept alive till then.
        _browser = await trio.to_thread.run_sync(ServiceBrowser, zeroconf, lan.SERVICE, [seeker.changed])
        for info in _infos(hive_key, tell):
            await trio.to_thread.run_sync(zeroconf.register_service, info)
        await trio.sleep_forever()
    except (OSError, Error, RuntimeError) as error:
        log.warning("the local network cannot be asked for nodes: %s", str(error) or type(error).__name__)
    finally:
        if zeroconf is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def _open(interfaces: tuple[str, ...]) -> Zeroconf:
    return Zeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)


def _infos(hive_key: bytes, tell: Sequence[Place]) -> list[ServiceInfo]:
    """One service for each port."""
    made = []
    for port in sorted({place.port for place in tell}):
        places = [place for place in tell if place.port == port]
        node_id = places[0].node_id
        name = f"{node_id.hex()[:16]}-{port}"
        made.append(
            ServiceInfo(
                lan.SERVICE,
                f"{name}.{lan.SERVICE}",
                port,
                properties=lan.to_properties(hive_key, node_id),
                server=f"{name}.local.",
                addresses=[ipaddress.ip_address(place.ip).packed for place in places],
            )
        )
    return made


class _Seeker:
    """Called in zeroconf's thread."""

    def __init__(
        self, hive_key: bytes, found: Callable[[Place], None], own: set[NodeId], token: trio.lowlevel.TrioToken
    ) -> None:
        self._hive_key = hive_key
        self._found = found
        self._own = own
        self._token = token
        self._seen: set[Place] = set()

    def changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """A service came, went, or changed."""
        if state_change == ServiceStateChange.Removed:
            return
        info = zeroconf.get_service_info(service_type, name, timeout=INFO_MS)
        node_id = None if info is None else lan.node_of(info.properties, self._hive_key)
        if info is None or node_id is None or node_id in self._own or not info.port:
            return
        for ip in info.parsed_addresses()[:8]:
            place = Place(ip, info.port, node_id)
            if place in self._seen or len(self._seen) >= MOST_FOUND or "%" in ip:
                continue
            self._seen.add(place)
            try:
                self._token.run_sync_soon(self._found, place)
            except trio.RunFinishedError:
                return
