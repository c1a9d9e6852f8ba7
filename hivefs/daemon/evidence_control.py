"""What the engine process answers about evidence: whom the vault trusts, attestations, the table, the place."""

from __future__ import annotations

from typing import Any

import trio
import trio.lowlevel

from hivefs.daemon import control, registry_file
from hivefs.daemon.engine_core import Engine
from hivefs.errors import BadAttestation, BadSetting
from hivefs.formats import attestation
from hivefs.maintenance.evidence import SLICE
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

    async def use_registry(value: Any) -> dict[str, Any] | None:
        made, facts = await trio.to_thread.run_sync(registry_file.take, engine.home.engine, value)
        registry_file.keep(engine.store, facts)
        evidence.use_registry(made)
        return facts

    def place(value: Any) -> str:
        text = "" if str(value).strip().lower() in ("", "none") else str(value).strip()
        engine.round_trips.move(text)
        evidence.again()
        return text

    async def show(_: Any) -> dict[str, Any]:
        counts: dict[bytes, int] = {}
        for number, node_id in enumerate(engine.store.node_ids()):
            if number % SLICE == SLICE - 1:
                await trio.lowlevel.checkpoint()
            for key in evidence.attesters(node_id):
                counts[key] = counts.get(key, 0) + 1
        trusted = [
            {"key": made.key, "name": made.name, "since_ns": made.since_ns, "nodes": counts.get(made.key, 0)}
            for made in engine.store.trusted_keys()
        ]
        return {"trusted": trusted, "registry": registry_file.facts(engine.store), "place": engine.round_trips.place_text}

    methods.add("evidence", show)
    methods.add("evidence_trust", trust)
    methods.add("evidence_distrust", distrust)
    methods.add("evidence_take", take)
    methods.add("evidence_registry", use_registry)
    methods.add("evidence_place", place)


def _key(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != KEY_BYTES:
        raise BadSetting(name="KEY", reason="it is not a key")
    return value
