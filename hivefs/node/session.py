"""One stream of one peer, from its greeting to its end.

The reader takes frames in the order in which they come, checks that the peer may ask this, waits until the bounds on
requests and bytes allow it, and starts a task for each request; answers leave in the order in which they are ready. So
a peer that asks for much and reads nothing only stops its own reader: its answers wait for their turn to be sent, which
has a deadline, and the deadline ends the conversation.

What the node gives of its line is capped (pacing.py). A GET waits for its turn, and for memory, in its own task, so that
questions behind it are answered meanwhile. A PUT has come already: its answer waits; what is over the cap is refused as
busy, and then nothing is read from that peer for REFUSED_PAUSE seconds: one who does not listen cannot use the line.

Every wait for the peer has an end: GREETING_SECONDS for all of the greeting, FRAME_SECONDS for a frame once it has
begun, IDLE_SECONDS between frames, SEND_SECONDS for an answer once its turn has come (Bounds has the numbers). While some
wait for memory, who takes nothing of an answer for STILL_SECONDS is let go, and refused for AWAY_SECONDS.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from hivefs.errors import Corrupt, HivefsError, StoreDamaged, UnknownVersion
from hivefs.formats.meter import NODE, UNKNOWN, VAULT
from hivefs.node.answering import Answerer
from hivefs.node.batching import Budget
from hivefs.node.events import Events
from hivefs.node.meter import Meter
from hivefs.node.pacing import Line
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind, ProtocolViolation
from hivefs.protocol.node_side import NodeHandshake, Session
from hivefs.protocol.proofs import NONCE_BYTES
from hivefs.protocol.stream import ByteStream

READ_BYTES = 256 << 10
_WHOLE_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
"""Of an answer on its way; a peer that takes one of them has moved."""
REFUSED_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What peers may cost. Seconds, bytes and counts; see the head of the file and Streams."""

    greeting_seconds: float = 10.0
    frame_seconds: float = 60.0
    idle_seconds: float = 300.0
    send_seconds: float = 60.0
    work_seconds: float = 60.0
    greetings: int = 64
    """Streams whose greeting is not done; one more ends the oldest of the peer that has most of them."""
    conversations: int = 512
    conversations_per_peer: int = 16
    requests_in_flight: int = 64
    """Of one conversation; the next is not read before one is answered."""
    bytes_per_conversation: int = 8 << 20
    bytes_in_all: int = 16 << 20
    """Held by requests and answers of all peers together."""
    still_seconds: float = 3.0
    """While others wait for memory, a peer that does not take 64 KiB of its answer in so long is let go: it holds theirs
    up. An honest one behind a slow line must not be taken for that: 175 kbit/s are enough, from each node.
    """
    away_seconds: float = 30.0
    """For so long it is refused as busy then."""


class Streams:
    """Serves the streams of all peers within ``bounds``. ``random`` gives n random bytes."""

    def __init__(
        self,
        answerer: Answerer,
        events: Events,
        line: Line,
        meter: Meter,
        bounds: Bounds = Bounds(),
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.line = line
        self.meter = meter
        self.answerer = answerer
        self.events = events
        self.bounds = bounds
        self.memory = Budget(bounds.bytes_in_all, self._memory_is_short)
        self._sending: set[trio.CancelScope] = set()
        self._held_up: dict[bytes, float] = {}
        self._random = random
        self._greeting: dict[trio.CancelScope, bytes] = {}
        self._peers: Counter[bytes] = Counter()
        self._open: dict[trio.CancelScope, Session] = {}
        answerer.members.on_revoked = self._end_revoked
        self._greeters = meter.of(UNKNOWN)

    @property
    def conversations(self) -> int:
        """How many there are now."""
        return sum(self._peers.values())

    async def serve(self, stream: ByteStream) -> None:
        """Converse until the peer ends it, breaks a rule or is lost. Raises nothing but Cancelled."""
        try:
            await self._serve(stream)
        except HivefsError as error:
            self.events.say("peer lost", str(error), logging.DEBUG)
            await self._reset(stream)
        except trio.TooSlowError:
            self.events.say("slow peer", "a peer was too slow and was let go")
            await self._reset(stream)
        except BaseException:  # cancellation and mistakes of ours too: the peer must not wait for an answer; raised again
            await self._reset(stream)
            raise

    @staticmethod
    async def _reset(stream: ByteStream) -> None:
        with trio.CancelScope(shield=True):
            await stream.reset()

    async def _serve(self, stream: ByteStream) -> None:
        if len(self._greeting) >= self.bounds.greetings:
            self._make_room()
        scope = trio.CancelScope()
        self._greeting[scope] = stream.peer_key
        session = None
        try:
            with scope:
                session = await self._greet(stream)
        finally:
            self._greeting.pop(scope, None)
        if scope.cancelled_caught:
            await self._reset(stream)
            return
        if session is None:
            return
        peer = session.peer_key
        if self.conversations >= self.bounds.conversations or self._peers[peer] >= self.bounds.conversations_per_peer:
            await self._refuse(stream, Refusal(Code.BUSY, "there are too many conversations already"))
            return
        if self._held_up.get(session.subject, 0.0) > trio.current_time():
            await self._refuse(stream, Refusal(Code.BUSY, "this peer took no answers and held up others a moment ago"))
            return
        self._peers[peer] += 1
        scope = trio.CancelScope()
        self._open[scope] = session
        try:
            with scope:
                if self.answerer.members.covers(session.membership):  # revoked since it was greeted
                    scope.cancel()
                await _Conversation(self, stream, session).run()
            if scope.cancelled_caught:
                self.events.say("revoked", "the conversation of a revoked member was ended", logging.WARNING)
                await self._reset(stream)
        finally:
            del self._open[scope]
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def _memory_is_short(self) -> None:
        """Somebody waits for memory: whoever does not take its answer has a short deadline from now on."""
        deadline = trio.current_time() + self.bounds.still_seconds
        for scope in self._sending:
            scope.deadline = min(scope.deadline, deadline)

    async def send_piece(self, stream: ByteStream, piece: memoryview, subject: bytes) -> None:
        """Raises TooSlowError when the peer does not take it and holds up others."""
        scope = trio.CancelScope()
        if self.memory.short:
            scope.deadline = trio.current_time() + self.bounds.still_seconds
        self._sending.add(scope)
        try:
            with scope:
                await stream.send_all(piece)
        finally:
            self._sending.discard(scope)
        if scope.cancelled_caught:
            now = trio.current_time()
            self._held_up = {who: until for who, until in self._held_up.items() if until > now}
            self._held_up[subject] = now + self.bounds.away_seconds
            self.events.say("held up", "a peer that took no answers while others waited for memory was let go")
            raise trio.TooSlowError

    def _make_room(self) -> None:
        """End the oldest greeting of the peer that has most of them. Keys cost nothing, so whoever opens many and says
        nothing must push out his own, and not keep out who greets in a moment.
        """
        crowd = Counter(self._greeting.values()).most_common(1)[0][0]
        oldest = next(scope for scope, peer in self._greeting.items() if peer == crowd)
        del self._greeting[oldest]
        oldest.cancel()
        self.events.say("too many greetings", "the oldest of the peer that has most of them was ended")

    def _end_revoked(self) -> None:
        """There is a newer revocation list: what it covers is cut off now."""
        for scope, session in self._open.items():
            if self.answerer.members.covers(session.membership):
                scope.cancel()

    async def _greet(self, stream: ByteStream) -> Session | None:
        """The session, or None after a refusal."""
        answerer = self.answerer
        handshake = NodeHandshake(
            answerer.membership,
            stream.peer_key,
            self._random(NONCE_BYTES),
            answerer.certificate,
            self.bounds.requests_in_flight,
            answerer.members.check,
        )
        decoder = FrameDecoder(handshake.accept)
        try:
            with trio.fail_after(self.bounds.greeting_seconds):
                while True:
                    decoder.accept = handshake.accept
                    while (frame := decoder.next_frame()) is None:
                        data = await stream.receive_some(decoder.wanted)
                        if not data:
                            await stream.aclose()
                            return None
                        self._greeters.came(len(data))
                        decoder.feed(data)
                    answer = handshake.receive(frame, answerer.clock())
                    session = handshake.session
                    if session is not None:
                        await answerer.welcome(session)
                    data = frames.to_bytes(answer)
                    self._greeters.went(len(data))
                    await stream.send_all(data)
                    if session is not None:
                        return session
        except (ProtocolViolation, Corrupt, UnknownVersion) as error:
            await self._refuse(stream, Refusal(Code.BAD_REQUEST, str(error)))
            return None
        except Refusal as refusal:
            await self._refuse(stream, refusal)
            return None

    async def _refuse(self, stream: ByteStream, refusal: Refusal) -> None:
        """Say why and end the conversation."""
        self.events.say("refused a peer", refusal.text)
        self._greeters.refused(refusal.code)
        with trio.fail_after(self.bounds.greeting_seconds):
            await stream.send_all(frames.to_bytes(Frame(Kind.FAILURE, 0, failures.to_header(refusal))))
        await stream.aclose()


class _Held:
    """Bytes that one request holds, of its conversation's budget and of that of all."""

    def __init__(self, own: Budget, everyones: Budget) -> None:
        self._budgets = (own, everyones)
        self._taken: list[tuple[Budget, int]] = []

    async def take(self, count: int) -> None:
        """Wait for them."""
        for budget in self._budgets:
            await budget.take(count)
            self._taken.append((budget, count))

    def give(self) -> None:
        """Give back what was taken; a second time nothing."""
        while self._taken:
            budget, count = self._taken.pop()
            budget.give(count)


class _Conversation:
    """After the greeting."""

    def __init__(self, streams: Streams, stream: ByteStream, session: Session) -> None:
        self._answerer = streams.answerer
        self._events = streams.events
        self._bounds = streams.bounds
        self._line = streams.line
        self._count = streams.meter.of(NODE if session.vault_id is None else VAULT)
        self._streams = streams
        self._all_memory = streams.memory
        self._memory = Budget(streams.bounds.bytes_per_conversation)
        self._slots = trio.Semaphore(streams.bounds.requests_in_flight)
        self._stream = stream
        self._session = session
        self._sending = trio.Lock()
        self._running: dict[int, trio.CancelScope] = {}
        self._failure: BaseException | None = None

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            try:
                await self._read(nursery)
            except ProtocolViolation as error:
                self._events.say("protocol violation", str(error), logging.WARNING)
                refusal = Refusal(Code.BAD_REQUEST, f"protocol violation: {error}")
                await self._send_or_end(Frame(Kind.FAILURE, 0, failures.to_header(refusal)), nursery)
            except (HivefsError, trio.TooSlowError) as error:
                self._failure = error
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure
        await self._stream.aclose()

    async def _read(self, nursery: trio.Nursery) -> None:
        decoder = FrameDecoder(frames.FROM_CLIENT)
        began = trio.current_time()
        while True:
            deadline = began + self._bounds.frame_seconds
            if not decoder.inside:
                deadline = trio.current_time() + self._bounds.idle_seconds
            with trio.fail_at(deadline):
                pieces = deque(await self._stream.receive_pieces(READ_BYTES))
            if not pieces:
                return
            if not decoder.inside:
                began = trio.current_time()
            self._count.came(sum(map(len, pieces)))
            while pieces:
                decoder.feed(pieces.popleft())
                while (frame := decoder.next_frame()) is not None:
                    await self._take(frame, nursery)
                    began = trio.current_time()

    async def _take(self, frame: Frame, nursery: trio.Nursery) -> None:
        number = frame.request
        if frame.kind == Kind.CANCEL:
            if frame.header:
                raise ProtocolViolation("a CANCEL frame with a header")
            scope = self._running.get(number)
            if scope is not None:
                scope.cancel()
            return
        if not number or number in self._running:
            raise ProtocolViolation("a request under a number that is taken")
        self._count.asked(frame.kind)
        turn = 0.0
        try:
            request = requests.from_frame(frame)
            self._session.check(request)
            if isinstance(request, requests.Put):
                turn = self._line.received(len(request.data))
        except (Corrupt, UnknownVersion) as error:
            await self._fail(number, Refusal(Code.BAD_REQUEST, str(error)))
            return
        except Refusal as refusal:
            self._events.say("refused a request", refusal.text)
            await self._fail(number, refusal)
            if frame.kind == Kind.PUT:
                await trio.sleep(REFUSED_PAUSE)
            return
        scope = self._running[number] = trio.CancelScope()
        await self._slots.acquire()
        held = _Held(self._memory, self._all_memory)
        if not isinstance(request, requests.Get):
            await held.take(self._answerer.weight(request))
        nursery.start_soon(self._work, number, request, held, turn, scope, nursery)

    async def _work(
        self,
        number: int,
        request: requests.Request,
        held: _Held,
        turn: float,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> None:
        try:
            answer: Frame | None = None
            try:
                with scope, trio.fail_after(self._bounds.work_seconds):
                    if isinstance(request, requests.Get):
                        weight = self._answerer.weight(request)
                        await self._line.send(weight)
                        await held.take(weight)
                    answer = answers.to_frame(await self._answerer.answer(self._session, request), number)
                    if turn > trio.current_time():
                        request = requests.Ping()
                        held.give()
                        await trio.sleep_until(turn)
            except Refusal as refusal:
                answer = Frame(Kind.FAILURE, number, failures.to_header(refusal))
            except (trio.TooSlowError, StoreDamaged) as error:
                if isinstance(error, StoreDamaged):
                    self._events.say("store damaged", str(error), logging.ERROR)
                busy = Refusal(Code.BUSY, "this node is overloaded or its disk fails")
                answer = Frame(Kind.FAILURE, number, failures.to_header(busy))
            # Only now may the number be used again; a CANCEL that comes later must not stop the sending half-way.
            del self._running[number]
            request = requests.Ping()  # its bytes are not needed any more
            if answer is not None:
                await self._send_or_end(answer, nursery)
        finally:
            self._running.pop(number, None)
            held.give()
            self._slots.release()

    async def _send_or_end(self, frame: Frame, nursery: trio.Nursery) -> None:
        """Send; when that fails the whole conversation ends."""
        try:
            await self._send(frame)
        except (HivefsError, trio.TooSlowError) as error:
            self._failure = self._failure or error
            nursery.cancel_scope.cancel()

    async def _fail(self, number: int, refusal: Refusal) -> None:
        await self._send(Frame(Kind.FAILURE, number, failures.to_header(refusal)))

    async def _send(self, frame: Frame) -> None:
        if frame.kind == Kind.FAILURE:
            self._count.refused(failures.from_header(frame.header).code)
        async with self._sending:
            self._count.went(frames.PREFIX_BYTES + len(frame.header) + len(frame.payload))
            with trio.fail_after(self._bounds.send_seconds):
                if len(frame.payload) > _WHOLE_BYTES:
                    await self._piece(memoryview(frames.head_of(frame)))
                    payload = memoryview(frame.payload)
                    for start in range(0, len(payload), _PIECE_BYTES):
                        await self._piece(payload[start : start + _PIECE_BYTES])
                else:
                    await self._piece(memoryview(frames.to_bytes(frame)))

    async def _piece(self, piece: memoryview) -> None:
        await self._streams.send_piece(self._stream, piece, self._session.subject)
