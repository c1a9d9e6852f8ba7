"""The drive's stores without a mount: the engine opens them to place what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hivefs.crypto.keys import VaultKeys
from hivefs.daemon.first_use import open_or_make
from hivefs.daemon.home import Home
from hivefs.errors import HivefsError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.service import VaultService
from hivefs.metadata.engine_store import EngineReader
from hivefs.metadata.store import MetadataStore
from hivefs.model.inode import ChunkRef
from hivefs.stage.log import StageLog


class NoChunks:
    """A chunk source for a drive that nobody reads."""

    def cached(self, ref: ChunkRef, start: int, end: int, wait: bool = True) -> bytes | None:
        """Nothing."""
        return None

    def begin(self, ref: ChunkRef) -> None:
        """Nothing."""

    async def fetch(self, ref: ChunkRef, start: int, end: int, next_refs: Sequence[ChunkRef]) -> bytes:
        """Nothing."""
        raise HivefsError(detail="the drive is not mounted")

    def ahead(self, next_refs: Sequence[ChunkRef]) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Unmounted:
    """The stores of a vault, open for writing in this process."""

    store: MetadataStore
    filesystem: Filesystem
    service: VaultService


@contextmanager
def opened_unmounted(home: Home, keys: VaultKeys, book: EngineReader) -> Iterator[Unmounted]:
    """Open metadata and stage, which are made where the vault was never mounted; they are committed and closed at the end.
    ``book`` is the engine's store. Raises VaultInUse while a mount has them, StoreDamaged, DiskFull.
    """
    store = open_or_make(home, keys, "the engine, which places what is left", book)
    try:
        stage = StageLog(
            home.stage,
            keys.stage_key,
            os.urandom,
            reserve_bytes=home.vault.setting("reserve_bytes"),
            restore=store.take_pieces(),
        )
        try:
            filesystem = Filesystem(
                store,
                stage,
                NoChunks(),
                clock=time.time_ns,
                placements=book,
                owner=(os.getuid(), os.getgid()),
            )
            try:
                yield Unmounted(store, filesystem, VaultService(filesystem, os.urandom(16)))
            finally:
                filesystem.close()
        finally:
            stage.close()
    finally:
        store.close()
