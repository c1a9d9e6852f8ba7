"""Policies and standings in the engine's store: the text in force, and what the certificates of stripes name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.formats import standing as standing_format
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.node import Attribute
from hivefs.placement.policy import Policy

MOST_STANDINGS = 65_536


class PolicyTables(EngineWriter):
    """Table tree (p, a)."""

    def __init__(self, path: Path, key: bytes, default: Policy, random: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__(path, key, default, random)
        self._named: set[bytes] = set()
        self._standings: set[bytes] = set()
        """Of these the records are there."""

    def named_again(self) -> set[bytes]:
        """Digests of definitions and standings that were kept, or named by a stripe, since this was asked last. (Of an
        undone transaction too: nothing is removed because of that.)
        """
        named, self._named = self._named, set()
        return named

    def forget_definitions(self, keys: Iterable[bytes]) -> None:
        """Nothing names these records (p, a) any more; nor does it the code that was chosen for a policy."""
        self._standings.clear()
        kept: dict[str, Any] = self.info("codes") or {}
        codes = dict(kept)
        for key in keys:
            self._save_tree(key, None)
            if key[:1] == b"p":
                codes.pop(key[1:].hex(), None)
        if codes != kept:
            self.save_info("codes", codes)

    def save_policy_text(self, text: str) -> None:
        """The text of the policies, whole: after a crash it is the old one or this one. Empty means that there is none."""
        if text != self.policy_text():
            key = records.policy_key(policy_format.TEXT_KEY)
            self._save_tree(key, policy_format.text_to_bytes(text) if text else None)

    def save_policy(self, policy: Policy) -> bytes:
        """Keep a definition; returns its digest."""
        digest = policy_format.digest(policy)
        self._named.add(digest)
        if not self.has_entry("tree", records.policy_key(digest)):
            self._save_tree(records.policy_key(digest), policy_format.to_bytes(policy))
        return digest

    def has_standing(self, digest: bytes) -> bool:
        """Whether what that digest names is kept; it counts as named from now on."""
        self._named.add(digest)
        if digest not in self._standings and self.has_entry("tree", records.standing_key(digest)):
            if len(self._standings) >= MOST_STANDINGS:
                self._standings.clear()
            self._standings.add(digest)
        return digest in self._standings

    def _undone(self, sequence: int) -> None:
        super()._undone(sequence)
        self._standings.clear()

    def save_standing(self, attributes: Iterable[Attribute]) -> bytes:
        """Keep what is known of a node; returns its digest."""
        value = tuple(attributes)
        digest = standing_format.digest(value)
        self._named.add(digest)
        if not self.has_entry("tree", records.standing_key(digest)):
            self._save_tree(records.standing_key(digest), standing_format.to_bytes(value))
        return digest
