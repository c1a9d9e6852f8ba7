"""How long the silence of one node is borne before others are asked for the same share as well (hedging).

What counts is silence since the request has left this machine, not the whole time of an answer: a megabyte that comes over
a slow line, or behind seven others that were asked for at once, is on its way as long as bytes of shares come from that
node. A fixed time for the whole answer would ask k other nodes for k times the bytes over the very line that is full
already.

The bound follows each node: twice the silence that nine of ten of its recent shares stayed below, at most CEILING, and
never less than FLOOR and four of its round trips. (So much does a lost packet cost on a line that is full: TCP sends it
again after a round trip at best, and its timer is a fifth of a second above two.) A node that let a hedged request win
without having sent a byte gets the least until it answers again: otherwise its own silence would teach us to wait longer
for it. A node that drips is outwaited by IN_ALL.

Pure: times are arguments, in seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

FLOOR: Final = 0.4
CEILING: Final = 3.0
IN_ALL: Final = 8.0
"""Longest that one share is waited for, however steadily it comes, before others are asked."""

_KEPT: Final = 32
_FACTOR: Final = 2.0
_OF_TEN: Final = 9
_ROUND_TRIPS: Final = 4


class Patience:
    """The patience with one node; ``floor`` is what it begins with."""

    def __init__(self, floor: float = FLOOR) -> None:
        self._floor = floor
        self._silences: deque[float] = deque(maxlen=_KEPT)
        self._in_vain = False
        self._round_trip = 0.0

    def round_trip(self, seconds: float) -> None:
        """A question that costs the node nothing was answered after so long."""
        self._round_trip = min(self._round_trip or seconds, seconds)

    def answered(self, silence: float) -> None:
        """A share, or a range of one, came; the longest that nothing was heard while it was waited for."""
        self._silences.append(silence)
        self._in_vain = False

    def waited_in_vain(self) -> None:
        """Others were faster, and this node had not sent a byte."""
        self._in_vain = True

    @property
    def limit(self) -> float:
        """Silence that is borne now."""
        floor = self._floor + _ROUND_TRIPS * self._round_trip
        if self._in_vain or not self._silences:
            return floor
        ordered = sorted(self._silences)
        usual = ordered[(len(ordered) - 1) * _OF_TEN // 10]
        return max(floor, min(_FACTOR * usual, CEILING))
