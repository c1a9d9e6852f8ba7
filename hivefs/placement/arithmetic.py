"""Whether a code can ever meet its own rules, whatever nodes there are. Pure.

With J disjoint authorities the balanced distribution of the n shares is the best there is: it is majorized by every other,
and each rule asks that a sum of the largest parts is small. So G1(c) and G2(a, s) and a cap are possible for a family
exactly when they hold for floor(n/J) or one more under each. Families are independent as long as any node may exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

MOST_SHARES = 255
PLURALS = {
    "jurisdiction": "jurisdictions",
    "operator": "operators",
    "hoster": "hosters",
    "asn": "networks",
    "subnet": "subnets",
    "bloc": "blocs",
}
"""Families of authorities in which rules may be stated, and what several of them are called."""


def balanced(total: int, rule: Rules, cap: int, authorities: int) -> tuple[int, int]:
    """The least and the greatest k with which ``total`` shares spread evenly over that many authorities keep the rule and
    the cap (0: none); the least is above the greatest when there is none.
    """
    if authorities < 1:
        return 1, 0
    each, more = divmod(total, authorities)
    if cap and each + bool(more) > cap:
        return 1, 0

    def fullest(count: int) -> int:
        return min(count, authorities) * each + min(count, more)

    least = fullest(rule.coalition) + 1 if rule.coalition else 1
    greatest = total - fullest(rule.lose) - rule.slack if rule.lose else total
    return least, greatest


def holds_balanced(needed: int, total: int, rule: Rules, cap: int, authorities: int) -> bool:
    """Whether the code keeps the rule and the cap when its shares are spread evenly over that many authorities."""
    least, greatest = balanced(total, rule, cap, authorities)
    return least <= needed <= greatest


def least_authorities(needed: int, total: int, rule: Rules, cap: int = 0) -> int:
    """The least number of authorities over which the code keeps the rule and the cap; 0 when no number is enough."""
    return next((j for j in range(1, total + 1) if holds_balanced(needed, total, rule, cap, j)), 0)


def impossible(policy: Policy, limits: Mapping[str, int]) -> str:
    """Why the policy's code can never meet its rules, in words; "" when nodes could be found for it.

    ``limits`` says how many authorities of a family may hold shares at all, for families where that is limited.
    """
    rules = {rule.family: rule for rule in policy.rules}
    families = [*rules, *(name for name, _ in policy.max_per if name not in rules)]
    for family in families:
        rule = rules.get(family, Rules(family, 0, 0))
        limit = limits.get(family, MOST_SHARES)
        least = rule.coalition + rule.lose + 1
        if rule.coalition and rule.lose and limit < least:
            return f"both guarantees need at least {least} {_plural(family)} and only {limit} may hold shares"
        reason = "" if policy.auto else _for_code(policy.needed, policy.total, rule, policy.cap(family), limit)
        if reason:
            return reason
    if policy.auto and not _some_code(policy.rules, policy.max_per, tuple(sorted(limits.items()))):
        return f"no code of at most {MOST_SHARES} shares meets all the rules over the authorities that may hold shares"
    return ""


def _for_code(needed: int, total: int, rule: Rules, cap: int, limit: int) -> str:
    code, family = f"{needed}/{total}", rule.family
    if rule.coalition and needed == 1:
        return f"with the code {code} every share is a whole copy that its holder can read: no_reassembly needs k >= 2"
    if rule.coalition >= needed:
        return f"with the code {code} {rule.coalition} {_plural(family)} hold enough to rebuild: k >= {rule.coalition + 1}"
    if rule.lose and total - rule.lose < needed + rule.slack:
        remain = max(0, total - rule.lose)
        return (
            f"with the code {code} at most {remain} shares remain without {rule.lose} of the {_plural(family)} and "
            f"{needed + rule.slack} must: n >= {needed + rule.slack + rule.lose}"
        )
    if limit < total and not holds_balanced(needed, total, rule, cap, limit):
        least = least_authorities(needed, total, rule, cap)
        return f"the code {code} needs at least {least} {_plural(family)} and only {limit} may hold shares"
    return ""


@lru_cache(maxsize=256)
def _some_code(rules: tuple[Rules, ...], caps: tuple[tuple[str, int], ...], limits: tuple[tuple[str, int], ...]) -> bool:
    most, caps_of = dict(limits), dict(caps)
    stated = {rule.family for rule in rules}
    every = [*rules, *(Rules(name, 0, 0) for name, _ in caps if name not in stated)]
    for total in range(1, MOST_SHARES + 1):
        bounds = [
            balanced(total, rule, caps_of.get(rule.family, 0), min(total, most.get(rule.family, total))) for rule in every
        ]
        if max((low for low, _ in bounds), default=1) <= min((high for _, high in bounds), default=total):
            return True
    return False


def _plural(family: str) -> str:
    return PLURALS.get(family, family)
