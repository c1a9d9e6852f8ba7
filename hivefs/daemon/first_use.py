"""Whether a vault was ever used on this machine, and the metadata of one that never was.

Commands about policies start the engine before the first mount, so a store of the engine says nothing. Whoever opens the
metadata leaves a mark, the file ``used`` in the home, before anything can be written to the drive; metadata that is gone
although there is the mark is lost, and that is said instead of beginning anew. Vaults that a release without the mark
used are known by what they left: files of the stage, files of the metadata, and in the engine's store a head, stripes or
shares. The mark is made after the metadata is there, so that a kill between the two leaves a vault that opens.
"""

from __future__ import annotations

from pathlib import Path

from hivefs.crypto.keys import VaultKeys
from hivefs.daemon.home import Home
from hivefs.metadata.engine_store import EngineReader
from hivefs.metadata.store import MetadataStore

HARMLESS = {"lock", "new.mdb"}
"""What opening the metadata makes before its data file has its name."""
_OF_DATA = ("live", "meta", "trash", "spare", "within", "offered", "doomed")
_OF_HEADS = ("head", "root", "making", "hydrating")


def never_used(home: Home, keys: VaultKeys, book: EngineReader | None = None) -> bool:
    """Whether nothing can have been written to this vault on this machine. ``book``: the engine's store where it is open in
    this process (LMDB wants one environment per process). Raises StoreDamaged when the engine's store cannot be read.
    """
    if home.vault.number != 1 or home.used.exists() or _names(home.stage):
        return False
    metadata = _names(home.metadata)
    if "data.mdb" not in metadata and metadata - HARMLESS:
        return False  # the data file was there before these were made
    if book is not None:
        return _holds_nothing(book)
    if not (home.engine / "data.mdb").exists():
        return True
    reader = EngineReader(home.engine, keys.engine_key, home.policy())
    try:
        return _holds_nothing(reader)
    finally:
        reader.close()


def open_or_make(home: Home, keys: VaultKeys, holder: str, book: EngineReader | None = None) -> MetadataStore:
    """The metadata, with its lock; made for a vault that was never used. Raises VaultInUse, DiskFull, and StoreDamaged when
    it is gone although the vault was used.
    """
    fresh = never_used(home, keys, book)
    store = MetadataStore(home.metadata, keys, create=fresh, device=home.vault.number, holder=holder)
    try:
        home.mark_used()
    except BaseException:  # whatever it is, the lock of the metadata must be let go; raised again
        store.close(commit=False)
        raise
    return store


def _names(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return set()


def _holds_nothing(book: EngineReader) -> bool:
    return not any(book.count(table) for table in _OF_DATA) and not any(book.info(name) for name in _OF_HEADS)
