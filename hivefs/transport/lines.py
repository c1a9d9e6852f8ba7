"""Log lines about peers without a flood: whoever can connect can make as many events as he likes.

Like hivefs/node/events.py, which an edge of its own may not be imported for: one line of a kind in QUIET_SECONDS, and in
the next one how many were not written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("hivefs.transport")

QUIET_SECONDS = 30.0


class Lines:
    """``clock`` gives seconds that only run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def say(self, kind: str, text: str, level: int = logging.WARNING, *, traceback: bool = False) -> None:
        """A line for an event of class ``kind`` (a fixed word), unless there was one within 30 s. ``traceback`` adds that
        of the exception that is being handled.
        """
        now = self._clock()
        last = self._last.get(kind)
        if last is not None and now - last < QUIET_SECONDS:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            return
        unsaid = self._unsaid.pop(kind, 0)
        if unsaid:
            text += f" ({unsaid} more like this since the last line)"
        self._last[kind] = now
        log.log(level, "%s: %s", kind, text, exc_info=traceback or None)
