"""The drive's stores without a mount: the engine opens them to place what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hivefs.crypto.keys import VaultKeys
from hivefs.daemon.home import Home
from hivefs.errors import HivefsError
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.ports import Placements
from hivefs.filesystem.service import VaultService
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
def opened_unmounted(home: Home, keys: VaultKeys, placements: Placements) -> Iterator[Unmounted]:
    """Open metadata and stage; they are committed and closed at the end. Raises VaultInUse while a mount has them,
    StoreDamaged, DiskFull.
    """
    store = MetadataStore(home.metadata, keys, device=home.vault.number, holder="the engine, which places what is left")
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
                placements=placements,
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
