"""Frames: lengths are refused before anything is held for them, whatever the bytes and however they are cut."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.protocol import frames
from hivefs.protocol.frames import MAX_PAYLOAD, Frame, FrameDecoder, Kind, ProtocolViolation

KINDS = st.sampled_from(list(Kind))


def frames_of(decoder: FrameDecoder) -> list[Frame]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append(frame)
    return found


@st.composite
def any_frame(draw: st.DrawFn) -> Frame:
    kind = draw(KINDS)
    payload = draw(st.binary(max_size=min(300, MAX_PAYLOAD[kind])))
    return Frame(kind, draw(st.integers(0, 2**32 - 1)), draw(st.binary(max_size=100)), payload)


@given(st.lists(any_frame(), max_size=6), st.lists(st.integers(1, 64), min_size=1))
def test_any_cutting_of_the_bytes_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(map(frames.to_bytes, sent))
    decoder = FrameDecoder(frozenset(Kind))
    got = []
    at = turn = 0
    while at < len(wire):
        piece = wire[at : at + cuts[turn % len(cuts)]]
        decoder.feed(piece)
        got += frames_of(decoder)
        at, turn = at + len(piece), turn + 1
    assert got == sent
    assert not decoder.inside


SIZES = st.sampled_from([0, 1, 65_000, 65_537, 70_000, 131_072, 200_000])
CUTS = st.sampled_from([1000, 4095, 4096, 65_535, 65_536, 70_001, 300_000])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, st.integers(0, 2000)), max_size=4), st.lists(CUTS, min_size=1), st.booleans())
def test_large_frames_come_out_of_any_pieces_whole(sent: list[tuple[int, int]], cuts: list[int], at_once: bool) -> None:
    made = [
        Frame(Kind.ANSWER, number + 1, bytes([number]) * header, random.Random(number).randbytes(size))
        for number, (size, header) in enumerate(sent)
    ]
    wire = b"".join(map(frames.to_bytes, made))
    decoder = FrameDecoder(frozenset(Kind))
    got: list[Frame] = []
    at = turn = 0
    while at < len(wire):
        piece = wire[at : at + cuts[turn % len(cuts)]]
        decoder.feed(bytearray(piece) if turn % 2 else piece)
        at, turn = at + len(piece), turn + 1
        if at_once and at < len(wire):
            continue
        got += frames_of(decoder)
        if decoder.request:
            frame = made[decoder.request - 1]
            have = decoder.buffered - frames.PREFIX_BYTES - len(frame.header)
            for count in (1, have + 1) if turn % 7 else (have,):  # looking joins what it looks at
                wanted = frame.payload[:count] if 0 < count <= have else None
                assert count < 1 or decoder.start_of_payload(count) == wanted
            assert decoder.wanted == len(frame.payload) - have
    assert got == made
    assert not decoder.inside
    assert decoder.buffered == 0


def test_a_large_frame_that_comes_byte_by_byte_is_not_kept_as_so_many_objects() -> None:
    frame = Frame(Kind.ANSWER, 1, b"", bytes(range(256)) * 500)
    decoder = FrameDecoder(frozenset(Kind))
    wire = frames.to_bytes(frame)
    for at in range(len(wire) - 1):
        decoder.feed(wire[at : at + 1])
        assert decoder.next_frame() is None
    assert len(decoder._pieces) < 4
    decoder.feed(wire[-1:])
    assert decoder.next_frame() == frame


@given(st.binary(max_size=400))
def test_garbage_gives_frames_or_a_violation_and_nothing_else(data: bytes) -> None:
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(data)
    try:
        got = frames_of(decoder)
    except ProtocolViolation:
        return
    assert b"".join(map(frames.to_bytes, got)) + bytes(decoder._buffer) == data


@given(KINDS, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
def test_a_frame_over_its_kinds_limit_is_refused_at_its_prefix(kind: Kind, length: int, header: int) -> None:
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(struct.pack(">IBIH", length, kind, 1, header))
    payload = length - 7 - header
    allowed = header <= frames.MAX_HEADER_BYTES and 0 <= payload <= MAX_PAYLOAD[kind]
    if allowed:
        assert decoder.next_frame() is not None if length == 7 else decoder.next_frame() is None
    else:
        with pytest.raises(ProtocolViolation):
            decoder.next_frame()
    assert decoder.buffered <= frames.PREFIX_BYTES


def test_a_huge_length_is_refused_before_any_byte_of_it_came() -> None:
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(struct.pack(">IBIH", 2**32 - 1, Kind.PUT, 1, 0))
    with pytest.raises(ProtocolViolation, match="4294967295"):
        decoder.next_frame()


def test_a_kind_that_is_known_but_not_expected_is_refused() -> None:
    decoder = FrameDecoder(frozenset({Kind.HELLO}))
    decoder.feed(frames.to_bytes(Frame(Kind.PING, 1)))
    with pytest.raises(ProtocolViolation, match="PING frame out of place"):
        decoder.next_frame()


def test_an_unknown_kind_is_refused() -> None:
    decoder = FrameDecoder(frozenset(Kind))
    decoder.feed(struct.pack(">IBIH", 7, 99, 1, 0))
    with pytest.raises(ProtocolViolation, match="unknown kind 99"):
        decoder.next_frame()


def test_a_sender_cannot_build_a_frame_over_the_limit() -> None:
    with pytest.raises(ValueError, match="PING"):
        frames.to_bytes(Frame(Kind.PING, 1, b"", b"x"))
    biggest = Frame(Kind.PUT, 1, bytes(frames.MAX_HEADER_BYTES), bytes(2 << 20))
    assert len(frames.to_bytes(biggest)) <= frames.MAX_FRAME_BYTES + 4
