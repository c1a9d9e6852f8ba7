"""Listening and dialling: from a TCP connection to a `Connection`.

The order on every connection is libp2p's: multistream-select for the security protocol (``/tls/1.0.0``, else ``/noise``),
the handshake that proves the peer, multistream-select for the multiplexer (only ``/yamux/1.0.0``). py-libp2p does all of
it. The library's own host and swarm stay out: they offer plaintext by default, wait 250 ms before each connect
(`libp2p/network/swarm.py:936`) and name their own Yamux (`libp2p/stream_muxer/muxer_multistream.py:143`).

Everything an unproved peer can do happens before `Connection` exists, under one deadline and one count.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.security.security_multistream import SecurityMultistream

from hivefs.errors import NodeProblem, PeerIdentityMismatch, PeerUnreachable

from .addresses import join_address, peer_id_from_key, split_address, split_listen_address
from .budget import Budget
from .channel import Channel, HandshakeProblem, WrongPeer
from .circuit import ask_for_circuit
from .circuit_messages import HOP, circuit_address
from .connection import Connection, Handler
from .identify import IDENTIFY, PING, answer_pings, identify_message
from .limits import Limits
from .lines import Lines
from .noise import PROTOCOL_ID as NOISE
from .noise import NoiseTransport
from .raw import RawSocket
from .sites import Site, crowd, site_of
from .splice import splice
from .stream import Stream
from .tls import PROTOCOL_ID as TLS
from .tls import TlsTransport

log = logging.getLogger("hivefs.transport")

YAMUX = "/yamux/1.0.0"
SECURITY = {TLS: TlsTransport, NOISE: NoiseTransport}
"""In the order in which a dialler proposes them. Both prove the same keys, so it does not matter that somebody on the way
can make two ends take the second: the choice is made in the clear."""
SHUTDOWN_SECONDS = 2.0


class Host:
    """Our end of every connection; made by `open_host`."""

    def __init__(self, seed: bytes, handlers: Mapping[str, Handler], limits: Limits, nursery: trio.Nursery) -> None:
        keypair = create_new_key_pair(seed)
        self.peer_key = bytes(keypair.public_key.to_bytes())
        self.addresses: list[str] = []
        self._announced: list[str] = []
        self._handlers = {PING: answer_pings, IDENTIFY: self._introduce, **handlers}
        self._limits = limits
        self._lines = Lines(trio.current_time)
        self._budget = Budget(limits, self._say_crowded)
        self._nursery = nursery
        self._security = SecurityMultistream({name: make(keypair) for name, make in SECURITY.items()})
        self._muxers = GenericMultistreamSelector()
        self._muxers.add_handler(YAMUX, None)
        self._negotiator = Multiselect(dict(self._handlers))
        self._connections: set[Connection] = set()
        self._inbound: dict[Connection, Site] = {}  # in the order in which they came
        self._served = 0  # those, and those that were ended and are not over
        self._half_open: dict[trio.CancelScope, Site] = {}
        self._closing = False

    # ---- dialling -------------------------------------------------------------------------------------------

    async def dial(self, address: str, *, timeout: float = 10.0) -> Connection:
        """A connection to the peer that ``address`` names, and to nobody else."""
        host, port, key = split_address(address)
        return await self._proved(partial(self._reach, host, port), address, key, timeout)

    async def dial_through(self, relay: str, key: bytes, *, timeout: float = 10.0) -> Connection:
        """A connection to the peer with this key that has a reservation at a relay (a full address). The relay sees who
        speaks with whom and how much; the peer proves itself inside, to us. Raises as `dial`.
        """
        address = circuit_address(relay, key)
        carrier = await self.dial(relay, timeout=timeout)
        try:
            stream = await carrier.open_stream(HOP)
            await ask_for_circuit(stream, key, address, timeout)
            near, far = trio.socket.socketpair()
        except OSError as error:
            carrier.drop("it is not needed")
            raise PeerUnreachable(address=address, reason=error.strerror or str(error)) from error
        except BaseException:  # cancellation too: nobody else knows of the connection; raised again
            carrier.drop("it is not needed")
            raise
        self._nursery.start_soon(self._carry, carrier, stream, trio.SocketStream(far))

        try:
            return await self._proved(partial(self._secure, trio.SocketStream(near)), address, key, timeout)
        except BaseException:  # also when it was not used; raised again
            near.close()
            raise

    async def _carry(self, carrier: Connection, stream: Stream, far: trio.SocketStream) -> None:
        """Until the connection inside, the circuit or the connection to the relay ends; then the others end too."""
        try:
            await splice(stream, far)
        finally:
            far.socket.close()
            carrier.drop("the circuit is over")

    async def _proved(
        self, reach: Callable[[ID], Awaitable[Channel]], address: str, key: bytes, timeout: float
    ) -> Connection:
        if self._closing:
            raise PeerUnreachable(address=address, reason="this side is closing")
        try:
            with trio.fail_after(timeout):
                channel = await reach(ID.from_base58(peer_id_from_key(key)))
        except trio.TooSlowError:
            raise PeerUnreachable(address=address, reason=f"no answer within {timeout:g} s") from None
        except WrongPeer as error:
            raise PeerIdentityMismatch(
                address=address, expected=peer_id_from_key(key), found=peer_id_from_key(error.found)
            ) from None
        except OSError as error:
            raise PeerUnreachable(address=address, reason=error.strerror or str(error)) from error
        except Exception as error:  # the library raises a dozen types here; all mean the same to callers
            raise PeerUnreachable(address=address, reason=f"the handshake failed: {_reason(error)}") from error
        if self._nursery.cancel_scope.cancel_called:
            channel.abort()
            raise PeerUnreachable(address=address, reason="this side is closing")
        connection = self._connection(channel, address)
        await self._nursery.start(self._serve, connection)
        return connection

    async def _reach(self, host: str, port: int, peer_id: ID) -> Channel:
        return await self._secure(await _connect(host, port), peer_id)

    async def _secure(self, stream: trio.SocketStream, peer_id: ID) -> Channel:
        raw = RawSocket(stream, is_initiator=True)
        try:
            channel: Channel = await self._security.secure_outbound(raw, peer_id)
            await self._muxers.select(channel, True)
        except BaseException:  # cancellation too: the socket must not leak; raised again
            raw.abort()
            raise
        return channel

    def connection_of(self, stream: Stream) -> Connection | None:
        """The connection on which a stream came, if it is open yet."""
        return next((one for one in self._connections if stream.is_on(one)), None)

    # ---- listening ------------------------------------------------------------------------------------------

    async def _listen(self, addresses: Sequence[str]) -> list[trio.SocketListener]:
        listeners: list[trio.SocketListener] = []
        try:
            for address in addresses:
                _, host, port = split_listen_address(address)
                try:
                    opened = await trio.open_tcp_listeners(port, host=host)
                except OSError as error:
                    reason = error.strerror or str(error)
                    if error.errno == errno.EADDRINUSE:
                        reason = f"port {port} is already in use; another node may be running"
                    raise NodeProblem(path=address, reason=reason) from error
                listeners += opened
                for listener in opened:
                    name = listener.socket.getsockname()
                    self.addresses.append(join_address(str(name[0]), int(name[1]), self.peer_key))
        except BaseException:  # cancellation too: no socket may stay that nobody serves; raised again
            for listener in listeners:
                listener.socket.close()
            raise
        return listeners

    async def _answer(self, stream: trio.SocketStream) -> None:
        try:
            raw = RawSocket(stream, is_initiator=False)
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        ip = raw.remote_host
        channel = None
        try:
            channel = await self._admit(raw, ip)
        finally:
            if channel is None:
                raw.abort()
        if channel is None:
            return
        site = site_of(ip)
        if not self._place_for(site):
            self._lines.say("too many connections", f"one from {ip} was refused", logging.INFO)
            channel.abort()
            return
        connection = self._connection(channel, join_address(ip, raw.remote_port, channel.peer_key))
        self._inbound[connection] = site
        self._served += 1
        try:
            await self._serve(connection)
        finally:
            self._inbound.pop(connection, None)
            self._served -= 1

    def _place_for(self, site: Site) -> bool:
        """Whether there is room for one more connection from there, made if need be: in a network that is full the fullest
        place loses one, so that two addresses in it do not keep out all the others. What was ended may take some seconds
        to be over, so an eighth more than the bound may be there for a moment.
        """
        limits = self._limits
        places = Counter(self._inbound.values())
        networks = Counter(other.network for other in self._inbound.values())
        if places[site] >= limits.max_connections_per_ip:
            return False
        if self._served >= limits.max_connections + max(1, limits.max_connections // 8):
            return False
        full = networks[site.network] >= limits.max_connections_per_network
        if len(self._inbound) < limits.max_connections and not full:
            return True
        if full or max(networks.values()) <= networks[site.network] + 1:
            crowded = crowd({one: other for one, other in self._inbound.items() if other.network == site.network})
            if not crowded or places[self._inbound[crowded[0]]] <= places[site] + 1:
                return False
        else:
            crowded = crowd(self._inbound)
        victim = next((one for one in crowded if not one.asked), crowded[0])
        del self._inbound[victim]
        victim.drop("others need its place")
        self._lines.say("too many connections", f"one from {victim.remote[0]} was ended", logging.INFO)
        return True

    async def _admit(self, raw: RawSocket, ip: str) -> Channel | None:
        """The handshake of an inbound connection; None when it fails, is too slow or is pushed out by others."""
        if len(self._half_open) >= self._limits.max_half_open:
            oldest = crowd(self._half_open)[0]
            place = self._half_open.pop(oldest).place
            oldest.cancel()
            self._lines.say("too many half-open connections", f"the oldest from {place} was closed", logging.INFO)
        with trio.move_on_after(self._limits.handshake_timeout) as scope:
            self._half_open[scope] = site_of(ip)
            try:
                channel: Channel = await self._security.secure_inbound(raw)
                await self._muxers.select(channel, False)
                return channel
            except Exception as error:  # noqa: BLE001 - nothing a stranger sends may reach further than this
                log.debug("the handshake with %s failed: %s", ip, _reason(error))
            finally:
                there = self._half_open.pop(scope, None)
        if scope.cancelled_caught and there is not None:  # not pushed out
            self._lines.say("slow handshake", f"a connection from {ip} was closed", logging.INFO)
        return None

    def _say_crowded(self) -> None:
        self._lines.say("too many streams", "the oldest of the connection that has most was reset", logging.INFO)

    def announce(self, addresses: Sequence[str]) -> None:
        """Where others shall dial us: told to whoever asks (identify). Until this is called they are told of no address,
        since `addresses` may be of an inner network."""
        self._announced = list(addresses)

    async def _introduce(self, stream: Stream) -> None:
        await stream.send_all(identify_message(self.peer_key, self._announced, self._handlers, stream.remote))

    # ---- both -----------------------------------------------------------------------------------------------

    def _connection(self, channel: Channel, address: str) -> Connection:
        return Connection(
            channel,
            address=address,
            limits=self._limits,
            budget=self._budget,
            negotiator=self._negotiator,
            lines=self._lines,
        )

    async def _serve(self, connection: Connection, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self._connections.add(connection)
        try:
            await connection.run(task_status)
        finally:
            self._connections.discard(connection)

    async def _shut_down(self) -> None:
        """Close every connection politely, all at the same time; then everything else ends."""
        self._closing = True
        with trio.CancelScope(shield=True), trio.move_on_after(SHUTDOWN_SECONDS):
            async with trio.open_nursery() as nursery:
                for connection in self._connections:
                    nursery.start_soon(connection.aclose)
        self._nursery.cancel_scope.cancel()


async def _connect(host: str, port: int) -> trio.SocketStream:
    """TCP to the first address that answers. /dns4 means IPv4, so there is no race of families and no wait for it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    for *_, where in await trio.socket.getaddrinfo(host, port, family, socket.SOCK_STREAM):
        candidate = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await candidate.connect(where)
            return trio.SocketStream(candidate)
        except OSError as error:
            candidate.close()
            failure = error
        except BaseException:  # cancellation: the socket is nobody's yet; raised again
            candidate.close()
            raise
    raise failure


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, HandshakeProblem):
        error = error.__cause__
    return str(error) or type(error).__name__


@asynccontextmanager
async def open_host(
    seed: bytes,
    *,
    listen: Sequence[str] = (),
    handlers: Mapping[str, Handler] = {},
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> AsyncIterator[Host]:
    """A host with the identity of a 32-byte Ed25519 seed, for as long as the block runs.

    An error of the block leaves it as it is, not inside an exception group; the host's own tasks raise nothing.
    """
    if len(seed) != 32:
        raise ValueError("a seed has 32 bytes")
    # py-libp2p logs every dropped connection, some of them with a traceback.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        host = Host(seed, handlers, limits, nursery)
        try:
            listeners = await host._listen(listen)
            if listeners:
                nursery.start_soon(trio.serve_listeners, host._answer, listeners)
            yield host
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
            failure = error
        finally:
            await host._shut_down()
    if failure is not None:
        raise failure
