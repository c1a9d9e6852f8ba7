"""The node's index on LMDB: which shares it keeps, for whom and until when; heads, roster, vaults' certificates.

    shares   share id                          -> u32 size, u64 stored (ns)
    leaves   share id                          -> Merkle leaf hashes, 32 bytes each
    leases   share id || vault id              -> u64 lease end (ns)
    ends     u64 lease end || share || vault   -> (empty): the same leases in the order in which they end
    vaults   subject key                       -> membership certificate
    heads    vault id || device || 0 or 1      -> head: newest, previous
    roster   node key                          -> roster entry
    members  subject key                       -> key of the invitation, certificate (of who joined by invitation)
    says     node key                          -> what that node says of itself (formats/attestation.py)
    totals   vault id, or nothing for the node -> u64 bytes, u64 shares (of a vault: leases)
    meter    local date                        -> what was measured that day (formats/meter.py)
    info     name                              -> value

A share is kept as long as it has a lease, also an ended one (store.py says when those are collected). Every change is
one synced write transaction, and the totals change in it; ``used``, ``count`` and the bytes of each vault are kept in
memory too and follow each commit. So opening does not read what is there, however much that is. One thread writes at a
time (store.py holds the lock); reads may come from any thread.

Version 1 had no totals: they are counted once, when it is opened. (An older HiveFS would leave them behind.)
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import lmdb

from hivefs.errors import DiskFull, StoreDamaged, UnknownVersion, says_no_room
from hivefs.model.ids import ID_BYTES, KEY_BYTES, DeviceId, NodeId, ShareId, VaultId
from hivefs.model.receipt import Listed

VERSION = 2
MAP_BYTES = 64 << 30
TABLES = ("shares", "leaves", "leases", "ends", "vaults", "heads", "roster", "members", "says", "totals", "meter", "info")
_TOTAL = struct.Struct(">QQ")
_NODE = b"\x00"
"""The key of the node's own totals; those of vaults are longer."""

_SHARE = struct.Struct(">IQ")
_U64 = struct.Struct(">Q")
NEWEST, PREVIOUS = b"\x00", b"\x01"


class Change:
    """One write transaction. What it changes in the totals counts after its commit."""

    def __init__(self, index: NodeIndex, txn: lmdb.Transaction) -> None:
        self._db = index._db
        self._txn = txn
        self.bytes = 0
        self.shares = 0
        self.by_vault: Counter[bytes] = Counter()
        self.leases: Counter[bytes] = Counter()

    def keep(self, share_id: ShareId, size: int, leaves: bytes, vault: VaultId, until: int, now_ns: int) -> int:
        """Record a share whose file is in place, and a lease on it; returns its end, never earlier than before."""
        if self._txn.get(share_id, db=self._db["shares"]) is None:
            self._txn.put(share_id, _SHARE.pack(size, now_ns), db=self._db["shares"])
            self._txn.put(share_id, leaves, db=self._db["leaves"])
            self.bytes += size
            self.shares += 1
        if not self._holds(share_id, vault):
            self.by_vault[vault] += size
            self.leases[vault] += 1
        return self._lease(share_id, vault, until)

    def _holds(self, share_id: ShareId, vault: VaultId) -> bool:
        return self._txn.get(share_id + vault, db=self._db["leases"]) is not None

    def _lease(self, share_id: ShareId, vault: VaultId, until: int) -> int:
        old = _bytes(self._txn.get(share_id + vault, db=self._db["leases"]))
        if old is not None:
            until = max(until, _U64.unpack(old)[0])
            self._txn.delete(old + share_id + vault, db=self._db["ends"])
        end = _U64.pack(until)
        self._txn.put(share_id + vault, end, db=self._db["leases"])
        self._txn.put(end + share_id + vault, b"", db=self._db["ends"])
        return until

    def renew(self, share_id: ShareId, vault: VaultId, until: int) -> bool:
        """Prolong a lease; False when this vault has none on this share."""
        if not self._holds(share_id, vault):
            return False
        self._lease(share_id, vault, until)
        return True

    def release(self, share_id: ShareId, vault: VaultId) -> tuple[bool, bool]:
        """End a lease: (there was one, and it was the last, so that the share is forgotten and its file can go)."""
        old = _bytes(self._txn.pop(share_id + vault, db=self._db["leases"]))
        if old is None:
            return False, False
        self._txn.delete(old + share_id + vault, db=self._db["ends"])
        self.leases[vault] -= 1
        row = self._txn.get(share_id, db=self._db["shares"])
        if row is not None:
            self.by_vault[vault] -= _SHARE.unpack(row)[0]
        if any(True for _ in self._holders(share_id)):
            return True, False
        self._forget(share_id)
        return True, True

    def drop(self, share_id: ShareId) -> None:
        """Forget a damaged share with all leases on it."""
        row = self._txn.get(share_id, db=self._db["shares"])
        size = 0 if row is None else _SHARE.unpack(row)[0]
        for vault, end in list(self._holders(share_id)):
            self._txn.delete(share_id + vault, db=self._db["leases"])
            self._txn.delete(end + share_id + vault, db=self._db["ends"])
            self.by_vault[vault] -= size
            self.leases[vault] -= 1
        self._forget(share_id)

    def _forget(self, share_id: ShareId) -> None:
        row = self._txn.pop(share_id, db=self._db["shares"])
        if row is not None:
            self._txn.delete(share_id, db=self._db["leaves"])
            self.bytes -= _SHARE.unpack(row)[0]
            self.shares -= 1

    def _holders(self, share_id: ShareId) -> Iterator[tuple[bytes, bytes]]:
        for key, end in _from(self._txn.cursor(db=self._db["leases"]), share_id):
            if key[:KEY_BYTES] != share_id:
                return
            yield key[KEY_BYTES:], end

    def head(self, vault: VaultId, device: DeviceId) -> bytes | None:
        """The newest head of a device."""
        return _bytes(self._txn.get(vault + device + NEWEST, db=self._db["heads"]))

    def save_head(self, vault: VaultId, device: DeviceId, head: bytes) -> None:
        """Make this the newest head; the one before becomes the previous."""
        old = self.head(vault, device)
        if old is not None:
            self._txn.put(vault + device + PREVIOUS, old, db=self._db["heads"])
        self._txn.put(vault + device + NEWEST, head, db=self._db["heads"])

    def save_vault(self, subject: bytes, certificate: bytes) -> None:
        """Keep the certificate of a client."""
        self._txn.put(subject, certificate, db=self._db["vaults"])

    def save_entry(self, node_id: NodeId, entry: bytes) -> None:
        """Keep a roster entry."""
        self._txn.put(node_id, entry, db=self._db["roster"])

    def save_statement(self, node_id: NodeId, statement: bytes) -> None:
        """Keep what a node says of itself."""
        self._txn.put(node_id, statement, db=self._db["says"])

    def remove_statement(self, node_id: NodeId) -> None:
        """Forget what a node says of itself."""
        self._txn.delete(node_id, db=self._db["says"])

    def save_member(self, subject: bytes, invitation: bytes, certificate: bytes) -> None:
        """Keep the certificate of who joined by an invitation."""
        self._txn.put(subject, invitation + certificate, db=self._db["members"])

    def save_info(self, name: str, value: bytes) -> None:
        """Keep a small value."""
        self._txn.put(name.encode(), value, db=self._db["info"])

    def meter_day(self, day: str) -> bytes | None:
        """What save_meter_day kept."""
        return _bytes(self._txn.get(day.encode(), db=self._db["meter"]))

    def save_meter_day(self, day: str, value: bytes, kept: int) -> None:
        """Keep what was measured on a day, and of the days the last ``kept``."""
        table = self._db["meter"]
        self._txn.put(day.encode(), value, db=table)
        cursor = self._txn.cursor(db=table)
        while self._txn.stat(table)["entries"] > kept and cursor.first():
            cursor.delete()

    def save_totals(self) -> None:
        """The last step of every transaction: what it changed goes into the totals."""
        self._add(_NODE, self.bytes, self.shares)
        for vault in self.by_vault.keys() | self.leases.keys():
            self._add(vault, self.by_vault[vault], self.leases[vault])

    def _add(self, key: bytes, size: int, count: int) -> None:
        if not size and not count:
            return
        row = self._txn.get(key, db=self._db["totals"])
        before = (0, 0) if row is None else _TOTAL.unpack(row)
        now = (max(0, before[0] + size), max(0, before[1] + count))
        if any(now) or key == _NODE:
            self._txn.put(key, _TOTAL.pack(*now), db=self._db["totals"])
        else:
            self._txn.delete(key, db=self._db["totals"])

    def replace_totals(self, totals: dict[bytes, list[int]]) -> None:
        """Write totals that were counted."""
        self._txn.drop(self._db["totals"], delete=False)
        for key, (size, count) in totals.items():
            self._txn.put(key, _TOTAL.pack(size, count), db=self._db["totals"])


def _from(cursor: lmdb.Cursor, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Rows from ``key`` on. (A cursor that found nothing would begin again at the first row.)"""
    if cursor.set_range(key):
        for found, value in cursor:
            yield bytes(found), bytes(value)


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)


class NodeIndex:
    """See the head of the file. ``shares_read`` is how many rows opening had to read. ``on_full`` is called when a
    transaction found no room on the disk, before DiskFull is raised. Raises StoreDamaged, UnknownVersion and DiskFull.
    """

    def __init__(self, path: Path, on_full: Callable[[], object] = lambda: None, readonly: bool = False) -> None:
        self.path = path
        self._on_full = on_full
        self.shares_read = 0
        try:
            if readonly:
                self._open_to_read()
                return
            self._env = lmdb.open(str(path), map_size=MAP_BYTES, max_dbs=len(TABLES), max_readers=64, mode=0o600)
            self._env.sync(
                True
            )  # what a killed process had written may be in the page cache only, and is shown from now on
            self._db = {name: self._env.open_db(name.encode()) for name in TABLES}
            version = self.info("version") or b"\x00"
            if version[0] > VERSION:
                raise UnknownVersion(what=f"the index {path}", version=version[0])
            self.used, self.count, self.by_vault = self._totals()
            if version[0] < VERSION or self.count != self._rows("shares"):
                self._count_anew()
        except lmdb.Error as error:
            raise self._translated(error) from None

    def _open_to_read(self) -> None:
        """For a look at a node that does not run. One that an older HiveFS made has not all tables: it is to run once."""
        self._env = lmdb.open(str(self.path), max_dbs=len(TABLES), readonly=True, create=False)
        try:
            self._db = {name: self._env.open_db(name.encode(), create=False) for name in TABLES}
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            self._env.close()
            raise StoreDamaged(path=self.path, reason="it is of an older HiveFS; run the node once") from None
        version = self.info("version") or b"\x00"
        if version[0] != VERSION:
            raise UnknownVersion(what=f"the index {self.path}", version=version[0])
        self.used, self.count, self.by_vault = self._totals()

    def _rows(self, table: str) -> int:
        with self._env.begin() as txn:
            return int(txn.stat(db=self._db[table])["entries"])

    def _totals(self) -> tuple[int, int, Counter[bytes]]:
        used = count = 0
        vaults: Counter[bytes] = Counter()
        with self._env.begin() as txn:
            for key, row in txn.cursor(db=self._db["totals"]):
                if key == _NODE:
                    used, count = _TOTAL.unpack(row)
                else:
                    vaults[bytes(key)] = _TOTAL.unpack(row)[0]
        return used, count, vaults

    def _count_anew(self) -> None:
        """For an index of version 1, and for one whose totals do not fit its rows."""
        totals: dict[bytes, list[int]] = {_NODE: [0, 0]}
        row: bytes | memoryview | None
        with self._env.begin() as txn:
            for _, row in txn.cursor(db=self._db["shares"]):
                totals[_NODE][0] += _SHARE.unpack(row)[0]
                totals[_NODE][1] += 1
            self.shares_read = totals[_NODE][1]
            for key, _ in txn.cursor(db=self._db["leases"]):
                row = txn.get(key[:KEY_BYTES], db=self._db["shares"])
                if row is not None:
                    mine = totals.setdefault(bytes(key[KEY_BYTES:]), [0, 0])
                    mine[0] += _SHARE.unpack(row)[0]
                    mine[1] += 1
        with self.writing() as change:
            change.replace_totals(totals)
            change.save_info("version", bytes([VERSION]))
        self.used, self.count, self.by_vault = self._totals()

    def _translated(self, error: lmdb.Error) -> DiskFull | StoreDamaged:
        if isinstance(error, lmdb.MapFullError) or says_no_room(error):
            self._on_full()
            return DiskFull(path=self.path, free=0)
        return StoreDamaged(path=self.path, reason=str(error))

    def close(self) -> None:
        """Close the environment; this object is dead afterwards."""
        self._env.close()

    @contextmanager
    def writing(self) -> Iterator[Change]:
        """One transaction, on disk when the block ends; an exception undoes all of it."""
        try:
            with self._env.begin(write=True) as txn:
                change = Change(self, txn)
                yield change
                change.save_totals()
        except lmdb.Error as error:
            raise self._translated(error) from None
        self.used += change.bytes
        self.count += change.shares
        self.by_vault.update(change.by_vault)

    def _get(self, table: str, key: bytes) -> bytes | None:
        with self._env.begin() as txn:
            return _bytes(txn.get(key, db=self._db[table]))

    def size(self, share_id: ShareId) -> int | None:
        """Bytes of a share, or None."""
        row = self._get("shares", share_id)
        return None if row is None else int(_SHARE.unpack(row)[0])

    def sizes(self, share_ids: tuple[ShareId, ...]) -> list[int]:
        """Bytes of many shares, 0 for those that are not here."""
        with self._env.begin() as txn:
            rows = [txn.get(share_id, db=self._db["shares"]) for share_id in share_ids]
        return [0 if row is None else _SHARE.unpack(row)[0] for row in rows]

    def leaves(self, share_id: ShareId) -> list[bytes] | None:
        """Merkle leaf hashes of a share."""
        value = self._get("leaves", share_id)
        return None if value is None else [value[i : i + 32] for i in range(0, len(value), 32)]

    def shares(self, after: bytes, limit: int) -> list[tuple[ShareId, int]]:
        """Up to ``limit`` shares behind ``after`` with their sizes, in the order of ids."""
        found: list[tuple[ShareId, int]] = []
        with self._env.begin() as txn:
            for key, row in _from(txn.cursor(db=self._db["shares"]), after + b"\x00"):
                if len(found) == limit:
                    break
                found.append((ShareId(key), _SHARE.unpack(row)[0]))
        return found

    def ended(self, before_ns: int, limit: int) -> list[tuple[ShareId, VaultId]]:
        """Up to ``limit`` leases that ended before a time, the oldest first."""
        found: list[tuple[ShareId, VaultId]] = []
        with self._env.begin() as txn:
            for key, _ in txn.cursor(db=self._db["ends"]):
                if len(found) == limit or _U64.unpack_from(key)[0] >= before_ns:
                    break
                rest = bytes(key[8:])
                found.append((ShareId(rest[:KEY_BYTES]), VaultId(rest[KEY_BYTES:])))
        return found

    def ending(self, before_ns: int, limit: int) -> int:
        """How many leases end before a time; counted up to ``limit``."""
        count = 0
        with self._env.begin() as txn:
            for key in txn.cursor(db=self._db["ends"]).iternext(keys=True, values=False):
                if count == limit or _U64.unpack_from(key)[0] >= before_ns:
                    break
                count += 1
        return count

    def last_end(self) -> int:
        """When the last lease ends (ns); 0 when there is none."""
        with self._env.begin() as txn:
            cursor = txn.cursor(db=self._db["ends"])
            return int(_U64.unpack_from(cursor.key())[0]) if cursor.last() else 0

    def leases(self) -> int:
        """Leases of all vaults on all shares."""
        return self._rows("leases")

    def totals_of(self, vault: VaultId) -> tuple[int, int]:
        """Bytes of the shares on which a vault has leases, and the number of the leases."""
        row = self._get("totals", vault)
        return (0, 0) if row is None else _TOTAL.unpack(row)

    def listing(self, vault: VaultId, after: bytes, most: int, rows: int) -> tuple[bytes, list[Listed]]:
        """(last id looked at, or nothing when that was all; shares of a vault behind ``after``): at most ``most``,
        and at most ``rows`` leases of all vaults are looked at.
        """
        found: list[Listed] = []
        looked, reached = 0, b""
        with self._env.begin() as txn:
            start = after + b"\xff" * (ID_BYTES + 1) if after else after
            for key, end in _from(txn.cursor(db=self._db["leases"]), start):
                share_id = key[:KEY_BYTES]
                # Not between two leases on one share: the next page begins behind it.
                if share_id != reached and (len(found) == most or looked >= rows):
                    return reached, found
                reached = share_id
                looked += 1
                row = txn.get(share_id, db=self._db["shares"]) if key[KEY_BYTES:] == vault else None
                if row is not None:
                    found.append(Listed(ShareId(share_id), _U64.unpack(end)[0], _SHARE.unpack(row)[0]))
        return b"", found

    def meter_days(self, limit: int) -> list[tuple[str, bytes]]:
        """The last ``limit`` days with what was measured on them, the newest first."""
        found: list[tuple[str, bytes]] = []
        with self._env.begin() as txn:
            for key, value in txn.cursor(db=self._db["meter"]).iterprev():
                if len(found) == limit:
                    break
                found.append((bytes(key).decode(errors="replace"), bytes(value)))
        return found

    def certificate(self, subject: bytes) -> bytes | None:
        """What save_vault kept."""
        return self._get("vaults", subject)

    def devices(self, vault: VaultId) -> int:
        """How many devices of a vault have heads here."""
        with self._env.begin() as txn:
            return sum(1 for key, _ in self._under(txn, vault, b"") if key[-1:] == NEWEST)

    def _under(self, txn: lmdb.Transaction, vault: VaultId, after: bytes) -> Iterator[tuple[bytes, bytes]]:
        start = vault + after + b"\xff" if after else vault
        for key, value in _from(txn.cursor(db=self._db["heads"]), start):
            if key[:ID_BYTES] != vault:
                return
            yield key, value

    def heads(self, vault: VaultId, after: bytes, most_bytes: int) -> tuple[bool, list[bytes]]:
        """(more, heads of the devices behind ``after``, of each device newest and previous together)."""
        found: list[bytes] = []
        size = 0
        with self._env.begin() as txn:
            rows = self._under(txn, vault, after)
            for _, group in groupby(rows, key=lambda row: row[0][: ID_BYTES + KEY_BYTES]):
                heads = [head for _, head in group]
                size += sum(len(head) + 4 for head in heads)
                if found and size > most_bytes:
                    return True, found
                found += heads
        return False, found

    def entry(self, node_id: NodeId) -> bytes | None:
        """What save_entry kept."""
        return self._get("roster", node_id)

    def entries(self, after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
        """(more, roster entries behind ``after`` of at most so many bytes with 4 for each), of keys that begin with
        ``within``.
        """
        return self._blobs("roster", after, most_bytes, within)

    def statement(self, node_id: NodeId) -> bytes | None:
        """What save_statement kept."""
        return self._get("says", node_id)

    def statements(self, after: bytes, most_bytes: int, within: bytes = b"") -> tuple[bool, list[bytes]]:
        """(more, statements of the nodes behind ``after``), as ``entries`` does."""
        return self._blobs("says", after, most_bytes, within)

    def _blobs(self, table: str, after: bytes, most_bytes: int, within: bytes) -> tuple[bool, list[bytes]]:
        found: list[bytes] = []
        size = 0
        with self._env.begin() as txn:
            for key, value in _from(txn.cursor(db=self._db[table]), max(within, after + b"\x00")):
                if not key.startswith(within):
                    break
                size += len(value) + 4
                if size > most_bytes:
                    return True, found
                found.append(value)
        return False, found

    def roster_size(self) -> int:
        """Entries in the roster."""
        return self._rows("roster")

    def member(self, subject: bytes) -> tuple[bytes, bytes] | None:
        """What save_member kept: the invitation's key and the certificate."""
        value = self._get("members", subject)
        return None if value is None else (value[:KEY_BYTES], value[KEY_BYTES:])

    def members(self, after: bytes = b"", limit: int = 1 << 62) -> list[tuple[bytes, bytes, bytes]]:
        """Up to ``limit`` of (subject, invitation's key, certificate) behind ``after``."""
        found: list[tuple[bytes, bytes, bytes]] = []
        with self._env.begin() as txn:
            for subject, value in _from(txn.cursor(db=self._db["members"]), after + b"\x00"):
                if len(found) == limit:
                    break
                found.append((subject, value[:KEY_BYTES], value[KEY_BYTES:]))
        return found

    def clients(self) -> list[bytes]:
        """The certificates of all clients that ever came."""
        with self._env.begin() as txn:
            return [bytes(value) for _, value in txn.cursor(db=self._db["vaults"])]

    def info(self, name: str) -> bytes | None:
        """What save_info kept."""
        return self._get("info", name.encode())
