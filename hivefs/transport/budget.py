"""What all connections of a host hold together, beyond what each may hold alone."""

from __future__ import annotations

from typing import Protocol

from .limits import Limits


class Holder(Protocol):
    """A session, as the budget sees it."""

    buffered: int

    def evict(self) -> None:
        """Drop what is buffered and reset its streams."""


class Budget:
    """Counts unread bytes and inbound streams over all sessions that share it."""

    def __init__(self, limits: Limits) -> None:
        self.streams = 0
        self.buffered = 0
        self._most = limits.max_buffered_in_total
        self._holders: set[Holder] = set()

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
