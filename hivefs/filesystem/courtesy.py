"""When background work may begin: whoever uses the drive comes first.

Placing keeps every core busy that it gets: sealing, coding and sending here, and with an embedded hive the nodes too.
Beside it a program that copies or reads waits for the processor at every request. So while the drive is in use nothing
new is begun, for a while: what waits is safe on this disk, and is placed as soon as there is a pause. The while is
bounded, because only what is placed survives the loss of the machine: after ``PATIENCE_NS`` some of it is placed all the
time, and when ``MOST_WAITING`` bytes or ``MOST_PIECES`` files and parts of files wait, placing goes on at full speed
whatever else happens.

Somebody who waits for the hive (``hivefs wait``, an unmount) is not made to wait by this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BUSY: Final = 0.25
"""The drive is in use when requests take more than this share of the time."""

PATIENCE_NS: Final = 20_000_000_000
MOST_WAITING: Final = 2 << 30
MOST_PIECES: Final = 20_000
GRANT: Final = 32 << 20
"""Bytes handed out at once: a few tenths of a second of work, after which the question is asked again."""

ALL: Final = 1 << 62
"""For who does not ask for courtesy."""

TRICKLE: Final = 8 << 20
"""Bytes a second that are placed of what has waited for long while the drive is in use."""

_SECOND_NS: Final = 1_000_000_000


class Courtesy:
    """See the head of the file. ``load`` says which share of the time the drive was in use lately (0 to 1); ``clock``
    is the file system's, which can be set back: then waiting is over.
    """

    def __init__(self, load: Callable[[], float], clock: Callable[[], int]) -> None:
        self._load = load
        self._clock = clock
        self._trickled = clock()
        self.yielding = False
        """Whether what waits was held back when the engine asked last."""

    @property
    def calm(self) -> bool:
        """Whether nobody uses the drive right now."""
        return self._load() <= BUSY

    def grant(self, waiting: int, pieces: int, oldest_ns: int | None) -> int:
        """How many bytes may be placed now, 0 for none. ``waiting`` bytes in ``pieces`` slots are staged, the first of
        them at ``oldest_ns`` (None: nothing is).
        """
        most = self._most(waiting, pieces, oldest_ns)
        self.yielding = waiting > 0 and not most
        return most

    def _most(self, waiting: int, pieces: int, oldest_ns: int | None) -> int:
        now = self._clock()
        if self.calm or waiting >= MOST_WAITING or pieces >= MOST_PIECES:
            return GRANT
        patient = oldest_ns is None or 0 <= now - oldest_ns <= PATIENCE_NS
        if patient or 0 <= now - self._trickled < _SECOND_NS:
            return 0
        self._trickled = now
        return TRICKLE
