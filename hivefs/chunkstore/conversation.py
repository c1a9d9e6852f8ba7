"""Many requests at a time over one stream to one node.

Every call puts a frame into a queue and waits for the answer with its request id. One task sends and one receives, so a
caller that is cancelled or too late never leaves half a frame on the wire: what was not begun is taken out of the queue,
what was sent is followed by a CANCEL that lets the node spare the work, and a late answer is dropped. Small requests go
before bulk ones that wait. When the stream is lost every waiting and later call raises ConnectionLost.

``moved``, ``departed`` and ``patience`` tell whoever waits for a share whether the node is at it (see patience.py).

Atomic between two checkpoints of trio: all of ``ask`` up to its wait, ``_answered`` and ``_lose``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from hivefs.chunkstore.patience import Patience
from hivefs.errors import ConnectionLost, HivefsError, PeerTimeout
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.frames import Frame, FrameDecoder, Kind, ProtocolViolation
from hivefs.protocol.stream import ByteStream

T = TypeVar("T")

KEEPALIVE = 60.0
"""Seconds of silence after which we ask for a sign of life, so that the node does not take us for gone."""

KEEPALIVE_TIMEOUT = 30.0
READ_BYTES = 256 << 10
_BULK_BYTES = 64 << 10
_PIECE_BYTES = 256 << 10
_PROLONGED = 10
"""A share that moves may take so many times its time-out in all."""
_MAX_REQUEST = 0xFFFFFFFF
_QUICK = frozenset({Kind.HAVE, Kind.STAT, Kind.PING})
"""Questions whose answers wait for nothing but the line."""


@dataclass(eq=False, slots=True)
class Early:
    """For who waits only for the first ``need`` bytes of an answer's payload: they are in ``data`` when ``done`` is set.
    Nothing of them is checked: the proof of an answer is in all of it.
    """

    need: int
    data: bytes = b""
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False, slots=True)
class _Waiting:
    frame: Frame
    done: trio.Event = field(default_factory=trio.Event)
    answer: Frame | None = None
    sent: bool = False
    began: float = 0.0
    silence: float = 0.0
    early: Early | None = None
    share: bytes = b""
    mark: int = 0
    left: float | None = None
    """When the request had left this machine, as far as was looked."""


class Conversation:
    """The stream after its greeting; ``run`` must be running for calls to end."""

    def __init__(self, stream: ByteStream, peer: str) -> None:
        self.peer = peer
        self.patience = Patience()
        self.moved = 0.0
        """When bytes of a share last came (trio's time). Small answers do not count: a node may give only those."""
        self._stream = stream
        self._waiting: dict[int, _Waiting] = {}
        self._small: deque[int] = deque()
        self._bulk: deque[int] = deque()
        self._to_cancel: deque[int] = deque()
        self._last_request = 0
        self._work = trio.Event()
        self._heard = 0.0
        self._sent_at = 0.0
        self._gone = 0
        self._gone_at = 0.0
        self._lost: str | None = None
        self._closed = trio.Event()

    async def wait_closed(self) -> None:
        """Wait until the stream is lost, by whomever."""
        await self._closed.wait()

    @property
    def closed(self) -> bool:
        """Nothing works any more on this conversation."""
        return self._lost is not None

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Send and receive until the stream is lost (returns) or cancelled; resets the stream in the end."""
        self._heard = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, self._send, nursery)
                nursery.start_soon(self._guard, self._receive, nursery)
                nursery.start_soon(self._guard, self._keep_alive, nursery)
                task_status.started()
        finally:
            self._lose("it was closed on this side")
            with trio.CancelScope(shield=True):
                await self._stream.reset()

    async def _guard(self, task: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        try:
            await task()
        except ProtocolViolation as error:
            self._lose(f"it broke the protocol: {error}")
        except ConnectionLost as error:
            self._lose(str(error.reason))
        except HivefsError as error:
            self._lose(str(error))
        nursery.cancel_scope.cancel()

    def _lose(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            self._closed.set()
            for waiting in self._waiting.values():
                waiting.done.set()

    async def ask(
        self,
        request: requests.Request,
        expected: type[T],
        timeout: float,
        what: str,
        *,
        early: Early | None = None,
        **about: Any,
    ) -> T:
        """Send a request and wait for the answer, at most ``timeout`` seconds for both. For shares, either way, they are
        counted from when bytes of any share last moved, ten times as many in all: over a slow line, behind others, a
        share may take long. ``what`` and ``about`` are for the text of errors. Raises ConnectionLost, PeerTimeout,
        Corrupt, and what the node's refusal maps to.
        """
        if self._lost is not None:
            await trio.lowlevel.checkpoint()
            raise self._fresh_loss()
        number = self._new_number()
        frame = requests.to_frame(request, number)
        waiting = self._waiting[number] = _Waiting(frame, began=trio.current_time(), early=early)
        if isinstance(request, requests.Get):
            waiting.share = request.share_id
        (self._bulk if len(frame.payload) > _BULK_BYTES else self._small).append(number)
        self._work.set()
        try:
            await self._wait(waiting, timeout)
        finally:
            del self._waiting[number]
            if waiting.sent and not waiting.done.is_set():
                self._to_cancel.append(number)
                self._work.set()
        answer = waiting.answer
        if answer is None:
            if self._lost is not None:
                raise self._fresh_loss()
            raise PeerTimeout(peer=self.peer, what=what, seconds=f"{timeout:g}")
        if answer.kind == Kind.FAILURE:
            raise failures.to_error(failures.from_header(answer.header), self.peer, **about)
        return answers.from_frame(expected, answer)

    async def _wait(self, waiting: _Waiting, timeout: float) -> None:
        """Until the answer is there or the time is over."""
        deadline, last = waiting.began + timeout, waiting.began + _PROLONGED * timeout
        while True:
            with trio.move_on_at(deadline):
                await waiting.done.wait()
                return
            if waiting.frame.kind == Kind.PUT:
                later = min(self._sent_at + timeout, last)
            elif waiting.frame.kind == Kind.GET:
                self._look_at_line()
                later = min(max(self.moved, waiting.left or self._gone_at) + timeout, last)
            else:
                return
            if later <= deadline:
                return
            deadline = later

    def _fresh_loss(self) -> ConnectionLost:
        """A new exception for every caller: a shared one would collect tracebacks."""
        return ConnectionLost(peer=self.peer, reason=self._lost)

    def _new_number(self) -> int:
        if self._last_request == _MAX_REQUEST:
            raise ConnectionLost(peer=self.peer, reason="it has lasted for all the requests it can number")
        self._last_request += 1
        return self._last_request

    def departed(self, share: bytes, asked: float) -> tuple[float, bool]:
        """Of a request for ``share`` that was asked for at ``asked`` or later: when it left this machine, and True. While
        it stands behind our own uploads: when those last moved (a frozen peer's do not), and False.
        """
        self._look_at_line()
        for waiting in self._waiting.values():
            if waiting.share == share and waiting.began >= asked:
                if waiting.left is None:
                    return max(asked, self._gone_at), False
                return max(asked, waiting.left), True
        return asked, True

    def _look_at_line(self) -> None:
        """Note what has left this machine since this was last called."""
        waiting = [one for one in self._waiting.values() if one.share and one.left is None]
        if not waiting:
            return
        now, gone = trio.current_time(), self._stream.departed()
        if gone > self._gone:
            self._gone, self._gone_at = gone, now
        for one in waiting:
            if one.answer is not None or (one.sent and one.mark and one.mark <= gone):
                one.left = now

    async def _send(self) -> None:
        waiting: _Waiting | None
        while True:
            waiting = None
            if self._to_cancel:
                frame = Frame(Kind.CANCEL, self._to_cancel.popleft())
            elif self._small or self._bulk:
                number = (self._small or self._bulk).popleft()
                waiting = self._waiting.get(number)
                if waiting is None:
                    continue
                waiting.sent = True
                frame = waiting.frame
            else:
                self._work = trio.Event()
                await self._work.wait()
                continue
            if len(frame.payload) > _BULK_BYTES:
                await self._stream.send_all(frames.head_of(frame))
                payload = memoryview(frame.payload)
                for start in range(0, len(payload), _PIECE_BYTES):
                    await self._stream.send_all(payload[start : start + _PIECE_BYTES])
                    self._sent_at = trio.current_time()
            else:
                await self._stream.send_all(frames.to_bytes(frame))
            if waiting is not None and waiting.share:
                waiting.mark = self._stream.accepted()
                self._look_at_line()

    async def _receive(self) -> None:
        decoder = FrameDecoder(frames.FROM_NODE)
        while True:
            pieces = await self._stream.receive_pieces(READ_BYTES)
            if not pieces:
                raise ConnectionLost(peer=self.peer, reason="the node ended the conversation")
            self._heard = trio.current_time()
            shares = self._is_share(decoder.request)
            for piece in pieces:
                decoder.feed(piece)
                while (frame := decoder.next_frame()) is not None:
                    shares = shares or self._is_share(frame.request)
                    self._answered(frame)
            del pieces, piece
            if shares or self._is_share(decoder.request):
                self._share_moved()
            self._look_early(decoder)

    def _look_early(self, decoder: FrameDecoder) -> None:
        waiting = self._waiting.get(decoder.request)
        if waiting is None or waiting.early is None or waiting.early.done.is_set():
            return
        data = decoder.start_of_payload(waiting.early.need)
        if data is not None:
            self.patience.answered(waiting.silence)
            waiting.early.data = data
            waiting.early.done.set()

    def _is_share(self, request: int) -> bool:
        waiting = self._waiting.get(request)
        return waiting is not None and waiting.frame.kind == Kind.GET

    def _share_moved(self) -> None:
        now = self._heard
        self._look_at_line()
        for waiting in self._waiting.values():
            if waiting.left is not None and waiting.answer is None:
                waiting.silence = max(waiting.silence, now - max(waiting.left, self.moved))
        self.moved = now

    def _answered(self, frame: Frame) -> None:
        waiting = self._waiting.get(frame.request)
        if waiting is not None and waiting.sent and not waiting.done.is_set():
            if waiting.frame.kind == Kind.GET:
                self._look_at_line()
                left = self._heard if waiting.left is None else waiting.left
                self.patience.answered(max(waiting.silence, self._heard - max(left, self.moved)))
            elif waiting.frame.kind in _QUICK:
                self.patience.round_trip(self._heard - waiting.began)
            waiting.answer = frame
            waiting.done.set()
        elif not frame.request and frame.kind == Kind.FAILURE:
            # The node ends the conversation and says why.
            raise failures.to_error(failures.from_header(frame.header), self.peer)
        elif waiting is not None or not 0 < frame.request <= self._last_request:
            raise ProtocolViolation("an answer that nobody asked for")

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep_until(self._heard + KEEPALIVE)
            if self._heard + KEEPALIVE <= trio.current_time():
                await self.ask(requests.Ping(), answers.Done, KEEPALIVE_TIMEOUT, "a ping")
