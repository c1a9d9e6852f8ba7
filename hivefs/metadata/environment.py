"""Opening the mount's LMDB environment: one writer by a lock file, damage found before it can bite.

LMDB maps its file into memory: a data file that was cut short would not give an error but kill the process (SIGBUS), so
the length is compared with the pages that are in use before anything else is read (metadata/pages.py).
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from hivefs.errors import StoreDamaged, VaultInUse
from hivefs.formats.journal import TABLES
from hivefs.metadata.pages import UnreadablePages, needed_pages

MAP_BYTES = 64 << 30
_TRIES = 16


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


def make_environment(path: Path) -> None:
    """Make an empty environment if there is none, aside and renamed when it is whole: LMDB itself writes the first pages of
    a new file without a sync, and after a power cut a file of zeros would be no environment for good. Raises StoreDamaged.
    """
    if (path / "data.mdb").exists():
        return
    aside = path / "new.mdb"
    try:
        aside.unlink(missing_ok=True)
        environment = lmdb.open(str(aside), map_size=MAP_BYTES, max_dbs=len(TABLES), subdir=False, lock=False, mode=0o600)
        try:
            environment.sync(True)
        finally:
            environment.close()
        aside.rename(path / "data.mdb")
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except lmdb.Error as error:
        raise damaged(path, error) from None
    except OSError as error:
        raise StoreDamaged(path=path, reason=error.strerror or "its data file cannot be made") from None


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
    _check_length(path, environment)
    environment.reader_check()
    if not readonly:
        _make_last(path, environment)
    return environment


def _make_last(path: Path, environment: lmdb.Environment) -> None:
    """What a process that was killed had written and not synced yet is read from the page cache as if it were on disk.
    Nothing may be built on it (least of all a new round of the journal over the old one) before it is there.
    """
    try:
        environment.sync(True)
    except lmdb.Error as error:
        environment.close()
        raise damaged(path, error) from None


def _check_length(path: Path, environment: lmdb.Environment) -> None:
    """Raise StoreDamaged, and close the environment, when pages that hold something are not in the file."""
    data = path / "data.mdb"
    try:
        for _ in range(_TRIES):
            if (needed := _needed_bytes(data, environment)) is None:
                continue
            have = data.stat().st_size
            if have < needed:
                raise StoreDamaged(path=path, reason=f"its data file was cut short ({have} of {needed} bytes)")
            return
        raise StoreDamaged(path=path, reason="its data file changes all the time")
    except (OSError, UnreadablePages, struct.error):
        environment.close()
        raise StoreDamaged(path=path, reason="its data file was cut short, or cannot be read") from None
    except StoreDamaged:
        environment.close()
        raise


def _needed_bytes(data: Path, environment: lmdb.Environment) -> int | None:
    """The least length of the data file; None when it was changed meanwhile."""
    page_bytes = int(environment.stat()["psize"])
    pages = int(environment.info()["last_pgno"]) + 1
    if not environment.info()["last_txnid"] or data.stat().st_size >= pages * page_bytes:
        return 0
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with environment.begin() as snapshot:  # its pages are not used again while it is held
            found = needed_pages(fd, page_bytes, snapshot.id())
    finally:
        os.close(fd)
    return None if found is None else found * page_bytes


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
