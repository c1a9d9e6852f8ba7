"""What the engine's store says, for the engine itself and for other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import cbor2

from hivefs.formats import attestation, records
from hivefs.formats import policy as policy_format
from hivefs.formats import standing as standing_format
from hivefs.formats import stripe as stripe_format
from hivefs.formats.member import entry_from_bytes
from hivefs.metadata.damaged import Record
from hivefs.metadata.engine_copies import CopyReader
from hivefs.metadata.engine_tables import DISTRUSTED
from hivefs.model.attestation import Attestation, Statement, TrustedKey
from hivefs.model.ids import ChunkId, NodeId, StripeId
from hivefs.model.node import Attribute, Evidence, RosterEntry
from hivefs.model.stripe import ChunkPlace, Level, Stripe
from hivefs.placement.evidence import Weighed, weigh
from hivefs.placement.health import Health, NodeRow, NodeState, NodeView, judge
from hivefs.placement.language import parse
from hivefs.placement.policies import Policies, Unwritten, Written
from hivefs.placement.policy import Policy

_EVIDENCE: Final = {int(evidence): evidence for evidence in Evidence}
STEP = 128
"""Keys that are read at a time: a tenth of a millisecond."""


class EngineReader(CopyReader):
    """Read access, from any process."""

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        """Where a chunk lies, or None when it is not known (here)."""
        value = self._load("tree", records.chunk_key(chunk_id))
        return None if value is None else records.place_from_bytes(value)

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        """A data or metadata stripe."""
        value = self._load("tree", records.stripe_key(stripe_id)) or self._load("meta", stripe_id)
        return None if value is None else stripe_format.from_bytes(value)

    def policy_text(self) -> str:
        """The text of the policies (policy.toml); empty when there is none. Raises Corrupt, UnknownVersion."""
        value = self._load("tree", records.policy_key(policy_format.TEXT_KEY))
        return "" if value is None else policy_format.text_from_bytes(value)

    def policy_of(self, digest: bytes) -> Policy | None:
        """The definition with that digest, when it is known. Raises Corrupt, UnknownVersion."""
        value = self._load("tree", records.policy_key(digest)) if any(digest) else None
        return None if value is None else policy_format.from_bytes(value)

    def standing(self, digest: bytes) -> tuple[Attribute, ...] | None:
        """What was known of a node, by its digest. Raises Corrupt, UnknownVersion."""
        value = self._load("tree", records.standing_key(digest))
        return None if value is None else standing_format.from_bytes(value)

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None:
        """Certificate and addresses of a node; None also when they are damaged."""
        return self._of_node(node_id, Record.ENTRY, "tree", records.node_key(node_id), entry_from_bytes)

    def entry_bytes(self, node_id: NodeId) -> bytes | None:
        """The same as it is kept (formats/member.py)."""
        return self._of_node(node_id, Record.ENTRY, "tree", records.node_key(node_id), bytes)

    def node_row(self, node_id: NodeId) -> NodeRow | None:
        """State of a node as the engine last saw it. One of which that is damaged is away, nobody knows since when: it is
        no reason to take its shares for lost.
        """
        return self._of_node(node_id, Record.SEEN, "nodes", node_id, self._row, NodeRow(NodeState.OFFLINE, 0))

    @staticmethod
    def _row(value: bytes) -> NodeRow:
        state, since, free, capacity = cbor2.loads(value)
        return NodeRow(NodeState(state), since, free, capacity)

    def weighed(self, node_id: NodeId) -> Weighed:
        """What is known of a node and with what evidence, as the engine weighed it last (maintenance/evidence.py). Of one
        that it did not weigh yet, and of which it may know more, all is claimed; of one of which that is damaged, which may
        have been refuted, nothing is known.
        """
        lost = Weighed((), ("what was known of it is damaged in this machine's store",))
        found = self._of_node(node_id, Record.KNOWN, "known", node_id, _weighed_from, lost)
        if found is not None:
            return found
        entry = self.roster_entry(node_id)
        return Weighed(()) if entry is None else weigh(entry.membership, addresses=entry.address.telling)

    def is_weighed(self, node_id: NodeId) -> bool:
        """Whether the engine has weighed what is known of that node, and that can be read."""
        return self._get("known", node_id) is not None and not self.damaged.has("known", node_id)

    def trusted_keys(self) -> list[TrustedKey]:
        """Keys whose attestations the user believes."""
        found = (self._load("tree", key) for key in self.keys("tree", records.trusted_key(b"")))
        return [attestation.trusted_from_bytes(value) for value in found if value is not None]

    def attestations_of(self, node_id: NodeId) -> list[Attestation]:
        """Attestations about a node that the user imported; their signatures were checked then."""
        found = (self._attestation(node_id, key) for key in self.keys("tree", records.attestation_key(node_id, b"")))
        return [made for made in found if made is not None]

    def _attestation(self, node_id: NodeId, key: bytes) -> Attestation | None:
        return self._of_node(node_id, Record.ATTESTATION, "tree", key, attestation.attestation_from_bytes)

    def statement_of(self, node_id: NodeId) -> Statement | None:
        """What a node says of itself; its signatures were checked when it came."""
        key = records.statement_key(node_id)
        return self._of_node(node_id, Record.STATEMENT, "tree", key, attestation.statement_from_bytes)

    def node_ids(self) -> list[NodeId]:
        """All nodes of the book."""
        return list(self.each_node())

    def each_node(self, above: NodeId | None = None) -> Iterator[NodeId]:
        """The same one by one in the order of their ids, those above one, read in steps."""
        after: bytes | None = None if above is None else b"n" + above
        while batch := self.keys("tree", b"n", after, STEP):
            yield from (NodeId(key[1:]) for key in batch)
            after = batch[-1]

    def node_view(self, node_id: NodeId) -> NodeView | None:
        """State and attributes; opened once for the same stored bytes."""
        row, entry = self._get("nodes", node_id), self._get("tree", records.node_key(node_id))
        if row is None or entry is None:
            return None
        stored = (row, entry, self._get("known", node_id), self._get("info", DISTRUSTED.encode()))
        known = self._views.get(node_id)
        if known is not None and known[1] == stored:
            return known[0]
        node_row, roster = self.node_row(node_id), self.roster_entry(node_id)
        if node_row is None:
            return None
        trusted = node_id not in (self.info(DISTRUSTED) or ())
        leaving = roster is not None and bool(roster.address.leaving_s)  # a damaged entry does not say
        view = NodeView(node_row.state, self.weighed(node_id).attributes, leaving, trusted)
        self._views[node_id] = (view, stored)
        return view

    @property
    def policies(self) -> Policies:
        """The policies in force. Raises what the text's decoder and its parser raise."""
        stored = self._get("tree", records.policy_key(policy_format.TEXT_KEY))
        if self._policies is None or self._policies[1] != (stored, self.default):
            text = self.policy_text()
            written: Written = parse(text, self.default, kept=True) if text else Unwritten(self.default)
            self._policies = Policies(written, self.policy_of, self.resolve), (stored, self.default)
        return self._policies[0]

    def paths(self) -> Mapping[str, str]:
        """Places in the drive with the names of their policies."""
        return self.policies.set.paths

    def health(self, stripe: Stripe, policy: str = "") -> Health:
        """Judge a stripe with the nodes as last seen, by the policy of this name (empty: what it has to obey now)."""
        policies = self.policies
        return judge(stripe, policies.as_if(stripe, policy) if policy else policies.of(stripe), self.node_view)

    def stripe_level(self, stripe_id: StripeId, policy: str = "") -> Level:
        """The durability level that this stripe has now; LOCAL when it is not known."""
        stripe = self.stripe(stripe_id)
        return Level.LOCAL if stripe is None else self.health(stripe, policy).level

    def explained(self, stripe_id: StripeId) -> dict[str, Any]:
        """For people: by which policy a stripe was placed, what proves it now, and what is known of the nodes."""
        stripe = self.stripe(stripe_id)
        if stripe is None:
            return {}
        views = [None if share.node is None else self.node_view(share.node) for share in stripe.shares]
        return {
            "policy": self.policies.name_of(stripe),
            "proof": self.health(stripe).words,
            "proved_ns": stripe.placed_ns if all(share.standing for share in stripe.shares) else 0,
            "known": [None if view is None else _known(view.attributes) for view in views],
        }

    def metadata_level(self) -> Level:
        """The level of the last checkpoint: its stripes, and its head with enough nodes."""
        value = self.info("metadata_level")
        return Level(value) if isinstance(value, int) else Level.LOCAL

    def stripes(self) -> Iterator[Stripe]:
        """All stripes, data first, read in steps (no long transaction)."""
        yield from self._stripes_of("tree", b"s")
        yield from self._stripes_of("meta", b"")

    def metadata_stripes(self) -> Iterator[Stripe]:
        """The stripes that hold pages of the metadata tree."""
        yield from self._stripes_of("meta", b"")

    def _stripes_of(self, table: str, prefix: bytes) -> Iterator[Stripe]:
        after: bytes | None = None
        while batch := self.keys(table, prefix, after, STEP):
            for key in batch:
                value = self._load(table, key)
                if value is not None:
                    yield stripe_format.from_bytes(value)
            after = batch[-1]

    def each_on(self, node_id: NodeId, after: StripeId | None = None) -> Iterator[StripeId]:
        """Stripes with a share on that node, one by one in the order of their ids, those above ``after``, read in steps (no
        long transaction).
        """
        while batch := self.keys("bynode", node_id, None if after is None else node_id + after, STEP):
            yield from (StripeId(key[32:]) for key in batch)
            after = StripeId(batch[-1][32:])

    def nodes(self, node_ids: Iterable[NodeId] | None = None) -> Iterator[tuple[NodeId, RosterEntry, NodeRow]]:
        """All known nodes, or these, one by one."""
        for node_id in self.each_node() if node_ids is None else node_ids:
            entry, row = self.roster_entry(node_id), self.node_row(node_id)
            if entry is not None and row is not None:
                yield node_id, entry, row

    def node_rows(self) -> Iterator[tuple[NodeId, NodeRow]]:
        """All known nodes and what was last seen of them, one by one. Costs a sixth of ``nodes``: no entry is opened."""
        for node_id in self.each_node():
            row = self.node_row(node_id)
            if row is not None:
                yield node_id, row


_OWN: Final = frozenset({"operator", "parent", "subnet"})
"""Attributes of which most nodes have a value of their own."""


def _weighed_from(value: bytes) -> Weighed:
    attributes, problems = cbor2.loads(value)
    return Weighed(tuple(_said(*said) for said in attributes), tuple(problems))


def _said(name: str, value: str, evidence: int) -> Attribute:
    return Attribute(name, value, _EVIDENCE[evidence]) if name in _OWN else _attribute(name, value, evidence)


@lru_cache(maxsize=4096)
def _attribute(name: str, value: str, evidence: int) -> Attribute:
    """One object for equal attributes: many nodes say the same."""
    return Attribute(name, value, Evidence(evidence))


def _known(attributes: tuple[Attribute, ...]) -> dict[str, str]:
    """Each attribute with its evidence: "DE (attested)"."""
    return {a.name: f"{a.value} ({a.evidence.name.lower()})" for a in attributes}
