"""Which bytes of one slot lie in the stage: a sorted list of extents that never overlap.

The newest write wins. What it covers of older extents is cut off them, and handed back, because every byte that is not
named any more must be released exactly once in the accounts of its log segment (stage/log.py): an extent that loses its
middle becomes two that name the same run. Bytes outside all extents belong to the chunk under the slot, or are zeros;
this module does not know which.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent


def _part(extent: StagedExtent, start: int, end: int) -> StagedExtent:
    if start == extent.start and end == extent.end:
        return extent
    return StagedExtent(
        start, end - start, extent.segment, extent.position, extent.run_start, extent.run_length
    )  # not dataclasses.replace: this is on the way of every overwrite


class SlotExtents:
    """The staged extents of one slot. All offsets count from the beginning of the slot, 0 to 1 MiB.

    Raises ValueError when ``extents`` (any order) overlap, are empty, or reach outside the slot or their own run.
    """

    __slots__ = ("_covered", "_extents", "_starts")

    def __init__(self, extents: Iterable[StagedExtent] = ()) -> None:
        self._extents = sorted(extents, key=lambda e: e.start)
        self._starts = [e.start for e in self._extents]
        self._covered = 0
        end = 0
        for extent in self._extents:
            if not extent.possible:
                raise ValueError("an impossible staged extent")
            if extent.start < end:
                raise ValueError("staged extents overlap")
            end = extent.end
            self._covered += extent.length

    def __iter__(self) -> Iterator[StagedExtent]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    @property
    def covered_bytes(self) -> int:
        """How many bytes of the slot lie in the stage."""
        return self._covered

    @property
    def end(self) -> int:
        """Offset after the last staged byte; 0 when there is none."""
        return self._extents[-1].end if self._extents else 0

    def insert(self, extent: StagedExtent) -> list[StagedExtent]:
        """Lay ``extent`` over what is there; returns the parts of older extents that nothing names any more."""
        if not extent.possible:
            raise ValueError("an impossible staged extent")
        extents = self._extents
        if not extents or extents[-1].end <= extent.start:
            dropped: list[StagedExtent] = []
            extents.append(extent)
            self._starts.append(extent.start)
        else:
            dropped = self.remove(extent.start, extent.end)
            at = bisect_left(self._starts, extent.start)
            extents.insert(at, extent)
            self._starts.insert(at, extent.start)
        self._covered += extent.length
        return dropped

    def remove(self, start: int, end: int) -> list[StagedExtent]:
        """Forget bytes [start, end); returns the parts of extents that held them."""
        extents, starts = self._extents, self._starts
        if start >= end:
            return []
        first = bisect_right(starts, start) - 1
        if first < 0 or extents[first].end <= start:
            first += 1
        last = bisect_left(starts, end, first)
        if first == last:
            return []
        dropped, kept = [], []
        for extent in extents[first:last]:
            dropped.append(_part(extent, max(extent.start, start), min(extent.end, end)))
            if extent.start < start:
                kept.append(_part(extent, extent.start, start))
            if extent.end > end:
                kept.append(_part(extent, end, extent.end))
        extents[first:last] = kept
        starts[first:last] = [e.start for e in kept]
        self._covered -= sum(e.length for e in dropped)
        return dropped

    def cut(self, length: int) -> list[StagedExtent]:
        """Forget everything from ``length`` on (the slot was truncated); returns the parts that held it."""
        return self.remove(length, CHUNK_BYTES)

    def clear(self) -> list[StagedExtent]:
        """Forget everything; returns all extents."""
        return self.remove(0, CHUNK_BYTES)

    def cover(self, start: int, end: int) -> list[tuple[int, int, StagedExtent | None]]:
        """[start, end) without gap as (start, end, extent that holds it, or None), in order."""
        pieces: list[tuple[int, int, StagedExtent | None]] = []
        if start >= end:
            return pieces
        extents = self._extents
        index = bisect_right(self._starts, start) - 1
        if index < 0 or extents[index].end <= start:
            index += 1
        at = start
        while at < end:
            if index == len(extents) or extents[index].start >= end:
                pieces.append((at, end, None))
                break
            extent = extents[index]
            if extent.start > at:
                pieces.append((at, extent.start, None))
                at = extent.start
            stop = min(extent.end, end)
            pieces.append((at, stop, extent))
            at = stop
            index += 1
        return pieces
