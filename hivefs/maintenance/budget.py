"""The budget of the engine's own traffic: repair, moving, rebalancing, audits. Whoever uses the drive comes first.

Each duty asks ``take`` before it sends or fetches bytes of its own accord. Two things make it wait: the rate that the
user allows (a token bucket that may go into debt, so that one share larger than a second's worth goes through), and
people: while somebody waits for a read, or the drive is in use, nothing new is begun. The second wait ends after
PATIENCE seconds and then again every TRICKLE seconds, so that a drive in use for days still moves a little; what is
endangered does not wait for people at all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

PATIENCE: Final = 20.0
TRICKLE: Final = 1.0
LOOK_EVERY: Final = 0.25
USED: Final = "the drive is in use"


class Budget:
    """``rate`` in bytes a second, 0 for no limit. ``calm`` asks whether nobody uses the drive, ``reading`` whether somebody
    waits for a read.
    """

    def __init__(self, rate: int, calm: Callable[[], Awaitable[bool]], reading: Callable[[], bool]) -> None:
        self.rate = rate
        self._calm = calm
        self._reading = reading
        self._free_at = 0.0
        self._last = 0.0
        self._asked = -1.0
        self._seen = -PATIENCE
        """When the drive was found in use last, without a pause since ``_since``."""
        self._since = 0.0
        self._was_calm = True
        self.taken = 0
        """Bytes that were let through so far."""
        self.waiting_for = ""
        """Why somebody waits here now, in words."""

    async def take(self, size: int, urgent: bool = False) -> None:
        """Return when ``size`` bytes may go. ``urgent`` waits for no person, only for the rate."""
        try:
            if not urgent:
                await self._yield()
            while self.rate and (pause := self._free_at - trio.current_time()) > 0:
                self.waiting_for = f"the limit of {self.rate} bytes a second"
                await trio.sleep(min(pause, 1.0))
        finally:
            self.waiting_for = ""
        self._last = trio.current_time()
        if self.rate:
            self._free_at = max(self._free_at, self._last) + size / self.rate
        self.taken += size

    async def _yield(self) -> None:
        while await self._in_use():
            now = trio.current_time()
            if now - self._seen > PATIENCE:
                self._since = now  # nobody asked for a while, so nobody knows how it was
            self._seen = now
            if now - self._since >= PATIENCE and now - self._last >= TRICKLE:
                self._last = now
                return
            self.waiting_for = USED
            await trio.sleep(LOOK_EVERY)
        self._seen = -PATIENCE

    async def _in_use(self) -> bool:
        if self._reading():
            return True
        now = trio.current_time()
        if not 0 <= now - self._asked < LOOK_EVERY:
            self._asked = now
            self._was_calm = await self._calm()
        return not self._was_calm
