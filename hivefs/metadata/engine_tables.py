"""The tables of the engine's store and how they are read.

Tables and what they hold (values sealed with the vault's engine key unless said otherwise):

    tree      c || chunk id -> place; s || stripe id -> data stripe; n || node id -> roster entry;
              p || digest -> policies; a || digest -> standing of a node                               (all in checkpoints)
              e || k, a or s || keys -> trusted keys, attestations, what nodes say of themselves       (in checkpoints)
    meta      stripe id -> stripe of metadata pages                                                 (not: see Root)
    changed   tree key -> sequence of the last change that no checkpoint holds yet                  (plain)
    bynode    node id || stripe id -> share number                                                  (plain)
    live      stripe id -> number of live chunks or pages in it                                     (plain)
    offered   chunk id -> inode, slot: placed, but the mount has not said yet whether it took it      (plain)
    doomed    sequence || kind || id -> what to forget once a head after it is out: 0, a chunk or page of a stripe
              (stripe id || its name); 1, a share that moved (stripe id || node id || share id)  (plain)
    trash     node id || share id -> (empty): shares to delete at a node                            (plain)
    nodes     node id -> state, since, free bytes, capacity                                         (sealed CBOR)
    known     node id -> its attributes with their evidence for this vault, and what is wrong with them (sealed CBOR)
    moved     stripe id -> (empty): metadata stripes whose nodes changed since the last checkpoint     (plain)
    loaded    low key -> high key: ranges of the tree that are here, while ``hydrating``              (plain)
    within    stripe id || chunk id -> (empty): the chunks of each data stripe                       (plain)
    unknown   node id || share id -> when that node first listed it, a share that nothing names (ns)  (plain)
    info      small values                                                                           (sealed)
    reputation node id -> what is known of its conduct (docs/formats/reputation.md)                  (sealed)
    spare     node id || share id -> stripe id, share number, since: old copies at nodes that were gone (plain)
    forgotten node id -> sequence of its addresses and when it was forgotten, u64 each (maintenance/forgetting.py) (plain)
    copies    share id || node id -> (empty): each entry of trash and spare, to be found by its share  (plain)

Every write transaction is synced at commit: what the engine says to the mount or to a node is on disk before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import cbor2
import lmdb

from hivefs.crypto.seal import RecordSealer
from hivefs.errors import Corrupt, StoreDamaged
from hivefs.metadata.damaged import Damaged, Record
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.placement.health import NodeView
from hivefs.placement.policies import Policies
from hivefs.placement.policy import Policy

MAP_BYTES = 64 << 30
TABLES = (
    *("tree", "meta", "changed", "bynode", "live", "offered", "doomed", "trash", "nodes", "loaded", "moved", "info"),
    *("reputation", "spare", "copies"),
    *("known", "within", "unknown", "forgotten"),
)
"""Add a line to the head of this file with each new one. A reader takes a table that is not there yet for an empty one."""

OWN_PREFIXES = (b"a", b"c", b"e", b"n", b"p", b"s")
"""First bytes of the tree's keys that are the engine's (docs/formats/records.md)."""


DISTRUSTED = "distrusted"
"""The name of the list of nodes out of trust."""

OF_NODE: Final[dict[str, tuple[Record, Any]]] = {
    "renewed-": (Record.RENEWED, 0),
    "granted-": (Record.RENEWED, 0),
    "ledger-": (Record.ACCOUNT, None),
    "receipt-": (Record.RECEIPT, None),
    "answered-": (Record.ANSWERED, None),
}
"""Small values of the table ``info`` that are kept for each node, by the beginnings of their names; what counts instead of
one that is damaged.
"""

T = TypeVar("T")


class EngineTables:
    """Read access, from any process. ``default`` is the vault's own policy: what holds without a text, and what a text that
    says nothing else is based on.
    """

    def __init__(self, path: Path, key: bytes, default: Policy, random: Callable[[int], bytes] = os.urandom) -> None:
        self.path = path
        self._sealer = RecordSealer(key, random)
        self.default = default
        self.resolve: Callable[[Policy], Policy] = lambda policy: policy
        """Gives a policy with an automatic code its code; for who places."""
        self._policies: tuple[Policies, tuple[bytes | None, Policy]] | None = None
        self.damaged = Damaged()
        """Records about single nodes that do not open, as far as they were read."""
        try:
            self._env = self._open(path)
            self._db = {name: db for name in TABLES if (db := self._open_table(name)) is not None}
        except lmdb.Error as error:
            raise StoreDamaged(path=path, reason=str(error)) from None
        self._write: lmdb.Transaction | None = None
        self._moved_copies: dict[StripeId, set[tuple[ShareId, NodeId]]] | None = None
        self._views: dict[bytes, tuple[NodeView, tuple[bytes, bytes, bytes | None, bytes | None]]] = {}

    _writes = False

    def _open(self, path: Path) -> lmdb.Environment:
        return lmdb.open(
            str(path), map_size=MAP_BYTES, max_dbs=len(TABLES), readonly=True, lock=True, max_readers=64, create=False
        )

    def _open_table(self, name: str) -> Any:
        """The handle of a table; None for a reader when the writer did not make it yet (an engine before this release)."""
        try:
            return self._env.open_db(name.encode(), create=self._writes)
        except lmdb.NotFoundError:
            return None

    def _table(self, name: str) -> Any:
        if name not in self._db:
            made = self._open_table(name)
            if made is None:
                return None
            self._db[name] = made
        return self._db[name]

    def drop_dead_readers(self) -> None:
        """Free what processes that were killed while they read had hold of: no page newer than that is used again else, and
        there are places for so many readers only.
        """
        self._env.reader_check()

    def close(self) -> None:
        """Close the environment; this object is dead afterwards."""
        self._env.close()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        if self._write is not None:
            yield self._write
        else:
            with self._env.begin() as txn:
                yield txn

    def _get(self, table: str, key: bytes) -> bytes | None:
        db = self._table(table)
        if db is None:
            return None
        with self._reading() as txn:
            value = txn.get(key, db=db)
        return None if value is None else bytes(value)

    def _load(self, table: str, key: bytes) -> bytes | None:
        value = self._get(table, key)
        return None if value is None else self._sealer.open(table.encode() + b"/" + key, value)

    def _of_node(
        self,
        node_id: NodeId,
        record: Record,
        table: str,
        key: bytes,
        decode: Callable[[bytes], T],
        instead: T | None = None,
    ) -> T | None:
        """A record about one node; None when there is none, and ``instead`` when it is damaged, which is noted."""
        try:
            value = self._load(table, key)
            return None if value is None else decode(value)
        except Corrupt:
            self.damaged.met(table, key, node_id, record)
            return instead

    def _opened(self, table: str, key: bytes, txn: lmdb.Transaction) -> bytes | None:
        value = txn.get(key, db=self._db[table])
        return None if value is None else self._sealer.open(table.encode() + b"/" + key, bytes(value))

    def plain(self, table: str, key: bytes) -> bytes | None:
        """A value of a plain table."""
        return self._get(table, key)

    def has_entry(self, table: str, key: bytes) -> bool:
        """Whether a table has that key."""
        return self._get(table, key) is not None

    def info(self, name: str) -> Any:
        """A small value by name, or None. Raises Corrupt, but for what is kept of single nodes."""
        beginning, minus, of = name.partition("-")
        if found := OF_NODE.get(beginning + minus):
            record, instead = found
            return self._of_node(NodeId(bytes.fromhex(of)), record, "info", name.encode(), cbor2.loads, instead)
        value = self._load("info", name.encode())
        return None if value is None else cbor2.loads(value)

    def keys(self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int = 1 << 62) -> list[bytes]:
        """Up to ``limit`` keys with that prefix, from the first one above ``after``."""
        found: list[bytes] = []
        db = self._table(table)
        if db is None:
            return found
        with self._reading() as txn, txn.cursor(db=db) as cursor:
            if limit <= 0 or not cursor.set_range(prefix if after is None else after):
                return found
            each: Iterator[Any] = cursor.iternext(keys=True, values=False)  # bytes: the transactions use no buffers
            for key in each:
                if key == after:
                    continue
                if not key.startswith(prefix):
                    break
                found.append(key)
                if len(found) >= limit:
                    break
        return found

    def count(self, table: str) -> int:
        """Number of entries of a table."""
        db = self._table(table)
        if db is None:
            return 0
        with self._reading() as txn:
            return int(txn.stat(db=db)["entries"])
