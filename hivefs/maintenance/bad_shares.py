"""Damaged and missing shares that somebody met: recorded at once, or, while the disk is full, as soon as there is room.

Readers, audits, leases, the ledger and a check meet them, in the middle of what they do for others; none of them is to fail
because this machine cannot write it down. At most MOST are remembered; another one is met again by an audit, or when it is
read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
import trio.lowlevel

from hivefs.errors import DiskFull
from hivefs.model.ids import StripeId
from hivefs.model.stripe import Stripe

MOST: Final = 4096


class BadShares:
    """``record`` forgets that a node holds a share, in a transaction, and has it made again (Repair.bad_share)."""

    def __init__(self, record: Callable[[Stripe, int, str], None]) -> None:
        self._record = record
        self._waiting: dict[tuple[StripeId, int], tuple[Stripe, str]] = {}
        self._wake = trio.Event()

    @property
    def waiting(self) -> int:
        """How many are not recorded yet."""
        return len(self._waiting)

    def take(self, stripe: Stripe, index: int, reason: str) -> None:
        """This share of the stripe is not where the stripe says, or is something else."""
        try:
            self._record(stripe, index, reason)
        except DiskFull:
            key = stripe.stripe_id, index
            if key in self._waiting or len(self._waiting) < MOST:
                self._waiting[key] = stripe, reason
            self._wake.set()

    async def run(self) -> None:
        """Record what waits, until cancelled. Raises DiskFull; what waits then is still there when it is run again."""
        while True:
            while self._waiting:
                (stripe_id, index), (stripe, reason) = next(iter(self._waiting.items()))
                self._record(stripe, index, reason)
                self._waiting.pop((stripe_id, index), None)
                await trio.lowlevel.checkpoint()  # each is a transaction
            self._wake = trio.Event()
            await self._wake.wait()
