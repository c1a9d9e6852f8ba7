"""Who holds what of some files, and the proofs of their stripes, summed up. Pure. For 'hivefs policy explain'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hivefs.model.ids import NodeId, StripeId
from hivefs.model.node import Attribute
from hivefs.placement.health import proved
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Proof, Rules

MOST_REASONS = 20
MOST_SETS = 8192
"""Different sets of holders that are remembered until they are judged; some kilobyte each."""

Holders = tuple[NodeId | None, ...]
"""Who has share i of a stripe; None: nobody."""


class Holdings:
    """``look`` says what is known of each node; one that is not in it is gone, and a share there is held by nobody.

    Most stripes lie on few different sets of nodes: those that have the same holders, code and policy are judged once.
    """

    def __init__(self, look: Mapping[NodeId, Sequence[Attribute]]) -> None:
        self._look = look
        self._worst: dict[tuple[str, Rules], tuple[int, StripeId, int, int, Proof]] = {}
        self._reasons: dict[str, None] = {}
        self._sets: dict[tuple[str, int, Holders], tuple[list[int], StripeId, Policy]] = {}
        self.shares: Counter[NodeId] = Counter()
        self.codes: Counter[str] = Counter()
        self.proved = self.failing = self.missing = 0

    def add(self, stripe_id: StripeId, needed: int, holders: Holders, policy: Policy) -> None:
        """One stripe, once, with the policy that it must keep (whatever code that says)."""
        key = policy.name, needed, holders
        same = self._sets.get(key)
        if same is not None:
            same[0][0] += 1
            return
        if len(self._sets) >= MOST_SETS:
            self.settle()
        self._sets[key] = [1], stripe_id, policy

    def settle(self) -> None:
        """Judge what was added; to be called when all is."""
        for (_, needed, holders), ((count,), stripe_id, policy) in self._sets.items():
            self._judge(count, stripe_id, needed, holders, replace(policy, needed=needed, total=len(holders)))
        self._sets.clear()

    def _judge(self, count: int, stripe_id: StripeId, needed: int, nodes: Holders, policy: Policy) -> None:
        """So many stripes with the same holders; the name is of one of them."""
        holders = tuple(node if node in self._look else None for node in nodes)
        verdict = proved(policy, needed, tuple(None if n is None else tuple(self._look[n]) for n in holders))
        self.codes[f"{needed}/{len(holders)}"] += count
        for node in holders:
            if node is not None:
                self.shares[node] += count
        lacking = holders.count(None)
        self.missing += count * lacking
        held_twice = len(set(holders) - {None}) != len(holders) - lacking
        if verdict.holds and not lacking and not held_twice:
            self.proved += count
        else:
            self.failing += count
            words = [] if verdict.holds else [verdict.words]
            words += [f"{lacking} shares are missing"] if lacking else []
            words += ["a node holds two shares"] if held_twice else []
            if len(self._reasons) < MOST_REASONS:
                self._reasons["; ".join(words)] = None
        for rule, proof in zip(policy.rules, verdict.proofs, strict=True):
            self._keep(policy.name, rule, stripe_id, needed, len(holders), proof)

    def _keep(self, name: str, rule: Rules, stripe_id: StripeId, needed: int, total: int, proof: Proof) -> None:
        """The tightest proof of each rule: the one with the least margin in either guarantee."""
        margins = [needed - 1 - proof.worst_shares] if rule.coalition else []
        margins += [proof.remaining - needed - rule.slack] if rule.lose else []
        margin = min(margins, default=0)
        old = self._worst.get((name, rule))
        if old is None or margin < old[0]:
            self._worst[name, rule] = margin, stripe_id, needed, total, proof

    def proofs(self) -> list[dict[str, Any]]:
        """For each policy and family the stripe that is nearest to breaking it, with the numbers."""
        return [
            {
                "policy": name,
                "family": rule.family,
                "stripe": stripe_id.hex(),
                "needed": needed,
                "total": total,
                "holds": proof.holds,
                "no_reassembly": None
                if not rule.coalition
                else {
                    "holds": proof.no_reassembly,
                    "coalition": rule.coalition,
                    "worst": list(proof.worst_coalition),
                    "shares": proof.worst_shares,
                    "allowed": needed - 1,
                },
                "no_hostage": None
                if not rule.lose
                else {
                    "holds": proof.no_hostage,
                    "lose": rule.lose,
                    "slack": rule.slack,
                    "worst": list(proof.worst_loss),
                    "remaining": proof.remaining,
                    "must_remain": needed + rule.slack,
                },
                "reason": proof.reason,
            }
            for (name, rule), (_, stripe_id, needed, total, proof) in self._worst.items()
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
