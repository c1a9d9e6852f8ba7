"""Nodes in the engine's store: certificates, addresses, and what was last seen of each."""

from __future__ import annotations

from collections.abc import Mapping

import cbor2

from hivefs.formats import records
from hivefs.formats.member import entry_to_bytes, newest
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.placement.health import NodeRow


class NodeTables(EngineWriter):
    """Tables tree (n), nodes; takes out of forgotten."""

    def save_node(self, entry: RosterEntry, now_ns: int) -> bool:
        """Record certificate and addresses, each when it is newer; whether one was. (Nodes may tell different ones.)"""
        node_id = NodeId(entry.membership.subject)
        before = self.roster_entry(node_id)
        entry = newest(before, entry, now_ns)
        if before == entry:
            return False
        self._save_tree(records.node_key(node_id), entry_to_bytes(entry))
        self.delete("forgotten", node_id)
        return True

    def save_node_row(self, node_id: NodeId, row: NodeRow) -> None:
        """Record what was last seen of a node."""
        self.save("nodes", node_id, cbor2.dumps([int(row.state), row.since_ns, row.free_bytes, row.capacity]))

    def save_seen(self, rows: Mapping[NodeId, NodeRow]) -> None:
        """The same of several, in a transaction of its own."""
        with self.writing():
            for node_id, row in rows.items():
                self.save_node_row(node_id, row)
