"""One direction of a link: a rate with a queue before it, then a delay. Pure: time is an argument, in seconds.

The queue holds a bounded number of bytes and drops what does not fit (drop tail), as the modem at the narrow end of a
long line does. Loss is random and seeded, before the queue. There is no jitter, so packets never overtake each other.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """A link, the same in both directions. ``loss`` is the chance of one packet to be lost, 0 to below 1."""

    round_trip_s: float
    loss: float
    bits_per_s: float
    queue_s: float = 0.1
    """How long the queue takes to drain when it is full."""

    def __post_init__(self) -> None:
        if self.round_trip_s < 0 or not 0 <= self.loss < 1 or self.bits_per_s <= 0 or self.queue_s <= 0:
            raise ValueError("a link has a delay from 0 on, a loss from 0 to below 1, a rate and a queue")

    @property
    def bytes_per_s(self) -> float:
        """Of whole IP packets."""
        return self.bits_per_s / 8


class Lane:
    """One direction. ``lost`` and ``dropped`` count packets that the line lost and that the full queue refused."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self._delay = shape.round_trip_s / 2
        self._loss = shape.loss
        self._rate = shape.bytes_per_s
        self._queue_s = shape.queue_s
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._packets: deque[tuple[float, bytes]] = deque()
        self.passed_bytes = 0
        self.lost = 0
        self.dropped = 0

    def offer(self, packet: bytes, now: float) -> None:
        """A packet enters; it is lost, dropped, or will come out."""
        if self._loss and self._random.random() < self._loss:
            self.lost += 1
            return
        start = max(now, self._free_at)
        takes = len(packet) / self._rate
        if start + takes - now > self._queue_s:
            self.dropped += 1
            return
        self._free_at = start + takes
        self._packets.append((self._free_at + self._delay, packet))
        self.passed_bytes += len(packet)

    @property
    def next_at(self) -> float | None:
        """When the next packet comes out, if there is one."""
        return self._packets[0][0] if self._packets else None

    def take(self, now: float) -> bytes | None:
        """The next packet that is out by now."""
        if self._packets and self._packets[0][0] <= now:
            return self._packets.popleft()[1]
        return None
