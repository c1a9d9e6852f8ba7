"""Where the time of a read went, by the packets of the link."""

from __future__ import annotations

import struct

import pytest

from hivefs.testing.bench.wan.packets import FAR_TO_NEAR, NEAR_TO_FAR, Seen, parts

NEAR_PORT, FAR_PORT = 50_000, 4001


def head(lane: int, size: int, sequence: int = 0, near: int = NEAR_PORT, far: int = FAR_PORT) -> bytes:
    """Headers of IP and TCP (with 12 bytes of options) of a packet with so many bytes of payload."""
    source, target = (near, far) if lane == NEAR_TO_FAR else (far, near)
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + 32 + size, 0, 0, 64, 6, 0, bytes(4), bytes(4))
    return ip + struct.pack(">HHIIBBHHH12x", source, target, sequence, 0, 8 << 4, 0x10, 0, 0, 0)


def passes(entered: float, came: float, lane: int, size: int, sequence: int = 0, near: int = NEAR_PORT) -> list[Seen]:
    made = head(lane, size, sequence, near)
    return [Seen(entered, lane, False, made), Seen(came, lane, True, made)]


# A read from 100.000 to 100.080 over a round trip of 20 ms: asked after 3 ms, 7 ms in the node, an answer in two flights,
# of which 3000 bytes are needed, and more that comes before the read returns.
READ = [
    *passes(100.003, 100.013, NEAR_TO_FAR, 90),
    *passes(100.020, 100.030, FAR_TO_NEAR, 1400, 0),
    *passes(100.021, 100.031, FAR_TO_NEAR, 1400, 1400),
    *passes(100.031, 100.041, NEAR_TO_FAR, 0),
    *passes(100.041, 100.051, FAR_TO_NEAR, 1400, 2800),
    *passes(100.042, 100.052, FAR_TO_NEAR, 1400, 4200),
    *passes(100.081, 100.091, FAR_TO_NEAR, 1400, 5600),
]


def test_a_read_is_divided_into_both_sides_and_the_line() -> None:
    found = parts(READ, 100.0, 100.080, 0.02, 3000)
    assert found is not None
    assert (found.before, found.line, found.far, found.after) == pytest.approx((0.003, 0.010 + 0.031, 0.007, 0.029))
    assert found.all == pytest.approx(0.080)
    assert (found.flights, found.bytes, found.again) == (2, 4200, False)


def test_where_less_came_than_was_said_to_be_needed_the_last_packet_counts() -> None:
    found = parts(READ, 100.0, 100.080, 0.02, 1_000_000)
    assert found is not None and found.bytes == 5600 and found.after == pytest.approx(0.028)


def test_other_conversations_do_not_count_and_repeated_packets_are_told() -> None:
    other = [
        *passes(100.001, 100.011, NEAR_TO_FAR, 50, near=50_001),
        *passes(100.012, 100.022, FAR_TO_NEAR, 60, near=50_001),
    ]
    lost = [Seen(100.0205, FAR_TO_NEAR, False, head(FAR_TO_NEAR, 1400, 2800))]
    found = parts([*other, *READ, *lost], 100.0, 100.080, 0.02, 4200)
    assert found is not None and found.before == pytest.approx(0.003) and found.again


def test_packets_without_an_answer_say_nothing() -> None:
    assert parts([], 100.0, 100.1, 0.02, 1) is None
    assert parts(READ, 200.0, 200.1, 0.02, 1) is None
    assert parts([one for one in READ if one.lane == NEAR_TO_FAR], 100.0, 100.080, 0.02, 1) is None
    assert parts([one for one in READ if one.lane == FAR_TO_NEAR], 100.0, 100.080, 0.02, 1) is None
    broken = [Seen(100.01, FAR_TO_NEAR, True, data) for data in (b"", b"\x45" + bytes(30), b"\x60" + bytes(60))]
    assert parts(broken, 100.0, 100.080, 0.02, 1) is None
