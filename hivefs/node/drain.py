"""How far a node is that leaves: what is left of what was there, and when it may be over. Pure; times are arguments."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0
FEWEST_S = 2.0
MOST_SAMPLES = 600


class Drain:
    """Samples of the leases that are left, and the rate at which they went in the last ten minutes. A lease on a share is
    one vault's; the share goes with its last one.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=MOST_SAMPLES)

    def sample(self, now_s: float, leases: int) -> None:
        """So many are left."""
        if self._samples and now_s - self._samples[-1][0] < 1.0:
            return
        self._samples.append((now_s, leases))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()

    def eta_s(self, now_s: float, leases: int) -> float | None:
        """Seconds until the last one is gone at the rate of late; None when nothing has gone lately."""
        if not leases:
            return 0.0
        if not self._samples:
            return None
        then, before = self._samples[0]
        elapsed = now_s - then
        if elapsed < FEWEST_S or before <= leases:
            return None
        return leases * elapsed / (before - leases)
