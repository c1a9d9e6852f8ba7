"""The consistency check finds what is wrong, each kind of it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from drive_tools import KEYS, MIB, Drive

from hivefs.filesystem.check import check
from hivefs.formats.local import local_inode_fields, local_inode_to_bytes
from hivefs.formats.records import dirent_key, dirent_to_bytes, extent_to_bytes, inode_key, map_key, xattr_key
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.metadata.store import MetadataStore
from hivefs.model.inode import Dirent, Inode, MapExtent, SlotKind


class Broken:
    """A committed drive: /f (3 slots: placed, placed, hole), /d/g, an extended attribute; changed record by record."""

    def __init__(self, path: Path) -> None:
        self.drive = Drive(path)
        self.f = self.drive.file("f", bytes(2 * MIB))
        self.drive.fs.setattr(self.f, size=3 * MIB)
        self.d = self.drive.dir("d")
        self.g = self.drive.file("g", b"data", parent=self.d)
        self.drive.fs.setxattr(self.f, b"user.a", b"x")
        self.drive.place(only=lambda work: work.ino == self.f)
        self.drive.fs.commits.now()
        assert self.drive.check() == []
        self.store: MetadataStore = self.drive.store

    def change(self, ino: int, **fields: int) -> None:
        values, changed, link = local_inode_fields(self.store.get(inode_key(ino)) or b"")
        inode = Inode(*values)
        for name, value in fields.items():
            setattr(inode, name, value)
        self.store.put(inode_key(ino), local_inode_to_bytes(inode, changed, link))

    def name(self, directory: int, name: bytes, ino: int, kind: int = 8) -> None:
        key = dirent_key(directory, self.store.name_hash(directory, name))
        self.store.put(key, dirent_to_bytes(Dirent(name, ino, kind)))

    def kinds(self) -> list[tuple[str, int]]:
        self.store.commit()
        return sorted((finding.kind, finding.ino) for finding in self.drive.check())


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    return Broken(tmp_path / "drive")


CASES: dict[str, tuple[Callable[[Broken], object], Callable[[Broken], list[tuple[str, int]]]]] = {
    "a name without inode": (lambda b: b.name(b.d, b"x", 999), lambda b: [("name", b.d)]),
    "a name in a file": (lambda b: b.name(b.f, b"x", b.g), lambda b: [("name", b.f), ("nlink", b.g)]),
    "a name of another type": (lambda b: b.name(b.d, b"g", b.g, 4), lambda b: [("name", b.g)]),
    "too many links": (lambda b: b.change(b.g, nlink=2), lambda b: [("nlink", b.g)]),
    "a directory's links": (lambda b: b.change(b.d, nlink=3), lambda b: [("nlink", b.d)]),
    "the root's links": (lambda b: b.change(1, nlink=2), lambda b: [("nlink", 1)]),
    "a removed inode with a name": (
        lambda b: b.change(b.g, nlink=0),
        lambda b: [("nlink", b.g), ("orphan", b.g)],
    ),
    "a lost inode": (
        lambda b: b.store.delete(dirent_key(b.d, b.store.name_hash(b.d, b"g"))),
        lambda b: [("nlink", b.g)],
    ),
    "another parent": (lambda b: b.change(b.g, parent=1), lambda b: [("parent", b.g)]),
    "another root": (lambda b: b.change(1, parent=b.d), lambda b: [("parent", 1)]),
    "two names of a directory": (
        lambda b: b.name(b.d, b"loop", b.d, 4),
        lambda b: [("nlink", b.d), ("nlink", b.d)],
    ),
    "a gap": (
        lambda b: b.store.delete(map_key(b.f, 2)),
        lambda b: [("map", b.f)],
    ),
    "records that overlap": (
        lambda b: b.store.put(map_key(b.f, 1), extent_to_bytes(MapExtent(1, 2, SlotKind.PENDING))),
        lambda b: [("allocated", b.f), ("map", b.f)],
    ),
    "a map without file": (
        lambda b: b.store.put(map_key(77, 0), extent_to_bytes(MapExtent(0, 1, SlotKind.HOLE))),
        lambda b: [("map", 77)],
    ),
    "a map of a directory": (
        lambda b: b.store.put(map_key(b.d, 0), extent_to_bytes(MapExtent(0, 1, SlotKind.HOLE))),
        lambda b: [("map", b.d)],
    ),
    "allocated": (lambda b: b.change(b.f, allocated=MIB), lambda b: [("allocated", b.f)]),
    "a staged slot of nothing": (lambda b: b.store.put_staged(77, 0, b"\0\1"), lambda b: [("staged", 77)]),
    "a staged slot beyond the end": (lambda b: b.store.put_staged(b.g, 5, b"\0\1"), lambda b: [("staged", b.g)]),
    "a staged slot of nonsense": (lambda b: b.store.put_staged(b.g, 0, b"\0\1\2"), lambda b: [("damaged", b.g)]),
    "an attribute of nothing": (
        lambda b: b.store.put(xattr_key(77, bytes(16)), b"\1\1aX"),
        lambda b: [("xattr", 77)],
    ),
    "an attribute of nonsense": (
        lambda b: b.store.put(xattr_key(b.f, bytes(16)), b"\1\x09a"),
        lambda b: [("damaged", b.f)],
    ),
    "an inode of nonsense": (
        lambda b: b.store.put(inode_key(b.g), bytes(20)),
        lambda b: [("damaged", b.g), ("map", b.g), ("name", b.d), ("staged", b.g)],
    ),
    "an orphan that is not there": (lambda b: b.store.put_orphan(77), lambda b: [("orphan", 77)]),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_damage_is_found(broken: Broken, case: str) -> None:
    change, wanted = CASES[case]
    change(broken)
    assert broken.kinds() == wanted(broken)


def test_directories_that_lie_in_each_other(broken: Broken) -> None:
    e = broken.drive.dir("e", broken.d)
    broken.drive.fs.commits.now()
    broken.store.delete(dirent_key(1, broken.store.name_hash(1, b"d")))
    broken.name(e, b"d", broken.d, 4)
    broken.change(broken.d, parent=e)
    broken.change(e, nlink=3)
    broken.change(1, nlink=2)
    assert {kind for kind, _ in broken.kinds()} == {"loop"}


def test_findings_name_no_names(broken: Broken) -> None:
    broken.name(broken.d, b"secret-name", 999)
    broken.store.commit()
    (finding,) = broken.drive.check()
    assert "secret" not in finding.text and finding.text.endswith(".")


def test_a_drive_that_is_not_all_here_is_not_judged(tmp_path: Path) -> None:
    store = MetadataStore(tmp_path / "metadata", KEYS, create=True, hydrating=True)
    snapshot = MetadataSnapshot(tmp_path / "metadata", KEYS, store=store)
    assert [finding.kind for finding in check(snapshot)] == ["hydrating"]
    snapshot.close()
    store.close()
