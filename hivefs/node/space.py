"""Room for shares: what is used, what is promised to requests on their way, and what a vault may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hivefs.model.ids import VaultId
from hivefs.node.index import NodeIndex
from hivefs.protocol.failures import Code, Refusal

SPARE_DISK = 16 << 20
"""Bytes of the disk that no share may take: the index needs some, and what forgets shares needs the index."""


class Space:
    """``capacity`` is bytes of shares; ``vault_quota`` bytes for one vault, 0 for no bound; ``on_disk`` says what the disk
    has left, since others fill it too.
    """

    def __init__(self, index: NodeIndex, capacity: int, vault_quota: int, on_disk: Callable[[], int]) -> None:
        self._index = index
        self.capacity = capacity
        self.vault_quota = vault_quota
        self._on_disk = on_disk
        self.reserved = 0
        self._reserved_by: Counter[bytes] = Counter()

    @property
    def free(self) -> int:
        """Bytes that are neither used nor reserved, and that the disk has; never below zero."""
        left = min(self.capacity - self._index.used, self._on_disk() - SPARE_DISK)
        return max(0, left - self.reserved)

    def missing(self, size: int) -> int:
        """How many bytes must become free before ``size`` fit."""
        return max(0, size - self.free)

    @contextmanager
    def reserve(self, vault: VaultId, size: int) -> Iterator[None]:
        """Hold room for a share while it is being kept. Raises Refusal (FULL, QUOTA)."""
        if self.missing(size):
            raise Refusal(
                Code.FULL, f"{self.free} bytes are free of {self.capacity} for shares, and {self._on_disk()} on the disk"
            )
        mine = self._index.by_vault[vault] + self._reserved_by[vault]
        if self.vault_quota and mine + size > self.vault_quota:
            raise Refusal(Code.QUOTA, f"this vault may keep {self.vault_quota} bytes here and has {mine}")
        self.reserved += size
        self._reserved_by[vault] += size
        try:
            yield
        finally:
            self.reserved -= size
            self._reserved_by[vault] -= size
            if not self._reserved_by[vault]:
                del self._reserved_by[vault]
