"""How the engine's store is changed: the lock of the one writing process, transactions, plain and sealed entries."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cbor2
import lmdb

from hivefs.errors import DiskFull, HivefsError, StoreDamaged, VaultInUse
from hivefs.metadata.engine_reader import EngineReader
from hivefs.metadata.engine_tables import DISTRUSTED, MAP_BYTES, TABLES
from hivefs.model.ids import NodeId
from hivefs.placement.health import NodeView
from hivefs.placement.policy import Policy

U64 = struct.Struct(">Q")

_COPIES = {"trash": "spare", "spare": "trash"}
"""The tables whose entries are in ``copies`` too, each with the other one."""


class EngineWriter(EngineReader):
    """Write access for the engine process. Changes happen inside ``with store.writing():``, synced at its end."""

    _writes = True

    def __init__(self, path: Path, key: bytes, default: Policy, random: Callable[[int], bytes] = os.urandom) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise VaultInUse(mountpoint=f"another engine of {path.parent}") from None
        try:
            super().__init__(path, key, default, random)
        except BaseException:  # whatever it is, nobody closes what was not made; raised again
            os.close(self._lock)
            raise
        try:
            value = self.info("sequence")
            self.sequence = value if isinstance(value, int) else 1
            self.clock: Callable[[], int] = time.time_ns
            self._seen: dict[bytes, NodeView | None] = {}
            if self.info("copies") is None:
                self._list_copies()
        except BaseException:  # whatever it is, environment and lock must be let go; raised again
            self.close()
            raise

    def _open(self, path: Path) -> lmdb.Environment:
        environment = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(TABLES), max_readers=64, mode=0o600)
        environment.sync(True)  # what a killed process had written may be in the page cache only: see environment.py
        return environment

    def close(self) -> None:
        super().close()
        os.close(self._lock)

    @contextmanager
    def writing(self) -> Iterator[EngineWriter]:
        """One transaction; nested use joins the outer one. An exception undoes all of it. Never await inside."""
        if self._write is not None:
            yield self
            return
        try:
            with self._env.begin(write=True) as txn:
                self._write = txn
                try:
                    yield self
                except BaseException:  # whatever it is, all of it is undone; raised again
                    self._undone()
                    raise
                finally:
                    self._write = None
        except lmdb.Error as error:
            self._undone()
            raise self._as_ours(error) from None

    def _undone(self) -> None:
        """What is remembered of the store may be of a transaction that is not in it."""
        self._seen.clear()
        self._moved_copies = None

    def node_view(self, node_id: NodeId) -> NodeView | None:
        """State and attributes. Judging a stripe asks for each of its nodes, so what was seen is remembered until something
        of the node is written: nobody else writes.
        """
        if node_id not in self._seen:
            self._seen[node_id] = super().node_view(node_id)
        return self._seen[node_id]

    def _forget_seen(self, table: str, key: bytes) -> None:
        if table in ("nodes", "known"):
            self._seen.pop(key, None)
        elif table == "tree" and key[:1] == b"n":
            self._seen.pop(key[1:], None)
        elif table == "info" and key == DISTRUSTED.encode():
            self._seen.clear()  # it is a list of nodes

    def _as_ours(self, error: lmdb.Error) -> HivefsError:
        """A full disk is waited out by whoever writes; anything else ends the engine."""
        if isinstance(error, lmdb.MapFullError | lmdb.DiskError) or "No space left" in str(error):
            free = shutil.disk_usage(self.path).free
            return DiskFull(path=self.path, free=free)
        return StoreDamaged(path=self.path, reason=f"LMDB reports {error}")

    def _txn(self) -> lmdb.Transaction:
        if self._write is None:
            raise RuntimeError("change the engine store only inside writing()")
        return self._write

    def put(self, table: str, key: bytes, value: bytes = b"") -> None:
        """A plain entry."""
        self._txn().put(key, value, db=self._db[table])
        self._forget_seen(table, key)
        if table in _COPIES:
            self._txn().put(_by_share(key), b"", db=self._db["copies"])

    def delete(self, table: str, key: bytes) -> bool:
        """Remove an entry; whether it was there."""
        was = bool(self._txn().delete(key, db=self._db[table]))
        self._forget_seen(table, key)
        if was and table in _COPIES and not self.has_entry(_COPIES[table], key):
            self._txn().delete(_by_share(key), db=self._db["copies"])
        return was

    def _list_copies(self) -> None:
        """A store of before there was the table ``copies``: make it, once."""
        with self.writing():
            for table in _COPIES:
                for key in self.keys(table):
                    self._txn().put(_by_share(key), b"", db=self._db["copies"])
            self.save_info("copies", 1)

    def save(self, table: str, key: bytes, value: bytes) -> None:
        """A sealed entry."""
        self.put(table, key, self._sealer.seal(table.encode() + b"/" + key, value))

    def save_info(self, name: str, value: Any) -> None:
        """A small value by name."""
        self.save("info", name.encode(), cbor2.dumps(value, canonical=True))

    def _save_tree(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.delete("tree", key)
        else:
            self.save("tree", key, value)
        self.put("changed", key, U64.pack(self.sequence))


def _by_share(key: bytes) -> bytes:
    """Node id || share id, the other way round."""
    return key[32:] + key[:32]
