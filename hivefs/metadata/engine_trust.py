"""What the engine's store keeps of trust: a row on each node's conduct, and old copies of shares that may be taken back."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from hivefs.errors import Corrupt
from hivefs.formats import reputation as reputation_format
from hivefs.metadata.engine_reader import STEP
from hivefs.metadata.engine_tables import DISTRUSTED
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.placement.reputation import Reputation

_SPARE = struct.Struct(">16sBQ")


class TrustTables(EngineWriter):
    """Tables reputation, spare."""

    def reputations(self) -> Iterator[tuple[NodeId, Reputation]]:
        """All rows one by one. Raises Corrupt, UnknownVersion."""
        after: bytes | None = None
        while batch := self.keys("reputation", b"", after, STEP):
            for key in batch:
                value = self._load("reputation", key)
                if value is not None:
                    yield NodeId(key), reputation_format.from_bytes(value)
            after = batch[-1]

    def save_reputations(self, rows: dict[NodeId, Reputation]) -> None:
        """Record these, in one transaction."""
        with self.writing():
            for node_id, row in rows.items():
                self.save("reputation", node_id, reputation_format.to_bytes(row))

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
