"""What the engine's store keeps for checkpoints: changes since the last one, and stripes of pages that moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import lmdb

from hivefs.errors import Corrupt
from hivefs.formats import records
from hivefs.metadata.engine_writer import U64, EngineWriter
from hivefs.model.ids import StripeId
from hivefs.model.stripe import Stripe

_OF_NODE: Final = (records.node_key(b""), records.attestation_key(b"", b""), records.statement_key(b""))


class CheckpointTables(EngineWriter):
    """Tables changed, moved."""

    @contextmanager
    def changes(self) -> Iterator[Iterator[tuple[bytes, bytes | None]]]:
        """Changed tree records since the last checkpoint with their values now (None: deleted), in key order: a snapshot,
        which shows nothing that is changed while it is open. A damaged record about a single node is no change: the tree
        keeps what it has of it until that is known anew. Raises RuntimeError inside writing().
        """
        if self._write is not None:
            raise RuntimeError("a snapshot does not see what its own transaction changed")
        with self._env.begin() as txn, txn.cursor(db=self._db["changed"]) as cursor:
            yield self._changes(txn, map(bytes, cursor.iternext(values=False)))

    def _changes(self, txn: lmdb.Transaction, keys: Iterator[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
        for key in keys:
            try:
                value = self._opened("tree", key, txn)
            except Corrupt:
                if not key.startswith(_OF_NODE):
                    raise
                continue
            yield key, value

    def next_sequence(self) -> int:
        """Close the running sequence (returned): later changes belong to the next checkpoint."""
        closed = self.sequence
        self.sequence += 1
        self.save_info("sequence", self.sequence)
        return closed

    def published(self, closed: int, after: bytes | None = None, most: int = 1 << 62) -> bytes | None:
        """A tree with everything up to sequence ``closed`` is recorded: what was changed until then is no change any more.
        Looks at ``most`` changes behind the key ``after``; the last of them, None when there are no more. While some are
        left the next checkpoint writes them once more.
        """
        keys = self.keys("changed", after=after, limit=most)
        for key in keys:
            value = self._get("changed", key)
            if value is not None and U64.unpack(value)[0] <= closed:
                self.delete("changed", key)
        return keys[-1] if len(keys) == most else None

    def moved(self) -> dict[StripeId, Stripe]:
        """Metadata stripes whose nodes changed since the last checkpoint, as they are now."""
        found = {StripeId(key): self.stripe(StripeId(key)) for key in self.keys("moved")}
        return {stripe_id: stripe for stripe_id, stripe in found.items() if stripe is not None}

    def moved_done(self, described: dict[StripeId, Stripe]) -> None:
        """A tree describes these now; one that moved again meanwhile stays on the list."""
        for key in self.keys("moved"):
            if self.stripe(StripeId(key)) == described.get(StripeId(key)):
                self.delete("moved", key)
