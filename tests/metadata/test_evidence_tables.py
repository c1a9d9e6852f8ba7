"""Evidence in the engine's store: in checkpoints, sealed, the newest only, not back once removed, seen by readers."""

from __future__ import annotations

from pathlib import Path

from hivefs.formats import attestation, records
from hivefs.metadata.engine_store import EngineReader, EngineStore
from hivefs.model.attestation import Attestation, Statement, TrustedKey
from hivefs.model.ids import NodeId
from hivefs.model.node import Attribute, Evidence
from hivefs.placement.attributes import authorities
from hivefs.placement.evidence import Weighed
from hivefs.placement.health import NodeRow, NodeState
from hivefs.placement.policy import Policy
from hivefs.testing.memory_hive import MemoryNode

KEY = bytes(range(32))
DEFAULT = Policy(4, 6)
NODE = MemoryNode(7, "DE", "operator of it")
NOTARY = bytes([9]) * 32
TRUSTED = TrustedKey(b"k" * 32, "the notary", 5)


def vouch(issued: int, country: str = "DE") -> Attestation:
    return attestation.sign_attestation(NOTARY, Attestation(b"", NODE.node_id, (("country", country),), issued))


def says(sequence: int) -> Statement:
    return attestation.sign_statement(NODE.seed, Statement(NODE.node_id, sequence, (("hoster", "R"),)))


def opened(path: Path) -> EngineStore:
    store = EngineStore(path / "engine", KEY, DEFAULT)
    with store.writing():
        store.save_node(NODE.entry(), 10**9)
        store.save_node_row(NODE.node_id, NodeRow(NodeState.ONLINE, 1))
    return store


def test_what_is_kept_goes_into_the_next_checkpoint_and_the_newest_stays(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.writing():
        store.save_trusted(TRUSTED)
        assert store.save_attestation(vouch(2)) and not store.save_attestation(vouch(2))
        assert not store.save_attestation(vouch(1, "FR")) and store.save_attestation(vouch(3))
        assert store.save_statement(says(2), 0) and not store.save_statement(says(1), 0)
    assert store.trusted_keys() == [TRUSTED] and store.attestations_of(NODE.node_id) == [vouch(3)]
    assert store.statement_of(NODE.node_id) == says(2) and store.node_ids() == [NODE.node_id]
    with store.changes() as changes:
        changed = dict(changes)
    assert {key for key in changed if key[:1] == b"e"} == {
        records.trusted_key(TRUSTED.key),
        records.attestation_key(NODE.node_id, vouch(3).attester),
        records.statement_key(NODE.node_id),
    }
    with store.writing():
        assert store.remove_trusted(TRUSTED.key) and not store.remove_trusted(TRUSTED.key)
    with store.changes() as changes:
        assert dict(changes)[records.trusted_key(TRUSTED.key)] is None, "the checkpoint deletes it"
    store.load_page(b"e", b"f", [(records.trusted_key(TRUSTED.key), attestation.trusted_to_bytes(TRUSTED))])
    assert store.trusted_keys() == [], "the page of an older checkpoint does not bring it back"
    store.close()


def test_the_outcome_is_what_all_processes_see_and_nothing_of_it_is_readable_on_disk(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert not store.is_weighed(NODE.node_id)
    assert Attribute("country", "DE") in store.weighed(NODE.node_id).attributes, "not weighed yet: claimed"
    view = store.node_view(NODE.node_id)
    assert view is not None and authorities(view.attributes)["jurisdiction"] == {"DE"}
    known = (Attribute("country", "", Evidence.ATTESTED), Attribute("operator", "op", Evidence.REGISTRY))
    with store.writing():
        store.save_weighed(NODE.node_id, Weighed(known, ("why",)))
        store.save_trusted(TRUSTED)
    changed = store.node_view(NODE.node_id)
    assert changed is not None and "DE" not in authorities(changed.attributes)["jurisdiction"]
    store.close()
    reader = EngineReader(tmp_path / "engine", KEY, DEFAULT)
    assert reader.is_weighed(NODE.node_id) and reader.weighed(NODE.node_id) == Weighed(known, ("why",))
    assert reader.node_view(NODE.node_id) == changed and reader.weighed(NodeId(bytes(32))) == Weighed(())
    reader.close()
    data = (tmp_path / "engine" / "data.mdb").read_bytes()
    assert b"the notary" not in data and b"operator of it" not in data


def test_an_engine_of_before_there_was_evidence_is_read(tmp_path: Path) -> None:
    """Its store has no table for it, and what a page of it holds is loaded as before."""
    store = opened(tmp_path)
    with store.writing():
        store._txn().drop(store._db["known"], delete=True)
    store.close()
    reader = EngineReader(tmp_path / "engine", KEY, DEFAULT)
    assert not reader.is_weighed(NODE.node_id) and reader.node_view(NODE.node_id) is not None
    reader.close()
    store = EngineStore(tmp_path / "engine", KEY, DEFAULT)
    store.load_page(b"", None, [(records.statement_key(NODE.node_id), attestation.statement_to_bytes(says(4)))])
    assert store.statement_of(NODE.node_id) == says(4) and store.node_ids() == [NODE.node_id]
    store.close()
