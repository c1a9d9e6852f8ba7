"""Times since when nodes are away follow a clock that was set, some nodes at each look, while all goes on around that."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hivefs.chunkstore.member import Member
from hivefs.maintenance.ring import Ring
from hivefs.model.ids import NodeId
from hivefs.placement.health import NodeState

SHIFTED: Final = 256
"""Nodes that are looked at in one go."""


@dataclass(slots=True)
class _Shift:
    """By how much the clock stepped, for times that this process saw and for those from ``before`` it; the nodes that are
    not looked at yet for that, how many those were then, and of which the time is of since then.
    """

    step: int
    before: int
    waiting: Iterator[NodeId]
    left: int
    since: dict[NodeId, None]


class Shifts:
    """``pending`` while some times do not follow yet. Whose time was moved is put into ``unsaved``. (A list of those who
    are away, made when the clock was set, would be a gap of the loop by itself: nodes are looked through as they were met.)
    """

    def __init__(self, members: Mapping[NodeId, Member], met: Ring, unsaved: deque[NodeId]) -> None:
        self._members = members
        self._met = met
        self._unsaved = unsaved
        self._steps: list[_Shift] = []
        self._set_back = 0
        """By how much it was set back, in all, without moving times from before this process."""

    @property
    def pending(self) -> bool:
        """Not all times follow yet."""
        return bool(self._steps)

    def stepped(self, step: int) -> None:
        """The clock was set by so many ns. Times from before this process stay when it was set back, and by as much when it
        is set forward again.
        """
        stays = step if step < 0 else min(step, -self._set_back)
        self._set_back += stays
        self._steps.append(_Shift(step, step - stays, self._met.walk(), len(self._met), {}))

    def changed(self, node_id: NodeId) -> None:
        """Since when it is as it is, is by the clock as it is now."""
        for shift in self._steps:
            shift.since[node_id] = None

    def some(self) -> None:
        """Look at some nodes."""
        for _ in range(SHIFTED):
            if not self._steps:
                return
            shift = self._steps[0]
            node_id = next(shift.waiting, None) if shift.left else None
            if node_id is None:
                del self._steps[0]
                continue
            shift.left -= 1
            member = self._members.get(node_id)
            if member is None or member.state == NodeState.ONLINE or node_id in shift.since or not member.since_ns:
                continue
            by = shift.step if member.dated else shift.before
            if by:
                member.since_ns = max(1, member.since_ns + by)
                self._unsaved.append(node_id)
