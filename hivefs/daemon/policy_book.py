"""What questions about policies need of the engine (policy_control.py works with any Book)."""

from __future__ import annotations

from collections.abc import Iterator

from hivefs.daemon.engine_core import Engine
from hivefs.daemon.policy_nodes import Node
from hivefs.placement.health import NodeState
from hivefs.placement.policy import Policy


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
        for node_id in self._engine.pool.met.walk():
            member = self._engine.pool.members[node_id]
            stays = member.state != NodeState.GONE and not member.leaving and not self._engine.trust.suspended(node_id)
            here = stays and not self._engine.covers_keys(node_id, member.invited)
            yield Node(node_id, member.state, member.weighed.attributes, here, member.free_bytes)
