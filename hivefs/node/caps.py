"""How much of its line a node gives, and when: caps in bytes a second, and others for its quiet hours. Pure.

Quiet hours are ranges of the local wall clock, to the minute. They are looked up at every request by what the clock says
then, so a clock that was put right, or a change to or from daylight saving time, needs no care: an hour that the clock
skips is not quiet, one that it shows twice is quiet twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hivefs.errors import BadSetting

NO_CAP = -1
SAME = -2
"""In the quiet hours: as at other times."""

SLOWEST = 16 << 10
"""Bytes a second. A slower line would need minutes for one share; 0 is allowed and means that none is served."""

DAY_MINUTES = 24 * 60
MOST_RANGES = 24
_RANGE = re.compile(r"([0-2]?\d):([0-5]\d)-([0-2]?\d):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class Hours:
    """From ``start`` up to but not including ``end``, in minutes since local midnight; over midnight when end < start."""

    start: int
    end: int

    def covers(self, minute: int) -> bool:
        """Whether that minute of the day is one of them."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return f"{self.start // 60:02}:{self.start % 60:02}-{self.end // 60:02}:{self.end % 60:02}"


def hours_from_text(text: str) -> tuple[Hours, ...]:
    """'08:00-18:00,22:00-01:30' -> ranges; an empty text has none. Raises BadSetting."""
    found = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        match = _RANGE.fullmatch(part)
        numbers = [int(group) for group in match.groups()] if match else []
        start, end = (numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]) if numbers else (0, 0)
        wrong = start >= DAY_MINUTES or end > DAY_MINUTES or start % DAY_MINUTES == end % DAY_MINUTES
        if wrong and (start, end) != (0, DAY_MINUTES):
            raise BadSetting(name="--quiet-hours", reason=f"'{part}' is not a range of hours such as 08:00-18:00")
        found.append(Hours(start, end))
    if len(found) > MOST_RANGES:
        raise BadSetting(name="--quiet-hours", reason=f"there are more than {MOST_RANGES} ranges")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Caps:
    """Bytes of shares a second that are given (``upload``) and taken (``download``); NO_CAP, or 0 for none at all. The
    quiet ones may also be SAME.
    """

    upload: int = NO_CAP
    download: int = NO_CAP
    quiet_hours: tuple[Hours, ...] = ()
    quiet_upload: int = SAME
    quiet_download: int = SAME

    def quiet(self, minute: int) -> bool:
        """Whether a minute of the day (since local midnight) lies in the quiet hours."""
        return any(hours.covers(minute) for hours in self.quiet_hours)

    def at(self, minute: int) -> tuple[int, int]:
        """(upload, download) at a minute of the day."""
        if not self.quiet(minute):
            return self.upload, self.download
        return (
            self.upload if self.quiet_upload == SAME else self.quiet_upload,
            self.download if self.quiet_download == SAME else self.quiet_download,
        )
