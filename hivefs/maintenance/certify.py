"""Stripes that keep their policy and have no certificate of it yet, or one of another policy, get theirs.

After an update, and when a text changes what is asked, these may be all stripes, and each transaction waits for the disk.
So BATCH of them are proved, with turns for others in between, and recorded in one transaction, each unless its stripe is
another one by then. What waits is not stored: a scan finds it again. It waits until it is recorded, so that ``run`` may end
because the disk is full, and be started again.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

import trio

from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import StripeId

BATCH: Final = 16
GATHER_S: Final = 0.05
"""A scan that goes on notes more meanwhile."""
MOST_WAITING: Final = 65_536
"""Of more the rest is left to a later scan's turn: whoever notes more of them waits (``room``)."""


class Certify:
    """See the head of the file. ``transactions`` counts those it made."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: dict[StripeId, None] = {}
        self._anew: set[StripeId] = set()
        """Noted since the batch began that is being proved: it may have been proved by what held before."""
        self._wake = trio.Event()
        self._room = trio.Event()
        self.transactions = 0

    @property
    def queue(self) -> int:
        """Stripes that wait."""
        return len(self._waiting)

    def note(self, stripe_id: StripeId) -> None:
        """This one may be proved as it lies."""
        self._waiting[stripe_id] = None
        self._anew.add(stripe_id)
        self._wake.set()

    async def room(self) -> None:
        """Wait while very many wait already."""
        while len(self._waiting) >= MOST_WAITING:
            self._room = trio.Event()
            await self._room.wait()

    async def run(self) -> None:
        """Until cancelled."""
        turns = Turns()
        while True:
            if not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            if len(self._waiting) < BATCH:
                await trio.sleep(GATHER_S)
            await self._some(turns)
            self._room.set()
            await turns.over()

    async def _some(self, turns: Turns) -> None:
        taken, made = list(islice(self._waiting, BATCH)), []
        self._anew.clear()
        for stripe_id in taken:
            certificate = self._state.certificate(stripe_id)
            if certificate is not None:
                made.append(certificate)
                if self._state.keep_standings(certificate):
                    await turns.over()
            await turns.item()
        again: list[StripeId] = []
        if made:
            with self._state.writing():
                again = self._state.certify(made)
            self.transactions += 1
        for stripe_id in taken:
            if stripe_id not in self._anew:
                self._waiting.pop(stripe_id, None)
        self._waiting |= dict.fromkeys(again)
