"""When a stripe that misses shares is repaired: at once, or when few enough are left that waiting is not safe. Pure.

Repair reads k shares however few it makes again, so waiting for several losses saves traffic. It costs safety, so the
threshold is the smallest r for which a stripe is lost less often than LOSSES_A_YEAR (by placement/durability.py) when nodes
go for ever at MONTHLY a month and a loss is known LAG_DAYS after it happened. 5 % a month is thirty times what Storj
measures of its nodes (0.165 %), and stands for hives of friends. Codes with few parity shares have no such r: they are
repaired at once. For 16/30 it is 24, for 29/80 38.

Whatever the threshold: a stripe of which a guarantee cannot be proved any more with the shares that are left is repaired at
once, since being lost is not the only thing that a policy forbids.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from hivefs.placement import durability

LOSSES_A_YEAR: Final = 1e-9
MONTHLY: Final = 0.05
LAG_DAYS: Final = 7.0


@lru_cache(maxsize=256)
def repair_at(needed: int, total: int) -> int:
    """The number of shares left at which a k/n stripe is repaired when its policy does not say; 0: with the first loss.

    Policy.repair_at has the same meaning. Costs some milliseconds for a new code, and is remembered.
    """
    rate = durability.daily_rate(MONTHLY)
    for left in range(needed + 1, total - 1):
        if durability.losses(needed, total, left, LAG_DAYS, rate) <= LOSSES_A_YEAR:
            return left
    return 0


def due(left: int, total: int, threshold: int, proved: bool) -> bool:
    """Whether a stripe with ``left`` of its ``total`` shares is to be repaired now. ``proved``: with those that are left
    the policy's guarantees still hold. ``threshold`` is Policy.repair_at, or ``repair_at`` of the code.
    """
    return left < total and (not proved or not threshold or left <= threshold)
