"""The node's picture of the hive: signed entries, taken from anyone, the newest of each kept."""

from __future__ import annotations

from collections.abc import Sequence

from hivefs.errors import Corrupt, UnknownVersion
from hivefs.formats import member
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.node.store import ShareStore

MAX_ENTRIES = 20_000


def newest(known: RosterEntry | None, other: RosterEntry) -> RosterEntry:
    """The newer certificate with the newer addresses; both are signed by themselves, so they may be combined."""
    if known is None:
        return other
    memberships = (known.membership, other.membership)
    addresses = (known.address, other.address)
    return RosterEntry(
        max(memberships, key=lambda m: (m.epoch, m.issued_ns, m.signature)),
        max(addresses, key=lambda a: (a.sequence, a.signature)),
    )


class Roster:
    """Entries of one hive, in the store's index."""

    def __init__(self, store: ShareStore, hive_key: bytes) -> None:
        self._store = store
        self._hive_key = hive_key

    def take(self, blobs: Sequence[bytes], now_ns: int) -> int:
        """Keep what is valid and news; how many were. Blocks: two signatures are checked for each."""
        fresh: dict[NodeId, RosterEntry] = {}
        for blob in blobs:
            try:
                entry = member.entry_from_bytes(blob)
            except (Corrupt, UnknownVersion):
                continue
            node_id = entry.address.node_id
            if self._store.index.entry(node_id) != blob and member.entry_valid(entry, self._hive_key, now_ns):
                fresh[node_id] = newest(fresh.get(node_id), entry)
        with self._store.lock:
            room = MAX_ENTRIES - self._store.index.roster_size()
            changed: dict[NodeId, bytes] = {}
            for node_id, entry in fresh.items():
                kept = self._store.index.entry(node_id)
                if kept is None:
                    if room <= 0:
                        continue
                    room -= 1
                merged = newest(None if kept is None else member.entry_from_bytes(kept), entry)
                blob = member.entry_to_bytes(merged)
                if blob != kept:
                    changed[node_id] = blob
            if changed:
                with self._store.index.writing() as change:
                    for node_id, blob in changed.items():
                        change.save_entry(node_id, blob)
        return len(changed)

    def page(self, after: bytes, most_bytes: int) -> tuple[bool, list[bytes]]:
        """(more, entries behind ``after``)."""
        return self._store.index.entries(after, most_bytes)

    def entries(self) -> list[RosterEntry]:
        """All of them."""
        return [member.entry_from_bytes(blob) for blob in self._store.index.entries(b"", 1 << 40)[1]]
