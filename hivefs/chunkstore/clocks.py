"""What the clocks of the nodes that answer say of this machine's.

A clock can be wrong by days or years: a machine without a battery starts where it was switched off, or in 1970, and is set
when it finds the net. What follows from time that passed while nobody looked (a node is away for so long that it is given
up, an old copy or a node for so long that it is forgotten) is done only while most nodes say the same time. They are no
authority: where they and this machine disagree nothing is believed, neither theirs nor ours, so whoever has most of them
can hold up what is forgotten and hasten nothing.

The first that answers may be the user's own node on this very machine, with the same wrong clock. So since the start, and
since this clock was set, half of all nodes that are not given up must have said the same time together once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hivefs.model.ids import NodeId

AGREE_NS: Final = 86_400 * 10**9
"""Clocks that are no further apart say the same; as leases and certificates have it."""
MOST_AHEAD_NS: Final = 100 * 365 * 86_400 * 10**9


class Clocks:
    """``known`` is how many nodes are not given up. Atomic between two checkpoints of trio: everything."""

    def __init__(self, known: Callable[[], int] = lambda: 0) -> None:
        self._known = known
        self._told: dict[NodeId, bool] = {}
        self._apart: dict[NodeId, None] = {}
        """Where leases go by another clock than ours."""
        self._agree = 0
        self._proved = False

    def heard(self, node_id: NodeId, told_ns: int, now_ns: int) -> int:
        """A node told its clock (ns since 1970; 0: it does not say). By how much leases there are to be later than by ours:
        0 for a day or less; less than 0 where the node's is behind, only while most say that ours is wrong.
        """
        self.lost(node_id)
        if not told_ns:
            return 0
        ahead = told_ns - now_ns
        self._told[node_id] = abs(ahead) <= AGREE_NS
        self._agree += self._told[node_id]
        self._proved = self._proved or (self._most_agree and 2 * self._agree >= self._known())
        if self._told[node_id] or (ahead < 0 and self._most_agree):
            return 0
        self._apart[node_id] = None
        return min(ahead, MOST_AHEAD_NS)

    def lost(self, node_id: NodeId) -> None:
        """There is no conversation with it any more."""
        self._agree -= self._told.pop(node_id, False)
        self._apart.pop(node_id, None)

    def stepped(self) -> list[NodeId]:
        """This machine's clock was set: what was told before says nothing of it. The nodes at which leases went by another
        clock than ours until now.
        """
        apart = list(self._apart)
        self._apart.clear()
        self._told.clear()
        self._agree = 0
        self._proved = False
        return apart

    @property
    def asked(self) -> bool:
        """Whether any node told its clock since this one was set."""
        return bool(self._told)

    @property
    def doubted(self) -> bool:
        """Whether nodes tell their clocks, and most say another time."""
        return self.asked and not self._most_agree

    @property
    def right(self) -> bool:
        """Whether most of the nodes that answer say the same time as this machine, and half of all did so once. False while
        none does.
        """
        return self._proved and self._most_agree

    @property
    def _most_agree(self) -> bool:
        return 2 * self._agree > len(self._told)
