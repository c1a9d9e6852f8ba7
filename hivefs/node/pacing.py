"""Keeping to a number of bytes a second: a token bucket, and the node's line with one for each direction.

The bucket is a virtual schedule (GCRA, ITU-T I.371): it knows until when the bytes that were let through keep the line
busy. That time may be BURST seconds ahead; what comes then waits. A share is sent whole, never in drips, so an idle line
gives the first at once, whatever its rate, and is silent afterwards until it was paid for: in any w seconds at most
rate * (w + BURST) bytes and one share go through.

What would have to wait for longer than MOST_WAIT is refused as busy at once: that is well below the deadlines of clients
(15 s for a read, 30 s for a share sent, docs/node-operators.md), who then ask the other holders, or give the share to
another node. A GET waits before it holds any memory, and nothing but GET and PUT waits at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from hivefs.node.caps import NO_CAP, Caps
from hivefs.protocol.failures import Code, Refusal

BURST = 1.0
MOST_WAIT = 5.0
"""Seconds."""


class Bucket:
    """``rate`` in bytes a second, or NO_CAP, or 0. Times are seconds of a clock that only runs."""

    def __init__(self, rate: int = NO_CAP) -> None:
        self.rate = rate
        self._paid = 0.0
        """Until when the line is busy with what was let through."""

    def set_rate(self, rate: int, now: float) -> None:
        """From now on; what was let through and is not paid for takes as much longer or shorter."""
        if rate == self.rate:
            return
        owed = max(0.0, self._paid - now) * max(self.rate, 0)
        self.rate = rate
        self._paid = now + min(owed / rate, MOST_WAIT + BURST) if rate > 0 else now

    def take(self, size: int, now: float) -> float | None:
        """Let ``size`` bytes through: the seconds that they must wait, or None when that would be too long."""
        if self.rate == NO_CAP:
            return 0.0
        if self.rate == 0:
            return None
        paid = max(self._paid, now)
        wait = max(0.0, paid - now - BURST)
        if wait > MOST_WAIT:
            return None
        self._paid = paid + size / self.rate
        return wait

    def give_back(self, size: int) -> None:
        """They did not go after all."""
        if self.rate > 0:
            self._paid -= size / self.rate


def minute_of_day(now_ns: int) -> int:
    """Minutes since midnight on this machine's wall clock."""
    local = time.localtime(now_ns / 10**9)
    return local.tm_hour * 60 + local.tm_min


class Line:
    """The node's line. ``clock`` gives ns since 1970, ``minute`` makes the minute of the local day of it."""

    def __init__(self, caps: Caps, clock: Callable[[], int], minute: Callable[[int], int] = minute_of_day) -> None:
        self.caps = caps
        self._clock = clock
        self._minute = minute
        self._up, self._down = Bucket(), Bucket()

    @property
    def quiet(self) -> bool:
        """Whether these are the quiet hours."""
        return bool(self.caps.quiet_hours) and self.caps.quiet(self._minute(self._clock()))

    def rates(self) -> tuple[int, int]:
        """(upload, download) now, bytes a second or NO_CAP."""
        return (
            self.caps.at(self._minute(self._clock())) if self.caps.quiet_hours else (self.caps.upload, self.caps.download)
        )

    def _buckets(self) -> tuple[Bucket, Bucket]:
        now = trio.current_time()
        up, down = self.rates()
        self._up.set_rate(up, now)
        self._down.set_rate(down, now)
        return self._up, self._down

    async def send(self, size: int) -> None:
        """Wait for the turn of an answer of ``size`` bytes. Raises Refusal (BUSY); cancelled, it gives its turn back."""
        bucket, _ = self._buckets()
        wait = bucket.take(size, trio.current_time())
        if wait is None:
            raise Refusal(Code.BUSY, "this node gives no more of its line now")
        if wait:
            try:
                await trio.sleep(wait)
            except trio.Cancelled:
                bucket.give_back(size)
                raise

    def received(self, size: int) -> float:
        """``size`` bytes have come: until when (trio's time) their answer must wait. Raises Refusal (BUSY)."""
        _, bucket = self._buckets()
        now = trio.current_time()
        wait = bucket.take(size, now)
        if wait is None:
            raise Refusal(Code.BUSY, "this node takes no more on its line now")
        return now + wait
