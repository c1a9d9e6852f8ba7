"""Pool and trust as the engine has them; trust does not work out again what cannot have changed.

The engine's book keeps every node that ever was. In a hive that loses a third of its nodes each month most of the book is
dead after some months, and most of a simulation would go into looking at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hivefs.chunkstore.pool import Pool
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId
from hivefs.placement import reputation


class SimPool(Pool):
    """It says when something else is thought of a node."""

    on_touch: Callable[[], None]

    def touch(self) -> None:
        super().touch()
        self.on_touch()


class SimTrust(Trust):
    """The time of nodes that were given up is counted once a day, or when this machine is cut off and when one of them
    returns.
    """

    _uncounted = 0.0
    _given_up: frozenset[NodeId] = frozenset()

    def tick(self, seconds: float, online: Iterable[NodeId], away: Iterable[NodeId], gone: Iterable[NodeId]) -> None:
        here, missing, given_up = list(online), list(away), frozenset(gone)
        cut_off = bool(missing) and 2 * len(here) < len(here) + len(missing)
        if cut_off or self.cut_off or given_up != self._given_up or self._uncounted >= 86_400.0:
            for node_id in sorted(self._given_up):
                self._rows[node_id] = reputation.watched(self.row(node_id), self._uncounted, False, 1.0)
                self._seen_away[node_id] = self._seen_away.get(node_id, 0.0) + self._uncounted
            self._uncounted = 0.0
        self._given_up = given_up
        if cut_off or self.cut_off:
            super().tick(seconds, here, missing, sorted(given_up))
            return
        super().tick(seconds, here, missing, ())
        self._uncounted += seconds
