"""What questions about policies need of the engine, behind one port (policy_control.py works with any Book)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from hivefs.daemon.engine_core import Engine
from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import ChunkId, NodeId, StripeId
from hivefs.model.node import Attribute, Candidate
from hivefs.model.stripe import Stripe
from hivefs.placement import code
from hivefs.placement.attributes import authorities
from hivefs.placement.health import NodeState
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose


@dataclass(frozen=True, slots=True)
class Node:
    """A node as a policy looks at it. ``here``: it is not given up, not revoked and does not leave."""

    node_id: NodeId
    state: NodeState
    attributes: tuple[Attribute, ...]
    here: bool
    free_bytes: int = 0


class Book(Protocol):
    """The engine's side."""

    @property
    def default(self) -> Policy: ...
    def text(self) -> str: ...
    async def set_text(self, text: str) -> None: ...
    def nodes(self) -> Iterable[Node]: ...
    def stripe_of(self, chunk_id: ChunkId, near: Mapping[StripeId, Stripe] = ...) -> Stripe | None: ...
    def metadata_stripes(self) -> Iterator[Stripe]: ...


class EngineBook:
    """A Book over the real engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def default(self) -> Policy:
        """What holds without a text."""
        return self._engine.home.policy()

    def text(self) -> str:
        """The text in force; "" when there is none."""
        return self._engine.store.policy_text()

    async def set_text(self, text: str) -> None:
        """Put a text into force; "" for none. Raises BadPolicy."""
        await self._engine.set_policies(text)

    def nodes(self) -> Iterator[Node]:
        """All nodes that are known now."""
        for member in list(self._engine.pool.members.values()):
            stays = member.row.state != NodeState.GONE and not member.leaving
            here = stays and not self._engine.covers(member.entry.membership)
            yield Node(member.node_id, member.row.state, member.weighed.attributes, here, member.row.free_bytes)

    def stripe_of(self, chunk_id: ChunkId, near: Mapping[StripeId, Stripe] = MappingProxyType({})) -> Stripe | None:
        """The stripe that a chunk lies in; one of ``near`` is not read again."""
        place = self._engine.store.place(chunk_id)
        if place is None:
            return None
        return near.get(place.stripe_id) or self._engine.store.stripe(place.stripe_id)

    def metadata_stripes(self) -> Iterator[Stripe]:
        """Those of the metadata tree."""
        return self._engine.store.metadata_stripes()


def infeasible(policy: Policy, nodes: Sequence[Node]) -> str:
    """Why no placement over the nodes that are here keeps the policy, in words; "" when one does. May take
    seconds with very many nodes: call it in a worker thread.
    """
    candidates = [
        Candidate(n.node_id, authorities(n.attributes, policy.evidence), max(1, n.free_bytes)) for n in nodes if n.here
    ]
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
