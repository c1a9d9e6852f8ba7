"""The node's picture of the hive: signed entries, taken from any member, the newest of each kept."""

from __future__ import annotations

from collections.abc import Sequence

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import member
from hivefs.formats.member import newest
from hivefs.model.ids import NodeId
from hivefs.model.node import Membership, RosterEntry
from hivefs.node.fresh import Fresh, Pace
from hivefs.node.members import Members
from hivefs.node.store import ShareStore
from hivefs.node.sums import Sums

MAX_ENTRIES = 20_000


class Roster:
    """Entries of one hive, in the store's index. Of who joined by invitation only those count that ``members`` knows, and
    revoked ones are neither taken nor given.
    """

    def __init__(self, store: ShareStore, hive_key: bytes, members: Members) -> None:
        self._store = store
        self._hive_key = hive_key
        self._members = members
        self._sums: Sums | None = None
        self._pace = Pace()
        self.fresh = Fresh()

    def take(self, blobs: Sequence[bytes], now_ns: int, *, pushed: bool = False) -> int:
        """Keep what is valid and news; how many were. Of what others ``pushed`` not too many addresses of one node
        (fresh.Pace); a newer certificate always. Blocks: two signatures are checked for each.
        """
        fresh: dict[NodeId, RosterEntry] = {}
        for blob in blobs:
            try:
                entry = member.entry_from_bytes(blob)
            except (Corrupt, UnknownVersion):
                continue
            node_id = entry.address.node_id
            if self._members.covers(entry.membership) or not self._members.knows(entry.membership):
                continue
            kept = self._store.index.entry(node_id)
            if pushed and kept is not None and not self._pace.allows(node_id, now_ns):
                before = member.entry_from_bytes(kept)
                if entry.membership == before.membership:
                    continue
                entry = RosterEntry(entry.membership, before.address)
            if kept != blob and member.entry_valid(entry, self._hive_key, now_ns):
                fresh[node_id] = newest(fresh.get(node_id), entry, now_ns)
        with self._store.lock:
            room = MAX_ENTRIES - self._store.index.roster_size()
            changed: dict[NodeId, tuple[bytes, bool]] = {}
            for node_id, entry in fresh.items():
                kept = self._store.index.entry(node_id)
                if kept is None:
                    if room <= 0:
                        continue
                    room -= 1
                merged = newest(None if kept is None else member.entry_from_bytes(kept), entry, now_ns)
                blob = member.entry_to_bytes(merged)
                if blob != kept:
                    changed[node_id] = blob, kept is not None
            if changed:
                sums = self._whole().copy()
                with self._store.index.writing() as change:
                    for node_id, (blob, _) in changed.items():
                        old = self._store.index.entry(node_id)
                        sums.change(node_id, blob)
                        if old is not None:
                            sums.change(node_id, old)
                        change.save_entry(node_id, blob)
                self._sums = sums
                for node_id, (blob, known) in changed.items():
                    self.fresh.add(blob)
                    if known:
                        self._pace.note(node_id, now_ns)
        return len(changed)

    def _whole(self) -> Sums:
        sums = self._sums
        if sums is None:
            sums = Sums()
            for blob in self._store.index.entries(b"", 1 << 40)[1]:
                sums.change(member.entry_from_bytes(blob).address.node_id, blob)
        return sums

    def sums(self) -> Sums:
        """The same for nodes that know the same entries; not to be changed. Blocks when it is asked for first."""
        with self._store.lock:
            self._sums = self._whole()
            return self._sums

    def holds(self, node_id: NodeId) -> bool:
        """Whether that node is in the roster and not revoked."""
        kept = self._store.index.entry(node_id)
        return kept is not None and not self._members.covers(member.entry_from_bytes(kept).membership)

    def certificate(self, node_id: NodeId) -> Membership | None:
        """The newest certificate of that node."""
        kept = self._store.index.entry(node_id)
        return None if kept is None else member.entry_from_bytes(kept).membership

    def page(self, after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
        """(more, entries behind ``after``), of nodes whose keys begin with ``within``."""
        more, blobs = self._store.index.entries(after, most_bytes, within)
        revoked = self._members.revoked
        if revoked is None or not blobs:
            return more, blobs
        made = [member.entry_from_bytes(blob) for blob in blobs]
        good = [blob for blob, entry in zip(blobs, made, strict=True) if not revoked.covers(entry.membership)]
        if more and not good:  # a page may not be empty while there is more
            return self.page(made[-1].membership.subject, most_bytes, within)
        return more, good

    def entries(self) -> list[RosterEntry]:
        """All of them that are not revoked."""
        made = [member.entry_from_bytes(blob) for blob in self._store.index.entries(b"", 1 << 40)[1]]
        return [entry for entry in made if not self._members.covers(entry.membership)]
