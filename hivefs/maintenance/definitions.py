"""Definitions of policies and standings of nodes that nothing names any more are removed from the records.

Each certificate names a policy's definition and what was known of each holder then; with every change of text or of a
node new ones come. What a stripe names, and what the text in force says, stays: all stripes are looked at, in slices. What
came to be named while that went on is told by the store (``named_again``). A stripe that is on its way to nodes names its
policy too and is not recorded yet, so only what nothing has named for KEEP_S goes: longer than a stripe can be on its way.
A published head has records of its own in its tree, so a recovery from it misses nothing; and a stripe that a head names is
in the store until another head is out (garbage.py).

How long nothing has named them is in memory only: after a crash it is counted anew. Before the whole book is here (after a
recovery) nothing may be removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import trio

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns

FIRST: Final = 60.0
EVERY: Final = 3600.0
KEEP_S: Final = 3600.0
REMOVED: Final = 64
"""Records removed in one transaction."""


class DefinitionState(State, Protocol):
    """The store with its definitions and standings (metadata/engine_policies.py)."""

    def named_again(self) -> set[bytes]: ...
    def forget_definitions(self, keys: Iterable[bytes]) -> None: ...


class Definitions:
    """See the head of the file."""

    def __init__(self, state: DefinitionState) -> None:
        self._state = state
        self._since: dict[bytes, float] = {}
        self.removed = 0

    @property
    def waiting(self) -> int:
        """Records that nothing named at the last look."""
        return len(self._since)

    async def run(self) -> None:
        """Look every hour until cancelled; the whole book must be here."""
        await trio.sleep(FIRST)
        while True:
            await self.once()
            await trio.sleep(EVERY)

    async def once(self) -> None:
        """Look at all stripes, and remove what nothing has named for long."""
        self._forget(self._state.named_again())
        keys = [key for prefix in (b"p", b"a") for key in self._state.keys("tree", prefix)]
        named, turns = set[bytes](), Turns()
        for stripe in self._state.stripes():
            named.add(stripe.policy_hash)
            named.update(share.standing for share in stripe.shares)
            await turns.item()
        # No checkpoint of trio from here until the first of them are removed, and none within each transaction.
        again = self._state.named_again()
        self._forget(again)
        named |= again | self._in_force()
        now = trio.current_time()
        self._since = {key: self._since.get(key, now) for key in keys if key[1:] not in named}
        due = [key for key, since in self._since.items() if now - since >= KEEP_S]
        for start in range(0, len(due), REMOVED):
            self._remove(due[start : start + REMOVED])
            await trio.lowlevel.checkpoint()

    def _forget(self, named: set[bytes]) -> None:
        """These were named since."""
        for digest in named:
            self._since.pop(records.policy_key(digest), None)
            self._since.pop(records.standing_key(digest), None)

    def _in_force(self) -> set[bytes]:
        written = self._state.policies.set
        policies = (*written.policies.values(), written.metadata())
        return {policy_format.TEXT_KEY, *map(policy_format.digest, policies)}

    def _remove(self, keys: list[bytes]) -> None:
        self._forget(self._state.named_again() | self._in_force())
        gone = [key for key in keys if key in self._since]
        with self._state.writing():
            self._state.forget_definitions(gone)
        for key in gone:
            del self._since[key]
        self.removed += len(gone)
