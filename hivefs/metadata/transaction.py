"""The open LMDB transaction of the mount's store, and rows of its tables as bytes.

What fails in LMDB itself fails for good: the transaction cannot be trusted, so it is thrown away and every later call
raises StoreDamaged (the drive answers EIO until it is mounted again, with what was committed).

``_rows`` collects what was changed since the last commit, as the journal wants it (metadata/journal.py). It is None when
that has become more than a frame holds: then only LMDB can make it durable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import lmdb

from hivefs.crypto.keys import VaultKeys
from hivefs.crypto.seal import RecordSealer
from hivefs.errors import HivefsError, StoreDamaged
from hivefs.formats.journal import TABLES, row_to_bytes
from hivefs.metadata.environment import (
    RandomPool,
    damaged,
    drop_lock,
    make_environment,
    open_environment,
    open_tables,
    take_lock,
)
from hivefs.metadata.journal import FRAME_BYTES, Journal

log = logging.getLogger(__name__)

_SHORT = 64


class OpenTransaction:
    """See the head of the file.

    ``pending``: something was put that is not durable. ``journaled``: something is durable by the journal alone.
    """

    def __init__(self, path: Path, keys: VaultKeys, random: Callable[[int], bytes], create: bool, holder: str) -> None:
        self.path = path
        self._sealer = RecordSealer(keys.metadata_key, RandomPool(random))
        if not (path / "data.mdb").exists() and not create:
            raise StoreDamaged(path=path, reason="it is not there")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = take_lock(path, holder)
        try:
            if create:
                make_environment(path)
            self._environment: Any = open_environment(path, readonly=False)
            self.tables = tables = open_tables(path, self._environment, create=True)
            self._journal = Journal(path, self._sealer)
        except HivefsError:
            drop_lock(self._lock)
            raise
        self._tree, self._changed = tables["tree"], tables["changed"]
        self._staged, self._released = tables["staged"], tables["released"]
        self._orphans, self._info, self._loaded = tables["orphans"], tables["info"], tables["loaded"]
        self._numbers = {id(tables[name]): number for number, name in enumerate(TABLES, 1)}
        self._rows: dict[tuple[int, bytes], bytes | None] | None = {}
        self._rows_bytes = 0
        self._txn: Any = self._environment.begin(write=True)
        self._cursor: Any = None
        self.pending = False
        self.journaled = False

    @property
    def environment(self) -> Any:
        """The lmdb.Environment, with ``tables`` what MetadataSnapshot uses in the same process."""
        return self._environment

    def _drop(self) -> None:
        """Close without commit."""
        if self._environment is None:
            return
        if self._txn is not None:
            self._txn.abort()
        self._txn = self._cursor = None
        self._environment.close()
        self._environment = None
        self._journal.close()
        drop_lock(self._lock)

    def _fail(self, error: lmdb.Error) -> NoReturn:
        """After an LMDB error the transaction cannot be trusted: nothing more is done with this store."""
        log.error("the metadata store failed: %s", type(error).__name__)
        if self._txn is not None:
            self._txn.abort()
        self._txn = self._cursor = None
        raise damaged(self.path, error) from None

    @property
    def failed(self) -> bool:
        """Whether LMDB failed (or the store is closed): nothing can be committed any more."""
        return self._txn is None

    def _live(self) -> Any:
        if self._txn is None:
            raise StoreDamaged(path=self.path, reason="it failed before, or is closed")
        return self._txn

    def _put(self, table: Any, key: bytes, value: bytes) -> None:
        try:
            self._live().put(key, value, db=table)
        except lmdb.Error as error:
            self._fail(error)
        self._changed_row(table, key, value)

    def _delete(self, table: Any, key: bytes) -> bool:
        """Whether there was such a row."""
        try:
            if not self._live().delete(key, db=table):
                return False
        except lmdb.Error as error:
            self._fail(error)
        self._changed_row(table, key, None)
        return True

    def _changed_row(self, table: Any, key: bytes, value: bytes | None) -> None:
        self.pending = True
        rows = self._rows
        if rows is None:
            return
        rows[self._numbers[id(table)], key] = value
        self._rows_bytes += len(key) + (24 if value is None else 24 + len(value))
        if self._rows_bytes > FRAME_BYTES:
            self._too_many_rows()

    def _too_many_rows(self) -> None:
        self._rows = None

    def _row_bytes(self) -> list[bytes]:
        """All changed rows as the journal has them."""
        return [row_to_bytes(table, key, value) for (table, key), value in (self._rows or {}).items()]

    def _begin_rows(self) -> None:
        """What was changed until now is durable."""
        self._rows, self._rows_bytes = {}, 0
        self.pending = False

    def _batch(self, table: Any, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        try:
            with self._live().cursor(db=table) as cursor:
                more = cursor.set_range(start) if start else cursor.first()
                if more and limit <= _SHORT:  # a few rows too many cost less than a loop of Python
                    found = list(islice(cursor.iternext(), limit))
                    while found and not found[-1][0].startswith(prefix):
                        found.pop()
                    return found
                while more and len(found) < limit:
                    key, value = cursor.item()
                    if not key.startswith(prefix):
                        break
                    found.append((key, value))
                    more = cursor.next()
        except lmdb.Error as error:
            self._fail(error)
        return found

    def get_info(self, name: bytes) -> bytes | None:
        """A small value. Raises Corrupt (wrong keys, or damage)."""
        value = self._live().get(name, None, self._info)
        return None if value is None else self._sealer.open(b"info" + name, value)

    def put_info(self, name: bytes, value: bytes) -> None:
        """Save a small value."""
        self._put(self._info, name, self._sealer.seal(b"info" + name, value))

    def disk(self) -> tuple[int, int]:
        """(total, free) bytes of the disk under the store."""
        state = os.statvfs(self.path)
        return state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize

    def _commit(self) -> None:
        """Make the transaction durable and begin the next."""
        txn = self._live()
        try:
            self._cursor = None
            txn.commit()
            self._txn = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._txn = None
            self._fail(error)
        self._journal.begin_round()
        self._begin_rows()
        self.journaled = False
