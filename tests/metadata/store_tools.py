"""Shared by the tests of the metadata store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lmdb

from hivefs.crypto.keys import VaultKeys
from hivefs.crypto.seal import RecordSealer
from hivefs.metadata.environment import MAP_BYTES, TABLES
from hivefs.metadata.store import MetadataStore

KEYS = VaultKeys(bytes(range(32)))
OTHER_KEYS = VaultKeys(bytes(32))


def make(path: Path, **options: Any) -> MetadataStore:
    return MetadataStore(path / "metadata", KEYS, create=True, **options)


def reopen(path: Path) -> MetadataStore:
    return MetadataStore(path / "metadata", KEYS)


def raw(path: Path, table: str) -> dict[bytes, bytes]:
    """A table as it lies on disk. The store must be closed."""
    with lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(TABLES), readonly=True) as environment:
        handle = environment.open_db(table.encode(), create=False)
        with environment.begin() as txn:
            return dict(txn.cursor(db=handle))


def overwrite(path: Path, table: str, rows: dict[bytes, bytes | None], *, seal: bool = False) -> None:
    """Change a table on disk behind the store's back. The store must be closed. ``seal``: the values are plain."""
    if seal:
        sealer = RecordSealer(KEYS.metadata_key, os.urandom)
        rows = {key: sealer.seal(table.encode() + key, value) for key, value in rows.items() if value is not None}
    with lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(TABLES)) as environment:
        handle = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True) as txn:
            for key, value in rows.items():
                if value is None:
                    txn.delete(key, db=handle)
                else:
                    txn.put(key, value, db=handle)
