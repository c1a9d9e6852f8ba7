"""What nodes say of themselves (formats/attestation.py), as this node heard it: of each node the newest.

Only the node itself can make its statement, and only statements of nodes of the roster are kept, so nobody can fill the
disk with what strangers attest of strangers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import attestation
from hivefs.model.attestation import Said, Statement
from hivefs.model.ids import NodeId
from hivefs.node.fresh import MOST, Fresh, Pace
from hivefs.node.roster import Roster
from hivefs.node.store import ShareStore
from hivefs.node.sums import Sums, digest_of

_AT_A_TIME = 1 << 20
"""Bytes of statements that are in memory at a time, or given to one other node in a comparison."""

_REMOVED = 256
"""Statements of the revoked that go in one transaction."""


class Statements:
    """Of one hive, in the store's index. One thread changes at a time (the store's lock)."""

    def __init__(self, store: ShareStore, roster: Roster) -> None:
        self._store = store
        self._roster = roster
        self._sums: Sums | None = None
        self._pace = Pace()
        self.fresh = Fresh()

    def take(self, blobs: Sequence[bytes], now_ns: int, *, pushed: bool = False) -> int:
        """Keep what is valid and newer; how many were. Of what others ``pushed`` not too much of one node (fresh.Pace).
        Blocks: up to nine signatures are checked for each. Raises DiskFull.
        """
        if pushed:
            blobs = [blob for blob in blobs if self._may(blob, now_ns)]
        made = [good for blob in blobs if (good := self._news(blob, now_ns)) is not None]
        count = 0
        with self._store.lock:
            changed: dict[NodeId, tuple[bytes, bytes | None]] = {}
            for statement in made:
                node_id = statement.node_id
                if not self._roster.holds(node_id):  # it was revoked meanwhile
                    continue
                kept = changed[node_id][0] if node_id in changed else self._store.index.statement(node_id)
                known = None if kept is None else attestation.statement_from_bytes(kept)
                if attestation.newer(statement, known, now_ns):
                    changed[node_id] = attestation.statement_to_bytes(statement), self._store.index.statement(node_id)
                    count += 1
            if changed:
                sums = self._whole().copy()
                with self._store.index.writing() as change:
                    for node_id, (blob, before) in changed.items():
                        change.save_statement(node_id, blob)
                        sums.change(node_id, blob)
                        if before is not None:
                            sums.change(node_id, before)
                self._sums = sums
                for node_id, (blob, before) in changed.items():
                    self.fresh.add(blob)
                    if before is not None:
                        self._pace.note(node_id, now_ns)
        return count

    def _may(self, blob: bytes, now_ns: int) -> bool:
        """Before any signature is checked."""
        try:
            return self._pace.allows(attestation.statement_from_bytes(blob).node_id, now_ns)
        except (Corrupt, UnknownVersion):
            return False

    def _news(self, blob: bytes, now_ns: int) -> Statement | None:
        try:
            made = attestation.statement_from_bytes(blob)
        except (Corrupt, UnknownVersion):
            return None
        kept = self._store.index.statement(made.node_id)
        if kept == blob or not self._roster.holds(made.node_id):
            return None
        if not attestation.newer(made, None if kept is None else attestation.statement_from_bytes(kept), now_ns):
            return None
        return made if attestation.statement_valid(made) else None

    def _whole(self) -> Sums:
        """The sums. When it is made anew, at the start and after a revocation, what revoked nodes said goes first: who
        joins later would never take it, so nodes would compare for ever.
        """
        sums = self._sums
        if sums is None:
            sums = Sums()
            over = []
            for blob in self._all():
                node_id = attestation.statement_from_bytes(blob).node_id
                if self._roster.holds(node_id):
                    sums.change(node_id, blob)
                else:
                    over.append(node_id)
            for at in range(0, len(over), _REMOVED):
                with self._store.index.writing() as change:
                    for node_id in over[at : at + _REMOVED]:
                        change.remove_statement(node_id)
        return sums

    def revoked(self) -> None:
        """Another revocation list counts: forget what those said whom it covers. Blocks."""
        with self._store.lock:
            self._sums = None
            self._sums = self._whole()

    def _all(self) -> Iterator[bytes]:
        after, more = b"", True
        while more:
            more, blobs = self._store.index.statements(after, _AT_A_TIME)
            yield from blobs
            if blobs:
                after = attestation.statement_from_bytes(blobs[-1]).node_id

    def sums(self) -> Sums:
        """The same for nodes that know the same statements; not to be changed. Blocks when it is asked for first."""
        with self._store.lock:
            self._sums = self._whole()
            return self._sums

    def page(self, after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
        """(more, statements of the nodes behind ``after``), of those whose keys begin with ``within``."""
        return self._store.index.statements(after, most_bytes, within)

    def others(self, theirs: Collection[int]) -> list[bytes]:
        """Some that another node does not have as we have them: it gave those with these digests (digest_of). Blocks."""
        found: list[bytes] = []
        size = 0
        for blob in self._all():
            if digest_of(blob) in theirs:
                continue
            size += len(blob)
            if len(found) >= MOST or size > _AT_A_TIME:
                break
            found.append(blob)
        return found

    def say(self, seed: bytes, node_id: NodeId, claims: Said, attestations: Sequence[bytes], now_ns: int) -> bool:
        """Make our own statement when it says something else than the last; whether it does. Its sequence is the time in
        seconds, so that it grows also when the store was lost. Who never said anything says nothing. Blocks.
        """
        made = tuple(attestation.attestation_from_bytes(blob) for blob in attestations)
        kept = self._store.index.statement(node_id)
        before = None if kept is None else attestation.statement_from_bytes(kept)
        if before is None and not claims and not made:
            return False
        if before is not None and (before.claims, before.attestations) == (tuple(sorted(claims)), made):
            return False
        least = 0 if before is None or attestation.ahead(before, now_ns) else before.sequence + 1
        sequence = max(now_ns // 10**9, least)
        own = attestation.sign_statement(seed, Statement(node_id, sequence, claims, made))
        return bool(self.take([attestation.statement_to_bytes(own)], now_ns))
