"""Claims: who may have put or deleted which share where, so that no crash and no race leaves or loses one.

Before a share is put at a node, the pair is written to the trash (durably): should we die, the next start deletes what
no stripe names. Recording the stripe takes its pairs out of the trash. Meanwhile the pair is *claimed*, and the trash is
not emptied of claimed pairs; a pair that is being deleted at this moment cannot be claimed. So a retry that gives the
same share to the same node never meets the deletion of the first try.

Two things have to be done in one step of a task, and steps.py holds whoever tests to it: looking where copies are and
claiming, and letting go of a claim and recording.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hivefs.chunkstore import steps
from hivefs.model.ids import NodeId, ShareId

Pair = tuple[NodeId, ShareId]


class Claims:
    """``intend`` writes pairs to the trash, durably. Everything here is synchronous."""

    def __init__(self, intend: Callable[[Collection[Pair]], None]) -> None:
        self._intend = intend
        self._claimed: set[Pair] = set()
        self._deleting: set[Pair] = set()

    def claim(self, pairs: Collection[Pair], looked: steps.Moment) -> set[Pair]:
        """Claim what can be claimed; returns it. ``looked`` is when it was looked where copies of these shares are.
        release() them right before the stripe is recorded. Raises DiskFull, and has claimed nothing then.
        """
        looked.still()
        taken = {pair for pair in pairs if pair not in self._deleting}
        if taken:
            self._intend(taken)
            self._claimed |= taken
        return taken

    def hold(self, node_id: NodeId, share_id: ShareId) -> bool:
        """Keep a share that is at that node already from being deleted until it is released; False while it is being put or
        deleted. Nothing is written, so after a crash all is as it was.
        """
        pair = node_id, share_id
        if pair in self._claimed or pair in self._deleting:
            return False
        self._claimed.add(pair)
        return True

    def release(self, pairs: Collection[Pair]) -> None:
        """They are recorded now, or given up (and stay in the trash)."""
        self._claimed.difference_update(pairs)
        steps.released()

    def claimed(self, node_id: NodeId, share_id: ShareId) -> bool:
        """Whether somebody is putting this share there, or just has, and will record it."""
        return (node_id, share_id) in self._claimed

    def begin_delete(self, node_id: NodeId, share_ids: Collection[ShareId]) -> list[ShareId]:
        """Which of these may be deleted now; end_delete() when the node answered."""
        free = [s for s in share_ids if (node_id, s) not in self._claimed]
        self._deleting.update((node_id, s) for s in free)
        return free

    def end_delete(self, node_id: NodeId, share_ids: Collection[ShareId]) -> None:
        """The deletion is over, however it went."""
        self._deleting.difference_update((node_id, s) for s in share_ids)
