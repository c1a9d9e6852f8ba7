"""Yamux 1.0.0 as a function of bytes: no socket, no task, no clock of its own.

`Session` is one end of a connection. Frames that come in go to `Session.receive`; frames that go out are handed to the
``put`` function given at construction, in order. Both ends can therefore be joined by a function call in a test.

    what          who sends it          meaning here
    DATA          either                bytes of one stream, at most what the receiver's window allows
    WINDOW_UPDATE either                the sender of this frame takes so many more bytes
    PING          either                SYN asks, ACK answers with the same number
    GO_AWAY       either                no new streams, please
    flags         on DATA and UPDATE    SYN opens, ACK accepts, FIN ends one direction, RST kills both

How memory stays bounded. A peer may send INITIAL_WINDOW bytes on every stream it opens without asking, so streams are
counted. Beyond that it may only send what was granted: a stream's window grows (doubling, up to a limit) when its
reader empties half of it within a few round trips, as long as the connection's fund of lendable bytes lasts. Bytes
received and not read are counted for the connection, and the stream that passes the bound is reset. Tiny frames are
merged, so that a window of one-byte frames does not become a window of Python objects.

A paused reader only stops its own stream: its window runs dry and the other end waits, for as long as it takes.

Why not py-libp2p's Yamux: `libp2p/stream_muxer/yamux/yamux.py` logs, locks and copies for each frame, polls every
10 ms when a window is empty and resets the stream after 5 s of that (lines 285-288), and ignores unanswered pings.
"""

from __future__ import annotations

from collections.abc import Callable

from hivefs.errors import ConnectionLost, HivefsError

from .budget import Budget
from .frames import ACK, DRAIN_SECONDS, FIN, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_UPDATE, ProtocolViolation
from .limits import Limits
from .mux_stream import MuxStream, fresh


class Session:
    """One end of a multiplexed connection; see the head of this module."""

    def __init__(
        self,
        *,
        initiator: bool,
        peer: str,
        limits: Limits,
        clock: Callable[[], float],
        put: Callable[..., None],
        accept: Callable[[MuxStream], None],
        budget: Budget | None = None,
        pong: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.peer = peer
        self.limits = limits
        self.clock = clock
        self.put = put
        self.buffered = 0
        self.round_trip = 0.0
        self.failure: HivefsError | None = None
        self.peer_went_away = False
        self._accept = accept
        self._pong = pong
        self._budget = budget or Budget(limits)
        self._draining: dict[int, float] = {}
        self._streams: dict[int, MuxStream] = {}
        self._inbound: dict[MuxStream, None] = {}  # in the order in which they came
        self._settled = False
        self._next = 1 if initiator else 2
        self._fund = limits.max_buffered_bytes // 2
        self._header = bytearray()
        self._body_left = 0
        self._body_stream: MuxStream | None = None
        self._body_flags = 0

    def open(self) -> MuxStream:
        """A new stream of ours."""
        if self.failure is not None:
            raise fresh(self.failure)
        if self.peer_went_away:
            raise ConnectionLost(peer=self.peer, reason="the other end takes no new streams")
        if self._next > 0xFFFFFFFF:
            raise ConnectionLost(peer=self.peer, reason="the connection has used up its stream numbers")
        stream = self._streams[self._next] = MuxStream(self, self._next, inbound=False)
        self._next += 2
        self.put(HEADER.pack(0, WINDOW_UPDATE, SYN, stream.number, 0))
        return stream

    def ping(self, number: int) -> None:
        """Ask for a sign of life; the answer comes to ``pong``."""
        self.put(HEADER.pack(0, PING, SYN, 0, number))

    def go_away(self) -> None:
        """Tell the other end that we are leaving."""
        self.put(HEADER.pack(0, GO_AWAY, 0, 0, 0))

    def fail(self, failure: HivefsError) -> None:
        """The connection is gone: every stream learns why. What was received can still be read."""
        if self.failure is None:
            self.failure = failure
            for stream in list(self._streams.values()):
                stream.fail(failure, keep_buffer=True)

    def settle(self) -> None:
        """The connection's tasks and handlers are over; what is still unread belongs to the readers of our streams."""
        if not self._settled:
            self._settled = True
            self._budget.leave(self)

    def evict(self) -> None:
        """The host is out of room and this session holds most of it."""
        for stream in {*self._streams.values(), *self._inbound}:
            if stream.buffered:
                stream.reset("more unread bytes than one peer may leave with us")

    @property
    def inbound(self) -> int:
        """Streams that the other end opened, with those whose handler is not done yet."""
        return len(self._inbound)

    def drop_oldest(self) -> bool:
        """The host is out of room for streams and this session has most of them: reset its oldest."""
        for stream in self._inbound:
            if stream.number in self._streams:
                stream.reset("more streams than there is room for")
                return True
        return False

    def sweep(self, now: float) -> None:
        """Reset streams that we closed long ago and the other end never did."""
        for number, since in list(self._draining.items()):
            stream = self._streams.get(number)
            if stream is None:
                del self._draining[number]
            elif now - since > DRAIN_SECONDS:
                stream.reset("closed on this side")

    # ---- what streams call (see mux_stream.Trunk) ----------------------------------------------------------------

    def lend(self, wanted: int) -> int:
        """Window beyond the initial one: as much as wanted, or nothing."""
        if wanted > self._fund or 2 * wanted > self.limits.max_stream_window:
            return 0
        self._fund -= wanted
        return wanted

    def stored(self, size: int) -> bool:
        """Account for bytes to be buffered (negative: given up again); False when there is no room for them."""
        if size > 0 and self.buffered + size > self.limits.max_buffered_bytes:
            return False
        self.buffered += size
        if not self._settled:
            self._budget.stored(self, size)
        return True

    def closed(self, number: int) -> None:
        """We closed this stream and wait for the other end to do so."""
        self._draining[number] = self.clock()

    def forget(self, number: int, lent: int) -> None:
        """The stream leaves the table and returns the window it was lent."""
        self._streams.pop(number, None)
        self._draining.pop(number, None)
        self._fund += lent

    def free_slot(self, stream: MuxStream) -> None:
        """An inbound stream is over, its handler too."""
        self._inbound.pop(stream, None)
        self._budget.streams -= 1

    # ---- incoming bytes -------------------------------------------------------------------------------------

    def receive(self, view: memoryview) -> None:
        """Take any number of bytes off the wire; ``view`` is not kept."""
        if self.failure is not None:
            return
        position, end = 0, len(view)
        while position < end and self.failure is None:
            if self._body_left:
                size = min(self._body_left, end - position)
                if self._body_stream is not None:
                    self._body_stream.deliver(view[position : position + size])
                position += size
                self._body_left -= size
                if not self._body_left and self._body_flags:
                    self._flags(self._body_stream, self._body_flags)
                continue
            if self._header or end - position < HEADER.size:
                missing = HEADER.size - len(self._header)
                self._header += view[position : position + missing]
                position += missing
                if len(self._header) < HEADER.size:
                    return
                fields = HEADER.unpack(self._header)
                self._header.clear()
            else:
                fields = HEADER.unpack_from(view, position)
                position += HEADER.size
            self._frame(*fields)

    def _frame(self, version: int, kind: int, flags: int, number: int, length: int) -> None:
        if version or kind > GO_AWAY:
            raise ProtocolViolation("it sent something that is no frame")
        if kind == PING:
            if flags & SYN:
                self.put(HEADER.pack(0, PING, ACK, 0, length))
            elif flags & ACK:
                self._pong(length)
            return
        if kind == GO_AWAY:
            self.peer_went_away = True
            return
        stream = self._syn(number) if flags & SYN else self._streams.get(number)
        if kind == WINDOW_UPDATE:
            if stream is not None and length:
                stream.grown(length)
            self._flags(stream, flags)
            return
        if stream is None:
            # Data of a stream that we reset a moment ago; nobody may send more than a window of it in one frame.
            if length > self.limits.max_stream_window:
                raise ProtocolViolation(f"it announced {length} bytes for a stream that is not open")
        elif not stream.expect(length):
            stream = None
        if length:
            self._body_left, self._body_stream, self._body_flags = length, stream, flags & (FIN | RST)
        else:
            self._flags(stream, flags)

    def _syn(self, number: int) -> MuxStream | None:
        if number == 0 or number % 2 == self._next % 2 or number in self._streams:
            raise ProtocolViolation(f"it opened a stream with the number {number}")
        if len(self._inbound) >= self.limits.max_streams or not self._budget.admit(self):
            self.put(HEADER.pack(0, WINDOW_UPDATE, RST, number, 0))
            return None
        stream = self._streams[number] = MuxStream(self, number, inbound=True)
        self._inbound[stream] = None
        self.put(HEADER.pack(0, WINDOW_UPDATE, ACK, number, 0))
        self._accept(stream)
        return stream

    def _flags(self, stream: MuxStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & RST:
            stream.fail(ConnectionLost(peer=self.peer, reason="the other end reset the stream"), keep_buffer=False)
        elif flags & FIN:
            stream.ended()
