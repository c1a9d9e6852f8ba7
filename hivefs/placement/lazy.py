"""When a stripe that misses shares is repaired: at once, or when few enough are left that waiting is not safe. Pure.

Repair reads k shares however few it makes again, so waiting for several losses saves traffic, and a node that comes back
late costs nothing. It costs safety, so where a policy does not say, the threshold is the smallest r for which a stripe is
lost less often than LOSSES_A_YEAR (by placement/durability.py) when nodes go for ever at MONTHLY a month and a loss is
known LAG_DAYS after it happened. 5 % a month is thirty times what Storj measures of its nodes (0.165 %), and stands for
hives of friends. Codes with few parity shares have no such r and are repaired at once. For 16/30 it is 24, for 29/80 38.

Codes of fewer than SMALL shares are repaired at once too, also 4/12 for which the formula says 10. They are what hives of
some ten nodes have. There one event (a shared line, a shared flat, a bad release) takes a larger part of the nodes, so that
failures are not as independent as the formula supposes; and there is little to save.

Whatever the threshold, a stripe waits only while being lost is the smaller worry:

- its guarantees hold with the shares that are left, and no_hostage still would with one share less, so that the next loss
  breaks nothing before it is known;
- its shares are on different nodes that are trusted.

Stripes of metadata do not wait unless the policy names a number: there are few, and everything hangs on them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from hivefs.model.stripe import Purpose
from hivefs.placement import durability
from hivefs.placement.policy import AT_ONCE, Policy
from hivefs.placement.verifier import Verdict

LOSSES_A_YEAR: Final = 1e-9
MONTHLY: Final = 0.05
LAG_DAYS: Final = 7.0
SMALL: Final = 20


@lru_cache(maxsize=256)
def repair_at(needed: int, total: int) -> int:
    """The number of shares left at which a k/n stripe is repaired when its policy does not say; 0: with the first loss.

    Costs some milliseconds for a new code, and is remembered.
    """
    if total < SMALL:
        return 0
    rate = durability.daily_rate(MONTHLY)
    for left in range(needed + 1, total - 1):
        if durability.losses(needed, total, left, LAG_DAYS, rate) <= LOSSES_A_YEAR:
            return left
    return 0


def threshold(policy: Policy, purpose: Purpose) -> int:
    """The number of shares left at which a stripe of this policy, with its code, is repaired; AT_ONCE for the first loss.
    A number of the policy that does not fit the code (the stripe has an older one) does not count.
    """
    if policy.repair_at == AT_ONCE or policy.needed < policy.repair_at < policy.total:
        return policy.repair_at
    return AT_ONCE if purpose == Purpose.METADATA else repair_at(policy.needed, policy.total) or AT_ONCE


def waits(policy: Policy, purpose: Purpose, left: int, verdict: Verdict) -> bool:
    """Whether a stripe with ``left`` of its shares, all on different nodes that are trusted, misses some and may wait.
    ``verdict`` is on those that are left.
    """
    if left >= policy.total or not verdict.holds or left <= threshold(policy, purpose):
        return False
    both = zip(policy.rules, verdict.proofs, strict=True)
    return all(not rule.lose or proof.remaining > policy.needed + rule.slack for rule, proof in both)


def words(policy: Policy) -> str:
    """When repair of data begins, and why then, for people. The policy's code is chosen."""
    needed, total = policy.needed, policy.total
    at = threshold(policy, Purpose.DATA)
    if policy.repair_at == at:
        why = "as the policy says"
    elif at == AT_ONCE:
        why = "with this code it is not safe enough to wait"
    else:
        rate = durability.daily_rate(MONTHLY)
        lost = durability.losses(needed, total, at, LAG_DAYS, rate)
        why = (
            f"a stripe is lost {lost:.0e} times a year then, if {MONTHLY * 100:g} % of the nodes go for ever each month; "
            f"at once if a guarantee would be at stake"
        )
    when = "with the first missing share" if at == AT_ONCE else f"when {at} of {total} shares are left"
    return f"{when} ({why})"
