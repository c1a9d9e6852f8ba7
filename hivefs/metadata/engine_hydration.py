"""The engine's store while it is filled again from the hive after a recovery."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from hivefs.formats import records
from hivefs.formats import stripe as stripe_format
from hivefs.metadata.engine_nodes import NodeTables
from hivefs.metadata.engine_stripes import StripeTables
from hivefs.metadata.engine_tables import OWN_PREFIXES
from hivefs.metadata.engine_writer import U64
from hivefs.metadata.ranges import Ranges
from hivefs.model.ids import NodeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy


class HydrationTables(StripeTables, NodeTables):
    """Table loaded: ranges of the tree that are here."""

    def __init__(self, path: Path, key: bytes, default: Policy, random: Callable[[int], bytes] = os.urandom) -> None:
        self._ranges_read: Ranges | None = None
        super().__init__(path, key, default, random)

    @property
    def _ranges(self) -> Ranges:
        if self._ranges_read is None:
            self._ranges_read = Ranges()
            for low in self.keys("loaded"):
                high = self._get("loaded", low)
                self._ranges_read.add(low[1:], high or None)
        return self._ranges_read

    def _undone(self, sequence: int) -> None:
        """A page that is not in the store is not loaded, or all that it names would be lost."""
        super()._undone(sequence)
        self._ranges_read = None

    @property
    def hydrating(self) -> bool:
        """Whether a part of the engine's records is still only in the hive."""
        return self.info("hydrating") is True

    def is_loaded(self, key: bytes) -> bool:
        """Whether the page that holds ``key`` was loaded."""
        return self._ranges.holds(key)

    def gap(self) -> bytes | None:
        """The first key of the engine's part of the tree that is not loaded; None when all is."""
        for prefix in OWN_PREFIXES:
            key = self._ranges.first_gap(prefix)
            if key is not None and key < bytes([prefix[0] + 1]):
                return key
        return None

    def load_page(self, low: bytes, high: bytes | None, page: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the engine's records out of a page of the recovered tree, unless they are here; they are not changes."""
        with self.writing():
            if self._ranges.holds(low):
                return
            for key, value in page:
                if key[:1] not in OWN_PREFIXES or self._get("tree", key) is not None:
                    continue
                if self._get("changed", key) is not None:
                    continue  # deleted here since the checkpoint that holds this page
                self.save("tree", key, value)
                self._loaded_record(key, value)
            (start, end), swallowed = self._ranges.add(low, high)
            for old in swallowed:
                self.delete("loaded", b"r" + old)
            self.put("loaded", b"r" + start, end or b"")

    def load_books(self, pages: Iterable[tuple[Stripe, int]]) -> None:
        """The stripes that the tree's own pages lie in, with how many pages each holds."""
        with self.writing():
            for stripe, count in pages:
                if self._get("live", stripe.stripe_id) is None:
                    self._put_stripe(stripe)
                    self.put("live", stripe.stripe_id, U64.pack(count))

    def _loaded_record(self, key: bytes, value: bytes) -> None:
        if key[:1] == b"c":
            stripe_id = records.place_from_bytes(value).stripe_id
            self.put("within", stripe_id + key[1:])
            self.add_live(stripe_id, 1)
        elif key[:1] == b"s":
            stripe = stripe_format.from_bytes(value)
            for index, share in enumerate(stripe.shares):
                if share.node is not None:
                    self.put("bynode", share.node + stripe.stripe_id, bytes([index]))
        elif key[:1] == b"n" and self._get("nodes", key[1:]) is None:
            self.save_node_row(NodeId(key[1:]), NodeRow(NodeState.OFFLINE, 0))

    def hydrated(self) -> None:
        """Everything is here."""
        with self.writing():
            self.save_info("hydrating", False)
            for key in self.keys("loaded"):
                self.delete("loaded", key)
