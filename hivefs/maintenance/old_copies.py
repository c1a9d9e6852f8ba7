"""Where shares of a stripe may lie, its holders and old copies together: what no reassembly is counted over.

The store notes each old copy until its node says that it is deleted (metadata/engine_stripes.py): what a crash left behind,
what moved, what was damaged, what a node that was given up may come back with. A node that was destroyed never says so. It
counts for as long as it could come back with what it promised to keep: after FORGOTTEN_S without it all its leases have
ended, and a node that starts then deletes by itself what they were for, once it believes its clock (after a week: it counts
again as soon as it answers). What somebody makes of a disk that is not started any more is beyond this, as it is beyond any
deletion. While this machine's clock may be wrong (chunkstore/clocks.py) every old copy counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Protocol

from hivefs.chunkstore.writer import LEASE_NS, named
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeRow, NodeState, NodeView
from hivefs.placement.policies import Policies
from hivefs.placement.verifier import Proof, reassembly

GRACE_NS: Final = 31 * 86_400 * 10**9
"""A node keeps a share so long after its lease, in case a clock is wrong (node/leases.py)."""
FORGOTTEN_S: Final = (LEASE_NS + GRACE_NS) // 10**9


class CopyState(Protocol):
    """The engine's store, as far as this asks it."""

    @property
    def policies(self) -> Policies: ...
    def old_copies(self, stripe: Stripe) -> set[tuple[int, NodeId]]: ...
    def stripe(self, stripe_id: StripeId) -> Stripe | None: ...
    def node_row(self, node_id: NodeId) -> NodeRow | None: ...
    def node_view(self, node_id: NodeId) -> NodeView | None: ...


class OldCopies:
    """``clock`` gives nanoseconds since 1970, ``right`` whether it is known to be about right."""

    def __init__(self, state: CopyState, clock: Callable[[], int], right: Callable[[], bool] = lambda: True) -> None:
        self._state = state
        self._clock = clock
        self._right = right

    def of(self, stripe: Stripe) -> set[tuple[int, NodeId]]:
        """Share numbers with all nodes that may have them, whether the stripe names these or not. It may have been read a
        while ago: what is recorded of it by now counts too.
        """
        now = self._state.stripe(stripe.stripe_id)
        return self._kept(self._state.old_copies(stripe) | named(stripe) | (set() if now is None else named(now)))

    def as_read(self, stripe: Stripe) -> frozenset[tuple[int, NodeId]]:
        """The same of a stripe as it was read a moment ago."""
        return frozenset(self._kept(self._state.old_copies(stripe) | named(stripe)))

    def _kept(self, pairs: set[tuple[int, NodeId]]) -> set[tuple[int, NodeId]]:
        return {pair for pair in pairs if not self._forgotten(pair[1])}

    def _forgotten(self, node_id: NodeId) -> bool:
        row = self._state.node_row(node_id)
        if row is None or row.state != NodeState.GONE or not row.since_ns:
            return False
        return self._clock() - row.since_ns > FORGOTTEN_S * 10**9 and self._right()

    def proofs(self, stripe: Stripe, more: Collection[tuple[int, NodeId]] = ()) -> tuple[Proof, ...]:
        """The verifier's word on no reassembly with all copies, and those in ``more``, counted. A node of which nothing is
        known counts against everybody.
        """
        return self.together(stripe, {*self.of(stripe), *more})

    def together(self, stripe: Stripe, pairs: Collection[tuple[int, NodeId]]) -> tuple[Proof, ...]:
        """The same with these copies and no others counted: the same for stripes of one code and policy."""
        copies: list[list[tuple[Attribute, ...]]] = [[] for _ in stripe.shares]
        for index, node_id in sorted(pairs):
            view = self._state.node_view(node_id)
            copies[index].append(() if view is None else view.attributes)
        return reassembly(self._state.policies.of(stripe), stripe.needed, copies)

    def apart(self, stripe: Stripe, more: Collection[tuple[int, NodeId]] = ()) -> bool:
        """Whether nobody can bring k shares together, old copies counted, with these copies more."""
        return all(proof.no_reassembly for proof in self.proofs(stripe, more))
