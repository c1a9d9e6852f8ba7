"""The nodes as placement sees them, kept as they change: whoever places a stripe looks at none but those that changed since
the last one was placed, however many are known. Nodes that cannot be asked now are not listed: they are made when somebody
asks for one by name.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate, Evidence
from hivefs.placement.field import Field

AGAIN_S: Final = 300.0
"""After so long a node that is not vetted is looked at again: it may be old enough by then."""

MOST_AGAIN: Final = 256
"""Such nodes that are looked at in one go."""


class Listing:
    """``make`` gives a node as it is now, with what is known of it by such evidence or better; ``there`` says whether it
    can be asked (None: no such node is known), and ``known`` how many nodes are. A field is made when it is first asked
    for, for each class of evidence that some policy asks for.
    """

    def __init__(
        self,
        make: Callable[[NodeId, Evidence], Candidate],
        there: Callable[[NodeId], bool | None],
        known: Callable[[], int],
    ) -> None:
        self._make = make
        self._there = there
        self._known = known
        self._fields: dict[Evidence, Field] = {}
        self._stale: dict[Evidence, dict[NodeId, None]] = {}
        self._again: list[tuple[float, NodeId, bool]] = []
        """When to look at a node again; True: to see whether it is vetted, which is in here once for each node."""
        self._waiting: set[NodeId] = set()
        self.made = 0
        """Candidates that were made so far."""

    def changed(self, node_id: NodeId) -> None:
        """Something of a node is other than it was, or the node is new."""
        for stale in self._stale.values():
            stale[node_id] = None

    def forget(self, node_id: NodeId) -> None:
        """There is no such node any more."""
        for weakest, field in self._fields.items():
            self._stale[weakest].pop(node_id, None)
            field.remove(node_id)

    def later(self, node_id: NodeId, when: float) -> None:
        """It will be another at that time, by the clock that ``field`` is given."""
        if self._fields:
            heapq.heappush(self._again, (when, node_id, False))

    def field(self, weakest: Evidence, now: float, everybody: Callable[[], list[NodeId]]) -> Field:
        """The nodes as they are now. ``everybody`` are all that can be asked, for the first time. All that changed are made
        in one step: who can wait has ``look_again`` and ``some`` do it before.
        """
        if weakest not in self._fields:
            self.begin(weakest, everybody())
        self.look_again(now)
        self.some(weakest, now, len(self._stale[weakest]))
        return self._fields[weakest]

    def look_again(self, now: float) -> int:
        """Nodes that are others by now count as changed, MOST_AGAIN at most; how many those were."""
        for done in range(MOST_AGAIN):
            if not self._again or self._again[0][0] > now:
                return done
            _, node_id, vetting = heapq.heappop(self._again)
            if vetting:
                self._waiting.discard(node_id)
            if self._there(node_id):
                self.changed(node_id)
        return MOST_AGAIN

    def begin(self, weakest: Evidence, everybody: list[NodeId]) -> None:
        """A field for this class of evidence is going to be asked for: ``some`` makes it little by little."""
        if weakest not in self._fields:
            self._fields[weakest] = Field(others=_Others(self, weakest))
            self._stale[weakest] = dict.fromkeys(everybody)

    def some(self, weakest: Evidence, now: float, most: int) -> int:
        """Make up to so many of the nodes that are not listed as they are; how many that were."""
        field, stale = self._fields[weakest], self._stale[weakest]
        taken = min(most, len(stale))
        for _ in range(taken):
            node_id, _ = stale.popitem()
            if not self._there(node_id):
                field.remove(node_id)
                continue
            candidate = self._make(node_id, weakest)
            field.put(candidate)
            if not candidate.vetted and node_id not in self._waiting:
                self._waiting.add(node_id)
                heapq.heappush(self._again, (now + AGAIN_S, node_id, True))
            self.made += 1
        return taken


class _Others:
    """The nodes that a field does not list."""

    def __init__(self, listing: Listing, weakest: Evidence) -> None:
        self._listing = listing
        self._weakest = weakest

    def get(self, node_id: NodeId) -> Candidate | None:
        known = self._listing._there(node_id) is not None
        return self._listing._make(node_id, self._weakest) if known else None

    def known(self) -> int:
        return self._listing._known()
