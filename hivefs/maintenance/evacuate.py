"""Evacuation: metadata stripes with few living pages give them to the next checkpoint, and go.

Which pages live where is read from the published tree itself (its inner pages only); writing them elsewhere is an edit of
the tree like any other, so crashes are the checkpoint's matter (checkpoint.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio
import trio.lowlevel

from hivefs.errors import HivefsError
from hivefs.maintenance.repack_plan import evacuate
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import StripeId
from hivefs.model.stripe import PageRef, Stripe

log = logging.getLogger(__name__)

FIRST: Final = 60.0
EVERY: Final = 900.0
MOST: Final = 32 << 20
"""Living bytes that one checkpoint is given to write again."""


class Evacuation:
    """``pages`` gives every page of the published tree with its level and stripe, ``give`` hands stripes to the
    checkpoint, ``root`` gives something that is another when the tree is.
    """

    def __init__(
        self,
        pages: Callable[[], AsyncIterator[tuple[int, PageRef, Stripe]]],
        give: Callable[[frozenset[StripeId]], None],
        root: Callable[[], object] = lambda: None,
    ) -> None:
        self._pages = pages
        self._give = give
        self._root = root
        self._looked: object = None
        self.evacuated = 0

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await trio.sleep(FIRST)
        while True:
            try:
                if (root := self._root()) != self._looked or root is None:  # else it is the tree of the last look
                    await self.once()
                    self._looked = root
            except HivefsError as error:
                log.info("evacuating metadata stripes waits: %s", error)
            await trio.sleep(EVERY)

    async def once(self) -> frozenset[StripeId]:
        """Hand over what is worth it; returns it. Raises what reading the tree raises."""
        alive: dict[StripeId, tuple[Stripe, list[int], list[int]]] = {}
        turns = Turns()
        async for level, ref, stripe in self._pages():
            _, leaves, inner = alive.setdefault(stripe.stripe_id, (stripe, [], []))
            (inner if level else leaves).append(ref.place.length)
            await turns.item()
        chosen = evacuate(alive.values(), MOST)
        if chosen:
            log.info("the pages of %d metadata stripes are written again in fewer", len(chosen))
            self.evacuated += len(chosen)
            self._give(chosen)
        return chosen
