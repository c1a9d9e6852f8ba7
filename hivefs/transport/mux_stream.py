"""One stream of a Yamux session: its two windows, its buffer, its two ends. See `yamux` for the whole.

A stream leaves the session's table when both directions ended or either end reset it. One that we closed and the other
end did not is remembered until `Session.sweep` resets it. An inbound stream holds its slot until it has left the table
*and* its handler is done, so opening and resetting in a loop gains nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from hivefs.errors import ConnectionLost, HivefsError

from .frames import (
    DATA,
    FIN,
    GROW_SECONDS,
    HEADER,
    MAX_FRAME,
    MAX_WINDOW,
    MERGE_BELOW,
    MERGED_SIZE,
    RST,
    WINDOW_UPDATE,
    ProtocolViolation,
)
from .limits import INITIAL_WINDOW


class Trunk(Protocol):
    """What a stream needs of its session."""

    peer: str
    round_trip: float
    clock: Callable[[], float]
    put: Callable[..., None]

    def lend(self, wanted: int) -> int:
        """Window beyond the initial one: as much as wanted, or nothing."""

    def stored(self, size: int) -> bool:
        """Account for bytes to be buffered (negative: given up again); False when there is no room for them."""

    def closed(self, number: int) -> None:
        """We closed this stream and wait for the other end to do so."""

    def forget(self, number: int, lent: int) -> None:
        """The stream leaves the table and returns the window it was lent."""

    def free_slot(self, stream: MuxStream) -> None:
        """An inbound stream is over, its handler too."""


def _nobody() -> None:
    """The wake-up call of a stream that nobody waits for."""


class MuxStream:
    """One stream of a session. ``wake_reader`` and ``wake_writer`` are called when waiting may have come to an end."""

    def __init__(self, session: Trunk, number: int, *, inbound: bool) -> None:
        self.session = session
        self.number = number
        self.inbound = inbound
        self.wake_reader: Callable[[], None] = _nobody
        self.wake_writer: Callable[[], None] = _nobody
        self.send_window = INITIAL_WINDOW
        self.buffered = 0
        self.sent_fin = False
        self.got_fin = False
        self.failure: HivefsError | None = None
        self._pieces: deque[bytes | bytearray] = deque()
        self._receive_window = INITIAL_WINDOW  # what the peer may still send
        self._target = INITIAL_WINDOW  # what it may have sent and unread at most
        self._granted_at = 0.0
        self._released = False
        self._in_table = True
        self._being_handled = inbound

    # ---- our side -------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> int:
        """Put one frame of at most ``data``; how much of it was taken (0: wait for wake_writer)."""
        if self.failure is not None:
            raise fresh(self.failure)
        if self.sent_fin:
            raise ConnectionLost(peer=self.session.peer, reason="this stream is already closed on this side")
        size = min(len(data), self.send_window, MAX_FRAME)
        if size:
            self.send_window -= size
            self.session.put(HEADER.pack(0, DATA, 0, self.number, size), data if size == len(data) else data[:size])
        return size

    def take(self, most: int) -> bytes:
        """Up to ``most`` received bytes (there must be some), and their credit back to the sender."""
        pieces = self._pieces
        first = pieces[0]
        if len(first) > most:
            data = bytes(memoryview(first)[:most])
            pieces[0] = bytes(memoryview(first)[most:])
        elif len(pieces) == 1:
            data = bytes(pieces.popleft())
        else:
            room, parts = most, []
            while pieces and len(pieces[0]) <= room:
                parts.append(pieces.popleft())
                room -= len(parts[-1])
            data = b"".join(parts)
        self._taken(len(data))
        return data

    def take_pieces(self, most: int) -> list[bytes | bytearray]:
        """Received pieces as they are (there must be some) until they are ``most`` bytes or more, and their credit."""
        pieces, taken, size = self._pieces, list[bytes | bytearray](), 0
        while pieces and size < most:
            taken.append(pieces.popleft())
            size += len(taken[-1])
        self._taken(size)
        return taken

    def _taken(self, size: int) -> None:
        self.buffered -= size
        self.session.stored(-size)
        if not self.got_fin and self._in_table:
            credit = self._target - self.buffered - self._receive_window
            if credit >= self._target // 2:
                self._grant(credit)

    def _grant(self, credit: int) -> None:
        now = self.session.clock()
        if now - self._granted_at < max(GROW_SECONDS, 4 * self.session.round_trip):
            more = self.session.lend(self._target)
            self._target += more
            credit += more
        self._granted_at = now
        self._receive_window += credit
        self.session.put(HEADER.pack(0, WINDOW_UPDATE, 0, self.number, credit))

    def finish(self) -> None:
        """End our direction; the other one stays open."""
        if not self.sent_fin and self.failure is None:
            self.sent_fin = True
            self.session.put(HEADER.pack(0, WINDOW_UPDATE, FIN, self.number, 0))
            if self.got_fin:
                self._forget()

    def release(self) -> None:
        """End our direction and stop listening: what was received and not read is dropped."""
        if self._released:
            return
        self._released = True
        self.finish()
        unread = self.buffered
        self._drop_buffer()
        if self._in_table:
            if unread:
                self.reset("closed on this side")
            else:
                self.session.closed(self.number)
        if self.failure is None:
            self.failure = ConnectionLost(peer=self.session.peer, reason="this stream is closed on this side")
        self.wake_reader()
        self.wake_writer()

    def reset(self, reason: str) -> None:
        """Kill both directions now."""
        if self._in_table:
            self.session.put(HEADER.pack(0, WINDOW_UPDATE, RST, self.number, 0))
        self.got_fin = False
        self.fail(ConnectionLost(peer=self.session.peer, reason=reason), keep_buffer=False)

    def handled(self) -> None:
        """The handler of this inbound stream is done."""
        self._being_handled = False
        self._free_slot()

    # ---- the session's side ---------------------------------------------------------------------------------

    def expect(self, length: int) -> bool:
        """Account for the body of a frame that begins; False when it is to be thrown away."""
        if length > self._receive_window:
            raise ProtocolViolation(f"it sent {length} bytes where {self._receive_window} were allowed")
        if self.got_fin:
            raise ProtocolViolation("it sent data behind the end of a stream")
        self._receive_window -= length
        if self._released and length:
            self.reset("closed on this side")
        return not self._released

    def deliver(self, view: memoryview) -> None:
        """Keep a copy of received bytes for the reader."""
        if self.failure is not None:
            return
        size = len(view)
        if not self.session.stored(size):
            self.reset("more unread bytes than one peer may leave with us")
            return
        if not self._in_table:  # making room cost this very stream
            self.session.stored(-size)
            return
        pieces = self._pieces
        if size >= MERGE_BELOW or not pieces:
            pieces.append(bytes(view))
        else:
            last = pieces[-1]
            if type(last) is bytearray and len(last) < MERGED_SIZE:
                last += view
            else:
                pieces.append(bytearray(view))
        self.buffered += size
        self.wake_reader()

    def grown(self, credit: int) -> None:
        """The other end takes so many bytes more."""
        self.send_window = min(self.send_window + credit, MAX_WINDOW)
        self.wake_writer()

    def ended(self) -> None:
        """The other end sent its FIN. Not the clean end of a stream that has failed: what it lost stays lost."""
        if not self.got_fin and (self.failure is None or self._released):
            self.got_fin = True
            if self.sent_fin:
                self._forget()
            self.wake_reader()

    def fail(self, failure: HivefsError, *, keep_buffer: bool) -> None:
        """The stream is dead. What arrived before a lost connection can still be read, a reset takes it away; but if
        the other end had finished its direction, a reset is only its way to say that it listens no more."""
        if self.failure is None:
            self.failure = failure
        if not keep_buffer and not self.got_fin:
            self._drop_buffer()
        self._forget()
        self.wake_reader()
        self.wake_writer()

    def _drop_buffer(self) -> None:
        self.session.stored(-self.buffered)
        self.buffered = 0
        self._pieces.clear()

    def _forget(self) -> None:
        if self._in_table:
            self._in_table = False
            self.session.forget(self.number, self._target - INITIAL_WINDOW)
            self._target = INITIAL_WINDOW
            self._free_slot()

    def _free_slot(self) -> None:
        if self.inbound and not self._in_table and not self._being_handled:
            self.inbound = False
            self.session.free_slot(self)


def fresh(failure: HivefsError) -> HivefsError:
    """The same error again, without the traceback of whoever met it before."""
    return type(failure)(**failure.data)
