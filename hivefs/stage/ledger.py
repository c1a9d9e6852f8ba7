"""How many plaintext bytes of each log segment are still named by an extent; what can be deleted, what is worth moving.

Exact by construction of SlotExtents: every byte is retained once and released once. An account that would become
negative means that somebody released twice, and another extent's bytes would be deleted with the segment; so that is
an error at once, and the segment is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from hivefs.model.staged import SegmentUse


class Ledger:
    """Accounts of live bytes. Pure."""

    def __init__(self) -> None:
        self._live: dict[int, int] = {}
        self._dead: set[int] = set()

    def live(self, number: int) -> int:
        """Live plaintext bytes of a segment; 0 for an unknown one."""
        return self._live.get(number, 0)

    def retain(self, number: int, count: int) -> None:
        """``count`` more bytes are named."""
        self._live[number] = self._live.get(number, 0) + count

    def release(self, number: int, count: int) -> None:
        """``count`` bytes are named no more. Raises ValueError when so many were not live; nothing changes then."""
        left = self._live.get(number, 0) - count
        if left < 0:
            raise ValueError("staged bytes were released twice")
        if left:
            self._live[number] = left
        else:
            self._live.pop(number, None)
            self._dead.add(number)

    def empty(self, number: int) -> None:
        """Look at this segment too when the dead ones are asked for: it may never have had a live byte."""
        self._dead.add(number)

    def dead(self) -> list[int]:
        """Segments that lost their last live byte (or never had one) and were not forgotten since."""
        self._dead = {number for number in self._dead if number not in self._live}
        return sorted(self._dead)

    def forget(self, number: int) -> None:
        """The segment is deleted."""
        self._dead.discard(number)


def movable(uses: Iterable[SegmentUse], limit: int) -> int | None:
    """The closed segment with the fewest live bytes, if it has at most ``limit`` and they are less than half of it."""
    candidates = [u for u in uses if u.closed and 0 < u.live <= limit and 2 * u.live < u.size]
    return min(candidates, key=lambda u: (u.live, u.number)).number if candidates else None
