"""Who holds what of some files, and the proofs of their stripes, summed up. Pure. For 'hivefs policy explain'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Stripe
from hivefs.placement.health import proved
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Proof, Rules

MOST_REASONS = 20


class Holdings:
    """``look`` says what is known of each node; one that is not in it is gone, and a share there is held by nobody."""

    def __init__(self, look: Mapping[NodeId, Sequence[Attribute]]) -> None:
        self._look = look
        self._worst: dict[tuple[str, Rules], tuple[int, Stripe, Proof]] = {}
        self._reasons: dict[str, None] = {}
        self.shares: Counter[NodeId] = Counter()
        self.codes: Counter[str] = Counter()
        self.proved = self.failing = self.missing = 0

    def add(self, stripe: Stripe, policy: Policy) -> None:
        """One stripe, once, with the policy that it must keep and its own code in it."""
        holders = tuple(share.node if share.node in self._look else None for share in stripe.shares)
        verdict = proved(policy, stripe.needed, tuple(None if n is None else tuple(self._look[n]) for n in holders))
        self.codes[f"{stripe.needed}/{stripe.total}"] += 1
        self.shares.update(node for node in holders if node is not None)
        lacking = holders.count(None)
        self.missing += lacking
        held_twice = len(set(holders) - {None}) != len(holders) - lacking
        if verdict.holds and not lacking and not held_twice:
            self.proved += 1
        else:
            self.failing += 1
            words = [] if verdict.holds else [verdict.words]
            words += [f"{lacking} shares are missing"] if lacking else []
            words += ["a node holds two shares"] if held_twice else []
            if len(self._reasons) < MOST_REASONS:
                self._reasons["; ".join(words)] = None
        for rule, proof in zip(policy.rules, verdict.proofs, strict=True):
            self._keep(policy.name, rule, stripe, proof)

    def _keep(self, name: str, rule: Rules, stripe: Stripe, proof: Proof) -> None:
        """The tightest proof of each rule: the one with the least margin in either guarantee."""
        margins = [stripe.needed - 1 - proof.worst_shares] if rule.coalition else []
        margins += [proof.remaining - stripe.needed - rule.slack] if rule.lose else []
        margin = min(margins, default=0)
        old = self._worst.get((name, rule))
        if old is None or margin < old[0]:
            self._worst[name, rule] = margin, stripe, proof

    def proofs(self) -> list[dict[str, Any]]:
        """For each policy and family the stripe that is nearest to breaking it, with the numbers."""
        return [
            {
                "policy": name,
                "family": rule.family,
                "stripe": stripe.stripe_id.hex(),
                "needed": stripe.needed,
                "total": stripe.total,
                "holds": proof.holds,
                "no_reassembly": None
                if not rule.coalition
                else {
                    "holds": proof.no_reassembly,
                    "coalition": rule.coalition,
                    "worst": list(proof.worst_coalition),
                    "shares": proof.worst_shares,
                    "allowed": stripe.needed - 1,
                },
                "no_hostage": None
                if not rule.lose
                else {
                    "holds": proof.no_hostage,
                    "lose": rule.lose,
                    "slack": rule.slack,
                    "worst": list(proof.worst_loss),
                    "remaining": proof.remaining,
                    "must_remain": stripe.needed + rule.slack,
                },
                "reason": proof.reason,
            }
            for (name, rule), (_, stripe, proof) in self._worst.items()
        ]

    def summary(self) -> dict[str, Any]:
        """All of it as plain values, without the nodes."""
        return {
            "stripes": self.proved + self.failing,
            "proved": self.proved,
            "failing": self.failing,
            "missing_shares": self.missing,
            "codes": dict(self.codes),
            "proofs": self.proofs(),
            "reasons": list(self._reasons),
        }
