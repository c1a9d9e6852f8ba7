"""A thief gives the machine back: what was changed in the locked directory is noticed, and nothing shows wrong bytes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from drive_tools import MIB, Drive, pattern, run
from engine.test_engine import SECRETS

from hivefs.chunkstore.cache import Cache, CacheReader, share_path
from hivefs.chunkstore.source import CachedChunks
from hivefs.crypto.seal import RecordSealer, seal_chunk
from hivefs.crypto.wrap import WrapParams, wrap
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.errors import Corrupt, HivefsError, PosixError, StoreDamaged
from hivefs.formats.records import dirent_prefix, map_key
from hivefs.metadata.engine_store import TABLES as ENGINE_TABLES
from hivefs.metadata.engine_store import EngineStore
from hivefs.metadata.environment import TABLES
from hivefs.model.ids import SEGMENT_BYTES, ChunkId, StripeId
from hivefs.model.inode import ChunkRef
from hivefs.model.stripe import ChunkPlace, Purpose, Share, Stripe
from hivefs.placement.policy import Policy
from hivefs.testing.memory_hive import HIVE_SEED

Rows = dict[bytes, bytes | None]


def change(path: Path, tables: tuple[str, ...], table: str, edit: Callable[[dict[bytes, bytes]], Rows]) -> None:
    """Change a table of a closed LMDB environment as somebody without keys can."""
    with lmdb.open(str(path), map_size=64 << 30, max_dbs=len(tables)) as environment:
        handle = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True) as txn:
            for key, value in edit(dict(txn.cursor(db=handle))).items():
                if value is None:
                    txn.delete(key, db=handle)
                else:
                    txn.put(key, value, db=handle)


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    """A drive with a placed file of four slots and another of two."""
    drive = Drive(tmp_path / "drive")
    for name, slots in (("first", 4), ("other", 2)):
        ino = drive.file(name)
        drive.fs.write(ino, 0, pattern(slots * MIB, ino))
    assert drive.place() == 6
    return drive


def attack(drive: Drive, table: str, edit: Callable[[dict[bytes, bytes]], Rows]) -> None:
    drive.unmount()
    change(drive.path / "metadata", TABLES, table, edit)
    drive.mount()


def swap(one: bytes, two: bytes) -> Callable[[dict[bytes, bytes]], Rows]:
    return lambda rows: {one: rows[two], two: rows[one]}


def refused(drive: Drive, ino: int) -> None:
    """Reading gives an error, never bytes."""
    with pytest.raises(PosixError) as caught:
        drive.read(ino)
    assert caught.value.errno == errno.EIO


def test_the_drive_reads_back_when_nobody_touched_it(drive: Drive) -> None:
    attack(drive, "tree", lambda rows: {})
    ino = drive.at("first").ino
    assert drive.read(ino) == pattern(4 * MIB, ino)


@pytest.mark.parametrize("edit", ["reorder", "duplicate", "remove", "truncate", "zeros", "foreign", "pending", "hole"])
def test_the_map_of_a_file_changed(drive: Drive, edit: str) -> None:
    """Chunks reordered, doubled, dropped, cut off, zeroed, taken from another file; a record moved from elsewhere."""
    ino, other = drive.at("first").ino, drive.at("other").ino
    hollow, fresh = drive.file("hollow"), drive.file("fresh", b"not placed yet")
    drive.fs.write(hollow, 5 * MIB, b"behind a hole")
    run(drive.fs.syncfs)
    a, b = map_key(ino, 1), map_key(ino, 2)
    edits: dict[str, Callable[[dict[bytes, bytes]], Rows]] = {
        "reorder": swap(a, b),
        "duplicate": lambda rows: {b: rows[a]},
        "remove": lambda rows: {b: None},
        "truncate": lambda rows: {map_key(ino, slot): None for slot in (2, 3)},
        "zeros": lambda rows: {b: bytes(len(rows[b]))},
        "foreign": swap(b, map_key(other, 1)),
        "pending": lambda rows: {b: rows[map_key(fresh, 0)]},
        "hole": lambda rows: {b: rows[map_key(hollow, 0)]},
    }
    attack(drive, "tree", edits[edit])
    refused(drive, ino)


@pytest.mark.parametrize("edit", ["swap", "rename", "move", "plant", "zeros"])
def test_names_changed(drive: Drive, edit: str) -> None:
    """Two names of a directory swapped, one renamed, one moved to another directory, one planted."""
    folder = drive.dir("folder")
    drive.file("inside", parent=folder)
    run(drive.fs.syncfs)

    def named(rows: dict[bytes, bytes], directory: int) -> list[bytes]:
        return sorted(key for key in rows if key.startswith(dirent_prefix(directory)))

    def edited(rows: dict[bytes, bytes]) -> Rows:
        one, two = named(rows, 1)[:2]
        (inside,) = named(rows, folder)
        return {
            "swap": {one: rows[two], two: rows[one]},
            "rename": {one: None, dirent_prefix(1) + os.urandom(16): rows[one]},
            "move": {dirent_prefix(folder) + one[-16:]: rows[one]},
            "plant": {dirent_prefix(folder) + os.urandom(16): RecordSealer(os.urandom(32), os.urandom).seal(b"tree", b"x")},
            "zeros": {inside: bytes(len(rows[inside])), one: bytes(len(rows[one]))},
        }[edit]  # type: ignore[return-value]

    attack(drive, "tree", edited)
    problems = drive.check()
    assert problems, "the check says nothing"
    seen: list[bytes] = []
    for directory in (1, folder):
        try:
            seen += drive.names(directory)
        except PosixError as error:
            assert error.errno == errno.EIO
    true_names = {b"first", b"other", b"folder", b"inside"}
    assert set(seen) <= true_names
    for name in (b"first", b"other", b"folder"):
        try:
            found = drive.fs.lookup(1, name)
        except PosixError:
            continue
        if name != b"folder":
            size = {b"first": 4, b"other": 2}[name] * MIB
            assert drive.read(found.ino) == pattern(size, found.ino), "a name leads to another file"


# ---- the engine's book --------------------------------------------------------------------------------------------


def book(path: Path) -> tuple[list[ChunkId], list[StripeId]]:
    store = EngineStore(path, bytes(32), Policy(1, 1, ()))
    chunks = [ChunkId(os.urandom(16)) for _ in range(2)]
    stripes = [StripeId(os.urandom(16)) for _ in range(2)]
    with store.writing():
        for chunk, stripe_id in zip(chunks, stripes, strict=True):
            shares = tuple(Share(os.urandom(32), os.urandom(32), os.urandom(32)) for _ in range(3))  # type: ignore[arg-type]
            store.save_stripe(Stripe(stripe_id, Purpose.DATA, 2, 1000, shares))
            store.save_place(chunk, ChunkPlace(stripe_id, 0, 0, 500), 5, 0)
    store.close()
    return chunks, stripes


@pytest.mark.parametrize("table", ["place", "stripe", "info"])
def test_records_of_the_engine_swapped(tmp_path: Path, table: str) -> None:
    chunks, stripes = book(tmp_path)
    keys = {"place": [b"c" + c for c in chunks], "stripe": [b"s" + s for s in stripes]}.get(table)
    if keys is None:
        change(tmp_path, ENGINE_TABLES, "info", lambda rows: {b"root": rows.get(b"sequence", bytes(64))})
    else:
        change(tmp_path, ENGINE_TABLES, "tree", swap(*keys))
    store = EngineStore(tmp_path, bytes(32), Policy(1, 1, ()))
    with pytest.raises(Corrupt):
        if table == "place":
            store.place(chunks[0])
        elif table == "stripe":
            store.stripe(stripes[0])
        else:
            store.info("root")
    store.close()


def test_another_vaults_book_does_not_open(tmp_path: Path) -> None:
    chunks, _ = book(tmp_path)
    with pytest.raises(Corrupt):
        EngineStore(tmp_path, bytes([1]) * 32, Policy(1, 1, ()))
    again = EngineStore(tmp_path, bytes(32), Policy(1, 1, ()))  # a try leaves nothing open, and changes nothing
    assert again.place(chunks[0]) is not None
    again.close()


# ---- the cache ------------------------------------------------------------------------------------------------------


class World:
    """Two chunks in two cached shares; fetching brings the true shares."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root, 1 << 30)
        self.places: dict[ChunkId, ChunkPlace] = {}
        self.true: dict[ChunkId, bytes] = {}
        self.refs: list[ChunkRef] = []
        self.plain: list[bytes] = []
        for number in range(2):
            plain, key, stripe = os.urandom(5 * SEGMENT_BYTES), os.urandom(32), StripeId(os.urandom(16))
            sealed, codec = seal_chunk(key, b"v" * 16, Purpose.DATA, plain)
            ref = ChunkRef(ChunkId(os.urandom(16)), key, len(plain), codec)
            self.places[ref.chunk_id] = ChunkPlace(stripe, number, 0, len(sealed))
            self.true[ref.chunk_id] = sealed
            self.cache.put(stripe, number, sealed)
            self.refs.append(ref)
            self.plain.append(plain)
        self.source = CachedChunks(b"v" * 16, self, CacheReader(root), self.fetch)

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        return self.places.get(chunk_id)

    async def fetch(self, chunk_id: ChunkId, following: object, span: object) -> None:
        place = self.places[chunk_id]
        self.cache.put(place.stripe_id, place.index, self.true[chunk_id])

    def path(self, number: int) -> Path:
        place = self.places[self.refs[number].chunk_id]
        return share_path(self.cache.root, place.stripe_id, place.index)


@pytest.mark.parametrize("edit", ["swap", "zeros", "truncate", "reorder", "duplicate", "flip", "empty"])
def test_cached_shares_changed(tmp_path: Path, edit: str) -> None:
    world = World(tmp_path / "cache")
    one, two = world.path(0), world.path(1)
    data, unit = one.read_bytes(), SEGMENT_BYTES + 16
    if edit == "swap":
        other = two.read_bytes()
        two.write_bytes(data)
        one.write_bytes(other)
    else:
        one.write_bytes(
            {
                "zeros": bytes(len(data)),
                "truncate": data[: 2 * unit],
                "reorder": data[unit : 2 * unit] + data[:unit] + data[2 * unit :],
                "duplicate": data[:unit] + data[:unit] + data[2 * unit :],
                "flip": data[:100] + bytes([data[100] ^ 1]) + data[101:],
                "empty": b"",
            }[edit]
        )
    ref, plain = world.refs[0], world.plain[0]
    for start in range(0, len(plain), SEGMENT_BYTES // 2):
        got = world.source.cached(ref, start, start + 100)
        assert got in (None, plain[start : start + 100])
    assert run(world.source.fetch, ref, 0, len(plain), ()) == plain


# ---- the vault file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["none", "password", "keyfile"])
def test_secrets_planted_in_the_vault_file(tmp_path: Path, method: str) -> None:
    """Key injection: the wrapped secret is replaced by one that the thief knows, under any wrap."""
    home = Home.create(tmp_path / "home", SECRETS, Lock("password", b"the owner's"), HIVE_SEED, (), 4, 6)
    said = json.loads(home.file.read_bytes())
    for secrets in (Secrets(os.urandom(32), os.urandom(32)), Secrets(os.urandom(32), SECRETS.device_seed)):
        for known in (b"", b"thief", b"the owner's"):
            params = WrapParams(method, os.urandom(16).hex(), 19 << 10, 1)
            planted = wrap(params, known, secrets.to_bytes(), os.urandom(12))
            wrapped = {"method": method, "salt": params.salt, "memory_kib": 19 << 10, "iterations": 1, "lanes": 1}
            home.file.write_text(json.dumps({**said, "wrap": wrapped, "wrapped": planted.hex()}))
            with pytest.raises(HivefsError):
                Home.load(home.path).unlock(known)


def test_a_store_of_a_newer_format_is_not_read_as_an_older_one(drive: Drive) -> None:
    """Downgrade: the entry that says the format is sealed like any record, so it can only be lost or found wrong."""
    drive.unmount()
    change(drive.path / "metadata", TABLES, "info", lambda rows: {b"format": rows[b"device"]})
    with pytest.raises((Corrupt, StoreDamaged)):
        drive.mount()
