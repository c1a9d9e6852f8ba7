"""The policies in force: which one a stripe is judged by, and which one new data is placed by. Pure.

A stripe's certificate names the definition it was placed by. What it has to obey is what the policy of that *name* says
now: so a stricter text makes old stripes be settled anew. When the text does not have that name any more, it is the
policy of the text that says the same under another name (a policy was renamed); if there is none, the definition itself
holds on, until it is known which policy the files have now (docs/decisions/0040). Without a text every file has the
default policy, and a digest of which nothing is known (a stripe from before certificates) stands for it too. Metadata
obeys the policy of metadata, whatever its stripes were placed by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from hivefs.errors import Corrupt, PolicyInfeasible, UnknownVersion
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
        self._gone: dict[bytes, Policy] = {}
        """Definitions that stripes name and the text does not have under any name."""
        self._said: dict[Policy, str] = {}
        for name, policy in written.policies.items():
            self._said.setdefault(policy.words, name)
        self._of: dict[tuple[bytes, Purpose, int, int], Policy] = {}

    def written(self, name: str) -> Policy:
        """What the text says under this name, or else the default."""
        found = self.set.policies.get(name)
        return self.set.policies[DEFAULT] if found is None else found

    def named(self, name: str) -> Policy:
        """The policy for new data, its code resolved. Raises PolicyInfeasible, TooFewNodes; PolicyInfeasible also for a
        name that the text in force does not have: nothing is placed by another policy instead.
        """
        if self.set.text and name not in self.set.policies:
            raise PolicyInfeasible(reason=f"the text in force has no policy {name}")
        return self._resolve(self.written(name))

    def metadata(self) -> Policy:
        """The policy for new stripes of metadata, its code resolved. Raises PolicyInfeasible, TooFewNodes."""
        return self._resolve(self._metadata)

    def name_of(self, stripe: Stripe) -> str:
        """The name of the policy that the stripe was placed by, or of the one that says the same now."""
        name = self._names.get(stripe.policy_hash)
        if name is None:
            try:
                known = self._definition(stripe.policy_hash)
            except (Corrupt, UnknownVersion):
                known = None  # 'hivefs check --placement' names it; the default is stricter than nothing
            if known is None:  # not remembered: after a recovery it may come yet
                return DEFAULT
            name = self._names[stripe.policy_hash] = self._now(stripe.policy_hash, known)
        return name

    def _now(self, digest: bytes, known: Policy) -> str:
        if known.name in self.set.policies:
            return known.name
        if not self.set.text:
            return DEFAULT
        name = self._said.get(known.words)
        if name is None:
            self._gone[digest] = known
            return known.name
        return name

    def same(self, one: str, other: str) -> bool:
        """Whether policies of two names ask for the same. A name that the text does not have is only itself."""
        if one == other:
            return True
        first, second = self.set.policies.get(one), self.set.policies.get(other)
        return first is not None and second is not None and first.words == second.words

    def gone(self, stripe: Stripe) -> bool:
        """Whether it was placed by a policy of data that the text does not have any more, under any name."""
        self.name_of(stripe)
        return stripe.purpose != Purpose.METADATA and stripe.policy_hash in self._gone

    def definition(self, stripe: Stripe) -> Policy:
        """What a stripe has to obey, with the code that the text or, of a name that is gone, its certificate says."""
        if stripe.purpose == Purpose.METADATA:
            return self._metadata
        name = self.name_of(stripe)
        return self._gone.get(stripe.policy_hash) or self.written(name)

    def of(self, stripe: Stripe) -> Policy:
        """What the stripe must obey now, with the code that it has."""
        key = stripe.policy_hash, stripe.purpose, stripe.needed, stripe.total
        found = self._of.get(key)
        if found is None:
            found = replace(self.definition(stripe), needed=stripe.needed, total=stripe.total)
            if stripe.policy_hash in self._names:
                self._of[key] = found
        return found

    def as_if(self, stripe: Stripe, name: str) -> Policy:
        """What it would have to obey if its data had the policy of this name."""
        rules = self._metadata if stripe.purpose == Purpose.METADATA else self.written(name)
        return replace(rules, needed=stripe.needed, total=stripe.total)
