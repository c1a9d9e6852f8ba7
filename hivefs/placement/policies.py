"""The policies in force: which one a stripe is judged by, and which one new data is placed by. Pure.

A stripe's certificate names the definition it was placed by. What it has to obey is what the policy of that *name* says
now: so a stricter text makes old stripes be settled anew. A name that the text does not have any more, and a digest of
which nothing is known (a stripe from before certificates), stand for the default policy. Metadata obeys the policy of
metadata, whatever its stripes were placed by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.model.stripe import Purpose, Stripe
from hivefs.placement.policy import DEFAULT, Policy


class Written(Protocol):
    """What a text says (placement/language.py)."""

    @property
    def text(self) -> str: ...
    @property
    def policies(self) -> Mapping[str, Policy]: ...
    @property
    def paths(self) -> Mapping[str, str]: ...
    def metadata(self) -> Policy: ...


@dataclass(frozen=True)
class Unwritten:
    """What holds without a text: the policy of the vault's own settings, for everything."""

    default: Policy
    text: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Only the default."""
        return {DEFAULT: self.default}

    def metadata(self) -> Policy:
        """The same for metadata."""
        return self.default


class Policies:
    """``definition`` gives the policy of a digest in a certificate, ``resolve`` the same policy with a code when the
    code is automatic (maintenance/codes.py); it raises PolicyInfeasible or TooFewNodes when no code can be placed.
    """

    def __init__(
        self,
        written: Written,
        definition: Callable[[bytes], Policy | None],
        resolve: Callable[[Policy], Policy] = lambda policy: policy,
    ) -> None:
        self.set = written
        self._definition = definition
        self._resolve = resolve
        self._metadata = written.metadata()
        self._names: dict[bytes, str] = {}
        self._of: dict[tuple[bytes, Purpose, int, int], Policy] = {}

    def written(self, name: str) -> Policy:
        """What the text says under this name, or else the default."""
        found = self.set.policies.get(name)
        return self.set.policies[DEFAULT] if found is None else found

    def named(self, name: str) -> Policy:
        """The policy for new data, its code resolved. Raises PolicyInfeasible, TooFewNodes."""
        return self._resolve(self.written(name))

    def metadata(self) -> Policy:
        """The policy for new stripes of metadata, its code resolved. Raises PolicyInfeasible, TooFewNodes."""
        return self._resolve(self._metadata)

    def name_of(self, stripe: Stripe) -> str:
        """The name of the policy that the stripe was placed by."""
        name = self._names.get(stripe.policy_hash)
        if name is None:
            try:
                known = self._definition(stripe.policy_hash)
            except (Corrupt, UnknownVersion):
                known = None  # 'hivefs check --placement' names it; the default is stricter than nothing
            if known is None:  # not remembered: after a recovery it may come yet
                return DEFAULT
            name = self._names[stripe.policy_hash] = known.name
        return name

    def of(self, stripe: Stripe) -> Policy:
        """What the stripe must obey now, with the code that it has."""
        key = stripe.policy_hash, stripe.purpose, stripe.needed, stripe.total
        found = self._of.get(key)
        if found is None:
            found = self.as_if(stripe, self.name_of(stripe))
            if stripe.policy_hash in self._names:
                self._of[key] = found
        return found

    def as_if(self, stripe: Stripe, name: str) -> Policy:
        """What it would have to obey if its data had the policy of this name."""
        rules = self._metadata if stripe.purpose == Purpose.METADATA else self.written(name)
        return replace(rules, needed=stripe.needed, total=stripe.total)
