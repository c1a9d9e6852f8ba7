"""One connection: the tasks around a channel (TLS or Noise) and a Yamux session.

Three tasks live as long as the connection. The *reader* moves bytes from the socket through the channel into the session.
The *writer* gives the socket what senders left behind: they try themselves when they have much or when nothing was sent
just before, and leave the rest to the writer's next turn, by which time many small messages share one sealed record and
one system call. The *keepalive* asks after a silence and gives the peer up when nothing comes.

`_lose` is the only way a connection ends. It does not wait: it tells every stream the reason, closes the socket and
cancels the three tasks. Handlers learn of it from their streams and are cancelled a few seconds later.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

from hivefs.errors import ConnectionLost, HivefsError, PeerTimeout, Refused

from .addresses import peer_id_from_key
from .budget import Budget
from .channel import READ_SIZE, SLICE, Channel
from .frames import MAX_FRAME, ProtocolViolation
from .limits import Limits
from .lines import Lines
from .mux_stream import MuxStream
from .stream import HIGH_WATER, Stream
from .yamux import Session

log = logging.getLogger("hivefs.transport")

Handler = Callable[[Stream], Awaitable[None]]

MOST_BACKLOG = HIGH_WATER + MAX_FRAME + 256 * 1024
"""Senders stop at the high-water mark plus one frame; the rest is answers to pings of a peer that does not read."""
CLOSE_GRACE = 1.0
HANDLER_GRACE = 5.0
COLLECT_SECONDS = 0.00006
"""Below any round trip, above the time between two sends of the same turn."""
SELF_FROZEN = 1.0
"""A deadline that fires so many seconds late means that it was us who stood still."""


class Connection:
    """A proved and encrypted connection to one peer."""

    def __init__(
        self,
        channel: Channel,
        *,
        address: str,
        limits: Limits,
        budget: Budget,
        negotiator: Multiselect,
        lines: Lines,
    ) -> None:
        self.peer_key = channel.peer_key
        self.address = address
        self.peer_id = peer_id_from_key(channel.peer_key)
        self.remote = (channel.raw.remote_host, channel.raw.remote_port)
        self.security = channel.security
        self._channel = channel
        self._limits = limits
        self._negotiator = negotiator
        self._lines = lines
        self._session = Session(
            initiator=channel.is_initiator,
            peer=self.peer_id,
            limits=limits,
            budget=budget,
            clock=trio.current_time,
            put=self._put,
            accept=self._accept,
            pong=self._pong,
        )
        self._tasks: trio.Nursery | None = None
        self._handler_tasks: trio.Nursery | None = None
        self._lost = trio.Event()
        self._leaving = False
        self._writer_idle = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._pong_came = trio.lowlevel.ParkingLot()
        self._kernel_full = self._in_doubt = False
        self._heard = self._moved = trio.current_time()
        self._flushed = 0.0
        self._reads = 0
        self._pinged = 0.0
        self._ping_number = 0

    # ---- what others call -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing works any more on this connection."""
        return self._lost.is_set()

    @property
    def asked(self) -> bool:
        """Whether the other end has a stream open here."""
        return self._session.inbound > 0

    def drop(self, reason: str) -> None:
        """End it now, without waiting for the other end."""
        self._lose(ConnectionLost(peer=self.peer_id, reason=reason))

    async def wait_closed(self) -> None:
        """Wait until the connection is closed, by whomever."""
        await self._lost.wait()

    async def open_stream(self, protocol: str) -> Stream:
        """A new stream on which the other end runs ``protocol``; Refused when it does not know it."""
        stream = Stream(self, self._session.open())
        try:
            with trio.fail_after(self._limits.handshake_timeout):
                client, wire = MultiselectClient(), MultiselectCommunicator(stream)
                await client.handshake(wire)
                await client.try_select(wire, protocol)
        except BaseException as error:  # cancellation too: the other end must not wait for us; raised again, translated
            await self._give_up(stream)
            if isinstance(error, trio.TooSlowError):
                raise self._too_slow("to a new stream", self._limits.handshake_timeout) from None
            if isinstance(error, ProtocolNotSupportedError):
                raise Refused(peer=self.peer_id, reason=f"it does not speak {protocol}") from None
            if isinstance(error, (BaseLibp2pError, ValueError)):
                raise ConnectionLost(peer=self.peer_id, reason="it does not negotiate as it should") from error
            raise
        return stream

    async def aclose(self) -> None:
        """Send what was accepted, say goodbye and close; at most a second or so."""
        if self._leaving or self.closed:
            await trio.lowlevel.checkpoint()
            return
        self._leaving = True
        gone = ConnectionLost(peer=self.peer_id, reason="it was closed on this side")
        try:
            self._session.go_away()
            self._session.fail(gone)
            self._channel.say_goodbye()
            with trio.move_on_after(CLOSE_GRACE):
                self.push()
                while self._channel.backlog and not self.closed:
                    await self._room.park()
                # Closing with unread bytes in the kernel would destroy what we sent last, so let the peer go first.
                self._channel.raw.end_writing()
                await self._lost.wait()
        finally:
            self._lose(gone)

    # ---- what streams and the session call ------------------------------------------------------------------

    def push(self) -> None:
        """Something was put. Much is sent now, and so is a little after a silence; more little things that follow
        at once wait for the writer's next turn, which takes all of them together."""
        backlog = self._channel.backlog
        if not backlog or self._kernel_full:
            return
        now = trio.current_time()
        if backlog >= SLICE or now - self._flushed > COLLECT_SECONDS:
            self._flushed = now
            self._flush()
        if self._writer_idle and self._channel.backlog:
            self._writer_idle.unpark()

    def accepted(self) -> int:
        """A count that grows with every byte put, about one for each."""
        return self._channel.flushed + self._channel.backlog

    def departed(self) -> int:
        """As far as the same count has left this machine."""
        return self._channel.flushed - self._channel.raw.unsent()

    async def room(self) -> None:
        """Wait until the backlog is below the high-water mark."""
        while self._channel.backlog > HIGH_WATER:
            await self._room.park()

    def _put(self, head: bytes, body: bytes | memoryview = b"") -> None:
        if self._leaving or self.closed:
            return
        self._channel.put(head, body)
        if self._channel.backlog > MOST_BACKLOG:
            self._lose(ConnectionLost(peer=self.peer_id, reason="it asks for answers and does not read them"))

    def _accept(self, mux: MuxStream) -> None:
        if self._handler_tasks is not None:  # always: the reader runs inside it
            self._handler_tasks.start_soon(self._handle, mux)

    def _pong(self, number: int) -> None:
        if number == self._ping_number:
            self._session.round_trip = trio.current_time() - self._pinged
        self._pong_came.unpark_all()

    # ---- the tasks ------------------------------------------------------------------------------------------

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the connection until it is lost. Raises nothing but Cancelled."""
        try:
            async with trio.open_nursery() as handler_tasks:
                self._handler_tasks = handler_tasks
                async with trio.open_nursery() as tasks:
                    self._tasks = tasks
                    for task in (self._read, self._write, self._keep_alive):
                        tasks.start_soon(self._guard, task)
                    task_status.started()
                handler_tasks.cancel_scope.deadline = trio.current_time() + HANDLER_GRACE
        finally:
            self._lose(ConnectionLost(peer=self.peer_id, reason="it was closed on this side"))
            self._session.settle()

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        """Turn what ends a task into the reason why the connection is lost."""
        try:
            await task()
        except ProtocolViolation as error:
            self._lines.say("protocol violation", f"closing the connection to {self.peer_id}: {error}")
            self._lose(ConnectionLost(peer=self.peer_id, reason=str(error)))
        except (OSError, trio.ClosedResourceError) as error:
            self._lose(self._broken(error))
        except Exception as error:  # noqa: BLE001 - a mistake of ours must cost this connection, not the host
            text = f"closing the connection to {self.peer_id}: {type(error).__name__}"
            self._lines.say("internal error", text, logging.ERROR, traceback=True)
            self._lose(ConnectionLost(peer=self.peer_id, reason=f"of an internal error ({type(error).__name__})"))

    async def _read(self) -> None:
        channel, receive = self._channel, self._session.receive
        if not channel.open_buffered(receive):
            self._lose(ConnectionLost(peer=self.peer_id, reason="the other end closed it"))
            return
        while True:
            got = channel.fill(receive)
            if got:
                self._reads += 1
                self._heard = trio.current_time()
            elif got == 0:
                self._lose(ConnectionLost(peer=self.peer_id, reason="the other end closed it"))
                return
            self.push()
            if got == READ_SIZE:
                await trio.lowlevel.checkpoint()
            else:
                channel.raw.wake_at(1 if self._in_doubt else channel.missing)
                await channel.raw.readable()

    async def _write(self) -> None:
        channel = self._channel
        while True:
            channel.flush()
            if channel.backlog:
                self._kernel_full = True
                await channel.raw.writable()
                self._kernel_full = False
                self._moved = trio.current_time()
            if self._room and channel.backlog <= HIGH_WATER:
                self._room.unpark_all()
            if not channel.backlog:
                await self._writer_idle.park()

    async def _keep_alive(self) -> None:
        interval, patience = self._limits.keepalive_interval, self._limits.keepalive_timeout
        # The first ping only measures the round trip: windows grow by it, and nothing is in its way yet.
        self._ask()
        while True:
            await trio.sleep_until(self._heard + interval)
            now = trio.current_time()
            self._session.sweep(now)
            if self._heard + interval > now:
                continue
            # Any byte is a sign of life, half a record too.
            self._in_doubt = True
            self._channel.raw.wake_at(1)
            before, self._moved = self._reads, now
            self._ask()
            while self._reads == before:
                # A kernel buffer that was full and drains is a sign of life too: on a slow line the ping may stand
                # behind megabytes. (A frozen peer's buffer is full within seconds and then stays so.)
                due = self._moved + patience
                with trio.move_on_at(due):
                    await self._pong_came.park()
                if self._reads == before and due == self._moved + patience:
                    now = trio.current_time()
                    if now < due + SELF_FROZEN:
                        self._lose(self._too_slow("a keepalive", patience))
                        return
                    self._moved = now
            self._in_doubt = False

    def _ask(self) -> None:
        self._ping_number = (self._ping_number + 1) & 0xFFFFFFFF
        self._pinged = trio.current_time()
        self._session.ping(self._ping_number)
        self.push()

    async def _handle(self, mux: MuxStream) -> None:
        stream = Stream(self, mux)
        protocol = None
        try:
            try:
                with trio.fail_after(self._limits.handshake_timeout):
                    protocol, handler = await self._negotiator.negotiate(
                        MultiselectCommunicator(stream), self._limits.handshake_timeout
                    )
            except (BaseLibp2pError, ValueError, trio.TooSlowError):
                await stream.reset()
                return
            await handler(stream)
            await stream.aclose()
        except (ConnectionLost, PeerTimeout) as error:
            log.debug("the handler of %s stopped: %s", protocol, error)
            await self._give_up(stream)
        except Exception as error:  # noqa: BLE001 - whatever a handler does wrong stays inside its stream
            text = f"the handler of {protocol} failed for {self.peer_id}: {type(error).__name__}: {error}"
            self._lines.say("handler failed", text)
            await self._give_up(stream)
        except BaseException:  # cancellation: the other end must not wait for us; raised again
            await self._give_up(stream)
            raise
        finally:
            mux.handled()

    async def _give_up(self, stream: Stream) -> None:
        with trio.CancelScope(shield=True):
            await stream.reset()

    # ---- the end --------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except OSError as error:
            self._lose(self._broken(error))

    def _lose(self, failure: HivefsError) -> None:
        if self._lost.is_set():
            return
        self._lost.set()
        self._session.fail(failure)
        self._channel.abort()
        self._room.unpark_all()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def _broken(self, error: BaseException) -> ConnectionLost:
        if isinstance(error, ssl.SSLError):
            reason = f"TLS failed ({error.reason or 'end of file'})"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        else:
            reason = "it was closed on this side"
        return ConnectionLost(peer=self.peer_id, reason=reason)

    def _too_slow(self, what: str, seconds: float) -> PeerTimeout:
        return PeerTimeout(peer=self.peer_id, what=what, seconds=f"{seconds:g}")
