"""Log lines without a flood: of each class of event one line at a time, and how many were not written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("hivefs.node")

QUIET_SECONDS = 30.0


@dataclass(slots=True)
class _Class:
    last: float
    unsaid: int = 0


class Events:
    """``clock`` gives seconds that only run. No names, ids of shares or contents belong into a line."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._classes: dict[str, _Class] = {}

    def say(self, kind: str, text: str, level: int = logging.INFO) -> None:
        """One line for an event of class ``kind`` (a fixed word), unless there was one within 30 s."""
        now = self._clock()
        known = self._classes.get(kind)
        if known is None:
            self._classes[kind] = _Class(now)
        elif now - known.last < QUIET_SECONDS:
            known.unsaid += 1
            return
        else:
            if known.unsaid:
                text += f" ({known.unsaid} more like this since the last line)"
            known.last, known.unsaid = now, 0
        log.log(level, "%s: %s", kind, text)
