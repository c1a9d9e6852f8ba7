"""Chunks and stripes in the engine's store: where they lie, what is alive, what is to be forgotten and deleted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hivefs.errors import StoreDamaged
from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.formats import standing as standing_format
from hivefs.formats import stripe as stripe_format
from hivefs.metadata.engine_copies import DOOMED, DOOMED_NAME, DOOMED_SHARE, moved_share
from hivefs.metadata.engine_policies import PolicyTables
from hivefs.metadata.engine_writer import U64
from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import ChunkPlace, Purpose, Stripe
from hivefs.placement.health import proved
from hivefs.placement.policy import Policy

_OFFER = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A stripe with its certificate, sealed; the value that it was read from; and what the certificate names."""

    stripe_id: StripeId
    table: str
    key: bytes
    stored: bytes
    sealed: bytes
    digest: bytes
    policy: Policy
    standings: tuple[bytes, ...]
    known: tuple[tuple[Attribute, ...], ...]


def _with(stripe: Stripe, digest: bytes, standings: tuple[bytes, ...], clock: Callable[[], int]) -> Stripe:
    shares = tuple(replace(share, standing=name) for share, name in zip(stripe.shares, standings, strict=True))
    before = stripe.policy_hash == digest and stripe.shares == shares
    return replace(stripe, shares=shares, policy_hash=digest, placed_ns=stripe.placed_ns if before else clock())


class StripeTables(PolicyTables):
    """Tables tree (c, s), meta, bynode, live, offered, doomed, trash; takes out of spare."""

    def save_stripe(self, stripe: Stripe) -> None:
        """Record a stripe and who holds it (also over an older version of it), with its certificate if the verifier proves
        it on what is known of the nodes now, without one if not.
        """
        self._put_stripe(self._certified(stripe))

    def certificate(self, stripe_id: StripeId) -> Certificate | None:
        """For certify(), of a stripe as it is recorded, if the verifier proves it and its certificate does not say so yet.
        Nothing is written.
        """
        stripe = self.stripe(stripe_id)
        found = None if stripe is None else self._proved(stripe)
        if stripe is None or found is None:
            return None
        written, known = found
        digest, standings = policy_format.digest(written), tuple(map(standing_format.digest, known))
        made = _with(stripe, digest, standings, self.clock)
        data = stripe.purpose == Purpose.DATA
        table, key = ("tree", records.stripe_key(stripe_id)) if data else ("meta", bytes(stripe_id))
        stored = self._get(table, key)
        if made == stripe or stored is None:
            return None
        sealed = self._sealer.seal(table.encode() + b"/" + key, stripe_format.to_bytes(made))
        return Certificate(stripe_id, table, key, stored, sealed, digest, written, standings, known)

    def keep_standings(self, certificate: Certificate) -> bool:
        """Keep what a certificate names, in a transaction of its own; False when it is kept already, as mostly."""
        named = zip(certificate.standings, certificate.known, strict=True)
        missing = [known for digest, known in named if not self.has_standing(digest)]
        if missing:
            with self.writing():
                for known in missing:
                    self.save_standing(known)
        return bool(missing)

    def certify(self, certificates: Sequence[Certificate]) -> list[StripeId]:
        """Record certificates, each unless its stripe is another one than was proved: those are returned."""
        changed = []
        for policy in {c.digest: c.policy for c in certificates}.values():
            self.save_policy(policy)
        for c in certificates:
            for digest, attributes in zip(c.standings, c.known, strict=True):
                if not self.has_standing(digest):
                    self.save_standing(attributes)
        for c in certificates:
            if self._get(c.table, c.key) != c.stored:
                changed.append(c.stripe_id)
                continue
            self.put(c.table, c.key, c.sealed)
            if c.table == "tree":
                self.put("changed", c.key, U64.pack(self.sequence))
        return changed

    def certified(self, stripe: Stripe) -> bool:
        """Whether its certificate says that it was proved under the policy that it has to obey now."""
        return bool(stripe.shares[0].standing) and stripe.policy_hash == policy_format.digest(self._as_written(stripe))

    def _certified(self, stripe: Stripe) -> Stripe:
        found = self._proved(stripe)
        if found is None:
            return replace(stripe, shares=tuple(replace(share, standing=b"") for share in stripe.shares))
        written, known = found
        digest, standings = self.save_policy(written), tuple(map(self.save_standing, known))
        return _with(stripe, digest, standings, self.clock)

    def _proved(self, stripe: Stripe) -> tuple[Policy, tuple[tuple[Attribute, ...], ...]] | None:
        """The policy that the stripe keeps on what is known of the nodes now, and what that is; None when it does not."""
        policy = self.policies.of(stripe)
        views = [None if share.node is None else self.node_view(share.node) for share in stripe.shares]
        known = tuple(view.attributes for view in views if view is not None)
        distinct = len({share.node for share in stripe.shares}) == stripe.total
        if len(known) < stripe.total or not distinct or not proved(policy, stripe.needed, known).holds:
            return None
        try:
            for attributes in known:
                standing_format.digest(attributes)
        except ValueError:
            return None  # more is said of a node than a standing can hold: placed as it should be, without certificate
        return self._as_written(stripe), known

    def _as_written(self, stripe: Stripe) -> Policy:
        """The policy that it obeys as the text says it, with the text's code: what the certificate names."""
        return self.policies.definition(stripe)

    def _put_stripe(self, stripe: Stripe) -> None:
        before = self.stripe(stripe.stripe_id)
        self._named.update((stripe.policy_hash, *(share.standing for share in stripe.shares)))
        if before is not None:
            for share in before.shares:
                if share.node is not None:
                    self.delete("bynode", share.node + stripe.stripe_id)
        for index, share in enumerate(stripe.shares):
            if share.node is not None:
                self.put("bynode", share.node + stripe.stripe_id, bytes([index]))
                self.delete("trash", share.node + share.share_id)
                self.delete("spare", share.node + share.share_id)
                self.delete("unknown", share.node + share.share_id)
        self._save_value(stripe)
        if stripe.purpose == Purpose.METADATA and before is not None:
            self.put("moved", stripe.stripe_id)

    def _save_value(self, stripe: Stripe) -> None:
        value = stripe_format.to_bytes(stripe)
        if stripe.purpose == Purpose.METADATA:
            self.save("meta", stripe.stripe_id, value)
        else:
            self._save_tree(records.stripe_key(stripe.stripe_id), value)

    def save_place(self, chunk_id: ChunkId, place: ChunkPlace, ino: int, slot: int) -> None:
        """Record a freshly placed chunk, offered to the mount for that slot of that file."""
        self._save_tree(records.chunk_key(chunk_id), records.place_to_bytes(place))
        self.put("offered", chunk_id, _OFFER.pack(ino, slot))
        self.put("within", place.stripe_id + chunk_id)
        self.add_live(place.stripe_id, 1)

    def move_place(self, chunk_id: ChunkId, before: ChunkPlace, after: ChunkPlace) -> bool:
        """A chunk was copied to another place, which counts from now on; the old one goes once a head with the new one is
        out. False, and nothing is changed, when the chunk is not there any more or was moved meanwhile.
        """
        if self.place(chunk_id) != before:
            return False
        self._save_tree(records.chunk_key(chunk_id), records.place_to_bytes(after))
        self.delete("within", before.stripe_id + chunk_id)
        self.put("within", after.stripe_id + chunk_id)
        self._doom(before.stripe_id, chunk_id)
        self.add_live(after.stripe_id, 1)
        return True

    def add_live(self, stripe_id: StripeId, count: int) -> int:
        """Change the number of live chunks or pages of a stripe; returns the new one."""
        value = self._get("live", stripe_id)
        now = (0 if value is None else U64.unpack(value)[0]) + count
        if now < 0:
            raise StoreDamaged(path=self.path, reason="a stripe would hold fewer than no chunks")
        self.put("live", stripe_id, U64.pack(now))
        return int(now)

    def live(self, stripe_id: StripeId) -> int:
        """Live chunks or pages in a stripe."""
        value = self._get("live", stripe_id)
        return 0 if value is None else int(U64.unpack(value)[0])

    def settle(self, chunk_id: ChunkId, taken: bool) -> None:
        """The mount took an offered chunk, or did not: then it is doomed."""
        if self.delete("offered", chunk_id) and not taken:
            self.doom_chunk(chunk_id)

    def offers(self) -> list[tuple[ChunkId, int, int]]:
        """Chunks placed but not settled, with inode and slot."""
        found = []
        for key in self.keys("offered"):
            value = self._get("offered", key)
            if value is not None:
                found.append((ChunkId(key), *_OFFER.unpack(value)))
        return found

    # ---- forgetting -------------------------------------------------------------------------------------------------

    def doom_chunk(self, chunk_id: ChunkId) -> None:
        """No file names this chunk any more; its record goes now, its bytes once a head without it is out."""
        place = self.place(chunk_id)
        if place is None:
            return
        self._save_tree(records.chunk_key(chunk_id), None)
        self.delete("within", place.stripe_id + chunk_id)
        self._doom(place.stripe_id, chunk_id)

    def doom_page(self, stripe_id: StripeId, name: bytes) -> None:
        """A page of the metadata tree was replaced."""
        self._doom(stripe_id, name)

    def doom_share(self, stripe_id: StripeId, node_id: NodeId, share_id: ShareId) -> None:
        """A share was copied to another node: the one at this node is deleted once a head that names the other is out."""
        self._doom(stripe_id, node_id + share_id, DOOMED_SHARE)
        self._copies().setdefault(stripe_id, set()).add((share_id, node_id))

    def _doom(self, stripe_id: StripeId, name: bytes, kind: int = DOOMED_NAME) -> None:
        self.put("doomed", DOOMED.pack(self.sequence, kind) + stripe_id + name)

    def reap(self, published: int, limit: int) -> int:
        """Forget what was doomed at or before sequence ``published``: empty stripes go, with their shares to the trash.

        Returns how many entries were handled; call again while it equals ``limit``.
        """
        done = 0
        for key in self.keys("doomed", limit=limit):
            if DOOMED.unpack_from(key)[0] > published:
                break
            done += 1
            self.delete("doomed", key)
            stripe_id = StripeId(key[DOOMED.size : DOOMED.size + 16])
            if (share := moved_share(key)) is not None:
                self._reap_share(stripe_id, *share)
            elif self.live(stripe_id) and self.add_live(stripe_id, -1) == 0:
                self.forget_stripe(stripe_id)
        return done

    def _reap_share(self, stripe_id: StripeId, node_id: NodeId, share_id: ShareId) -> None:
        left = self._copies().get(stripe_id, set())
        left.discard((share_id, node_id))
        if not left:
            self._copies().pop(stripe_id, None)
        stripe = self.stripe(stripe_id)
        # It may have come back to that node since.
        if stripe is None or not any(s.node == node_id and s.share_id == share_id for s in stripe.shares):
            self.trash_share(node_id, share_id)

    def forget_stripe(self, stripe_id: StripeId) -> None:
        """Drop a stripe; its shares are queued for deletion at their nodes."""
        stripe = self.stripe(stripe_id)
        self.delete("live", stripe_id)
        if stripe is None:
            return
        for share in stripe.shares:
            if share.node is not None:
                self.delete("bynode", share.node + stripe_id)
                self.put("trash", share.node + share.share_id)
        if stripe.purpose == Purpose.METADATA:
            self.delete("meta", stripe_id)
        else:
            self._save_tree(records.stripe_key(stripe_id), None)

    def trash_share(self, node_id: NodeId, share_id: ShareId) -> None:
        """A node may hold a share that no stripe names (any more)."""
        self.put("trash", node_id + share_id)

    def trash_done(self, node_id: NodeId, share_ids: list[ShareId]) -> None:
        """The node deleted them."""
        for share_id in share_ids:
            self.delete("trash", node_id + share_id)

    def has_trash(self, node_id: NodeId, share_id: ShareId) -> bool:
        """Whether a share waits to be deleted at a node (it must not be put there meanwhile)."""
        return self._get("trash", node_id + share_id) is not None

    def trash_nodes(self) -> list[NodeId]:
        """Nodes at which shares wait to be deleted; costs as much as there are such nodes."""
        return self._nodes_in("trash")

    def _nodes_in(self, table: str) -> list[NodeId]:
        found: list[NodeId] = []
        after: bytes | None = None
        while keys := self.keys(table, after=after, limit=1):
            found.append(NodeId(keys[0][:32]))
            after = keys[0][:32] + b"\xff" * 32
        return found

    def trash_of(self, node_id: NodeId, limit: int) -> list[ShareId]:
        """Shares to be deleted at a node."""
        return [ShareId(key[32:]) for key in self.keys("trash", node_id, limit=limit)]
