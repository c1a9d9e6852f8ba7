"""Damaged records: an error on that object, one line in the log without names, everything else goes on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from drive_tools import MIB, ROOT, Drive, pattern, run

from hivefs.errors import PosixError
from hivefs.formats.records import dirent_key, inode_key, map_key, xattr_key
from hivefs.metadata.environment import MAP_BYTES, TABLES

SECRET = b"holiday-in-lisbon"


def damage(drive: Drive, table: str, key: bytes) -> None:
    """Flip one bit of a value on disk, behind the closed drive's back."""
    drive.unmount()
    with lmdb.open(str(drive.path / "metadata"), map_size=MAP_BYTES, max_dbs=len(TABLES)) as environment:
        handle = environment.open_db(table.encode(), create=False)
        with environment.begin(write=True) as txn:
            value = bytearray(txn.get(key, db=handle))
            value[len(value) // 2] ^= 1
            txn.put(key, bytes(value), db=handle)
    drive.mount()


def is_eio(call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(PosixError) as caught:
        call(*args)
    assert caught.value.errno == errno.EIO


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    drive = Drive(tmp_path / "drive")
    drive.file("other", b"other")
    drive.fs.create(1, SECRET, 0o644, ROOT)
    drive.fs.write(drive.fs.lookup(1, SECRET).ino, 0, pattern(2 * MIB))
    return drive


@pytest.fixture(autouse=True)
def no_name_in_the_log(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert SECRET.decode() not in caplog.text


def others_work(drive: Drive) -> None:
    other = drive.fs.lookup(1, b"other")
    assert drive.read(other.ino) == b"other"
    drive.file("new", b"new")
    run(drive.fs.syncfs)
    drive.remount()
    assert drive.read(drive.at("new").ino) == b"new"


def test_of_an_inode(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.fs.commits.now()
    damage(drive, "tree", inode_key(ino))
    for _ in range(5):
        is_eio(drive.fs.lookup, 1, SECRET)
        is_eio(drive.fs.getattr, ino)
        is_eio(drive.fs.unlink, 1, SECRET)
    assert caplog.text.count(f"inode {ino}") == 1
    shown = {name: inode.mode for _, name, inode in drive.fs.readdir(1)}
    assert shown[SECRET] == 0o100000
    assert run(drive.service.dirty, 10, 0, [])[0].ino != ino
    others_work(drive)


def test_of_a_name(drive: Drive) -> None:
    drive.fs.commits.now()
    damage(drive, "tree", dirent_key(1, drive.store.name_hash(1, SECRET)))
    is_eio(drive.fs.lookup, 1, SECRET)
    is_eio(drive.fs.create, 1, SECRET, 0o644, ROOT)
    assert drive.names() == [b"other"]
    others_work(drive)


def test_of_a_map(drive: Drive) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.place(only=lambda work: work.ino == ino)
    damage(drive, "tree", map_key(ino, 1))
    assert drive.read(ino, 0, MIB) == pattern(2 * MIB)[:MIB]
    is_eio(drive.read, ino, MIB, 1)
    is_eio(drive.fs.write, ino, MIB, b"x")
    drive.fs.setattr(ino, size=MIB)
    assert drive.read(ino) == pattern(2 * MIB)[:MIB]
    drive.fs.unlink(1, SECRET)
    others_work(drive)
    assert drive.check() == []


def test_of_what_is_staged(drive: Drive) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.fs.commits.now()
    damage(drive, "staged", ino.to_bytes(8, "big") + (1).to_bytes(8, "big"))
    assert drive.read(ino, 0, MIB) == pattern(2 * MIB)[:MIB]
    is_eio(drive.read, ino, MIB, 1)
    is_eio(drive.fs.write, ino, MIB, b"x")
    for _ in range(3):
        assert [(w.ino, w.slot) for w in run(drive.service.dirty, 10, 0, []) if w.ino == ino] == [(ino, 0)]
    others_work(drive)
    drive.fs.unlink(1, SECRET)
    drive.reap()
    drive.fs.commits.now()
    assert drive.check() == []


def test_of_a_stage_segment(drive: Drive) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.unmount()
    segment = max((drive.path / "stage").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) - 1000] ^= 1
    segment.write_bytes(data)
    drive.mount()
    is_eio(drive.read, ino)
    assert drive.read(ino, 0, MIB) == pattern(2 * MIB)[:MIB]
    others_work(drive)


def test_of_a_missing_stage_segment(drive: Drive) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.unmount()
    for segment in (drive.path / "stage").iterdir():
        segment.unlink()
    drive.mount()
    is_eio(drive.read, ino, 0, 1)
    drive.file("new", b"new")
    drive.remount()
    assert drive.read(drive.at("new").ino) == b"new"


def test_of_an_extended_attribute(drive: Drive) -> None:
    ino = drive.fs.lookup(1, SECRET).ino
    drive.fs.setxattr(ino, b"user.a", b"x")
    drive.fs.setxattr(ino, b"user.b", b"y")
    drive.fs.commits.now()
    damage(drive, "tree", xattr_key(ino, drive.store.name_hash(ino, b"user.a")))
    is_eio(drive.fs.getxattr, ino, b"user.a")
    assert drive.fs.getxattr(ino, b"user.b") == b"y"
    assert drive.fs.listxattr(ino) == [b"user.b"]
    others_work(drive)


def test_records_of_two_files_cannot_be_swapped(drive: Drive) -> None:
    ino, other = drive.fs.lookup(1, SECRET).ino, drive.at("other").ino
    drive.unmount()
    with lmdb.open(str(drive.path / "metadata"), map_size=MAP_BYTES, max_dbs=len(TABLES)) as environment:
        handle = environment.open_db(b"tree", create=False)
        with environment.begin(write=True) as txn:
            first, second = txn.get(inode_key(ino), db=handle), txn.get(inode_key(other), db=handle)
            txn.put(inode_key(ino), second, db=handle)
            txn.put(inode_key(other), first, db=handle)
    drive.mount()
    is_eio(drive.fs.lookup, 1, SECRET)
    is_eio(drive.fs.lookup, 1, b"other")


def test_the_home_shows_no_name_and_no_content(drive: Drive) -> None:
    drive.fs.setxattr(drive.fs.lookup(1, SECRET).ino, b"user." + SECRET, SECRET)
    drive.fs.symlink(1, b"s", b"to/" + SECRET, ROOT)
    drive.unmount()
    found = [path for path in drive.path.rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    assert found == []
    assert not any(pattern(2 * MIB)[:64] in path.read_bytes() for path in drive.path.rglob("*") if path.is_file())
