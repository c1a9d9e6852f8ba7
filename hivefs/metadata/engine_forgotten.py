"""Nodes that the engine's store forgets: all that it has of one goes, but for 48 bytes that say that it was known."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from hivefs.formats import records
from hivefs.formats import reputation as reputation_format
from hivefs.metadata.damaged import Record
from hivefs.metadata.engine_nodes import NodeTables
from hivefs.metadata.engine_stripes import StripeTables
from hivefs.metadata.engine_tables import OF_NODE
from hivefs.model.ids import NodeId

_FORGOTTEN: Final = struct.Struct(">QQ")
_NOTES: Final = ("trash", "spare", "unknown")
STEP: Final = 256


class ForgottenTables(StripeTables, NodeTables):
    """Table forgotten; takes out of nodes, known, reputation, trash, spare, unknown, tree (n, e)."""

    def holds_something(self, node_id: NodeId) -> bool:
        """Whether a stripe names it, or will be said not to by the next head only."""
        if next(self.each_on(node_id), None) is not None:
            return True
        return any(node == node_id for left in self._copies().values() for _, node in left)

    def damaged_of(self, node_id: NodeId) -> list[str]:
        """Read all that is kept of a node; what of it is damaged, in words."""
        self.roster_entry(node_id), self.node_row(node_id), self.weighed(node_id)
        self.statement_of(node_id), self.attestations_of(node_id)
        self._of_node(node_id, Record.CONDUCT, "reputation", node_id, reputation_format.from_bytes)
        for name in OF_NODE:
            self.info(name + node_id.hex())
        return [record.words for record in self.damaged.of(node_id)]

    def forget_notes(self, node_id: NodeId) -> bool:
        """Forget what waits to be deleted at a node, or may come back with it: at most STEP notes, in one transaction.
        Whether there are more.
        """
        with self.writing():
            left = STEP
            for table in _NOTES:
                keys = self.keys(table, node_id, limit=left)
                for key in keys:
                    self.delete(table, key)
                left -= len(keys)
        return not left

    def forget_node(self, node_id: NodeId, now_ns: int) -> None:
        """Forget the node itself, in one transaction: afterwards it is one that was never there, but for ``forgotten``."""
        if not self.has_entry("tree", records.node_key(node_id)):
            return
        entry = self.roster_entry(node_id)  # one that is damaged is as if it had never been heard
        sequence = 0 if entry is None else entry.address.sequence
        with self.writing():
            self.put("forgotten", node_id, _FORGOTTEN.pack(sequence, max(0, now_ns) // 10**9))
            for key in list(self._tree_keys(node_id)):
                self._save_tree(key, None)
            for table in ("nodes", "known", "reputation"):
                self.delete(table, node_id)
            for name in OF_NODE:
                self.delete("info", (name + node_id.hex()).encode())
        self._views.pop(node_id, None)

    def _tree_keys(self, node_id: NodeId) -> Iterator[bytes]:
        yield records.node_key(node_id)
        if self.has_entry("tree", records.statement_key(node_id)):
            yield records.statement_key(node_id)
        yield from self.keys("tree", records.attestation_key(node_id, b""))

    def was_forgotten(self, node_id: NodeId) -> tuple[int, int] | None:
        """Of a forgotten node the sequence of its addresses, and when it was forgotten (s since 1970); None of others."""
        value = self.plain("forgotten", node_id)
        if value is None:
            return None
        sequence, when = _FORGOTTEN.unpack(value)
        return int(sequence), int(when)
