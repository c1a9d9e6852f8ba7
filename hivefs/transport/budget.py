"""What all connections of a host hold together, beyond what each may hold alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .limits import Limits


class Holder(Protocol):
    """A session, as the budget sees it."""

    buffered: int

    @property
    def inbound(self) -> int:
        """Streams that the other end opened, with those whose handler is not done yet."""

    def drop_oldest(self) -> bool:
        """Reset the oldest stream that the other end opened; False when all are reset already."""

    def evict(self) -> None:
        """Drop what is buffered and reset its streams."""


class Budget:
    """Counts unread bytes and inbound streams over all sessions that share it. ``crowded`` is called when a stream had to
    make room for another one.
    """

    def __init__(self, limits: Limits, crowded: Callable[[], None] = lambda: None) -> None:
        self._crowded = crowded
        self.streams = 0
        self.buffered = 0
        self._most = limits.max_buffered_in_total
        self._most_streams = limits.max_streams_in_total
        self._holders: set[Holder] = set()

    def admit(self, holder: Holder) -> bool:
        """Room for one more inbound stream of a session. When there is none, the session that has most of them loses its
        oldest, so that one who holds thousands of streams open keeps nobody out. A stream's place is free only when its
        handler is done, so an eighth more than the bound may be there for a moment; beyond that the answer is no.
        """
        if self.streams >= self._most_streams:
            if not self._holders or self.streams >= self._most_streams + self._most_streams // 8:
                return False
            crowd = max(self._holders, key=lambda other: other.inbound)
            if crowd.inbound <= holder.inbound + 1 or not crowd.drop_oldest():
                return False
            self._crowded()
        self.streams += 1
        self._holders.add(holder)
        return True

    def stored(self, holder: Holder, size: int) -> None:
        """Account for bytes of one session. When there is no room, the session that holds most pays for it."""
        self.buffered += size
        if size > 0:
            self._holders.add(holder)
            if self.buffered > self._most:
                max(self._holders, key=lambda other: other.buffered).evict()

    def leave(self, holder: Holder) -> None:
        """The session is over; what it still holds belongs to its readers."""
        self.buffered -= holder.buffered
        self._holders.discard(holder)
