"""One stream of one peer, from its greeting to its end.

The reader takes frames in the order in which they come, checks that the peer may ask this, waits until the bounds on
requests and bytes allow it, and starts a task for each request; answers leave in the order in which they are ready. So
a peer that asks for much and reads nothing only stops its own reader: its answers wait for their turn to be sent, which
has a deadline, and the deadline ends the conversation. Shares that were not taken while others wait for memory are
forgotten, and read again as they are taken (outgoing.py).

What the node gives of its line is capped (pacing.py). A GET waits for its turn, and for memory, in its own task, so that
questions behind it are answered meanwhile. A PUT has come already: its answer waits; what is over the cap is refused as
busy, and then nothing is read from that peer for REFUSED_PAUSE seconds: one who does not listen cannot use the line.

Every wait for the peer has an end: GREETING_SECONDS for all of the greeting, FRAME_SECONDS for a frame once it has
begun, IDLE_SECONDS between frames, SEND_SECONDS for an answer once its turn has come (Bounds has the numbers). While some
wait for memory, who takes nothing of another answer than a share for STILL_SECONDS is let go, and refused for AWAY_SECONDS.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from hivefs.errors import ConnectionLost, Corrupt, HivefsError, StoreDamaged, UnknownVersion
from hivefs.formats.meter import NODE, UNKNOWN, VAULT
from hivefs.node.answering import Answerer
from hivefs.node.batching import Budget
from hivefs.node.events import Events
from hivefs.node.meter import Meter
from hivefs.node.outgoing import PIECE_BYTES, Held, Outgoing
from hivefs.node.pacing import Line
from hivefs.protocol import answers, failures, frames, requests
from hivefs.protocol.failures import Code, Refusal
from hivefs.protocol.frames import Frame, FrameDecoder, Kind, ProtocolViolation
from hivefs.protocol.node_side import NodeHandshake, Session
from hivefs.protocol.proofs import NONCE_BYTES
from hivefs.protocol.stream import ByteStream

READ_BYTES = 256 << 10
_WHOLE_BYTES = 64 << 10
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
    """Streams whose greeting is not done; one more ends the oldest of the network, place and peer that have most."""
    conversations: int = 512
    """One more ends the oldest of those who have most of them, or is refused when that is the one who asks."""
    conversations_per_place: int = 256
    """From one IPv4 address or IPv6 /64: half of all. One more ends the oldest of those there who have most of them."""
    conversations_per_peer: int = 16
    requests_in_flight: int = 64
    """Of one conversation; the next is not read before one is answered."""
    bytes_per_conversation: int = 8 << 20
    bytes_in_all: int = 16 << 20
    """Held by requests and answers of all peers together."""
    still_seconds: float = 3.0
    """While others wait for memory, a peer that does not take 64 KiB of its answer in so long is let go: it holds theirs
    up (not with shares, which are forgotten then). An honest one behind a slow line must not be taken for that: 175 kbit/s
    are enough, from each node.
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
        self.outgoing: set[Outgoing] = set()
        """Shares that hold memory until their peers have taken them."""
        self._sending: set[trio.CancelScope] = set()
        self._held_up: dict[bytes, float] = {}
        self._random = random
        self._greeting: dict[trio.CancelScope, tuple[tuple[str, str], bytes]] = {}
        self._peers: Counter[bytes] = Counter()
        self._open: dict[trio.CancelScope, Session] = {}
        self._sites: dict[trio.CancelScope, tuple[str, str]] = {}
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
        self._greeting[scope] = stream.site, stream.peer_key
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
        if self._held_up.get(session.subject, 0.0) > trio.current_time():
            await self._refuse(stream, Refusal(Code.BUSY, "this peer took no answers and held up others a moment ago"))
            return
        if self._peers[peer] >= self.bounds.conversations_per_peer or not self._place_for(session, stream.site):
            await self._refuse(stream, Refusal(Code.BUSY, "there are too many conversations already"))
            return
        self._peers[peer] += 1
        scope = trio.CancelScope()
        self._open[scope] = session
        self._sites[scope] = stream.site
        try:
            with scope:
                if self.answerer.members.covers(session.membership):  # revoked since it was greeted
                    scope.cancel()
                await _Conversation(self, stream, session).run()
            if scope.cancelled_caught:
                if scope in self._open:
                    self.events.say("revoked", "the conversation of a revoked member was ended", logging.WARNING)
                else:
                    self.events.say("too many conversations", "the oldest of the member that has most of them was ended")
                await self._reset(stream)
        finally:
            self._open.pop(scope, None)
            self._sites.pop(scope, None)
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def _place_for(self, session: Session, site: tuple[str, str]) -> bool:
        """Whether there is room for one more conversation. Where there is none, those who have most of them lose their
        oldest, so that one member with many keys keeps nobody out: members count together who came by one invitation. A
        place is free only when its conversation is over, so an eighth more than the bound may be there for a moment. Where
        only the place of this peer is full, only conversations from there are looked at.
        """
        most = self.bounds.conversations
        near = {scope: other for scope, other in self._open.items() if self._sites.get(scope) == site}
        full = len(near) >= self.bounds.conversations_per_place
        if self.conversations < most and not full:
            return True
        if self.conversations >= most + max(1, most // 8):
            return False
        looked_at = near if full else self._open
        groups = Counter(map(_group, looked_at.values()))
        crowd, count = groups.most_common(1)[0] if groups else (b"", 0)
        if count <= groups[_group(session)] + 1:
            return False
        subject = Counter(s.subject for s in looked_at.values() if _group(s) == crowd).most_common(1)[0][0]
        oldest = next(scope for scope, other in looked_at.items() if other.subject == subject)
        del self._open[oldest]
        oldest.cancel()
        return True

    def _memory_is_short(self) -> None:
        """Somebody waits for memory: shares that were not taken yet are forgotten, and whoever does not take an answer
        that cannot be made again has a short deadline from now on.
        """
        while self.outgoing:
            self.outgoing.pop().forget()
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
        """End the oldest greeting of the peer that has most of them, at the place of the network that have most: whoever
        opens many and says nothing must push out his own, and not keep out who greets in a moment. Keys cost nothing,
        addresses in one place little, so places count before keys.
        """
        held = self._greeting.values()
        network = Counter(site[0] for site, _ in held).most_common(1)[0][0]
        place = Counter(site for site, _ in held if site[0] == network).most_common(1)[0][0]
        crowd = Counter(peer for site, peer in held if site == place).most_common(1)[0][0]
        oldest = next(scope for scope, whose in self._greeting.items() if whose == (place, crowd))
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


def _group(session: Session) -> bytes:
    """Who counts together: an invitation makes as many members as it says, and may be one person's."""
    invitation = session.membership.invitation
    return session.subject if invitation is None else invitation.key


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
        self._leaving: set[Outgoing] = set()
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
        held = Held(self._memory, self._all_memory)
        if not isinstance(request, requests.Get):
            await held.take(self._answerer.weight(request))
        nursery.start_soon(self._work, number, request, held, turn, scope, nursery)

    async def _work(
        self,
        number: int,
        request: requests.Request,
        held: Held,
        turn: float,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> None:
        try:
            answer: Frame | Outgoing | None = None
            try:
                with scope, trio.fail_after(self._bounds.work_seconds):
                    if isinstance(request, requests.Get):
                        answer = await self._share(number, request, held)
                    else:
                        answer = answers.to_frame(await self._answerer.answer(self._session, request), number)
                        held.keep(len(answer.payload))
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

    async def _share(self, number: int, request: requests.Get, held: Held) -> Outgoing:
        """The answer to a GET, read ahead; not where this peer has left others untaken while memory was short."""
        weight = self._answerer.weight(request)
        await self._line.send(weight)
        data = None
        if not self._forgotten:
            await held.take(weight)
        planned = self._answerer.plan(request)
        if not self._forgotten:
            data = await planned.read(0, planned.length)
        head = frames.head_of(answers.to_frame(planned.part, number), planned.length)
        answer = Outgoing(head, planned.length, data, planned.read, held)
        if data is None:
            held.give()
        elif self._all_memory.short:
            answer.forget()
        return answer

    @property
    def _forgotten(self) -> bool:
        """Whether an answer of this conversation that is not sent yet was forgotten."""
        return any(answer.forgotten for answer in self._leaving)

    async def _send_or_end(self, frame: Frame | Outgoing, nursery: trio.Nursery) -> None:
        """Send; when that fails the whole conversation ends."""
        try:
            await self._send(frame)
        except (HivefsError, trio.TooSlowError) as error:
            self._failure = self._failure or error
            nursery.cancel_scope.cancel()

    async def _fail(self, number: int, refusal: Refusal) -> None:
        await self._send(Frame(Kind.FAILURE, number, failures.to_header(refusal)))

    async def _send(self, frame: Frame | Outgoing) -> None:
        if isinstance(frame, Outgoing):
            await self._send_share(frame)
            return
        if frame.kind == Kind.FAILURE:
            self._count.refused(failures.from_header(frame.header).code)
        async with self._sending:
            self._count.went(frames.PREFIX_BYTES + len(frame.header) + len(frame.payload))
            with trio.fail_after(self._bounds.send_seconds):
                if len(frame.payload) > _WHOLE_BYTES:
                    await self._piece(memoryview(frames.head_of(frame)))
                    payload = memoryview(frame.payload)
                    for start in range(0, len(payload), PIECE_BYTES):
                        await self._piece(payload[start : start + PIECE_BYTES])
                else:
                    await self._piece(memoryview(frames.to_bytes(frame)))

    async def _send_share(self, answer: Outgoing) -> None:
        self._leaving.add(answer)
        if not answer.forgotten:
            self._streams.outgoing.add(answer)
        try:
            async with self._sending:
                self._count.went(len(answer.head) + answer.length)
                with trio.fail_after(self._bounds.send_seconds):
                    await self._stream.send_all(answer.head)
                    while piece := await answer.piece():
                        await self._stream.send_all(piece)
        except Refusal as refusal:  # it was given up meanwhile, or the disk fails; half a frame cannot be taken back
            peer = self._session.subject.hex()[:12]
            raise ConnectionLost(peer=peer, reason=f"an answer could not be ended: {refusal.text}") from None
        finally:
            self._streams.outgoing.discard(answer)
            self._leaving.discard(answer)

    async def _piece(self, piece: memoryview) -> None:
        await self._streams.send_piece(self._stream, piece, self._session.subject)
