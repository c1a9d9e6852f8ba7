"""Several policies at once: what holds the keys of all data must keep the rules of all of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hivefs.placement.arithmetic import PLURALS, impossible
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules


class Contradiction(Exception):
    """Two policies cannot be kept at once. ``more``: only together with those that were taken before the second."""

    def __init__(self, names: tuple[str, str], reason: str, more: bool) -> None:
        super().__init__(names, reason)
        self.names = names
        self.reason = reason
        self.more = more


def conjunction(policies: Sequence[Policy], name: str) -> Policy:
    """A policy that is kept only where all of ``policies`` (at least one) are: for each family the greater coalition, loss
    and slack, the smaller cap, what all allow and none denies, the stronger evidence.

    A code is no rule: it is the written one that survives most lost shares among those that can meet all rules, else
    automatic. Repair waits only if all agree. Raises Contradiction.
    """
    if len(set(policies)) == 1:
        return policies[0]
    made = policies[0]
    for number, policy in enumerate(policies[1:], 1):
        try:
            made = _two(made, policy)
        except ValueError as error:
            for other in policies[:number]:
                try:
                    _two(other, policy)
                except ValueError as reason:
                    raise Contradiction((other.name, policy.name), str(reason), more=False) from None
            raise Contradiction((policies[number - 1].name, policy.name), str(error), more=True) from None
    return replace(_code(made, policies), name=name)


def _two(first: Policy, second: Policy) -> Policy:
    """Both rules with an automatic code. Raises ValueError with the reason when no placement keeps them."""
    rules: dict[str, Rules] = {}
    for rule in (*first.rules, *second.rules):
        old = rules.get(rule.family, Rules(rule.family, 0, 0))
        rules[rule.family] = Rules(
            rule.family,
            max(rule.coalition, old.coalition),
            max(rule.lose, old.lose),
            max(rule.slack, old.slack),
        )
    stated = [rule for rule in rules.values() if rule.coalition or rule.lose] or [Rules(coalition=0, lose=0)]
    order = list(PLURALS)
    caps: dict[str, int] = {}
    for family, cap in (*first.max_per, *second.max_per):
        caps[family] = min(cap, caps.get(family, cap))
    made = Policy(
        0,
        0,
        tuple(sorted(stated, key=lambda r: order.index(r.family))),
        tuple(sorted(caps.items())),
        max(first.evidence, second.evidence),
        _allowed(first.allow, second.allow),
        tuple(sorted({*first.deny, *second.deny})),
        first.name,
        auto=True,
    )
    allowed, denied = split(made.allow), split(made.deny)
    for family, names in allowed.items():
        if names <= denied.get(family, frozenset()):
            raise ValueError(f"every {family} that is allowed is denied")
    reason = impossible(made, limits_of(made))
    if reason:
        raise ValueError(reason)
    return made


def _allowed(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    one, two = split(first), split(second)
    words: set[str] = set()
    for family in {*one, *two}:
        names = one[family] & two[family] if family in one and family in two else one.get(family) or two[family]
        if not names:
            raise ValueError(f"no {family} is allowed by both")
        words |= {join(family, name) for name in names}
    return tuple(sorted(words))


def _code(made: Policy, policies: Sequence[Policy]) -> Policy:
    written = {(p.needed, p.total) for p in policies if not p.auto}
    codes = sorted(written, key=lambda c: (c[1] - c[0], c[0] / c[1]), reverse=True)
    same = len({p.repair_at for p in policies}) == 1 and len(written) == 1 and not any(p.auto for p in policies)
    for needed, total in codes:
        fixed = replace(made, needed=needed, total=total, auto=False, repair_at=policies[0].repair_at if same else 0)
        if not impossible(fixed, limits_of(fixed)):
            return fixed
    return made


def split(words: Sequence[str]) -> dict[str, frozenset[str]]:
    """The authorities of a Policy's allow or deny by family."""
    found: dict[str, set[str]] = {}
    for word in words:
        family, colon, name = word.partition(":")
        found.setdefault(family if colon else "jurisdiction", set()).add(name if colon else word)
    return {family: frozenset(names) for family, names in found.items()}


def join(family: str, name: str) -> str:
    """The inverse for one: "DE", "operator:acme"."""
    return name if family == "jurisdiction" else f"{family}:{name}"


def limits_of(policy: Policy) -> dict[str, int]:
    """How many authorities of a family may hold shares, for families that ``allow`` names."""
    denied = split(policy.deny)
    return {family: len(names - denied.get(family, frozenset())) for family, names in split(policy.allow).items()}
