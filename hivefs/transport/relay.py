"""A relay (circuit relay v2) for nodes that nobody reaches, over this transport and within its limits.

Who may reserve is asked of ``may_reserve``: the nodes of one hive. Who may be connected to one of them is not limited to
members: the relay cannot know them all, and the node asks each for its membership inside. So a stranger can have circuits
here, as many as one place on the net may have (sites.py), and hold them until others need the room.

What is bounded: reservations, circuits in all, for one node and from one place, bytes and seconds of a circuit, and its
silence. Where circuits or reservations are too many, one from the place that has most of them makes room for somebody from
elsewhere. A reservation lasts as long as the connection on which it was made, at most ``ttl`` seconds without renewal.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from hivefs.errors import HivefsError

from . import circuit_messages
from .addresses import binary_peer_id, peer_id_from_key
from .circuit_messages import STOP, BadMessage, Hop, Message, Status, Stop
from .connection import Connection
from .host import Host
from .lines import Lines
from .sites import Site, crowd
from .splice import Limit, splice
from .stream import Stream

log = logging.getLogger("hivefs.transport")

ASK_SECONDS: Final = 10.0
"""For the message of who comes, and for the answer of the node it wants."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a relay gives. ``nodes`` reservations; circuits at once in all, to one node and from one IPv4 address or IPv6
    /64; bytes and seconds of one circuit, both directions together; ``idle`` and ``ttl`` in seconds.
    """

    nodes: int = 32
    circuits: int = 128
    circuits_of_node: int = 32
    circuits_of_place: int = 32
    circuit_bytes: int = 64 << 30
    circuit_seconds: int = 86_400
    idle: float = 60.0
    ttl: int = 3600


@dataclass(slots=True)
class _Reservation:
    connection: Connection
    until: float
    site: Site


class Relay:
    """``host`` is set before the first peer comes; ``serve`` is the handler of HOP on it. ``may_reserve`` hears the key
    that a peer has proved.
    """

    def __init__(self, may_reserve: Callable[[bytes], Awaitable[bool]], bounds: Bounds = Bounds()) -> None:
        self.host: Host | None = None
        self._may_reserve = may_reserve
        self._bounds = bounds
        self._lines = Lines(trio.current_time)
        self._reserved: dict[bytes, _Reservation] = {}
        self._circuits: dict[trio.CancelScope, tuple[bytes, Site]] = {}  # in the order in which they came

    @property
    def nodes(self) -> list[bytes]:
        """Keys of those who have a reservation now."""
        now = trio.current_time()
        gone = [key for key, one in self._reserved.items() if one.connection.closed or one.until <= now]
        for key in gone:
            del self._reserved[key]
        return list(self._reserved)

    @property
    def circuits(self) -> int:
        """Circuits that are open or being opened."""
        return len(self._circuits)

    async def serve(self, stream: Stream) -> None:
        """One request of one peer."""
        try:
            with trio.fail_after(ASK_SECONDS):
                asked = await circuit_messages.receive(stream, hop=True)
        except (BadMessage, trio.TooSlowError):
            await _say(stream, Status.MALFORMED_MESSAGE)
            return
        if asked.kind == Hop.RESERVE:
            await self._reserve(stream)
        elif asked.kind == Hop.CONNECT:
            await self._connect(stream, asked.peer)
        else:
            await _say(stream, Status.UNEXPECTED_MESSAGE)

    async def _reserve(self, stream: Stream) -> None:
        key, bounds = stream.peer_key, self._bounds
        if not await self._may_reserve(key):
            self._lines.say("no reservation", f"{peer_id_from_key(key)} is no node of this hive", logging.INFO)
            await _say(stream, Status.PERMISSION_DENIED)
            return
        connection = None if self.host is None else self.host.connection_of(stream)
        if connection is None:
            return
        if key not in self.nodes and not self._room_for_node(stream.site):
            self._lines.say("relay", f"{peer_id_from_key(key)} is refused: {bounds.nodes} nodes have reserved")
            await _say(stream, Status.RESERVATION_REFUSED)
            return
        if key not in self._reserved:
            self._lines.say("reserved", f"{peer_id_from_key(key)} is reached through this relay", logging.INFO)
        self._reserved[key] = _Reservation(connection, trio.current_time() + bounds.ttl, stream.site)
        answer = Message(
            Hop.STATUS,
            expire=int(time.time()) + bounds.ttl,
            duration=bounds.circuit_seconds,
            data=bounds.circuit_bytes,
            status=Status.OK,
        )
        await circuit_messages.send(stream, answer, hop=True)

    def _room_for_node(self, site: Site) -> bool:
        """Whether there is room for one more reservation from there, made if need be: keys of nodes cost whoever may invite
        them nothing, places do. Who loses his is cut off, so that he does not go on telling others of this relay.
        """
        if len(self._reserved) < self._bounds.nodes:
            return True
        held = {key: one.site for key, one in self._reserved.items()}
        victim = next(iter(crowd(held)), None)
        places = Counter(held.values())
        if victim is None or places[held[victim]] <= places[site] + 1:
            return False
        gone = self._reserved.pop(victim)
        self._lines.say("relay", f"{peer_id_from_key(victim)} made room for a node from elsewhere", logging.INFO)
        gone.connection.drop("its reservation made room for a node from elsewhere")
        return True

    async def _connect(self, stream: Stream, peer: bytes) -> None:
        try:
            key = circuit_messages.key_of(peer)
        except BadMessage:
            await _say(stream, Status.MALFORMED_MESSAGE)
            return
        if key not in self.nodes:
            await _say(stream, Status.NO_RESERVATION)
            return
        site = stream.site
        if not self._place_for(key, site):
            self._lines.say(
                "relay", f"a circuit from {site.place} to {peer_id_from_key(key)} is one too many", logging.INFO
            )
            await _say(stream, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        with trio.CancelScope() as scope:
            self._circuits[scope] = key, site
            try:
                await self._circuit(stream, key, self._reserved[key].connection)
            finally:
                self._circuits.pop(scope, None)
        if scope.cancelled_caught:
            await stream.reset()

    def _place_for(self, key: bytes, site: Site) -> bool:
        """Whether there is room for one more circuit from there to that node, made if need be."""
        bounds = self._bounds
        if sum(1 for _, other in self._circuits.values() if other.place == site.place) >= bounds.circuits_of_place:
            return False
        rivals = {scope: other for scope, (to, other) in self._circuits.items() if to == key}
        if len(rivals) < bounds.circuits_of_node:
            if len(self._circuits) < bounds.circuits:
                return True
            rivals = {scope: other for scope, (_, other) in self._circuits.items()}
        victim = crowd(rivals)[0]
        places = Counter(rivals.values())
        if places[rivals[victim]] <= places[site] + 1:
            return False
        del self._circuits[victim]
        victim.cancel()
        self._lines.say("relay", f"a circuit from {rivals[victim].place} made room for others", logging.INFO)
        return True

    async def _circuit(self, stream: Stream, key: bytes, connection: Connection) -> None:
        far: Stream | None = None
        answer: Message | None = None
        clean = False
        try:
            try:
                with trio.fail_after(ASK_SECONDS):
                    far = await connection.open_stream(STOP)
                    wanted = Message(Stop.CONNECT, binary_peer_id(stream.peer_key), 0, *self._limits())
                    await circuit_messages.send(far, wanted, hop=False)
                    answer = await circuit_messages.receive(far, hop=False)
            except (HivefsError, BadMessage, trio.TooSlowError) as error:
                log.debug("relay: no circuit to %s: %s", peer_id_from_key(key), error)
            if far is None or answer is None or answer.kind != Stop.STATUS or answer.status != Status.OK:
                await _say(stream, Status.CONNECTION_FAILED)
                return
            duration, data = self._limits()
            done = Message(Hop.STATUS, duration=duration, data=data, status=Status.OK)
            await circuit_messages.send(stream, done, hop=True)
            clean = await self._pass_on(stream, far)
            if not clean:
                await stream.reset()
        finally:
            if far is not None:
                with trio.CancelScope(shield=True):
                    await (far.aclose() if clean else far.reset())

    def _limits(self) -> tuple[int, int]:
        return self._bounds.circuit_seconds, self._bounds.circuit_bytes

    async def _pass_on(self, one: Stream, other: Stream) -> bool:
        """Until it ends, or one of the limits of a circuit does."""
        bounds, left = self._bounds, self._bounds.circuit_bytes
        end = trio.current_time() + bounds.circuit_seconds
        with trio.CancelScope() as scope:

            def count(size: int) -> None:
                nonlocal left
                left -= size
                scope.deadline = min(end, trio.current_time() + bounds.idle)
                if left < 0:
                    raise Limit

            count(0)
            return await splice(one, other, count)
        return False


async def _say(stream: Stream, status: Status) -> None:
    await circuit_messages.send(stream, Message(Hop.STATUS, status=status), hop=True)
