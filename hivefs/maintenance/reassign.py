"""Chunks whose file has another policy now: because the text says so of its path, or because the file was moved.

The mount knows files, the engine knows stripes. So the mount tells, some slots at a time, which policy the file of
each chunk has, and what lies in a stripe of another one is wished to be moved (repack.py). It is looked at when the text
changes (``wanted``), a moment after the mount says that renames may have given files another policy, and every ten minutes
in case that was not heard; not at all while there is no text. What was wished and not moved is found again. While the code
of a policy is being chosen (codes.py) nothing is looked at: what is to move would go by the codes that are known and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

import trio

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.maintenance.ports import State, Vault
from hivefs.maintenance.repack_plan import Target
from hivefs.model.ids import ChunkId

log = logging.getLogger(__name__)

EVERY: Final = 600.0
AGAIN: Final = 60.0
ASK: Final = 2.0
"""Seconds between questions whether files were moved to places of other policies."""

SHARE: Final = 10
"""While files are moved again and again, looking at all of them takes this part of the time at most."""

SLOTS: Final = 100
MOST: Final = 10_000
"""Chunks that are wished for at once; the rest when these have moved."""


class Reassign:
    """``wish`` hands chunks to the repack; ``looked`` is called when all that was asked for is wished."""

    def __init__(
        self,
        state: State,
        wish: Callable[[Collection[ChunkId], Target, str], None],
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self._state = state
        self._wish = wish
        self._looked = looked
        self.wanted = trio.Event()
        """Set when the policies are others now."""

    async def run(self, vault: Vault) -> None:
        """Look for one drive until cancelled. HivefsError of the vault passes out when it is gone."""
        asked = False
        while True:
            asked = asked or self.wanted.is_set()
            self.wanted = trio.Event()
            moves, began = await vault.policy_moves(), trio.current_time()
            whole = not self._choosing()
            if whole:
                if self._state.policies.set.text:
                    whole = await self.once(vault)
                if asked:
                    self._looked()
                asked = False
            took = trio.current_time() - began
            with trio.move_on_after(EVERY if whole else AGAIN):
                await self._called(vault, moves, max(ASK, SHARE * took))

    async def _called(self, vault: Vault, moves: int, pause: float) -> None:
        """Return when another text is in force, or files were moved since there were so many ``moves``."""
        while True:
            with trio.move_on_after(pause):
                await self.wanted.wait()
                return
            pause = ASK
            if self._state.policies.set.text and await vault.policy_moves() != moves:
                return

    async def once(self, vault: Vault) -> bool:
        """Look at all slots; False when there was more than is wished for at once, or not everything could be looked at."""
        after, count = b"", 0
        while True:
            after, files = await vault.policies_of_chunks(after, SLOTS)
            found: dict[str, list[ChunkId]] = {}
            for chunk_id, name in files:
                if self._elsewhere(chunk_id, name):
                    found.setdefault(name, []).append(chunk_id)
            for name, chunk_ids in found.items():
                count += self._wished(name, chunk_ids)
            if not after or count >= MOST:
                return not after
            await trio.sleep(0.005)

    def _choosing(self) -> bool:
        """Whether the code of a policy is being chosen."""
        policies = self._state.policies
        for name in policies.set.policies if policies.set.text else ():
            try:
                policies.named(name)
            except (PolicyInfeasible, TooFewNodes) as error:
                if error.data.get("choosing"):
                    return True
        return False

    def _elsewhere(self, chunk_id: ChunkId, name: str) -> bool:
        """Whether a chunk lies in a stripe that was placed by another policy than that of this name."""
        place = self._state.place(chunk_id)
        stripe = None if place is None else self._state.stripe(place.stripe_id)
        if stripe is None:
            return False
        policies = self._state.policies
        return not policies.same(name, policies.name_of(stripe))

    def _wished(self, name: str, chunk_ids: list[ChunkId]) -> int:
        try:
            policy = self._state.policies.named(name)
        except (PolicyInfeasible, TooFewNodes) as error:
            log.info("files under policy %s stay where they are: %s", name, error)
            return 0
        self._wish(chunk_ids, Target(policy.name, policy.needed, policy.total), f"files under policy {policy.name}")
        return len(chunk_ids)
