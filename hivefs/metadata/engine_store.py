"""The engine's state on LMDB: where chunks lie, stripes, nodes, queues, the published root.

One writing process (the engine, under the flock of ``engine/lock``); the mount reads committed snapshots through
EngineReader.

What there is of it lies in the other files engine_*.py: the tables (engine_tables), reading (engine_reader), transactions
(engine_writer), and one file of methods for each kind of entry, put together here.

Every write transaction is synced at commit: what the engine says to the mount or to a node is on disk before.
"""

from __future__ import annotations

from hivefs.metadata.engine_checkpoints import CheckpointTables
from hivefs.metadata.engine_evidence import EvidenceTables
from hivefs.metadata.engine_forgotten import ForgottenTables
from hivefs.metadata.engine_hydration import HydrationTables
from hivefs.metadata.engine_reader import EngineReader
from hivefs.metadata.engine_tables import OWN_PREFIXES, TABLES
from hivefs.metadata.engine_trust import TrustTables


class EngineStore(CheckpointTables, EvidenceTables, ForgottenTables, HydrationTables, TrustTables):
    """Write access for the engine process. Changes happen inside ``with store.writing():``, synced at its end."""


__all__ = ["OWN_PREFIXES", "TABLES", "EngineReader", "EngineStore"]
