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

from hivefs.errors import DiskFull, HivefsError, StoreDamaged, VaultInUse, says_no_room
from hivefs.metadata.engine_reader import EngineReader
from hivefs.metadata.engine_tables import DISTRUSTED, MAP_BYTES, TABLES
from hivefs.model.ids import NodeId
from hivefs.placement.health import NodeView
from hivefs.placement.policy import Policy

U64 = struct.Struct(">Q")

_COPIES = {"trash": "spare", "spare": "trash"}
"""The tables whose entries are in ``copies`` too, each with the other one."""

_COPIES_AT = "copies_at"
"""The number of the transaction that closed the store with ``copies`` whole. An older release writes transactions and not
this. (The release that brought the table noted ``copies`` once, and goes by that.)
"""


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
        self._whole = False
        """Whether ``copies`` lists all that it should."""
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
            self._after: list[Callable[[], None]] = []
            self.on_full: Callable[[DiskFull], None] = lambda error: None
            """Hears of each transaction that was undone because the disk is full."""
            if self.info(_COPIES_AT) != self._env.info()["last_txnid"]:
                self._mend_copies()
            self._whole = True
        except BaseException:  # whatever it is, environment and lock must be let go; raised again
            self.close()
            raise

    def _open(self, path: Path) -> lmdb.Environment:
        environment = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(TABLES), max_readers=64, mode=0o600)
        environment.reader_check()
        environment.sync(True)  # what a killed process had written may be in the page cache only: see environment.py
        return environment

    def close(self) -> None:
        if self._whole:
            self._note_copies()
        super().close()
        os.close(self._lock)

    @contextmanager
    def writing(self) -> Iterator[EngineWriter]:
        """One transaction; nested use joins the outer one. An exception undoes all of it. Never await inside. Raises
        DiskFull, StoreDamaged at its end.
        """
        if self._write is not None:
            yield self
            return
        sequence = self.sequence
        try:
            with self._env.begin(write=True) as txn:
                self._write = txn
                try:
                    yield self
                except BaseException:  # whatever it is, all of it is undone; raised again
                    self._undone(sequence)
                    raise
                finally:
                    self._write = None
        except lmdb.Error as error:
            self._undone(sequence)
            raise self._as_ours(error) from None
        after, self._after = self._after, []
        for call in after:
            call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call this when the open transaction is in the store, and not at all when it is undone; at once when none is open.
        For what others remember of the store.
        """
        if self._write is None:
            call()
        else:
            self._after.append(call)

    def probe(self) -> None:
        """Write something. Raises DiskFull while that cannot be."""
        with self.writing():
            self.save_info("probe", self.clock())

    def _undone(self, sequence: int) -> None:
        """What is remembered of the store may be of a transaction that is not in it."""
        self._seen.clear()
        self._moved_copies = None
        self._after.clear()
        self.sequence = sequence

    def node_view(self, node_id: NodeId) -> NodeView | None:
        """State and attributes. Judging a stripe asks for each of its nodes, so what was seen is remembered until something
        of the node is written: nobody else writes.
        """
        if node_id not in self._seen:
            self._seen[node_id] = super().node_view(node_id)
        return self._seen[node_id]

    def _forget_seen(self, table: str, key: bytes) -> None:
        self.damaged.written(table, key)
        if table in ("nodes", "known"):
            self._seen.pop(key, None)
        elif table == "tree" and key[:1] == b"n":
            self._seen.pop(key[1:], None)
        elif table == "info" and key == DISTRUSTED.encode():
            self._seen.clear()  # it is a list of nodes

    def _as_ours(self, error: lmdb.Error) -> HivefsError:
        """A full disk is waited out (maintenance/full_disk.py); anything else ends the engine."""
        if isinstance(error, lmdb.MapFullError | lmdb.DiskError) or says_no_room(error):
            full = DiskFull(path=self.path, free=shutil.disk_usage(self.path).free)
            self.on_full(full)
            return full
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

    def _mend_copies(self) -> None:
        """The last transaction was not the one with which a release that knows the table ``copies`` closed the store: it
        crashed, or an older one wrote since, which lists nothing there and takes nothing from it. So it is compared with
        what it lists (two microseconds for each), and made anew where it differs. Raises DiskFull.
        """
        listed = self._counted_copies()
        if listed is not None and listed == self.count("copies"):
            return
        with self.writing():
            self._txn().drop(self._db["copies"], delete=False)
            for table in _COPIES:
                for key in self.keys(table):
                    self._txn().put(_by_share(key), b"", db=self._db["copies"])

    def _note_copies(self) -> None:
        """With the last transaction of all, that ``copies`` is whole."""
        try:
            with self._env.begin(write=True) as txn:
                self._write = txn
                self.save_info(_COPIES_AT, txn.id())
        except lmdb.Error:
            pass  # the disk is full, or worse: the next start looks through the copies, as after a crash
        finally:
            self._write = None

    def _counted_copies(self) -> int | None:
        """How many entries the table has to have, when it has all of them; else None."""
        count = 0
        with (
            self._env.begin() as txn,
            txn.cursor(db=self._db["trash"]) as trash,
            txn.cursor(db=self._db["copies"]) as copies,
        ):
            for table in _COPIES:
                for key in map(bytes, txn.cursor(db=self._db[table]).iternext(values=False)):
                    if not copies.set_key(_by_share(key)):
                        return None
                    count += table == "trash" or not trash.set_key(key)
        return count

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
