"""How much waits, by duty of the engine: for ``hivefs status`` and the page for Prometheus (docs/metrics.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine


def queues(engine: Engine) -> dict[str, int]:
    """Counts of what each duty has still to do. A new duty with a queue belongs here, into QUEUES of cli/status.py (which
    says what is counted) and into docs/metrics.md; a test compares the three.
    """
    audit, store, moving = engine.audit.status(), engine.store, engine.moving
    repack, rebalance = moving.repack.moving.status()["queue"], moving.rebalance.moving.status()["queue"]
    return {
        "placing": engine.placing.in_flight,
        "offered": store.count("offered"),
        "checkpoint": store.count("changed") + store.count("moved"),
        "evacuate": len(engine.checkpoint.evacuate),
        "repair": engine.repair.queue,
        "repair_later": engine.rules.later,
        "moving": repack + rebalance,
        "repack": repack,
        "rebalance": rebalance,
        "audit": audit["owed"],
        "sweep": audit["sweeps"],
        "leases": len(engine.leases.waiting),
        "garbage": store.count("trash"),
        "doomed": store.count("doomed"),
        "unknown": store.count("unknown"),
        "spares": store.count("spare"),
        "definitions": engine.definitions.waiting,
        "reputation": engine.trust.unsaved,
    }
