"""Pool and trust as the engine has them, which do not work out again what cannot have changed.

The engine's book keeps every node that ever was. In a hive that loses a third of its nodes each month most of the book is
dead after some months, and most of a simulation would go into looking at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hivefs.chunkstore.pool import Member, Pool
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate, Evidence
from hivefs.placement import reputation
from hivefs.placement.evidence import Weighed
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy
from hivefs.placement.reputation import VET_AUDITS, Reputation


@dataclass(slots=True)
class _Made:
    """A candidate, what it was made of, and whether nothing but those can change it."""

    candidate: Candidate
    row: NodeRow
    conduct: Reputation
    weighed: Weighed
    reserved: int
    usable: bool
    outage: frozenset[str]
    final: bool


class SimPool(Pool):
    """Candidates are made anew only for nodes of which something changed. Of a node that was given up its conduct does not
    matter: it cannot be chosen.
    """

    trust: Trust
    on_touch: Callable[[], None]

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self._made: dict[Evidence, dict[NodeId, _Made]] = {}

    def touch(self) -> None:
        super().touch()
        self.on_touch()

    def candidates(self, policy: Policy | None = None) -> Sequence[Candidate]:
        weakest = Evidence.CLAIMED if policy is None else policy.evidence
        made = self._made.setdefault(weakest, {})
        return [self._candidate(member, weakest, made) for member in self.members.values()]

    def _candidate(self, member: Member, weakest: Evidence, made: dict[NodeId, _Made]) -> Candidate:
        before, given_up = made.get(member.node_id), member.row.state == NodeState.GONE
        if before is not None and before.row is member.row and given_up and before.final:
            return before.candidate
        node_id, trust = member.node_id, self.trust
        conduct, usable = trust.row(node_id), member.client is not None and self._usable(member)
        outage = trust.outage(node_id)
        if (
            before is not None
            # Rows are never changed in place, so the same row is the same object.
            and before.row is member.row
            and (before.conduct is conduct or given_up)
            and before.weighed is member.weighed
            and (before.reserved, before.usable, before.outage) == (member.reserved, usable, outage)
            and before.final
        ):
            return before.candidate
        candidate = Candidate(
            node_id,
            member.under(weakest) | {"outage": outage},
            max(0, member.row.free_bytes - member.reserved),
            usable,
            trust.weight(node_id),
            trust.vetted(node_id),
        )
        # Who passed enough audits and is not old enough yet may be vetted a moment later; nobody else may.
        final = candidate.vetted or conduct.audits < VET_AUDITS
        made[node_id] = _Made(candidate, member.row, conduct, member.weighed, member.reserved, usable, outage, final)
        return candidate


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
