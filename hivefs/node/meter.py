"""What goes over the node's line: counted in memory, added to the index every SAVE_SECONDS and at the end.

A SIGKILL loses what was counted since the last time it was saved, a minute at most; what is saved is never counted twice,
since the counters begin anew with the commit. Days are those of the machine's local calendar.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from hivefs.errors import Corrupt, DiskFull, StoreDamaged, UnknownVersion
from hivefs.formats import meter as meter_format
from hivefs.formats.meter import Day, Traffic
from hivefs.node.events import Events
from hivefs.node.store import ShareStore
from hivefs.node.threads import in_thread

SAVE_SECONDS = 60.0
KEPT_DAYS = 400


def day_of(now_ns: int) -> str:
    """The local date, as 2026-01-31."""
    return time.strftime("%Y-%m-%d", time.localtime(now_ns / 10**9))


class Meter:
    """``clock`` gives ns since 1970."""

    def __init__(self, store: ShareStore, clock: Callable[[], int], events: Events) -> None:
        self._store = store
        self._clock = clock
        self._events = events
        self._fresh: Day = {}
        self.since_start: Day = {}

    def of(self, peer: int) -> Counting:
        """Counts for one stream of that kind of peer."""
        return Counting(self, peer)

    def count(self, peer: int, bytes_in: int = 0, bytes_out: int = 0, request: int = 0, refusal: int = 0) -> None:
        """Bytes of frames, a request by its kind, a refusal by its code (0: none)."""
        for day in (self._fresh, self.since_start):
            traffic = day.get(peer)
            if traffic is None:
                traffic = day[peer] = Traffic()
            traffic.bytes_in += bytes_in
            traffic.bytes_out += bytes_out
            if request:
                traffic.requests[request] += 1
            if refusal:
                traffic.refusals[refusal] += 1

    async def run(self) -> None:
        """Save now and then, until cancelled."""
        while True:
            await trio.sleep(SAVE_SECONDS)
            await self.save()

    async def save(self) -> None:
        """Add what is new to the day; what cannot be written now is kept for the next time."""
        fresh, self._fresh = self._fresh, {}
        if fresh:
            try:
                await in_thread(self._write, day_of(self._clock()), fresh)
            except (DiskFull, StoreDamaged) as error:
                meter_format.add(self._fresh, fresh)
                self._events.say("meter", str(error), logging.ERROR)

    def _write(self, day: str, fresh: Day) -> None:
        """In a worker thread: nobody else has ``fresh`` now."""
        with self._store.lock, self._store.index.writing() as change:
            kept = _read(change.meter_day(day))
            meter_format.add(kept, fresh)
            change.save_meter_day(day, meter_format.to_bytes(kept), KEPT_DAYS)

    def days(self, count: int) -> list[tuple[str, Day]]:
        """The last ``count`` days on which something was measured, the newest first, with what is not saved yet."""
        found = days(self._store.index.meter_days(count))
        if self._fresh:
            today = day_of(self._clock())
            if not found or found[0][0] != today:
                found.insert(0, (today, {}))
            meter_format.add(found[0][1], self._fresh)
        return found[:count]


class Counting:
    """What one stream counts."""

    def __init__(self, meter: Meter, peer: int) -> None:
        self._meter = meter
        self._peer = peer

    def came(self, size: int) -> None:
        """Bytes came."""
        self._meter.count(self._peer, bytes_in=size)

    def went(self, size: int) -> None:
        """Bytes were sent."""
        self._meter.count(self._peer, bytes_out=size)

    def asked(self, kind: int) -> None:
        """A request came."""
        self._meter.count(self._peer, request=kind)

    def refused(self, code: int) -> None:
        """A refusal was answered."""
        self._meter.count(self._peer, refusal=code)


def days(rows: list[tuple[str, bytes]]) -> list[tuple[str, Day]]:
    """Rows of the index, decoded."""
    return [(day, _read(value)) for day, value in rows]


def _read(value: bytes | None) -> Day:
    """A day that cannot be read begins anew: it is a count for people, and no share depends on it."""
    if value is None:
        return {}
    try:
        return meter_format.from_bytes(value)
    except (Corrupt, UnknownVersion):
        return {}
