"""What is news and goes on with the next round of gossip, without waiting for a comparison of all."""

from __future__ import annotations

from collections import deque

MOST = 256
"""What is more than that, the comparison of all finds."""


class Fresh:
    """Blobs that were news since they were asked for last. A thread may add while another takes."""

    def __init__(self) -> None:
        self._blobs: deque[bytes] = deque(maxlen=MOST)

    def add(self, blob: bytes) -> None:
        """It goes on with the next round."""
        self._blobs.append(blob)

    def take(self) -> list[bytes]:
        """All of them, once."""
        found: list[bytes] = []
        while self._blobs:
            found.append(self._blobs.popleft())
        return found
