"""What a stripe is worth with the nodes as they are: its durability level, its state, its urgency. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Level, Stripe
from hivefs.placement import lazy
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Verdict, verify


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
    """What judging a stripe needs of a node. A ``leaving`` one still gives its shares, but they need a new home. One that
    is not ``trusted`` gave wrong answers too often: what it says that it holds proves nothing.
    """

    state: NodeState
    attributes: tuple[Attribute, ...]
    leaving: bool = False
    trusted: bool = True


class State(enum.Enum):
    """The field's words for a stripe."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    ENDANGERED = "endangered"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Health:
    """``counted`` shares are on nodes not given up, ``reachable`` on nodes that answer now. ``verdict`` is the verifier's
    on the shares that are counted, with what is known of their nodes now. ``distrusted`` are the numbers of counted shares
    at nodes out of trust, which wait to be made again elsewhere. ``waits``: some shares are missing, and so many are left
    that repair waits (placement/lazy.py).
    """

    state: State
    level: Level
    counted: int
    reachable: int
    verdict: Verdict
    distrusted: tuple[int, ...] = ()
    waits: bool = False

    @property
    def words(self) -> str:
        """Why it is not guaranteed as it lies; "proved" when nothing is wrong with where it lies."""
        words = [] if self.verdict.holds else [self.verdict.words]
        words += [f"share {i}: its node is out of trust" for i in self.distrusted]
        return "; ".join(words) or self.verdict.words


@lru_cache(maxsize=8192)
def proved(policy: Policy, needed: int, holders: tuple[tuple[Attribute, ...] | None, ...]) -> Verdict:
    """What verify() says, remembered: the stripes of a hive lie on few different sets of nodes, and are judged often."""
    return verify(policy, needed, holders)


def judge(stripe: Stripe, policy: Policy, look: Callable[[NodeId], NodeView | None]) -> Health:
    """Judge a stripe by a policy with what is known of the nodes now. A node that is not known any more counts as gone.
    ``guaranteed`` is a stripe whose shares are all there, or so many that repair waits, on different nodes that are
    trusted, and proved with those that are there to be as the policy says.
    """
    views = [None if s.node is None else look(s.node) for s in stripe.shares]
    counted = [None if v is None or v.state == NodeState.GONE else v for v in views]
    kept = [v for v in counted if v is not None]
    reachable = sum(1 for v in kept if v.state == NodeState.ONLINE)
    holders = [s.node for s, v in zip(stripe.shares, counted, strict=True) if v is not None]
    verdict = proved(policy, stripe.needed, tuple(None if v is None else v.attributes for v in counted))
    distinct = len(set(holders)) == len(holders)
    distrusted = tuple(i for i, v in enumerate(counted) if v is not None and not v.trusted)
    sound = distinct and not distrusted
    waits = sound and lazy.waits(policy, stripe.purpose, len(kept), verdict)
    if len(kept) < stripe.needed:
        state, level = State.LOST, Level.LOCAL
    elif len(kept) < stripe.total:
        state = State.ENDANGERED if len(kept) <= stripe.needed else State.DEGRADED
        level = Level.GUARANTEED if waits else Level.REMOTE
    else:
        state = State.HEALTHY
        level = Level.GUARANTEED if verdict.holds and sound else Level.REMOTE
    return Health(state, level, len(kept), reachable, verdict, distrusted, waits)
