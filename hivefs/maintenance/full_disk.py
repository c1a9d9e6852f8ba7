"""A full disk under the engine's store ends no duty: they wait until there is room, and go on.

Every duty is started through ``keep``. When it ends with DiskFull and with nothing else, it is started again as soon as the
store takes a write (``probe``, after a pause that doubles up to LONGEST). Whoever meets a full disk outside of a duty
(an answer to a reader, a timer, a transaction that is put off) says so with ``note``. All of them together are one state:
one line in the log when it begins and one when it ends, and it ends only when the duties have been going on for a whole
pause and none has met a full disk again. So a disk that takes a small write and no large one makes no flood.

What a duty holds in memory has to survive its own end by an exception, and what it changed in a transaction that was undone
is not in the store: each says at its head, or where it matters, how it keeps to that.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from hivefs.errors import DiskFull

log = logging.getLogger(__name__)

FIRST: Final = 1.0
LONGEST: Final = 30.0
"""Seconds between two tries to write."""

T = TypeVar("T")

Keep = Callable[..., Awaitable[Any]]
"""FullDisk.keep, as a duty takes it that starts others."""


def full_disk_of(error: BaseException) -> DiskFull | None:
    """The full disk that an exception, perhaps a group of groups, tells of, if it tells of nothing else."""
    if isinstance(error, DiskFull):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [full_disk_of(one) for one in error.exceptions]
    return found[0] if all(one is not None for one in found) else None


async def unkept(name: str, duty: Callable[..., Awaitable[T]], *given: Any) -> T:
    """A Keep that keeps nothing: what the duty raises passes out."""
    return await duty(*given)


class FullDisk:
    """See the head of the file. ``probe`` writes something to the store and raises DiskFull when that cannot be."""

    def __init__(self, probe: Callable[[], None]) -> None:
        self._probe = probe
        self._noted = trio.Event()
        self._room = trio.Event()
        self._last: float | None = None
        """When a full disk was met last, while there is one."""
        self.waiting_for = ""
        """What is full, in words; empty while there is room."""
        self.waiting: dict[str, int] = {}
        """Duties that wait to be started again, by name, and how many of that name."""

    def note(self, error: DiskFull) -> None:
        """The disk was found full."""
        self._last = trio.current_time()
        if not self.waiting_for:
            log.warning("the engine cannot write to its disk, what needs that waits: %s", error)
        self.waiting_for = str(error)
        self._noted.set()

    async def keep(self, name: str, duty: Callable[..., Awaitable[T]], *given: Any) -> T:
        """What the duty returns. While it ends because the disk is full it is started again. ``run`` must be running."""
        while True:
            try:
                return await duty(*given)
            except (DiskFull, BaseExceptionGroup) as error:
                full = full_disk_of(error)
                if full is None:
                    raise
            self.note(full)
            self.waiting[name] = self.waiting.get(name, 0) + 1
            try:
                await self._room.wait()
            finally:
                self.waiting[name] -= 1
                if not self.waiting[name]:
                    del self.waiting[name]

    async def run(self) -> None:
        """Try to write while the disk is full, and let the duties go on, until cancelled."""
        while True:
            await self._noted.wait()
            await self._until_room()
            self._noted = trio.Event()

    async def _until_room(self) -> None:
        pause, opened = FIRST, None
        while True:
            await trio.sleep(pause)
            if opened is not None and self._last is not None and self._last < opened:
                log.warning("the engine can write to its disk again")
                self.waiting_for, self._last = "", None
                return
            opened = self._opened()
            pause = min(LONGEST, 2 * pause)

    def _opened(self) -> float | None:
        """Let the duties go on when there is room: the time of that."""
        try:
            self._probe()
        except DiskFull as error:
            self.note(error)
            return None
        self._room.set()
        self._room = trio.Event()
        return trio.current_time()

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``: what is full, in words (empty: nothing), and the duties that wait because of it."""
        return {"waiting_for": self.waiting_for, "duties": sorted(self.waiting)}
