"""What the chunk store needs from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from hivefs.chunkstore.conversation import Early
from hivefs.chunkstore.patience import Patience
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import Candidate, RosterEntry
from hivefs.placement.evidence import Weighed
from hivefs.placement.field import Field
from hivefs.placement.health import NodeRow
from hivefs.placement.policy import Policy


class ShareClient(Protocol):
    """A live, authenticated conversation with one node (chunkstore/node_client.py over the transport)."""

    @property
    def patience(self) -> Patience: ...
    @property
    def moved(self) -> float: ...

    def departed(self, share_id: ShareId, asked: float) -> tuple[float, bool]: ...

    async def put(self, share_id: ShareId, data: bytes, lease_ns: int, *, timeout: float = ...) -> int: ...

    async def get(
        self,
        share_id: ShareId,
        offset: int = ...,
        length: int | None = ...,
        *,
        merkle_root: bytes | None = ...,
        timeout: float = ...,
        early: Early | None = ...,
    ) -> bytes: ...


class Nodes(Protocol):
    """The nodes as they can be used now (chunkstore/pool.py)."""

    def client(self, node_id: NodeId) -> ShareClient | None: ...

    async def listed(self, policy: Policy) -> Sequence[Candidate] | Field: ...

    def reserve(self, node_id: NodeId, size: int) -> None: ...

    def report(self, node_id: NodeId, problem: str) -> None: ...

    def answered_put(self, node_id: NodeId, busy: bool) -> None: ...


class NodeBook(Protocol):
    """Where the engine keeps what it knows of nodes (metadata/engine_store.py)."""

    def nodes(self, node_ids: Iterable[NodeId] | None = ...) -> Iterable[tuple[NodeId, RosterEntry, NodeRow]]: ...

    def node_rows(self) -> Iterable[tuple[NodeId, NodeRow]]: ...

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None: ...

    def entry_bytes(self, node_id: NodeId) -> bytes | None: ...

    def weighed(self, node_id: NodeId) -> Weighed: ...

    def save_seen(self, rows: Mapping[NodeId, NodeRow]) -> None: ...


class Conduct(Protocol):
    """What is known of nodes from their conduct (maintenance/trust.py)."""

    def came(self, node_id: NodeId) -> None: ...
    def went(self, node_id: NodeId) -> None: ...
    def forget(self, node_id: NodeId) -> None: ...
    def tick(self, seconds: float, online: int, away: int) -> None: ...
    def gone_after(self, node_id: NodeId) -> float: ...
    def away(self, node_id: NodeId, since_s: float) -> float: ...
    def weight(self, node_id: NodeId) -> float: ...
    def vetted(self, node_id: NodeId) -> bool: ...
    def suspended(self, node_id: NodeId) -> bool: ...
    def outage(self, node_id: NodeId) -> frozenset[str]: ...
    def read(self, node_id: NodeId) -> None: ...


Random = Callable[[int], bytes]


T = TypeVar("T")


class Think(Protocol):
    """Answers a question of placement, a function of a module with plain values, without holding up the loop."""

    async def __call__(self, question: Callable[..., T], *given: Any, **more: Any) -> T: ...


async def at_once(question: Callable[..., T], *given: Any, **more: Any) -> T:
    """Here and now: for tests and the simulator."""
    return question(*given, **more)
