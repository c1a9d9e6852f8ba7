"""What the engine's store keeps of trust: a row on each node's conduct, and old copies of shares that may be taken back."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Final

from hivefs.errors import Corrupt
from hivefs.formats import reputation as reputation_format
from hivefs.metadata.damaged import Record
from hivefs.metadata.engine_reader import STEP
from hivefs.metadata.engine_tables import DISTRUSTED
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.placement.reputation import Reputation

_SPARE = struct.Struct(">16sBQ")
_OUT_OF_TRUST: Final = 10_000
"""Ten wrong answers."""


class TrustTables(EngineWriter):
    """Tables reputation, spare."""

    def reputations(self) -> Iterator[tuple[NodeId, Reputation]]:
        """All rows one by one; of a node of which that is damaged none, unless it was out of trust: then one by which it
        still is, until it gave right answers enough. Raises UnknownVersion.
        """
        after: bytes | None = None
        while batch := self.keys("reputation", b"", after, STEP):
            for key in batch:
                row = self.reputation(NodeId(key))
                if row is not None:
                    yield NodeId(key), row
            after = batch[-1]

    def reputation(self, node_id: NodeId) -> Reputation | None:
        """One of them."""
        row = self._of_node(node_id, Record.CONDUCT, "reputation", node_id, reputation_format.from_bytes)
        if row is None and self.damaged.has("reputation", node_id) and node_id in (self.info(DISTRUSTED) or ()):
            return Reputation(self.clock(), self.clock(), bad=_OUT_OF_TRUST, suspended=True)
        return row

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None:
        """Record these, in one transaction."""
        with self.writing():
            for node_id, row in rows.items():
                self.save("reputation", node_id, reputation_format.to_bytes(row))

    def distrusted(self) -> Collection[NodeId]:
        """The nodes that are out of trust by what is written."""
        return [NodeId(node_id) for node_id in self.info(DISTRUSTED) or ()]

    def save_distrusted(self, nodes: Collection[NodeId]) -> None:
        """These nodes are out of trust now, and no others."""
        wanted = sorted(nodes)
        if (self.info(DISTRUSTED) or []) != wanted:
            with self.writing():
                self.save_info(DISTRUSTED, wanted)

    def spare_share(self, node_id: NodeId, share_id: ShareId, stripe_id: StripeId, index: int, now_s: int) -> None:
        """A node that is away may still hold this share, which another one holds now."""
        self.put("spare", node_id + share_id, _SPARE.pack(stripe_id, index, now_s))

    def spares_of(self, node_id: NodeId, after: ShareId | None, limit: int) -> list[tuple[ShareId, StripeId, int, int]]:
        """Spare shares at a node above ``after``: share, stripe, number, since when (s since 1970). Raises Corrupt."""
        found = []
        for key in self.keys("spare", node_id, None if after is None else node_id + after, limit):
            value = self._get("spare", key)
            if value is not None:
                if len(value) != _SPARE.size:
                    raise Corrupt(what="a spare share", reason="its form is wrong")
                stripe_id, index, since = _SPARE.unpack(value)
                found.append((ShareId(key[32:]), StripeId(stripe_id), index, since))
        return found

    def spare_done(self, node_id: NodeId, share_id: ShareId) -> None:
        """It is no spare any more."""
        self.delete("spare", node_id + share_id)

    def has_spare(self, node_id: NodeId, share_id: ShareId) -> bool:
        """Whether an old copy of that share may be at that node."""
        return self._get("spare", node_id + share_id) is not None
