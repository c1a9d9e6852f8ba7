"""What the engine tells of one node: for ``hivefs status`` and ``hivefs nodes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hivefs.model.ids import NodeId

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine


def node_status(engine: Engine, node_id: NodeId) -> dict[str, Any]:
    """One node for people and programs."""
    member = engine.pool.members[node_id]
    entry, weighed = member.entry, member.weighed
    return {
        "id": node_id.hex(),
        "state": member.state.name.lower(),
        "since_ns": member.since_ns,
        "free": member.free_bytes,
        "capacity": member.capacity,
        "problems": member.problems,
        "last_problem": member.last_problem or member.refused,
        "attributes": {a.name: a.value for a in weighed.attributes},
        "evidence": {a.name: a.evidence.name.lower() for a in weighed.attributes},
        "unsure": list(weighed.problems),
        "revoked": engine.covers_keys(node_id, member.invited),
        "addresses": [] if entry is None else list(entry.address.reachable),
        "relays": [] if entry is None else list(entry.address.relays),
        "relayed": member.client is not None and member.client.relayed,
        "leaving_s": 0 if entry is None else entry.address.leaving_s,
        "damaged": [record.name.lower() for record in engine.store.damaged.of(node_id)],
        **engine.trust.status(node_id),
    }
