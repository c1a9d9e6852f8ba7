"""Evidence in the engine's store: whom the user trusts, what was attested, what nodes say, and what that comes to."""

from __future__ import annotations

import cbor2

from hivefs.formats import attestation, records
from hivefs.metadata.engine_writer import EngineWriter
from hivefs.model.attestation import Attestation, Statement, TrustedKey
from hivefs.model.ids import NodeId
from hivefs.placement.evidence import Weighed


class EvidenceTables(EngineWriter):
    """Tables tree (e) and known. Signatures are checked by who calls."""

    def save_trusted(self, made: TrustedKey) -> None:
        """The user trusts a key, under this name."""
        self._save_tree(records.trusted_key(made.key), attestation.trusted_to_bytes(made))

    def remove_trusted(self, key: bytes) -> bool:
        """The user trusts it no more; whether it was trusted."""
        record = records.trusted_key(key)
        if self._get("tree", record) is None:
            return False
        self._save_tree(record, None)
        return True

    def save_attestation(self, made: Attestation) -> bool:
        """Keep the newest of each attester for each node; whether it was news."""
        record = records.attestation_key(made.subject, made.attester)
        before = self._attestation(NodeId(made.subject), record)
        if before is not None and (before.issued_ns, before.signature) >= (made.issued_ns, made.signature):
            return False
        self._save_tree(record, attestation.attestation_to_bytes(made))
        return True

    def save_statement(self, made: Statement, now_ns: int) -> bool:
        """Keep the newest of each node; whether it was news."""
        if not attestation.newer(made, self.statement_of(made.node_id), now_ns):
            return False
        self._save_tree(records.statement_key(made.node_id), attestation.statement_to_bytes(made))
        return True

    def save_weighed(self, node_id: NodeId, weighed: Weighed) -> None:
        """What is known of a node now."""
        attributes = [[a.name, a.value, int(a.evidence)] for a in weighed.attributes]
        self.save("known", node_id, cbor2.dumps([attributes, list(weighed.problems)], canonical=True))
