"""What a stripe is worth with the nodes as they are: its durability level, its state, its urgency. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hivefs.model.ids import NodeId
from hivefs.model.stripe import Level, Stripe
from hivefs.placement.verifier import Proof, Rules, prove


class NodeState(enum.IntEnum):
    """How the engine sees a node. OFFLINE nodes may return with their shares; GONE ones are given up and replaced."""

    ONLINE = 1
    OFFLINE = 2
    GONE = 3


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What the engine last knew of a node: state, since when (ns), and its space in bytes."""

    state: NodeState
    since_ns: int
    free_bytes: int = 0
    capacity: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """What judging a stripe needs of a node. A ``leaving`` one still gives its shares, but they need a new home."""

    state: NodeState
    authorities: Mapping[str, frozenset[str]]
    leaving: bool = False


class State(enum.Enum):
    """The field's words for a stripe."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    ENDANGERED = "endangered"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Health:
    """``counted`` shares are on nodes not given up, ``reachable`` on nodes that answer now."""

    state: State
    level: Level
    counted: int
    reachable: int
    proof: Proof


def judge(stripe: Stripe, rules: tuple[Rules, ...], look: Callable[[NodeId], NodeView | None]) -> Health:
    """Judge a stripe. A node that is not known any more counts as gone. All rules must hold for ``guaranteed``."""
    views = [None if s.node is None else look(s.node) for s in stripe.shares]
    kept = [v for v in views if v is not None and v.state != NodeState.GONE]
    reachable = sum(1 for v in kept if v.state == NodeState.ONLINE)
    holders = [s.node for s, v in zip(stripe.shares, views, strict=True) if v in kept and v is not None]
    proofs = [prove(rule, stripe.needed, [v.authorities[rule.family] for v in kept]) for rule in rules]
    proof = next((p for p in proofs if not p.holds), proofs[0])
    distinct = len(set(holders)) == len(holders)
    if len(kept) < stripe.needed:
        state, level = State.LOST, Level.LOCAL
    elif len(kept) < stripe.total:
        state = State.ENDANGERED if len(kept) <= stripe.needed else State.DEGRADED
        level = Level.REMOTE
    else:
        state = State.HEALTHY
        level = Level.GUARANTEED if proof.holds and distinct else Level.REMOTE
    return Health(state, level, len(kept), reachable, proof)
