"""How far a node is that leaves: what is left of what was there, and when it may be over. Pure; times are arguments."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0
FEWEST_S = 2.0
MOST_SAMPLES = 600
STILL_S = 60.0
"""After so long without any that went there is no telling when the last one will: the vaults may have no other place."""


class Drain:
    """Samples of the leases that are left, and the rate at which they went in the last ten minutes. A lease on a share is
    one vault's; the share goes with its last one.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=MOST_SAMPLES)
        self._least: tuple[float, int] | None = None

    def sample(self, now_s: float, leases: int) -> None:
        """So many are left."""
        if self._samples and now_s - self._samples[-1][0] < 1.0:
            return
        if self._least is None or leases < self._least[1]:
            self._least = now_s, leases
        self._samples.append((now_s, leases))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    def still_s(self, now_s: float) -> float:
        """Seconds since one went, or since the first sample."""
        return 0.0 if self._least is None else max(0.0, now_s - self._least[0])

    def eta_s(self, now_s: float, leases: int) -> float | None:
        """Seconds until the last one is gone at the rate of late; None when nothing has gone lately."""
        if not leases:
            return 0.0
        if not self._samples or self.still_s(now_s) > STILL_S:
            return None
        then, before = self._samples[0]
        elapsed = now_s - then
        if elapsed < FEWEST_S or before <= leases:
            return None
        return leases * elapsed / (before - leases)
