"""Files that get another policy: by a new text, by being moved, by a second name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hivefs.daemon.policy_files import assigned_to, chunks_with_policy
from hivefs.formats import records
from hivefs.model.ids import ROOT_INO, ChunkId
from hivefs.model.inode import ChunkRef, Dirent, Inode, MapExtent, SlotKind
from hivefs.testing.memory_hive import MemoryHive

from .memory_vault import MemoryVault
from .test_engine import SECRETS, content, drop_cache, make_home, run, running, settle, until
from .test_policies import checked

NAMES_KEY = SECRETS.keys().names_key
TEXT = """
[policy.default]
[policy.home]
code = "2/4"
[paths]
"/home" = "home"
"""


class Tree:
    """Committed metadata in memory."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.inode(ROOT_INO, 0o040755, ROOT_INO)

    def inode(self, ino: int, mode: int, parent: int, nlink: int = 1) -> None:
        made = Inode(ino, mode, nlink, 0, 0, 0, 0, 0, 0, 0, 0, 0, parent, 0, b"")
        self.rows[records.inode_key(ino)] = records.inode_to_bytes(made)

    def name(self, directory: int, name: bytes, ino: int, kind: int = 8) -> None:
        key = records.dirent_key(directory, records.name_hash(NAMES_KEY, directory, name))
        self.rows[key] = records.dirent_to_bytes(Dirent(name, ino, kind))

    def unname(self, directory: int, name: bytes) -> None:
        del self.rows[records.dirent_key(directory, records.name_hash(NAMES_KEY, directory, name))]

    def chunk(self, ino: int, ref: ChunkRef) -> None:
        self.rows[records.map_key(ino, 0)] = records.extent_to_bytes(MapExtent(0, 1, SlotKind.CHUNK, ref))

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes | None]]:
        return iter(sorted((k, v) for k, v in self.rows.items() if k.startswith(prefix)))

    def staged(self) -> Iterator[tuple[int, int, bytes | None]]:
        return iter(())

    def changes(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        return iter(())

    @contextmanager
    def snapshot(self) -> Iterator[Tree]:
        yield self


def test_the_nearest_place_counts_and_a_second_name_does_not() -> None:
    tree = Tree()
    tree.name(ROOT_INO, b"home", 10, 4)
    tree.inode(10, 0o040755, ROOT_INO, 2)
    tree.name(10, b"deep", 11, 4)
    tree.inode(11, 0o040755, 10, 2)
    refs = {ino: ChunkRef(ChunkId(bytes([ino]) * 16), bytes(32), 1, 0) for ino in (20, 21, 22, 23)}
    for ino, parent, nlink in ((20, 10, 1), (21, 11, 1), (22, ROOT_INO, 2), (23, ROOT_INO, 1)):
        tree.inode(ino, 0o100644, parent, nlink)
        tree.name(parent, b"f", ino)
        tree.chunk(ino, refs[ino])
    tree.name(10, b"link", 22)
    assigned = assigned_to(tree, NAMES_KEY, {"/home": "a", "/home/deep": "b", "/nowhere": "c", "/f": "d"})
    assert assigned == {10: "a", 11: "b", 23: "d"}
    found = dict((chunk_id[0], name) for name, chunk_id in chunks_with_policy(tree, assigned))
    assert found == {20: "a", 21: "b", 23: "d"}


def test_existing_files_move_into_stripes_of_their_policy_and_back(tmp_path: Path) -> None:
    async def test() -> None:
        hive, vault, tree = MemoryHive(), MemoryVault(), Tree()
        tree.name(ROOT_INO, b"home", 10, 4)
        tree.inode(10, 0o040755, ROOT_INO, 2)
        data = {ino: os.urandom(50_000) for ino in (20, 21, 22)}
        async with running(make_home(tmp_path / "home"), hive, vault) as engine:
            for ino, plain in data.items():
                vault.write(ino, 0, plain)
            await settle(engine, vault)
            for ino, parent in ((20, 10), (21, 10), (22, ROOT_INO)):
                tree.inode(ino, 0o100644, parent)
                tree.name(parent, b"%d" % ino, ino)
                tree.chunk(ino, vault.map[(ino, 0)])

            def policy(ino: int) -> str:
                place = engine.store.place(vault.map[(ino, 0)].chunk_id)
                stripe = None if place is None else engine.store.stripe(place.stripe_id)
                return "" if stripe is None else engine.policies.name_of(stripe)

            await engine.set_policies(TEXT)
            assert await engine.files.once(engine.policies, tree.snapshot) == 2
            await until(lambda: [policy(ino) for ino in data] == ["home", "home", "default"])
            assert await engine.files.once(engine.policies, tree.snapshot) == 0, "all is where it belongs"
            drop_cache(engine)
            for ino, plain in data.items():
                assert await content(engine, vault, ino, 0) == plain
            tree.unname(10, b"20")
            tree.inode(20, 0o100644, ROOT_INO)
            tree.name(ROOT_INO, b"20", 20)
            assert await engine.files.once(engine.policies, tree.snapshot) == 0, "placed too short a time ago to tell"
            engine.store.clock = lambda: 1 << 62
            assert await engine.files.once(engine.policies, tree.snapshot) == 1
            await until(lambda: [policy(ino) for ino in data] == ["default", "home", "default"])
            assert not [f for f in (await checked(engine)).findings if f.problem]

    run(test)
