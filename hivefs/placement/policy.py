"""What a vault demands of every placement: the code, and rules per authority family."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hivefs.errors import BadSetting
from hivefs.placement.selector import Need
from hivefs.placement.verifier import Rules


@dataclass(frozen=True, slots=True)
class Policy:
    """needed/total is the code k/n; ``rules`` must all hold; ``max_per_operator`` 0 means no cap."""

    needed: int
    total: int
    rules: tuple[Rules, ...] = (Rules(),)
    max_per_operator: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= self.total <= 255:
            raise BadSetting(name="code", reason=f"{self.needed}/{self.total} is not a code (1 <= k <= n <= 255)")

    @property
    def digest(self) -> bytes:
        """16 bytes that name this policy in certificates."""
        return hashlib.sha256(repr(self).encode()).digest()[:16]

    @property
    def expansion(self) -> float:
        """Bytes stored per byte of data, before padding: n/k."""
        return self.total / self.needed

    def need(self) -> Need:
        """The selector's view of the first rule."""
        rule = self.rules[0]
        return Need(self.needed, self.total, rule.family, rule.coalition, rule.lose, rule.slack, self.max_per_operator)
