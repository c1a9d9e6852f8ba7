"""Two sessions joined by function calls: no socket, no task, a clock that the test moves."""

from __future__ import annotations

import contextlib
import random

import pytest

from hivefs.errors import ConnectionLost
from hivefs.transport.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    ProtocolViolation,
)
from hivefs.transport.limits import INITIAL_WINDOW, Limits
from hivefs.transport.yamux import Session


class End:
    """One session with its wire in a bytearray."""

    def __init__(self, initiator, clock, limits):
        self.wire = bytearray()
        self.accepted = []
        self.pongs = []
        self.session = Session(
            initiator=initiator,
            peer="them",
            limits=limits,
            clock=lambda: clock[0],
            put=self.put,
            accept=self.accepted.append,
            pong=self.pongs.append,
        )

    def put(self, head, body=b""):
        self.wire += head
        self.wire += body


class Link:
    def __init__(self, step=1 << 30, **limits):
        self.clock = [100.0]
        self.step = step
        self.left, self.right = (End(side, self.clock, Limits(**limits)) for side in (True, False))

    def settle(self):
        """Carry frames, ``step`` bytes at a time, until nothing moves."""
        while self.left.wire or self.right.wire:
            for source, target in ((self.left, self.right), (self.right, self.left)):
                data, source.wire = bytes(source.wire), bytearray()
                for start in range(0, len(data), self.step):
                    target.session.receive(memoryview(data[start : start + self.step]))

    def open(self):
        ours = self.left.session.open()
        self.settle()
        return ours, self.right.accepted[-1]


def take_all(stream):
    parts = []
    while stream.buffered:
        parts.append(stream.take(1000))
    return b"".join(parts)


@pytest.mark.parametrize("step", [1, 5, 12, 13, 1000, 1 << 20])
def test_bytes_arrive_however_the_wire_is_cut(step):
    link = Link(step)
    ours, theirs = link.open()
    message = bytes(range(256)) * 20
    assert ours.send(message) == len(message)
    ours.finish()
    assert theirs.send(b"answer") == 6
    link.settle()
    assert take_all(theirs) == message
    assert theirs.got_fin
    assert take_all(ours) == b"answer"


def test_an_unread_stream_takes_one_window_and_reading_gives_it_back():
    link = Link()
    ours, theirs = link.open()
    data = bytes(INITIAL_WINDOW + 1)
    assert ours.send(data) == INITIAL_WINDOW
    assert ours.send(b"x") == 0
    link.settle()
    assert theirs.buffered == INITIAL_WINDOW
    woken = []
    ours.wake_writer = lambda: woken.append(True)
    theirs.take(INITIAL_WINDOW // 2 - 1)
    link.settle()
    assert ours.send_window == 0  # less than half a window is not worth a frame
    theirs.take(1)
    link.settle()
    assert woken
    assert ours.send_window == INITIAL_WINDOW // 2


def test_a_fast_reader_gets_a_larger_window_up_to_the_limit_and_a_slow_one_does_not():
    link = Link()
    for pause, expected in ((0.001, 4 << 20), (60.0, INITIAL_WINDOW)):
        ours, theirs = link.open()
        for _ in range(100):
            link.clock[0] += pause
            ours.send(bytes(INITIAL_WINDOW))
            link.settle()
            take_all(theirs)
            link.settle()
        assert ours.send_window + theirs.buffered <= expected
        assert theirs._target == expected


def test_lent_windows_come_out_of_one_fund_and_return_to_it():
    link = Link(max_buffered_bytes=4 << 20)
    whole = link.right.session._fund
    streams = [link.open() for _ in range(20)]
    for ours, theirs in streams:
        for _ in range(20):
            ours.send(bytes(INITIAL_WINDOW))
            link.settle()
            take_all(theirs)
            link.settle()
    assert 0 <= link.right.session._fund < whole
    assert sum(theirs._target - INITIAL_WINDOW for _, theirs in streams) == whole - link.right.session._fund
    for ours, _ in streams:
        ours.reset("test")
    link.settle()
    assert link.right.session._fund == whole
    assert link.right.session.buffered == 0


def test_half_close_and_forgetting():
    link = Link()
    ours, theirs = link.open()
    ours.finish()
    link.settle()
    assert theirs.got_fin
    assert theirs.send(b"late answer") == 11
    theirs.finish()
    link.settle()
    assert take_all(ours) == b"late answer"
    assert not link.left.session._streams
    assert not link.right.session._streams
    assert link.right.session._inbound == {theirs: None}  # until its handler is done
    theirs.handled()
    assert not link.right.session._inbound


def test_a_reset_drops_what_was_not_finished_and_keeps_what_was():
    for finished in (False, True):
        link = Link()
        ours, theirs = link.open()
        ours.send(b"data")
        if finished:
            ours.finish()
        ours.reset("test")
        link.settle()
        assert theirs.failure is not None
        assert theirs.buffered == (4 if finished else 0)
        assert theirs.got_fin == finished
        with pytest.raises(ConnectionLost):
            theirs.send(b"x")


def test_a_released_stream_that_the_other_end_never_closes_is_swept():
    link = Link()
    ours, theirs = link.open()
    theirs.release()
    link.settle()
    assert ours.got_fin
    link.right.session.sweep(link.clock[0] + 1)
    assert link.right.session._streams
    link.right.session.sweep(link.clock[0] + 3600)
    assert not link.right.session._streams
    link.settle()
    assert not link.left.session._streams


def test_a_lost_connection_leaves_what_arrived_readable():
    link = Link()
    ours, theirs = link.open()
    ours.send(b"before the end")
    link.settle()
    link.right.session.fail(ConnectionLost(peer="them", reason="test"))
    assert theirs.take(100) == b"before the end"
    assert theirs.failure is not None
    assert not theirs.got_fin
    with pytest.raises(ConnectionLost):
        link.right.session.open()


def test_pings_are_answered_with_their_number():
    link = Link()
    link.left.session.ping(77)
    link.settle()
    assert link.left.pongs == [77]


def test_go_away_stops_new_streams_only():
    link = Link()
    ours, theirs = link.open()
    link.right.session.go_away()
    link.settle()
    with pytest.raises(ConnectionLost):
        link.left.session.open()
    ours.send(b"x")
    link.settle()
    assert theirs.take(1) == b"x"


def test_what_opens_a_stream_may_bring_a_larger_window():
    """js-libp2p doubles the window of a stream in the frame that opens it, when its last round trip was long enough."""
    link = Link()
    link.right.session.receive(memoryview(HEADER.pack(0, WINDOW_UPDATE, SYN, 1, INITIAL_WINDOW)))
    (stream,) = link.right.accepted
    assert stream.send_window == 2 * INITIAL_WINDOW


@pytest.mark.parametrize("kind", [DATA, WINDOW_UPDATE])
def test_a_stream_may_be_opened_and_ended_in_one_frame(kind):
    """As js-libp2p does when a stream is closed before it was used; the other direction stays open."""
    link = Link()
    link.right.session.receive(memoryview(HEADER.pack(0, kind, SYN | FIN, 1, 0)))
    (stream,) = link.right.accepted
    assert stream.got_fin and not stream.sent_fin
    assert stream.send(b"answer") == 6
    stream.finish()
    stream.handled()
    assert not link.right.session._streams and not link.right.session._inbound


def test_a_stream_may_be_opened_and_reset_in_one_frame():
    link = Link()
    link.right.session.receive(memoryview(HEADER.pack(0, WINDOW_UPDATE, SYN | RST, 1, 0)))
    (stream,) = link.right.accepted
    with pytest.raises(ConnectionLost):
        stream.send(b"answer")
    stream.handled()
    assert not link.right.session._streams and not link.right.session._inbound


def test_one_frame_may_fill_a_window_that_has_grown():
    """js-libp2p sends all that the window allows in one frame, 4 MiB if it grew so far; Go stops at its own size."""
    link = Link()
    ours, theirs = link.open()
    while ours.send_window < 1 << 20:
        ours.send(bytes(INITIAL_WINDOW))
        link.settle()
        take_all(theirs)
        link.settle()
    window = ours.send_window
    link.right.session.receive(memoryview(HEADER.pack(0, DATA, 0, ours.number, window) + bytes(window)))
    assert theirs.buffered == window


@pytest.mark.parametrize("reason", [0, 1, 2, 0xFFFFFFFF])
def test_every_reason_to_go_away_is_understood(reason):
    link = Link()
    ours, theirs = link.open()
    link.left.session.receive(memoryview(HEADER.pack(0, GO_AWAY, 0, 0, reason)))
    with pytest.raises(ConnectionLost):
        link.left.session.open()
    ours.send(b"still open")
    link.settle()
    assert take_all(theirs) == b"still open"


def test_an_answer_to_no_ping_does_no_harm():
    link = Link()
    link.left.session.receive(memoryview(HEADER.pack(0, PING, ACK, 0, 12345)))
    assert link.left.pongs == [12345] and not link.left.wire


def test_more_than_the_window_is_a_violation():
    link = Link()
    link.open()
    head = HEADER.pack(0, 0, 0, 1, INITIAL_WINDOW + 1)
    with pytest.raises(ProtocolViolation):
        link.right.session.receive(memoryview(head))


def test_the_largest_window_updates_do_not_overflow():
    link = Link()
    ours, _ = link.open()
    for _ in range(3):
        link.left.session.receive(memoryview(HEADER.pack(0, WINDOW_UPDATE, 0, 1, 0xFFFFFFFF)))
    assert ours.send_window < 1 << 32


def test_random_frames_and_calls_keep_the_books():
    """Whatever comes in and whoever calls what, only two kinds of error leave and the counts agree."""
    dice = random.Random(5)
    violations = 0
    for _ in range(1500):
        accepted = []
        session = Session(
            initiator=dice.random() < 0.5,
            peer="them",
            limits=Limits(max_buffered_bytes=1 << 20),
            clock=lambda: 1.0,
            put=lambda *parts: None,
            accept=accepted.append,
        )
        opened = [session.open(), session.open()]
        try:
            for _ in range(30):
                length = dice.choice([0, 1, 5, 300, 70000])
                kind = dice.choice([0, 0, 0, 1, 1, 2, 3])
                flags = dice.choice([0, 0, 0, 1, 2, 4, 8, 5, 12, 9])
                frame = HEADER.pack(0, kind, flags, dice.randrange(6), length) + (bytes(length) if kind == 0 else b"")
                cut = dice.randrange(len(frame) + 1)
                session.receive(memoryview(frame[:cut]))
                session.receive(memoryview(frame[cut:]))
                for stream in accepted + opened:
                    call = dice.choice(["take", "release", "reset", "finish", "handled", "send"] + [""] * 15)
                    with contextlib.suppress(ConnectionLost):
                        if call == "take" and stream.buffered:
                            stream.take(dice.choice([1, 100, 1 << 20]))
                        elif call in ("release", "finish", "handled"):
                            getattr(stream, call)()
                        elif call:
                            {"send": stream.send, "reset": stream.reset}.get(call, lambda what: 0)(b"abc")
        except ProtocolViolation:
            violations += 1
        assert session.buffered == session._budget.buffered == sum(s.buffered for s in accepted + opened)
        assert session._budget.streams == len(session._inbound)
        lent = sum(stream._target - INITIAL_WINDOW for stream in session._streams.values())
        assert session._fund + lent == (1 << 20) // 2
    assert violations > 0


@pytest.mark.parametrize(("round_trip", "grows"), [(0.1, True), (0.0, False)])
def test_windows_grow_over_a_long_line_when_its_round_trip_is_known(round_trip, grows):
    """A reader who takes everything at once, 0.2 s after it was sent: fast for a line of 100 ms, slow for one of none."""
    link = Link()
    ours, theirs = link.open()
    link.right.session.round_trip = round_trip
    for _ in range(40):
        while ours.send(bytes(100_000)):
            pass
        link.settle()
        link.clock[0] += 0.2
        take_all(theirs)
        link.settle()
    assert (ours.send_window > 4 * INITIAL_WINDOW) == grows
