"""``hivefs check --placement``: every certificate is proved again, from this machine's records alone; no node is asked.

Two questions for each stripe. Was it proved at its time: does the verifier prove the definition that the certificate
names on what the certificate says was known of the nodes then? And does it hold now: does the policy that the stripe has
to obey hold on what is known of the nodes today? The first can fail only through a damaged or forged record; the second
when policies or nodes changed and repair has not settled the stripe yet. And a third: could old copies, which are not
deleted yet, bring too many shares together with those?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.maintenance.turns import Turns
from hivefs.model.node import Attribute
from hivefs.model.stripe import Stripe
from hivefs.placement.health import Health, proved
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Proof

TELL = 500
STANDINGS = 8192
"""So many are remembered while the check runs."""


class Certificates(Protocol):
    """The engine's store, as this check reads it."""

    def stripes(self) -> Iterator[Stripe]: ...
    def policy_of(self, digest: bytes) -> Policy | None: ...
    def standing(self, digest: bytes) -> tuple[Attribute, ...] | None: ...
    def health(self, stripe: Stripe) -> Health: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """``kind`` is certificate-wrong (a problem), certificate-missing, out-of-policy (repair is on it) or old-copies."""

    kind: str
    detail: str
    problem: bool


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
    """Goes through all stripes; ``counts`` and ``findings`` are the result. ``copies`` proves no reassembly of a stripe
    with its old copies counted (old_copies.py).
    """

    def __init__(self, store: Certificates, copies: Callable[[Stripe], tuple[Proof, ...]] = lambda stripe: ()) -> None:
        self._store = store
        # Many stripes name the same few standings, which are named by what they say.
        self._standing = lru_cache(maxsize=STANDINGS)(store.standing)
        self._copies = copies
        self.findings: list[Finding] = []
        self.counts: Counter[str] = Counter(stripes=0, proved=0, holding=0)

    async def run(self, report: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Others have their turn after every few stripes; ``report`` is told [what, done, total] now and then."""
        turns = Turns()
        for number, stripe in enumerate(self._store.stripes(), 1):
            self._look(stripe)
            await turns.item()
            if number % TELL == 0:
                await report(["certificates", number, 0])
        await report(["certificates", self.counts["stripes"], self.counts["stripes"]])

    def _look(self, stripe: Stripe) -> None:
        name = stripe.stripe_id.hex()
        self.counts["stripes"] += 1
        if not any(share.standing for share in stripe.shares):
            self.found("certificate-missing", f"stripe {name} has no certificate", problem=False)
        else:
            try:
                wrong = proved_then(stripe, self._store, self._standing)
            except (Corrupt, UnknownVersion) as error:
                wrong = str(error)
            if wrong:
                self.found("certificate-wrong", f"stripe {name}: {wrong}", problem=True)
            else:
                self.counts["proved"] += 1
        health = self._store.health(stripe)
        if health.waits or (health.verdict.holds and not health.distrusted and health.counted == stripe.total):
            self.counts["holding"] += 1
        elif not health.verdict.holds or health.distrusted:
            self.found("out-of-policy", f"stripe {name}: {health.words}", problem=False)
        else:
            missing = stripe.total - health.counted
            self.found("out-of-policy", f"stripe {name}: {missing} of {stripe.total} shares are missing", problem=False)

        secret = all(proof.no_reassembly for proof in health.verdict.proofs)
        for proof in self._copies(stripe) if secret else ():
            if not proof.no_reassembly:
                self.found("old-copies", f"stripe {name}: with copies not deleted yet, {proof.reason}", problem=False)

    def found(self, kind: str, detail: str, *, problem: bool) -> None:
        """Note something; ``problem``: it is wrong, and is not put right by itself."""
        self.counts[kind] += 1
        self.findings.append(Finding(kind, detail, problem))
