"""Nodes as a policy looks at them, and what can be said of a policy with them. Imports nothing but rooms of placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute, Candidate, Evidence
from hivefs.placement import code
from hivefs.placement.attributes import authorities
from hivefs.placement.health import NodeState
from hivefs.placement.policy import AT_ONCE, Policy
from hivefs.placement.selector import choose
from hivefs.placement.whatif import independent, limits_in_words


@dataclass(frozen=True, slots=True)
class Node:
    """A node as a policy looks at it. ``here``: it is not given up, not revoked, not out of trust and does not
    leave: the engine may place on it.
    """

    node_id: NodeId
    state: NodeState
    attributes: tuple[Attribute, ...]
    here: bool
    free_bytes: int = 0


def infeasible(policy: Policy, nodes: Sequence[Node]) -> str:
    """Why no placement over the nodes that are here keeps the policy, in words; "" when one does. May take
    seconds with very many nodes: call it in a worker thread, or in a process of its own.
    """
    here = [n for n in nodes if n.here]
    reason = _why_not(policy, here, policy.evidence)
    if not reason or policy.evidence == Evidence.CLAIMED:
        return reason
    weak = sum(1 for n in here if authorities(n.attributes, policy.evidence) != authorities(n.attributes))
    if not weak or _why_not(policy, here, Evidence.CLAIMED):
        return reason
    word = policy.evidence.name.lower()
    return (
        f"{reason}; the nodes that are here would do if what is said of {weak} of them was attested by whom you trust "
        f"('hivefs trust --owner', 'hivefs attest'), but less is known than evidence = \"{word}\" asks for"
    )


def _why_not(policy: Policy, here: Sequence[Node], weakest: Evidence) -> str:
    """The same, when what is known by evidence of at least ``weakest`` counts."""
    candidates = [Candidate(n.node_id, authorities(n.attributes, weakest), max(1, n.free_bytes)) for n in here]
    try:
        if policy.auto:
            code.auto(policy, candidates)
        else:
            choose(policy, candidates, 0)
    except PolicyInfeasible as error:
        return str(error.data["reason"])  # whoever shows it says that no placement keeps the policy
    except TooFewNodes as error:
        return str(error).rstrip(".")
    return ""


def known_attributes(nodes: Sequence[Node]) -> Mapping[NodeId, tuple[Attribute, ...]]:
    """What is known of nodes that are not given up."""
    return {node.node_id: node.attributes for node in nodes if node.state != NodeState.GONE}


def independent_nodes(policy: Policy, nodes: Sequence[Node]) -> int:
    """How many jurisdictions there are that have nothing to do with each other."""
    return independent(authorities(n.attributes, policy.evidence)["jurisdiction"] for n in nodes if n.here)


def limits(policy: Policy, nodes: Sequence[Node]) -> str:
    """What the jurisdictions there are cannot give, in words."""
    rule = next((r for r in policy.rules if r.family == "jurisdiction"), None)
    return "" if rule is None else limits_in_words(independent_nodes(policy, nodes), rule.coalition, rule.lose)


def coded(policy: Policy, needed: int, total: int) -> Policy:
    """The policy with this code."""
    return replace(policy, needed=needed, total=total)


def shown(policy: Policy) -> dict[str, Any]:
    """A policy for people and programs."""
    return {
        "code": "auto" if policy.auto else f"{policy.needed}/{policy.total}",
        "rules": [asdict(rule) for rule in policy.rules if rule.coalition or rule.lose],
        "max_per": dict(policy.max_per),
        "evidence": policy.evidence.name.lower(),
        "allow": list(policy.allow),
        "deny": list(policy.deny),
        "repair_at": "auto" if not policy.repair_at else 0 if policy.repair_at == AT_ONCE else policy.repair_at,
    }


def holder(node: Node, shares: int) -> dict[str, Any]:
    """A node with so many shares."""
    return {
        "node": node.node_id.hex(),
        "shares": shares,
        "state": node.state.name.lower(),
        "attributes": {a.name: a.value for a in node.attributes},
        "evidence": {a.name: a.evidence.name.lower() for a in node.attributes},
    }
