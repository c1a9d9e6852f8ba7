"""What is news and goes on with the next round of gossip, without waiting for a comparison of all; and how often one node
may be news.
"""

from __future__ import annotations

from collections import deque

from hivefs.model.ids import NodeId

MOST = 256
"""What is more than that, the comparison of all finds."""

CHANGES = 3
CHANGES_NS = 180 * 10**9
"""So many changes of one node in so long are taken from who pushes them: one a minute, some at once. Otherwise one node
that signs anew all the time would make every node of the hive write, and pass on, all the time.
"""

_MOST_PACED = 1024


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


class Pace:
    """When what one node says changed, of those that changed lately. One thread changes at a time."""

    def __init__(self) -> None:
        self._changed: dict[NodeId, list[int]] = {}

    def allows(self, node_id: NodeId, now_ns: int) -> bool:
        """Whether one more change may be taken now (ns since 1970)."""
        return len(self._recent(node_id, now_ns)) < CHANGES

    def note(self, node_id: NodeId, now_ns: int) -> None:
        """It has changed now, however that came."""
        if len(self._changed) >= _MOST_PACED:
            self._changed = {n: times for n in self._changed if (times := self._recent(n, now_ns))}
        self._changed[node_id] = [*self._recent(node_id, now_ns), now_ns][-CHANGES:]

    def _recent(self, node_id: NodeId, now_ns: int) -> list[int]:
        return [at for at in self._changed.get(node_id, ()) if 0 <= now_ns - at < CHANGES_NS]
