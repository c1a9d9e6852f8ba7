"""Reading the mount's committed metadata from another process (the engine, 'hivefs check') or another thread.

A snapshot is LMDB's: it costs nothing to take and never waits, but pages it shows cannot be used again while it is
held, so ``begin`` anew (or ``close``) soon. A scan that is under way goes on from where it was, in what is seen then.
"""

from __future__ import annotations

import copy
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from hivefs.crypto.keys import ReadingKeys, VaultKeys
from hivefs.crypto.seal import RecordSealer
from hivefs.errors import Corrupt, StoreDamaged
from hivefs.formats.local import LOCAL_BYTES
from hivefs.metadata.environment import damaged, open_environment, open_tables
from hivefs.metadata.store import MetadataStore

log = logging.getLogger(__name__)

_U64 = struct.Struct(">Q")
_TWO = struct.Struct(">QQ")


def _no_random(count: int) -> bytes:
    raise AssertionError(f"a snapshot seals nothing ({count} bytes asked)")


class MetadataSnapshot:
    """A committed state of the store. One thread at a time. Raises StoreDamaged; Corrupt for wrong keys."""

    def __init__(self, path: Path, keys: VaultKeys | ReadingKeys, *, store: MetadataStore | None = None) -> None:
        """Sees the newest commit from the start.

        ``store``: the open store of the same process, whose environment is used (LMDB wants one per process).
        """
        self.path = path
        self._sealer = RecordSealer(keys.metadata_key, _no_random)
        self._own = store is None
        self._environment = store.environment if store is not None else open_environment(path, readonly=True)
        self._tables: dict[str, Any] = (
            store.tables if store is not None else open_tables(path, self._environment, create=False)
        )
        self._txn: Any = None
        self.seq = 0
        self.begin()

    def another(self) -> MetadataSnapshot:
        """One more, independent snapshot over the same environment (LMDB wants it opened once per process)."""
        made = copy.copy(self)
        made._own, made._txn, made.seq = False, None, 0
        return made

    def begin(self) -> int:
        """See the newest commit from now on; its number."""
        if self._txn is not None:
            self._txn.abort()
        try:
            self._txn = self._environment.begin(write=False)
        except lmdb.Error as error:
            raise damaged(self.path, error) from None
        self.seq = self._number(b"seq")
        return self.seq

    def drop_dead_readers(self) -> None:
        """See EngineTables.drop_dead_readers."""
        self._environment.reader_check()

    def close(self) -> None:
        """Let go of the snapshot and, if it is its own, of the environment."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
        if self._own:
            self._environment.close()

    def _number(self, name: bytes) -> int:
        value = self.info(name)
        if value is None or len(value) != 8:
            raise StoreDamaged(path=self.path, reason="an entry about itself is missing")
        return int(_U64.unpack(value)[0])

    def info(self, name: bytes) -> bytes | None:
        """A small value of the store."""
        value = self._txn.get(name, None, self._tables["info"])
        return None if value is None else self._sealer.open(b"info" + name, value)

    @property
    def next_counter(self) -> int:
        """The inode counter, for the root of a checkpoint."""
        return self._number(b"counter")

    @property
    def published(self) -> int:
        """The commit that the last published checkpoint holds."""
        return self._number(b"published")

    @property
    def hydrating(self) -> bool:
        """Whether a part of the tree is still only in the hive."""
        return self.info(b"hydrating") is not None

    def _rows(self, table: str, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        position, seen = max(prefix, start), None
        while seen is None or seen is not self._txn:
            seen = self._txn
            try:
                with seen.cursor(db=self._tables[table]) as cursor:
                    more = cursor.set_range(position) if position else cursor.first()
                    while more:
                        key, value = cursor.item()
                        if not key.startswith(prefix):
                            return
                        yield key, value
                        if seen is not self._txn:  # the next one is read in another snapshot: there is no such cursor
                            position = key + b"\0"
                            break
                        more = cursor.next()
            except lmdb.Error as error:
                raise damaged(self.path, error) from None

    def _canonical(self, key: bytes, sealed: bytes) -> bytes:
        plain = self._sealer.open(b"tree" + key, sealed)
        return plain[LOCAL_BYTES:] if key[:1] == b"i" else plain

    def get(self, key: bytes) -> bytes | None:
        """The canonical value of a tree record. Raises Corrupt."""
        value = self._txn.get(key, None, self._tables["tree"])
        return None if value is None else self._canonical(key, value)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]:
        """(key, canonical value) in key order; None for a record that does not open."""
        for key, sealed in self._rows("tree", prefix, start):
            try:
                yield key, self._canonical(key, sealed)
            except Corrupt:
                yield key, None

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        """(tree key, canonical value or None when deleted, commit) of all that is not published, in key order.

        A record that does not open is left out with a log line: the checkpoint keeps what it had under that key.
        """
        published = self.published
        for key, packed in self._rows("changed"):
            seq = int(_U64.unpack(packed)[0])
            if seq <= published:
                continue
            try:
                yield key, self.get(key), seq
            except Corrupt:
                log.error("a changed record does not open; the checkpoint goes on without the change")

    def staged(self) -> Iterator[tuple[int, int, bytes | None]]:
        """(inode, slot, value) of the table ``staged``; None for a record that does not open."""
        for key, sealed in self._rows("staged"):
            ino, slot = _TWO.unpack(key)
            try:
                yield ino, slot, self._sealer.open(b"staged" + key, sealed)
            except Corrupt:
                yield ino, slot, None

    def orphans(self) -> list[int]:
        """Inodes without a name."""
        return [int.from_bytes(key, "big") for key, _ in self._rows("orphans")]
