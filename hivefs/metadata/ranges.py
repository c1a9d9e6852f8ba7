"""Which ranges of the metadata tree are on this machine while it is brought back after a recovery (pure)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Ranges:
    """Sorted, disjoint, non-touching ranges [low, high) of keys; ``high`` None means to the end."""

    def __init__(self) -> None:
        self._lows: list[bytes] = []
        self._highs: list[bytes | None] = []

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        return iter(list(zip(self._lows, self._highs, strict=True)))

    def around(self, key: bytes) -> tuple[bytes, bytes | None] | None:
        """The range that holds ``key``, if any."""
        at = bisect_right(self._lows, key) - 1
        if at < 0:
            return None
        high = self._highs[at]
        return (self._lows[at], high) if high is None or key < high else None

    def holds(self, key: bytes) -> bool:
        """Whether ``key`` lies in a range."""
        return self.around(key) is not None

    def first_gap(self, start: bytes) -> bytes | None:
        """The least key at or after ``start`` that lies in no range; None when there is none."""
        found = self.around(start)
        return start if found is None else found[1]

    def gap(self) -> tuple[bytes, bytes | None] | None:
        """The first gap as a whole, [low, high); None when everything is covered."""
        low = self.first_gap(b"")
        if low is None:
            return None
        at = bisect_right(self._lows, low)
        return low, (self._lows[at] if at < len(self._lows) else None)

    def add(self, low: bytes, high: bytes | None) -> tuple[tuple[bytes, bytes | None], list[bytes]]:
        """Cover [low, high) too. Returns the range that now holds it and the lows of the ranges it swallowed."""
        swallowed: list[bytes] = []
        keep: list[tuple[bytes, bytes | None]] = []
        for one_low, one_high in self:
            apart = (one_high is not None and one_high < low) or (high is not None and high < one_low)
            if apart:
                keep.append((one_low, one_high))
                continue
            swallowed.append(one_low)
            low = min(low, one_low)
            high = None if high is None or one_high is None else max(high, one_high)
        keep.append((low, high))
        keep.sort(key=lambda pair: pair[0])
        self._lows = [pair[0] for pair in keep]
        self._highs = [pair[1] for pair in keep]
        return (low, high), swallowed
