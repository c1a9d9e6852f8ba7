"""What the engine process answers about evidence: whom the vault trusts, attestations, the table, the place."""

from __future__ import annotations

from typing import Any

from hivefs.daemon import control
from hivefs.daemon.engine_core import Engine
from hivefs.errors import BadAttestation, BadSetting
from hivefs.formats import attestation
from hivefs.model.ids import KEY_BYTES


def add(methods: control.Methods, engine: Engine) -> None:
    """To those of the process (daemon/engine.py)."""
    evidence = engine.evidence

    def trust(value: Any) -> bool:
        return evidence.trust(_key(value["key"]), str(value["name"]))

    def distrust(value: Any) -> bool:
        return evidence.distrust(_key(value["key"]))

    def take(value: Any) -> int:
        if not isinstance(value, str):
            raise BadAttestation(reason="it is no text")
        return evidence.take_attestations(attestation.attestations_from_text(value))

    def show(_: Any) -> dict[str, Any]:
        counts: dict[bytes, int] = {}
        for node_id in engine.store.node_ids():
            for key in evidence.attesters(node_id):
                counts[key] = counts.get(key, 0) + 1
        trusted = [
            {"key": made.key, "name": made.name, "since_ns": made.since_ns, "nodes": counts.get(made.key, 0)}
            for made in engine.store.trusted_keys()
        ]
        return {"trusted": trusted, "registry": None, "place": ""}

    methods.add("evidence", show)
    methods.add("evidence_trust", trust)
    methods.add("evidence_distrust", distrust)
    methods.add("evidence_take", take)


def _key(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != KEY_BYTES:
        raise BadSetting(name="KEY", reason="it is not a key")
    return value
