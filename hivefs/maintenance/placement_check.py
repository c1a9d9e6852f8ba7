"""``hivefs check --placement``: every certificate is proved again, from this machine's records alone; no node is asked.

Two questions for each stripe. Was it proved at its time: does the verifier prove the definition that the certificate
names on what the certificate says was known of the nodes then? And does it hold now: does the policy that the stripe has
to obey hold on what is known of the nodes today? The first can fail only through a damaged or forged record; the second
when policies or nodes changed and repair has not settled the stripe yet. And a third: could old copies, which are not
deleted yet, bring too many shares together with those?

It may be a million stripes, so it runs in a process of its own (daemon/looking.py), judges stripes with the same holders
and certificate once, and keeps MOST findings of a kind; of the others it says how many they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Protocol

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Purpose, Stripe
from hivefs.placement.health import Health, proved
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Proof

STANDINGS: Final = 8192
"""So many are remembered while the check runs."""

MOST_SETS: Final = 8192
"""Different sets of holders of which it is remembered what they come to; some two kilobytes each."""

MOST: Final = 1000


_Set = tuple[bytes, str, Purpose, int, tuple[tuple[NodeId | None, bytes], ...]]


class Certificates(Protocol):
    """The engine's store, as this check reads it."""

    def stripes(self) -> Iterator[Stripe]: ...
    def policy_of(self, digest: bytes) -> Policy | None: ...
    def standing(self, digest: bytes) -> tuple[Attribute, ...] | None: ...
    def health(self, stripe: Stripe, policy: str = ...) -> Health: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is certificate-wrong (a problem), certificate-missing, out-of-policy (repair is on it), other-policy (it
    waits to be moved to the policy that its files have now) or old-copies.
    ``count``: it stands for so many.
    """

    kind: str
    detail: str
    problem: bool
    count: int = 1


def proved_then(stripe: Stripe, store: Certificates, standing: Callable[[bytes], tuple[Attribute, ...] | None]) -> str:
    """Empty when the certificate (which has standings) proves the placement at its time, else why it does not."""
    definition = store.policy_of(stripe.policy_hash)
    if definition is None:
        return "the policy that it names is not known"
    known = [standing(share.standing) if share.standing else None for share in stripe.shares]
    if any(attributes is None for attributes in known):
        return "what it says was known of the nodes is not here"
    if len({share.node for share in stripe.shares}) < stripe.total:
        return "two shares are at one node"
    verdict = proved(replace(definition, needed=stripe.needed, total=stripe.total), stripe.needed, tuple(known))
    return "" if verdict.holds else verdict.words


class PlacementCheck:
    """Goes through all stripes; ``counts`` and ``findings`` are the result. ``copies`` says where shares of a stripe
    may lie and ``together`` proves no reassembly with all of them counted (old_copies.py). ``elsewhere`` are stripes that
    wait to be moved to another policy, which is the one of the name, of the files that have data in them.
    """

    def __init__(
        self,
        store: Certificates,
        copies: Callable[[Stripe], frozenset[tuple[int, NodeId]]] = lambda stripe: frozenset(),
        together: Callable[[Stripe, frozenset[tuple[int, NodeId]]], tuple[Proof, ...]] = lambda stripe, pairs: (),
        elsewhere: Mapping[StripeId, str] = MappingProxyType({}),
    ) -> None:
        self._store = store
        self._elsewhere = elsewhere
        # Many stripes name the same few standings, which are named by what they say.
        self._standing = lru_cache(maxsize=STANDINGS)(store.standing)
        self._copies, self._together = copies, together
        self._judged: dict[_Set, tuple[str, Health]] = {}
        self._proofs: dict[tuple[bytes, Purpose, int, frozenset[tuple[int, NodeId]]], tuple[Proof, ...]] = {}
        self._listed: Counter[tuple[str, bool]] = Counter()
        self._left: Counter[tuple[str, bool]] = Counter()
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter(stripes=0, proved=0, holding=0)

    def run(self, tell: Callable[[str, int, int], None] = lambda what, done, total: None, total: int = 0) -> None:
        """Look at all. ``tell`` hears after each stripe what is looked at, how far, and of how many."""
        for number, stripe in enumerate(self._store.stripes(), 1):
            self._look(stripe)
            tell("certificates", number, total if number <= total else 0)
        tell("certificates", self.counts["stripes"], self.counts["stripes"])
        for (kind, problem), count in self._left.items():
            self.findings.append(Finding(kind, f"and {count} more like these", problem, count))
        self._left.clear()

    def _judge(self, stripe: Stripe, policy: str) -> tuple[str, Health]:
        """What is wrong with the certificate, if it has one; the health. Of each set of holders once."""
        lies = tuple((share.node, share.standing) for share in stripe.shares)
        key = stripe.policy_hash, policy, stripe.purpose, stripe.needed, lies
        if key not in self._judged:
            wrong = ""
            if any(share.standing for share in stripe.shares):
                try:
                    wrong = proved_then(stripe, self._store, self._standing)
                except (Corrupt, UnknownVersion) as error:
                    wrong = str(error)
            if len(self._judged) >= MOST_SETS:
                self._judged.clear()
            self._judged[key] = wrong, self._store.health(stripe, policy)
        return self._judged[key]

    def _look(self, stripe: Stripe) -> None:
        name = stripe.stripe_id.hex()
        self.counts["stripes"] += 1
        policy = self._elsewhere.get(stripe.stripe_id, "")
        wrong, health = self._judge(stripe, policy)
        if policy:
            words = f"stripe {name}: its files have policy {policy} now, and it waits to be moved"
            self.found("other-policy", words, problem=False)
        if not any(share.standing for share in stripe.shares):
            self.found("certificate-missing", f"stripe {name} has no certificate", problem=False)
        elif wrong:
            self.found("certificate-wrong", f"stripe {name}: {wrong}", problem=True)
        else:
            self.counts["proved"] += 1
        if health.waits or (health.verdict.holds and not health.distrusted and health.counted == stripe.total):
            self.counts["holding"] += 1
        elif not health.verdict.holds or health.distrusted:
            self.found("out-of-policy", f"stripe {name}: {health.words}", problem=False)
        else:
            missing = stripe.total - health.counted
            self.found("out-of-policy", f"stripe {name}: {missing} of {stripe.total} shares are missing", problem=False)
        if all(proof.no_reassembly for proof in health.verdict.proofs):
            for proof in self._with_copies(stripe):
                if not proof.no_reassembly:
                    words = f"stripe {name}: with copies not deleted yet, {proof.reason}"
                    self.found("old-copies", words, problem=False)

    def _with_copies(self, stripe: Stripe) -> tuple[Proof, ...]:
        """No reassembly with old copies counted; of each set of places once."""
        pairs = self._copies(stripe)
        key = stripe.policy_hash, stripe.purpose, stripe.needed, pairs
        if key not in self._proofs:
            if len(self._proofs) >= MOST_SETS:
                self._proofs.clear()
            self._proofs[key] = self._together(stripe, pairs)
        return self._proofs[key]

    def found(self, kind: str, detail: str, *, problem: bool) -> None:
        """Note something; ``problem``: it is wrong, and is not put right by itself."""
        self.counts[kind] += 1
        if self._listed[kind, problem] < MOST:
            self._listed[kind, problem] += 1
            self.findings.append(Finding(kind, detail, problem))
        else:
            self._left[kind, problem] += 1
