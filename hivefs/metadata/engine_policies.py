"""Policies and standings in the engine's store: the text in force, and what the certificates of stripes name."""

from __future__ import annotations

from collections.abc import Iterable

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.formats import standing as standing_format
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.node import Attribute
from hivefs.placement.policy import Policy


class PolicyTables(EngineWriter):
    """Table tree (p, a)."""

    def save_policy_text(self, text: str) -> None:
        """The text of the policies, whole: after a crash it is the old one or this one. Empty means that there is none."""
        if text != self.policy_text():
            key = records.policy_key(policy_format.TEXT_KEY)
            self._save_tree(key, policy_format.text_to_bytes(text) if text else None)

    def save_policy(self, policy: Policy) -> bytes:
        """Keep a definition; returns its digest."""
        digest = policy_format.digest(policy)
        if not self.has_entry("tree", records.policy_key(digest)):
            self._save_tree(records.policy_key(digest), policy_format.to_bytes(policy))
        return digest

    def save_standing(self, attributes: Iterable[Attribute]) -> bytes:
        """Keep what is known of a node; returns its digest."""
        value = tuple(attributes)
        digest = standing_format.digest(value)
        if not self.has_entry("tree", records.standing_key(digest)):
            self._save_tree(records.standing_key(digest), standing_format.to_bytes(value))
        return digest
