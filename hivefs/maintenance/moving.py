"""What the engine moves of its own accord, as status shows it: how much is left, how fast it goes, why it waits."""

from __future__ import annotations

from collections import deque
from typing import Any

import trio

WINDOW = 60.0


class Moving:
    """Counts of one duty that moves data. Bytes are those of shares sent."""

    def __init__(self) -> None:
        self.left: dict[str, list[int]] = {}
        """By reason: jobs, bytes."""
        self.jobs = 0
        self.moved_bytes = 0
        self.freed_bytes = 0
        self.waiting_for = ""
        self._recent: deque[tuple[float, int]] = deque(maxlen=1000)

    def done(self, reason: str, size: int, freed: int = 0) -> None:
        """A job was done."""
        self.jobs += 1
        self.moved_bytes += size
        self.freed_bytes += freed
        self.waiting_for = ""
        self._recent.append((trio.current_time(), size))
        self.drop(reason, size)

    def drop(self, reason: str, size: int) -> None:
        """One job less is left, done or not."""
        row = self.left.get(reason)
        if row is not None:
            row[0] -= 1
            row[1] -= size
            if row[0] <= 0:
                del self.left[reason]

    def plan(self, jobs: list[tuple[str, int]]) -> None:
        """So much is left: (reason, bytes) of each job."""
        self.left = {}
        for reason, size in jobs:
            row = self.left.setdefault(reason, [0, 0])
            row[0] += 1
            row[1] += size

    def rate(self) -> float:
        """Bytes a second of the last minute."""
        now = trio.current_time()
        while self._recent and self._recent[0][0] < now - WINDOW:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        return sum(size for _, size in self._recent) / max(1.0, now - self._recent[0][0])

    @staticmethod
    def together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """What two duties say, as one."""
        eta = None if None in (one["eta_s"], other["eta_s"]) else max(one["eta_s"], other["eta_s"])
        sums = {name: one[name] + other[name] for name, value in one.items() if type(value) is int and name != "eta_s"}
        said = {"reasons": one["reasons"] | other["reasons"], "waiting_for": one["waiting_for"] or other["waiting_for"]}
        return one | sums | said | {"eta_s": eta}

    def status(self, waiting: str = "") -> dict[str, Any]:
        """For status; ``eta_s`` is null while it is not known."""
        left = sum(size for _, size in self.left.values())
        rate = self.rate()
        return {
            "queue": sum(count for count, _ in self.left.values()),
            "bytes_left": left,
            "reasons": {reason: {"queue": count, "bytes": size} for reason, (count, size) in self.left.items()},
            "moved": self.jobs,
            "moved_bytes": self.moved_bytes,
            "freed_bytes": self.freed_bytes,
            "rate": round(rate),
            "eta_s": 0 if not left else round(left / rate) if rate else None,
            "waiting_for": self.waiting_for or (waiting if left else ""),
        }
