"""Opening the mount's LMDB environment: one writer by a lock file, damage found before it can bite.

LMDB maps its file into memory: a data file that was cut short would not give an error but kill the process (SIGBUS), so
the length is compared with what the meta page says before anything else is read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from hivefs.errors import StoreDamaged, VaultInUse
from hivefs.formats.journal import TABLES

MAP_BYTES = 64 << 30


class RandomPool:
    """os.urandom in blocks: a system call for every 16-byte nonce would cost more than the sealing."""

    def __init__(self, source: Callable[[int], bytes] = os.urandom, block: int = 8192) -> None:
        self._source = source
        self._block = block
        self._bytes = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        if self._at + count > len(self._bytes):
            self._bytes = self._source(max(self._block, count))
            self._at = 0
        self._at += count
        return self._bytes[self._at - count : self._at]


def take_lock(path: Path, holder: str) -> int:
    """The descriptor of ``path/lock``, locked; ``holder`` is told to whoever comes second. Raises VaultInUse."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        told = os.read(descriptor, 4096).decode(errors="replace")
        os.close(descriptor)
        raise VaultInUse(mountpoint=told or "another place") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)
    return descriptor


def drop_lock(descriptor: int) -> None:
    """Leave nothing in the lock file and let it go."""
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def open_environment(path: Path, *, readonly: bool) -> lmdb.Environment:
    """Raises StoreDamaged when the file is not a whole LMDB environment."""
    try:
        environment = lmdb.open(
            str(path),
            map_size=MAP_BYTES,
            max_dbs=len(TABLES),
            max_readers=64,
            readonly=readonly,
            create=not readonly,
            mode=0o600,
            readahead=False,
        )
    except lmdb.Error as error:
        raise StoreDamaged(path=path, reason=f"LMDB cannot open it ({_words(error)})") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    have = (path / "data.mdb").stat().st_size
    if have < needed and environment.info()["last_txnid"] > 0:
        environment.close()
        raise StoreDamaged(path=path, reason=f"its data file was cut short ({have} of {needed} bytes)")
    if not readonly:
        environment.reader_check()
    return environment


def open_tables(path: Path, environment: lmdb.Environment, *, create: bool) -> dict[str, Any]:
    """The named databases. Raises StoreDamaged when one is missing or unreadable."""
    try:
        return {name: environment.open_db(name.encode(), create=create) for name in TABLES}
    except lmdb.Error as error:
        environment.close()
        raise StoreDamaged(path=path, reason=f"a table cannot be opened ({_words(error)})") from None


def damaged(path: Path, error: lmdb.Error) -> StoreDamaged:
    """LMDB's complaint as ours."""
    return StoreDamaged(path=path, reason=f"LMDB reports {_words(error)}")


def _words(error: lmdb.Error) -> str:
    return str(error).rsplit(": ", 1)[-1] or type(error).__name__
