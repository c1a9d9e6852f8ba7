"""Where the time of one read went: counted from the packets of the link, so that line and processors can be told apart.

A read that waits for one answer has three parts. The *line*: half a round trip for the request, and from the first packet
of the answer that a node sent until the one that brought the last byte that was needed, with every turn that TCP takes
meanwhile. The *near* side: ``before`` the request left, and ``after`` that packet came. The *far* side: between the
request's coming out of the link and the first packet of the answer. Both sides are processors (and disks) only; what the
process that carries the packets lost by being late counts as line.

Pure: records are made by the emulator, times are seconds of CLOCK_MONOTONIC, which time.perf_counter shows too.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_TCP: Final = 6
_ADDRESSED: Final = struct.Struct(">HHI")
NEAR_TO_FAR, FAR_TO_NEAR = 0, 1


class Seen(NamedTuple):
    """A packet as it entered the link (``out`` False) or came out. ``head`` is its first bytes, IP and TCP headers."""

    at: float
    lane: int
    out: bool
    head: bytes


class _Tcp(NamedTuple):
    at: float
    lane: int
    out: bool
    near_port: int
    far_port: int
    sequence: int
    size: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds, and ``flights``: bursts of the answer with at least half a round trip between two of them. ``bytes`` is what
    came of the answer until then, with TLS; ``again`` says that a packet of it was sent again.
    """

    before: float
    line: float
    far: float
    after: float
    flights: int
    bytes: int
    again: bool

    @property
    def all(self) -> float:
        """The whole read."""
        return self.before + self.line + self.far + self.after


def parts(seen: Sequence[Seen], began: float, ended: float, round_trip_s: float, needed: int) -> Parts | None:
    """What a read from ``began`` to ``ended`` was made of, for which the first ``needed`` bytes of an answer had to come
    (of what TCP carries). None when no request and answer are among the packets. The conversation that brought most bytes
    meanwhile is the one that counts.
    """
    found = [made for one in seen if began <= one.at <= ended and (made := _parsed(one)) is not None and made.size]
    brought = Counter[tuple[int, int]]()
    for one in found:
        if one.lane == FAR_TO_NEAR and one.out:
            brought[one.near_port, one.far_port] += one.size
    if not brought:
        return None
    flow = brought.most_common(1)[0][0]
    mine = [one for one in found if (one.near_port, one.far_port) == flow]
    asked = [one.at for one in mine if one.lane == NEAR_TO_FAR and not one.out]
    heard = [one.at for one in mine if one.lane == NEAR_TO_FAR and one.out]
    came = [one for one in mine if one.lane == FAR_TO_NEAR and one.out]
    if not asked or not heard:
        return None
    sent = [one for one in mine if one.lane == FAR_TO_NEAR and not one.out and one.at >= heard[0]]
    came = [one for one in came if sent and one.at >= sent[0].at]
    if not came:
        return None
    sums = list(itertools.accumulate(one.size for one in came))
    came = came[: 1 + sum(before < needed for before in sums[:-1])]
    sent = [one for one in sent if one.at <= came[-1].at]
    flights = 1 + sum(after.at - before.at >= round_trip_s / 2 for before, after in itertools.pairwise(sent))
    line = heard[0] - asked[0] + came[-1].at - sent[0].at
    again = len({one.sequence for one in sent}) < len(sent)
    after = ended - came[-1].at
    return Parts(asked[0] - began, line, sent[0].at - heard[0], after, flights, sum(one.size for one in came), again)


def _parsed(seen: Seen) -> _Tcp | None:
    """The TCP header of an IPv4 packet; None for anything else."""
    head = seen.head
    if len(head) < 20 or head[0] >> 4 != 4 or head[9] != _TCP:
        return None
    start = (head[0] & 15) * 4
    if len(head) < start + 13:
        return None
    source, target, sequence = _ADDRESSED.unpack_from(head, start)
    near, far = (source, target) if seen.lane == NEAR_TO_FAR else (target, source)
    size = int.from_bytes(head[2:4], "big") - start - (head[start + 12] >> 4) * 4
    return _Tcp(seen.at, seen.lane, seen.out, near, far, sequence, size)
