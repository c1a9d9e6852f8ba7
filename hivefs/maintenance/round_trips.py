"""How fast nodes answer, and what that refutes of where they say that they are (placement/distance.py).

Every minute each node that is online is pinged a few times; the least of the last hours counts, since everything but
distance only makes it longer. Without a place of this machine nothing is measured and nothing refuted. What was refuted is
remembered of node and country (also over a restart) until a whole window of measurements at other addresses does not refute
it, or this machine is somewhere else. At the addresses where it was refuted it stays so: a node can always be slower than
it is, and sign its addresses anew as often as it likes.

An answer through a relay took a way round, which only makes it longer: too fast for a country it refutes that as any other
does (only the node can give it, and light goes no shorter way), but it is no measurement of a window. So a node that was
refuted does not come out of that by hiding behind a relay.

Atomic between two checkpoints of trio: everything but ``_measure``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import trio

from hivefs.errors import HivefsError
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.placement.distance import KM_PER_MS, least_km, place_of, refutes
from hivefs.placement.places import Circle

log = logging.getLogger(__name__)

EVERY = 60.0
WINDOW = 6 * 3600.0
PINGS = 3
AT_A_TIME = 16
MOST_PLACES = 64
"""Sets of addresses of a node that are remembered as those where a country was refuted."""
_PLACE, _REFUTED = "place", "refuted"


class Pinged(Protocol):
    """A conversation with a node, through a relay or not."""

    @property
    def relayed(self) -> bool: ...

    async def ping(self) -> None: ...


class Store(Protocol):
    """The engine's store, as this uses it."""

    def writing(self) -> AbstractContextManager[Any]: ...
    def info(self, name: str) -> Any: ...
    def save_info(self, name: str, value: Any) -> None: ...
    def roster_entry(self, node_id: NodeId) -> RosterEntry | None: ...


class RoundTrips:
    """``online`` gives who can be pinged; ``country`` where a node is taken to be ("": not known); ``weigh`` is told of
    whom something else is to be thought now.
    """

    def __init__(
        self,
        store: Store,
        online: Callable[[], Iterable[tuple[NodeId, Pinged]]],
        country: Callable[[NodeId], str],
        weigh: Callable[[list[NodeId]], object],
    ) -> None:
        self._store = store
        self._online = online
        self._country = country
        self._weigh = weigh
        self._now: dict[tuple[NodeId, bytes], float] = {}
        self._before: dict[tuple[NodeId, bytes], float] = {}
        """Least seconds by node and set of its addresses: at others it may be elsewhere."""
        self._moved = trio.Event()
        value = store.info(_PLACE)
        self.place_text = value if isinstance(value, str) else ""
        self._place: tuple[Circle, ...] = place_of(self.place_text) if self.place_text else ()
        kept = store.info(_REFUTED)
        self._refuted: dict[tuple[NodeId, str], list[Any]] = {}
        """Of node and country: kilometres, milliseconds, at which sets of addresses."""
        if isinstance(kept, list):
            self._refuted = {(NodeId(node_id), country): said for node_id, country, *said in kept}

    def move(self, text: str) -> None:
        """This machine is somewhere else, or (empty) it is not known where. Raises BadSetting."""
        place = place_of(text) if text else ()
        with self._store.writing():
            self._store.save_info(_PLACE, text)
            self._store.save_info(_REFUTED, [])
        self._now, self._before, self._refuted = {}, {}, {}
        self._place, self.place_text = place, text
        self._moved.set()

    def refuted(self, node_id: NodeId, country: str) -> str:
        """The reason in words when that node cannot be in that country, else ""."""
        said = self._refuted.get((node_id, country.upper()))
        if said is None:
            return ""
        kilometres, milliseconds, _ = said
        return (
            f"it answers in {milliseconds:.1f} ms and light takes {2 * kilometres / KM_PER_MS:.1f} ms there and back "
            f"({kilometres} km at least from the place of this machine)"
        )

    def _addresses(self, node_id: NodeId) -> bytes:
        """The same for the same set of addresses, however often they are signed."""
        entry = self._store.roster_entry(node_id)
        told = () if entry is None else sorted(set(entry.address.reachable))
        return hashlib.sha256("\n".join(told).encode()).digest()

    def least(self, node_id: NodeId) -> float | None:
        """The least seconds in which that node answered in the last hours."""
        key = node_id, self._addresses(node_id)
        return min((times[key] for times in (self._now, self._before) if key in times), default=None)

    def measured(self, node_id: NodeId, seconds: float, relayed: bool = False) -> bool:
        """A node answered in so many seconds; whether that, or what was measured before, refutes its country."""
        addresses = self._addresses(node_id)
        key = node_id, addresses
        if not relayed:
            self._now[key] = min(seconds, self._now.get(key, seconds))
        seconds, country = min(seconds, self.least(node_id) or seconds), self._country(node_id).upper()
        self._again(node_id, addresses, seconds)
        if not country or not refutes(self._place, country, seconds) or self.refuted(node_id, country):
            return False
        kilometres = least_km(self._place, country)
        self._save({**self._refuted, (node_id, country): [int(kilometres), seconds * 1000, [addresses]]})
        return True

    def _again(self, node_id: NodeId, addresses: bytes, seconds: float) -> None:
        """What was refuted is refuted at these addresses, too."""
        more = {}
        for (of, country), (kilometres, milliseconds, where) in self._refuted.items():
            if of == node_id and addresses not in where and refutes(self._place, country, seconds):
                more[of, country] = [kilometres, milliseconds, [*where, addresses][-MOST_PLACES:]]
        if more:
            self._save({**self._refuted, **more})

    def turn(self) -> list[NodeId]:
        """A window of measurements ends; nodes of which it does not say any more what was refuted. It was a whole one
        when the window before knew the node at the same addresses.
        """
        over = []
        for (node_id, country), (_, _, where) in self._refuted.items():
            addresses = self._addresses(node_id)
            key = node_id, addresses
            if addresses in where or key not in self._now or key not in self._before:
                continue
            times = [self._before[key], *(seconds for (of, _), seconds in self._now.items() if of == node_id)]
            if not refutes(self._place, country, min(times)):
                over.append((node_id, country))
        if over:
            self._save({pair: said for pair, said in self._refuted.items() if pair not in over})
        self._before, self._now = self._now, {}
        return [node_id for node_id, _ in over]

    def forget(self, node_id: NodeId) -> None:
        """It is not known any more."""
        kept = {pair: said for pair, said in self._refuted.items() if pair[0] != node_id}
        if len(kept) != len(self._refuted):
            self._save(kept)

    def _save(self, refuted: dict[tuple[NodeId, str], list[Any]]) -> None:
        """Written first: what a full disk did not take is refuted by the next measurement."""
        rows = [[bytes(node_id), country, *said] for (node_id, country), said in refuted.items()]
        with self._store.writing():
            self._store.save_info(_REFUTED, rows)
        self._refuted = refuted

    # ---- measuring ---

    async def run(self) -> None:
        """Until cancelled."""
        turned = trio.current_time()
        while True:
            self._moved = trio.Event()
            if self._place:
                await self._measure()
                if trio.current_time() - turned > WINDOW:
                    turned = trio.current_time()
                    self._weigh(self.turn())
            with trio.move_on_after(EVERY):
                await self._moved.wait()

    async def _measure(self) -> None:
        slots = trio.CapacityLimiter(AT_A_TIME)
        async with trio.open_nursery() as nursery:
            for node_id, client in list(self._online()):
                nursery.start_soon(self._measure_one, node_id, client, slots)

    async def _measure_one(self, node_id: NodeId, client: Pinged, slots: trio.CapacityLimiter) -> None:
        async with slots:
            for _ in range(PINGS):
                begun = trio.current_time()
                try:
                    await client.ping()
                except HivefsError as error:
                    log.debug("no ping of node %s: %s", node_id.hex()[:12], error)
                    return
                if self.measured(node_id, trio.current_time() - begun, client.relayed):
                    self._weigh([node_id])
