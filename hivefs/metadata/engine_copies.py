"""Where old copies of shares may lie, as the engine's store has it: for the engine, and for who looks through its book."""

from __future__ import annotations

import struct

from hivefs.metadata.engine_tables import EngineTables
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe

DOOMED = struct.Struct(">QB")
"""The beginning of a key of the table ``doomed``: sequence, kind."""

DOOMED_NAME, DOOMED_SHARE = 0, 1


def moved_share(key: bytes) -> tuple[NodeId, ShareId] | None:
    """The share that a key of ``doomed`` speaks of, when it is one that moved (``doom_share``)."""
    if key[DOOMED.size - 1] != DOOMED_SHARE:
        return None
    name = key[DOOMED.size + 16 :]
    return NodeId(name[:32]), ShareId(name[32:])


class CopyReader(EngineTables):
    """Reads the tables doomed and copies."""

    def copies_left(self, stripe_id: StripeId) -> set[NodeId]:
        """Nodes that still have a share of this stripe which another holds by now, until a head that says so is out."""
        return {node_id for _, node_id in self._copies().get(stripe_id, ())}

    def moved_copies(self) -> list[tuple[StripeId, ShareId, NodeId]]:
        """All such shares; there are as many as moved since the last head."""
        return sorted((stripe, *copy) for stripe, left in self._copies().items() for copy in left)

    def old_copies(self, stripe: Stripe) -> set[tuple[int, NodeId]]:
        """Where shares of this stripe may lie beside where it says, by number: what waits to be deleted, what may come back
        with a node (spares), and what a move left. Costs as much as the stripe has shares, however many others have copies.
        """
        numbers = {share.share_id: index for index, share in enumerate(stripe.shares)}
        found = {(i, NodeId(key[32:])) for share_id, i in numbers.items() for key in self.keys("copies", share_id)}
        left = self._copies().get(stripe.stripe_id, ())
        return found | {(numbers[share_id], node_id) for share_id, node_id in left if share_id in numbers}

    def _copies(self) -> dict[StripeId, set[tuple[ShareId, NodeId]]]:
        if self._moved_copies is None:
            self._moved_copies = {}
            for key in self.keys("doomed"):
                if (share := moved_share(key)) is not None:
                    stripe_id = StripeId(key[DOOMED.size : DOOMED.size + 16])
                    self._moved_copies.setdefault(stripe_id, set()).add((share[1], share[0]))
        return self._moved_copies
