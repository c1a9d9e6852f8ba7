"""Hydration of the engine's book after a recovery: places, stripes and nodes come out of the checkpoint's tree.

What somebody waits for comes first (``ensure``), the rest in the background. Repair, deletion and new checkpoints wait
until the parts they need are here (``done``, ``books``), reading does not. Each page is loaded once, so that a record
deleted after its page was loaded does not come back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

import trio
import trio.lowlevel

from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.checkpoint_tree import CheckpointTree
from hivefs.model.head import Root
from hivefs.model.ids import StripeId
from hivefs.model.stripe import Stripe

log = logging.getLogger(__name__)

RETRY = 2.0


class Book(Protocol):
    """The engine's store, as hydration uses it."""

    @property
    def hydrating(self) -> bool: ...
    def is_loaded(self, key: bytes) -> bool: ...
    def gap(self) -> bytes | None: ...
    def load_page(self, low: bytes, high: bytes | None, page: Iterable[tuple[bytes, bytes]]) -> None: ...
    def load_books(self, pages: Iterable[tuple[Stripe, int]]) -> None: ...
    def hydrated(self) -> None: ...


class EngineHydration:
    """See the head of the file. ``root`` gives the tree of the newest checkpoint."""

    def __init__(self, book: Book, tree: CheckpointTree, root: Callable[[], Root]) -> None:
        self._book = book
        self._tree = tree
        self._root = root
        self.done = trio.Event()
        self.books = trio.Event()
        if not book.hydrating:
            self.done.set()
            self.books.set()

    async def ensure(self, key: bytes) -> None:
        """Return when the page that holds ``key`` is here. HivefsError when it cannot be read."""
        if self.done.is_set() or self._book.is_loaded(key):
            return
        leaf = await self._tree.load(self._root(), key)
        self._book.load_page(leaf.low, leaf.high, leaf.records)

    async def run(self) -> None:
        """Load everything; returns when it is here. Raises DiskFull: run again, it goes on where it was."""
        while not self.done.is_set():
            try:
                await self._all()
            except DiskFull:
                raise
            except HivefsError as error:
                log.info("loading the checkpoint waits: %s", error)
                await trio.sleep(RETRY)

    async def _all(self) -> None:
        if not self.books.is_set():
            counts: dict[StripeId, tuple[Stripe, int]] = {}
            async for _, stripe in self._tree.pages(self._root()):
                count = counts.get(stripe.stripe_id, (stripe, 0))[1]
                counts[stripe.stripe_id] = (stripe, count + 1)
            self._book.load_books(counts.values())
            self.books.set()
        while (key := self._book.gap()) is not None:
            await self.ensure(key)
            await trio.lowlevel.checkpoint()
        self._book.hydrated()
        self.done.set()
