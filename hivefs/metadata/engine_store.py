"""The engine's state on LMDB: where chunks lie, stripes, nodes, queues, the published root.

One writing process (the engine, under the flock of ``engine/lock``); the mount reads committed snapshots through
EngineReader. Tables and what they hold (values sealed with the vault's engine key unless said otherwise):

    tree      c || chunk id -> place; s || stripe id -> data stripe; n || node id -> roster entry (in checkpoints)
    meta      stripe id -> stripe of metadata pages                                                 (not: see Root)
    changed   tree key -> sequence of the last change that no checkpoint holds yet                  (plain)
    bynode    node id || stripe id -> share number                                                  (plain)
    live      stripe id -> number of live chunks or pages in it                                     (plain)
    offered   chunk id -> inode, slot: placed, but the mount has not said yet whether it took it      (plain)
    doomed    sequence || kind || id -> what to forget once a head after it is out: 0, a chunk or page of a stripe
              (stripe id || its name); 1, a share that moved (stripe id || node id || share id)  (plain)
    trash     node id || share id -> (empty): shares to delete at a node                            (plain)
    nodes     node id -> state, since, free bytes, capacity                                         (sealed CBOR)
    moved     stripe id -> (empty): metadata stripes whose nodes changed since the last checkpoint     (plain)
    loaded    low key -> high key: ranges of the tree that are here, while ``hydrating``              (plain)
    within    stripe id || chunk id -> (empty): the chunks of each data stripe                       (plain)
    unknown   node id || share id -> when that node first listed it, a share that nothing names (ns)  (plain)
    info      small values                                                                           (sealed)

Every write transaction is synced at commit: what the engine says to the mount or to a node is on disk before.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cbor2
import lmdb

from hivefs.crypto.seal import RecordSealer
from hivefs.errors import DiskFull, HivefsError, StoreDamaged, VaultInUse
from hivefs.formats import records
from hivefs.formats import stripe as stripe_format
from hivefs.formats.member import entry_from_bytes, entry_to_bytes, newest
from hivefs.metadata.ranges import Ranges
from hivefs.model.ids import ChunkId, NodeId, ShareId, StripeId
from hivefs.model.node import RosterEntry
from hivefs.model.stripe import ChunkPlace, Level, Purpose, Stripe
from hivefs.placement.attributes import authorities
from hivefs.placement.health import Health, NodeRow, NodeState, NodeView, judge
from hivefs.placement.verifier import Rules

MAP_BYTES = 64 << 30
MOST_TABLES = 32
TABLES = ("tree", "meta", "changed", "bynode", "live", "offered", "doomed", "trash", "nodes", "loaded", "moved", "info")
WRITERS_TABLES = ("within", "unknown")
"""Tables that only the engine opens: a mount does not read them, and meets stores that were made before them."""

OWN_PREFIXES = (b"c", b"n", b"s")
_U64 = struct.Struct(">Q")
_DOOMED = struct.Struct(">QB")
_OFFER = struct.Struct(">QQ")
_DOOMED_NAME, _DOOMED_SHARE = 0, 1


class EngineReader:
    """Read access, from any process. ``rules`` are the policy's, for levels."""

    def __init__(
        self, path: Path, key: bytes, rules: tuple[Rules, ...], random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self.path = path
        self._sealer = RecordSealer(key, random)
        self._rules = rules
        try:
            self._env = self._open(path)
            names = (*TABLES, *WRITERS_TABLES) if self._writes else TABLES
            self._db = {name: self._env.open_db(name.encode(), create=self._writes) for name in names}
        except lmdb.Error as error:
            raise StoreDamaged(path=path, reason=str(error)) from None
        self._write: lmdb.Transaction | None = None
        self._views: dict[bytes, tuple[NodeView, bytes, bytes]] = {}

    _writes = False

    def _open(self, path: Path) -> lmdb.Environment:
        return lmdb.open(
            str(path), map_size=MAP_BYTES, max_dbs=MOST_TABLES, readonly=True, lock=True, max_readers=64, create=False
        )

    def close(self) -> None:
        """Close the environment; this object is dead afterwards."""
        self._env.close()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        if self._write is not None:
            yield self._write
        else:
            with self._env.begin() as txn:
                yield txn

    def _get(self, table: str, key: bytes) -> bytes | None:
        with self._reading() as txn:
            value = txn.get(key, db=self._db[table])
        return None if value is None else bytes(value)

    def _load(self, table: str, key: bytes) -> bytes | None:
        with self._reading() as txn:
            return self._opened(table, key, txn)

    def _opened(self, table: str, key: bytes, txn: lmdb.Transaction) -> bytes | None:
        value = txn.get(key, db=self._db[table])
        return None if value is None else self._sealer.open(table.encode() + b"/" + key, bytes(value))

    def plain(self, table: str, key: bytes) -> bytes | None:
        """A value of a plain table."""
        return self._get(table, key)

    def has_entry(self, table: str, key: bytes) -> bool:
        """Whether a table has that key."""
        return self._get(table, key) is not None

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        """Where a chunk lies, or None when it is not known (here)."""
        value = self._load("tree", records.chunk_key(chunk_id))
        return None if value is None else records.place_from_bytes(value)

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        """A data or metadata stripe."""
        value = self._load("tree", records.stripe_key(stripe_id)) or self._load("meta", stripe_id)
        return None if value is None else stripe_format.from_bytes(value)

    def roster_entry(self, node_id: NodeId) -> RosterEntry | None:
        """Certificate and addresses of a node."""
        value = self._load("tree", records.node_key(node_id))
        return None if value is None else entry_from_bytes(value)

    def node_row(self, node_id: NodeId) -> NodeRow | None:
        """State of a node as the engine last saw it."""
        value = self._load("nodes", node_id)
        return None if value is None else self._row(value)

    @staticmethod
    def _row(value: bytes) -> NodeRow:
        state, since, free, capacity = cbor2.loads(value)
        return NodeRow(NodeState(state), since, free, capacity)

    def node_view(self, node_id: NodeId) -> NodeView | None:
        """State and authorities; opened once for the same stored bytes."""
        row, entry = self._get("nodes", node_id), self._get("tree", records.node_key(node_id))
        if row is None or entry is None:
            return None
        known = self._views.get(node_id)
        if known is not None and known[1] == row and known[2] == entry:
            return known[0]
        node_row, roster = self.node_row(node_id), self.roster_entry(node_id)
        if node_row is None or roster is None:
            return None
        view = NodeView(node_row.state, authorities(roster.membership.attributes), bool(roster.address.leaving_s))
        self._views[node_id] = (view, row, entry)
        return view

    def health(self, stripe: Stripe) -> Health:
        """Judge a stripe with the nodes as last seen."""
        return judge(stripe, self._rules, self.node_view)

    def stripe_level(self, stripe_id: StripeId) -> Level:
        """The durability level that this stripe has now; LOCAL when it is not known."""
        stripe = self.stripe(stripe_id)
        return Level.LOCAL if stripe is None else self.health(stripe).level

    def metadata_level(self) -> Level:
        """The level of the last checkpoint: its stripes, and its head with enough nodes."""
        value = self.info("metadata_level")
        return Level(value) if isinstance(value, int) else Level.LOCAL

    def info(self, name: str) -> Any:
        """A small value by name, or None."""
        value = self._load("info", name.encode())
        return None if value is None else cbor2.loads(value)

    def keys(self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int = 1 << 62) -> list[bytes]:
        """Up to ``limit`` keys with that prefix, from the first one above ``after``."""
        found: list[bytes] = []
        with self._reading() as txn, txn.cursor(db=self._db[table]) as cursor:
            more = cursor.set_range(prefix if after is None else after)
            if more and after is not None and cursor.key() == after:
                more = cursor.next()
            while more and len(found) < limit and bytes(cursor.key()).startswith(prefix):
                found.append(bytes(cursor.key()))
                more = cursor.next()
        return found

    def count(self, table: str) -> int:
        """Number of entries of a table."""
        with self._reading() as txn:
            return int(txn.stat(db=self._db[table])["entries"])

    def stripes(self) -> Iterator[Stripe]:
        """All stripes, data first, read in steps (no long transaction)."""
        yield from self._stripes_of("tree", b"s")
        yield from self._stripes_of("meta", b"")

    def metadata_stripes(self) -> Iterator[Stripe]:
        """The stripes that hold pages of the metadata tree."""
        yield from self._stripes_of("meta", b"")

    def _stripes_of(self, table: str, prefix: bytes) -> Iterator[Stripe]:
        after: bytes | None = None
        while batch := self.keys(table, prefix, after, 256):
            for key in batch:
                value = self._load(table, key)
                if value is not None:
                    yield stripe_format.from_bytes(value)
            after = batch[-1]

    def stripes_on(self, node_id: NodeId) -> list[StripeId]:
        """Stripes with a share on that node."""
        return [StripeId(key[32:]) for key in self.keys("bynode", node_id)]

    def nodes(self) -> list[tuple[NodeId, RosterEntry, NodeRow]]:
        """All known nodes."""
        found = []
        for key in self.keys("tree", b"n"):
            node_id = NodeId(key[1:])
            entry, row = self.roster_entry(node_id), self.node_row(node_id)
            if entry is not None and row is not None:
                found.append((node_id, entry, row))
        return found


class EngineStore(EngineReader):
    """Write access for the engine process. Changes happen inside ``with store.writing():``, synced at its end."""

    _writes = True

    def __init__(
        self, path: Path, key: bytes, rules: tuple[Rules, ...], random: Callable[[int], bytes] = os.urandom
    ) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise VaultInUse(mountpoint=f"another engine of {path.parent}") from None
        super().__init__(path, key, rules, random)
        value = self.info("sequence")
        self.sequence = value if isinstance(value, int) else 1
        self._ranges = Ranges()
        for low in self.keys("loaded"):
            high = self._get("loaded", low)
            self._ranges.add(low[1:], high or None)

    def _open(self, path: Path) -> lmdb.Environment:
        environment = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=MOST_TABLES, max_readers=64, mode=0o600)
        environment.sync(True)  # what a killed process had written may be in the page cache only: see environment.py
        return environment

    def close(self) -> None:
        super().close()
        os.close(self._lock)

    @contextmanager
    def writing(self) -> Iterator[EngineStore]:
        """One transaction; nested use joins the outer one. An exception undoes all of it. Never await inside."""
        if self._write is not None:
            yield self
            return
        try:
            with self._env.begin(write=True) as txn:
                self._write = txn
                try:
                    yield self
                finally:
                    self._write = None
        except lmdb.Error as error:
            raise self._as_ours(error) from None

    def _as_ours(self, error: lmdb.Error) -> HivefsError:
        """A full disk is waited out by whoever writes; anything else ends the engine."""
        if isinstance(error, lmdb.MapFullError | lmdb.DiskError) or "No space left" in str(error):
            free = shutil.disk_usage(self.path).free
            return DiskFull(path=self.path, free=free)
        return StoreDamaged(path=self.path, reason=f"LMDB reports {error}")

    def _txn(self) -> lmdb.Transaction:
        if self._write is None:
            raise RuntimeError("change the engine store only inside writing()")
        return self._write

    def put(self, table: str, key: bytes, value: bytes = b"") -> None:
        """A plain entry."""
        self._txn().put(key, value, db=self._db[table])

    def delete(self, table: str, key: bytes) -> bool:
        """Remove an entry; whether it was there."""
        return bool(self._txn().delete(key, db=self._db[table]))

    def save(self, table: str, key: bytes, value: bytes) -> None:
        """A sealed entry."""
        self.put(table, key, self._sealer.seal(table.encode() + b"/" + key, value))

    def save_info(self, name: str, value: Any) -> None:
        """A small value by name."""
        self.save("info", name.encode(), cbor2.dumps(value, canonical=True))

    def _save_tree(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.delete("tree", key)
        else:
            self.save("tree", key, value)
        self.put("changed", key, _U64.pack(self.sequence))

    # ---- chunks and stripes -----------------------------------------------------------------------------------------

    def save_stripe(self, stripe: Stripe) -> None:
        """Record a stripe and who holds it (also over an older version of it)."""
        before = self.stripe(stripe.stripe_id)
        if before is not None:
            for share in before.shares:
                if share.node is not None:
                    self.delete("bynode", share.node + stripe.stripe_id)
        for index, share in enumerate(stripe.shares):
            if share.node is not None:
                self.put("bynode", share.node + stripe.stripe_id, bytes([index]))
                self.delete("trash", share.node + share.share_id)
                self.delete("unknown", share.node + share.share_id)
        value = stripe_format.to_bytes(stripe)
        if stripe.purpose == Purpose.METADATA:
            self.save("meta", stripe.stripe_id, value)
            if before is not None:
                self.put("moved", stripe.stripe_id)
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
        now = (0 if value is None else _U64.unpack(value)[0]) + count
        if now < 0:
            raise StoreDamaged(path=self.path, reason="a stripe would hold fewer than no chunks")
        self.put("live", stripe_id, _U64.pack(now))
        return int(now)

    def live(self, stripe_id: StripeId) -> int:
        """Live chunks or pages in a stripe."""
        value = self._get("live", stripe_id)
        return 0 if value is None else int(_U64.unpack(value)[0])

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
        self._doom(stripe_id, node_id + share_id, _DOOMED_SHARE)

    def _doom(self, stripe_id: StripeId, name: bytes, kind: int = _DOOMED_NAME) -> None:
        self.put("doomed", _DOOMED.pack(self.sequence, kind) + stripe_id + name)

    def reap(self, published: int, limit: int) -> int:
        """Forget what was doomed at or before sequence ``published``: empty stripes go, with their shares to the trash.

        Returns how many entries were handled; call again while it equals ``limit``.
        """
        done = 0
        for key in self.keys("doomed", limit=limit):
            sequence, kind = _DOOMED.unpack_from(key)
            if sequence > published:
                break
            done += 1
            self.delete("doomed", key)
            stripe_id = StripeId(key[_DOOMED.size : _DOOMED.size + 16])
            if kind == _DOOMED_SHARE:
                name = key[_DOOMED.size + 16 :]
                self._reap_share(stripe_id, NodeId(name[:32]), ShareId(name[32:]))
            elif self.live(stripe_id) and self.add_live(stripe_id, -1) == 0:
                self.forget_stripe(stripe_id)
        return done

    def _reap_share(self, stripe_id: StripeId, node_id: NodeId, share_id: ShareId) -> None:
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

    def trash_of(self, node_id: NodeId, limit: int) -> list[ShareId]:
        """Shares to be deleted at a node."""
        return [ShareId(key[32:]) for key in self.keys("trash", node_id, limit=limit)]

    # ---- nodes ------------------------------------------------------------------------------------------------------

    def save_node(self, entry: RosterEntry) -> bool:
        """Record certificate and addresses, each when it is newer; whether one was. (Nodes may tell different ones.)"""
        node_id = NodeId(entry.membership.subject)
        before = self.roster_entry(node_id)
        entry = newest(before, entry)
        if before == entry:
            return False
        self._save_tree(records.node_key(node_id), entry_to_bytes(entry))
        return True

    def save_node_row(self, node_id: NodeId, row: NodeRow) -> None:
        """Record what was last seen of a node."""
        self.save("nodes", node_id, cbor2.dumps([int(row.state), row.since_ns, row.free_bytes, row.capacity]))

    def save_seen(self, node_id: NodeId, row: NodeRow) -> None:
        """The same, in a transaction of its own."""
        with self.writing():
            self.save_node_row(node_id, row)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    @contextmanager
    def changes(self) -> Iterator[Iterator[tuple[bytes, bytes | None]]]:
        """Changed tree records since the last checkpoint with their values now (None: deleted), in key order: a snapshot,
        which shows nothing that is changed while it is open. Raises RuntimeError inside writing().
        """
        if self._write is not None:
            raise RuntimeError("a snapshot does not see what its own transaction changed")
        with self._env.begin() as txn, txn.cursor(db=self._db["changed"]) as cursor:
            yield ((key, self._opened("tree", key, txn)) for key in map(bytes, cursor.iternext(values=False)))

    def next_sequence(self) -> int:
        """Close the running sequence (returned): later changes belong to the next checkpoint."""
        closed = self.sequence
        self.sequence += 1
        self.save_info("sequence", self.sequence)
        return closed

    def published(self, closed: int) -> None:
        """A head with everything up to sequence ``closed`` is out."""
        for key in self.keys("changed"):
            value = self._get("changed", key)
            if value is not None and _U64.unpack(value)[0] <= closed:
                self.delete("changed", key)

    def moved(self) -> dict[StripeId, Stripe]:
        """Metadata stripes whose nodes changed since the last checkpoint, as they are now."""
        found = {StripeId(key): self.stripe(StripeId(key)) for key in self.keys("moved")}
        return {stripe_id: stripe for stripe_id, stripe in found.items() if stripe is not None}

    def moved_done(self, described: dict[StripeId, Stripe]) -> None:
        """A tree describes these now; one that moved again meanwhile stays on the list."""
        for key in self.keys("moved"):
            if self.stripe(StripeId(key)) == described.get(StripeId(key)):
                self.delete("moved", key)

    # ---- after a recovery -------------------------------------------------------------------------------------------

    @property
    def hydrating(self) -> bool:
        """Whether a part of the engine's records is still only in the hive."""
        return self.info("hydrating") is True

    def is_loaded(self, key: bytes) -> bool:
        """Whether the page that holds ``key`` was loaded."""
        return self._ranges.holds(key)

    def gap(self) -> bytes | None:
        """The first key of the engine's part of the tree that is not loaded; None when all is."""
        for prefix in OWN_PREFIXES:
            key = self._ranges.first_gap(prefix)
            if key is not None and key < bytes([prefix[0] + 1]):
                return key
        return None

    def load_page(self, low: bytes, high: bytes | None, page: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the engine's records out of a page of the recovered tree, unless they are here; they are not changes."""
        with self.writing():
            if self._ranges.holds(low):
                return
            for key, value in page:
                if key[:1] not in OWN_PREFIXES or self._get("tree", key) is not None:
                    continue
                if self._get("changed", key) is not None:
                    continue  # deleted here since the checkpoint that holds this page
                self.save("tree", key, value)
                self._loaded_record(key, value)
            (start, end), swallowed = self._ranges.add(low, high)
            for old in swallowed:
                self.delete("loaded", b"r" + old)
            self.put("loaded", b"r" + start, end or b"")

    def load_books(self, pages: Iterable[tuple[Stripe, int]]) -> None:
        """The stripes that the tree's own pages lie in, with how many pages each holds."""
        with self.writing():
            for stripe, count in pages:
                if self._get("live", stripe.stripe_id) is None:
                    self.save_stripe(stripe)
                    self.put("live", stripe.stripe_id, _U64.pack(count))

    def _loaded_record(self, key: bytes, value: bytes) -> None:
        if key[:1] == b"c":
            stripe_id = records.place_from_bytes(value).stripe_id
            self.put("within", stripe_id + key[1:])
            self.add_live(stripe_id, 1)
        elif key[:1] == b"s":
            stripe = stripe_format.from_bytes(value)
            for index, share in enumerate(stripe.shares):
                if share.node is not None:
                    self.put("bynode", share.node + stripe.stripe_id, bytes([index]))
        elif self._get("nodes", key[1:]) is None:
            self.save_node_row(NodeId(key[1:]), NodeRow(NodeState.OFFLINE, 0))

    def hydrated(self) -> None:
        """Everything is here."""
        with self.writing():
            self.save_info("hydrating", False)
            for key in self.keys("loaded"):
                self.delete("loaded", key)
