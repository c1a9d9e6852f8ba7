"""Chunks whose file has another policy now: because the text says so of its path, or because the file was moved.

The mount knows files, the engine knows stripes. So the mount tells, some slots at a time, which policy the file of
each chunk has, and what lies in a stripe of another one is wished to be moved (repack.py). It is looked at when the text
changes (``wanted``), a moment after the mount says that renames may have given files another policy, and every ten minutes
in case that was not heard; not at all while there is no text. What was wished and not moved is found again: a moment after
the repack did what it could (``again``), after a minute when nothing of it could be done, then later and later. While the
code of a policy is being chosen (codes.py) nothing is looked at: what is to move would go by the codes that are known and
again.

``elsewhere`` are the stripes that were found to hold chunks of files of another policy, and ``known`` says whether that is
of after the last change. Until it is, and of these stripes, the repack moves nothing by the policy of the stripe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

import trio

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.maintenance.ports import State, Vault
from hivefs.maintenance.repack_plan import Target
from hivefs.model.ids import ChunkId, StripeId

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

MOST_STRIPES: Final = 65_536
"""Stripes in ``elsewhere``; some 150 bytes each."""


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
        self._known = False
        self.wanted = trio.Event()
        """Set when the policies are others now."""
        self.again = False
        """Set when what was wished was moved or is somewhere else, or something was placed by a policy of before."""
        self.changes = 0
        """How often policies, or those of files, were seen to be others."""
        self.elsewhere: dict[StripeId, str] = {}
        """With the name of the policy of a file that has data in it."""
        self.problems: dict[str, str] = {}
        """Why nothing can be moved to the policy of a name, as of the last look."""

    @property
    def known(self) -> bool:
        """Whether all was looked at since the last change of which is known."""
        return self._known and not self.wanted.is_set()

    def ask(self) -> None:
        """Policies or their codes are others: look at once."""
        self.changes += 1
        self.wanted.set()

    def ask_again(self) -> None:
        """Look again soon."""
        self.again = True

    async def run(self, vault: Vault) -> None:
        """Look for one drive until cancelled. HivefsError of the vault passes out when it is gone."""
        asked, self._known = False, False
        before, last = 0, AGAIN
        while True:
            asked = asked or self.wanted.is_set()
            self._known = self._known and not asked
            self.wanted = trio.Event()
            self.again = False
            moves, began = await vault.policy_moves(), trio.current_time()
            pause = EVERY
            if self._choosing():
                self._known, pause = False, AGAIN
            else:
                count = await self.once(vault) if self._state.policies.set.text else self._none()
                if count:
                    pause = AGAIN if count < before or not before else min(EVERY, 2 * last)
                before, last = count, pause
                full = len(self.elsewhere) >= MOST_STRIPES
                if asked or self._known == full:
                    self._known = not full
                    self._looked()
                asked = False
            took = trio.current_time() - began
            with trio.move_on_after(pause):
                await self._called(vault, moves, max(ASK, SHARE * took))

    async def _called(self, vault: Vault, moves: int, pause: float) -> None:
        """Return when another text is in force, files were moved since there were so many ``moves``, or what was wished is
        to be looked at again.
        """
        while True:
            with trio.move_on_after(pause):
                await self.wanted.wait()
                return
            pause = ASK
            if self.again:
                return
            if self._state.policies.set.text and await vault.policy_moves() != moves:
                self.changes += 1
                self._known = False
                return

    def _none(self) -> int:
        self.elsewhere = {}
        return 0

    async def once(self, vault: Vault) -> int:
        """Look at all slots. Returns for how many chunks it was wished that they move, at most some more than MOST."""
        after, count = b"", 0
        elsewhere: dict[StripeId, str] = {}
        self.problems = {}
        while True:
            after, files = await vault.policies_of_chunks(after, SLOTS)
            found: dict[str, list[ChunkId]] = {}
            for chunk_id, name in files:
                stripe_id = self._elsewhere(chunk_id, name)
                if stripe_id is not None:
                    found.setdefault(name, []).append(chunk_id)
                    if len(elsewhere) < MOST_STRIPES:
                        elsewhere[stripe_id] = name
            for name, chunk_ids in found.items():
                if count < MOST:
                    count += self._wished(name, chunk_ids)
            if not after:
                self.elsewhere = elsewhere
                return count
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

    def _elsewhere(self, chunk_id: ChunkId, name: str) -> StripeId | None:
        """The stripe that a chunk lies in, if that was placed by another policy than that of this name."""
        place = self._state.place(chunk_id)
        stripe = None if place is None else self._state.stripe(place.stripe_id)
        if stripe is None:
            return None
        policies = self._state.policies
        return None if policies.same(name, policies.name_of(stripe)) else stripe.stripe_id

    def _wished(self, name: str, chunk_ids: list[ChunkId]) -> int:
        try:
            policy = self._state.policies.named(name)
        except (PolicyInfeasible, TooFewNodes) as error:
            if name not in self.problems:
                log.info("files under policy %s stay where they are: %s", name, error)
            self.problems[name] = str(error)
            return 0
        self._wish(chunk_ids, Target(policy.name, policy.needed, policy.total), f"files under policy {policy.name}")
        return len(chunk_ids)
