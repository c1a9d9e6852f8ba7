"""What a user demands of a placement: the code, rules per authority family, who may hold shares at all. Pure.

How users write it, and how it is read, is in placement/language.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hivefs.errors import BadSetting
from hivefs.model.node import Evidence
from hivefs.placement.verifier import Rules

AT_ONCE = 255
"""As ``repair_at`` of a policy: repair begins with the first missing share. No stripe has more shares."""

DEFAULT = "default"
"""The policy of everything that no other is set for. There always is one of this name."""


@dataclass(frozen=True, slots=True)
class Policy:
    """needed/total is the code k/n; ``rules`` must all hold, at most one for each family.

    ``max_per`` says how many shares of a stripe one authority of a family may hold, sorted: (("operator", 2),).
    ``evidence`` is the weakest class that is accepted for an attribute; what is known by less counts as unknown.
    ``allow`` and ``deny`` name jurisdictions, with blocs already taken apart, or "family:authority" of another family: with
    ``allow`` every authority of a node in a family that is named must be among them, with ``deny`` none may be; an unknown
    one fits neither. With ``auto`` the code is chosen from the nodes (``resolved``); needed and total are 0 until it is.
    ``repair_at`` is the number of shares left at which repair begins: 0 as placement/lazy.py says for the code, AT_ONCE as
    soon as one is missing.
    """

    needed: int
    total: int
    rules: tuple[Rules, ...] = (Rules(),)
    max_per: tuple[tuple[str, int], ...] = ()
    evidence: Evidence = Evidence.CLAIMED
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    name: str = DEFAULT
    auto: bool = False
    repair_at: int = 0

    def __post_init__(self) -> None:
        if self.auto and self.needed == self.total == 0:
            return
        if not 1 <= self.needed <= self.total <= 255:
            raise BadSetting(name="code", reason=f"{self.needed}/{self.total} is not a code (1 <= k <= n <= 255)")

    def resolved(self, needed: int, total: int) -> Policy:
        """The same with this code; its digest (formats/policy.py) stays the same when the code is automatic."""
        return replace(self, needed=needed, total=total)

    @property
    def words(self) -> Policy:
        """What it says: the same without its name, and without the code that was chosen for an automatic one."""
        return replace(self, name="", needed=0, total=0) if self.auto else replace(self, name="")

    @property
    def expansion(self) -> float:
        """Bytes stored per byte of data, before padding: n/k."""
        return self.total / self.needed

    def cap(self, family: str) -> int:
        """How many shares of a stripe one authority of that family may hold; 0 means no cap."""
        return dict(self.max_per).get(family, 0)
