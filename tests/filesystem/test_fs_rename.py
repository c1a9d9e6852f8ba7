"""rename(2) and renameat2(2)."""

from __future__ import annotations

import contextlib
import errno
import random
from functools import partial
from pathlib import Path

import pytest
from drive_tools import Drive, refuses

from hivefs.errors import PosixError
from hivefs.filesystem.ports import ROOT

NOREPLACE, EXCHANGE = 1, 2


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def whole(drive: Drive) -> None:
    drive.fs.commits.now()
    assert drive.check() == []


def test_to_a_new_name(drive: Drive) -> None:
    a, f = drive.dir("a"), drive.file("f", b"data")
    drive.fs.rename(1, b"f", a, b"g")
    assert (drive.names(), drive.names(a)) == ([b"a"], [b"g"])
    assert drive.fs.getattr(f).parent == a
    drive.remount()
    assert drive.read(drive.at("a/g").ino) == b"data"
    whole(drive)


def test_over_a_file(drive: Drive) -> None:
    f, g = drive.file("f", b"new"), drive.file("g", b"old")
    drive.fs.rename(1, b"f", 1, b"g")
    assert drive.names() == [b"g"]
    assert drive.at("g").ino == f
    refuses(errno.ENOENT, drive.fs.getattr, g)
    whole(drive)


def test_over_a_file_that_is_open(drive: Drive) -> None:
    drive.file("f", b"new")
    g = drive.file("g", b"old")
    drive.fs.open(g)
    drive.fs.rename(1, b"f", 1, b"g")
    assert drive.read(g) == b"old"
    whole(drive)
    drive.fs.release(g)
    refuses(errno.ENOENT, drive.fs.getattr, g)
    whole(drive)


def test_directories(drive: Drive) -> None:
    a, b = drive.dir("a"), drive.dir("b")
    sub = drive.dir("sub", a)
    drive.dir("empty", b)
    assert [drive.fs.getattr(i).nlink for i in (1, a, b)] == [4, 3, 3]
    drive.fs.rename(a, b"sub", b, b"empty")
    assert [drive.fs.getattr(i).nlink for i in (1, a, b)] == [4, 2, 3]
    assert drive.fs.getattr(sub).parent == b
    assert drive.fs.lookup(sub, b"..").ino == b
    drive.fs.rename(b, b"empty", 1, b"top")
    assert [drive.fs.getattr(i).nlink for i in (1, a, b)] == [5, 2, 2]
    whole(drive)


def test_what_is_refused(drive: Drive) -> None:
    a = drive.dir("a")
    b = drive.dir("b", a)
    drive.file("f")
    full = drive.dir("full")
    drive.file("x", parent=full)
    refuses(errno.EINVAL, drive.fs.rename, 1, b"a", b, b"c")
    refuses(errno.EINVAL, drive.fs.rename, 1, b"a", a, b"c")
    refuses(errno.ENOTEMPTY, drive.fs.rename, a, b"b", 1, b"full")
    refuses(errno.ENOTEMPTY, drive.fs.rename, a, b"b", 1, b"a")
    refuses(errno.ENOTDIR, drive.fs.rename, 1, b"a", 1, b"f")
    refuses(errno.EISDIR, drive.fs.rename, 1, b"f", 1, b"a")
    refuses(errno.ENOENT, drive.fs.rename, 1, b"no", 1, b"f")
    refuses(errno.ENAMETOOLONG, drive.fs.rename, 1, b"f", 1, b"x" * 256)
    refuses(errno.EINVAL, drive.fs.rename, 1, b"f", 1, b"g", 4)
    refuses(errno.EINVAL, drive.fs.rename, 1, b"f", 1, b"g", NOREPLACE | EXCHANGE)
    refuses(errno.EBUSY, drive.fs.rename, 1, b".", 1, b"g")
    refuses(errno.EEXIST, drive.fs.rename, 1, b"f", 1, b"a", NOREPLACE)
    refuses(errno.ENOENT, drive.fs.rename, 1, b"f", 1, b"g", EXCHANGE)
    assert drive.names() == [b"a", b"f", b"full"]
    whole(drive)


def test_names_of_the_same_file_stay_both(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.link(f, 1, b"g")
    drive.fs.rename(1, b"f", 1, b"g")
    drive.fs.rename(1, b"f", 1, b"f")
    assert drive.names() == [b"f", b"g"]
    assert drive.fs.getattr(f).nlink == 2
    whole(drive)


def test_noreplace_to_a_free_name(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.rename(1, b"f", 1, b"g", NOREPLACE)
    assert drive.at("g").ino == f
    whole(drive)


def test_exchange_of_a_file_and_a_directory(drive: Drive) -> None:
    a, b = drive.dir("a"), drive.dir("b")
    sub = drive.dir("sub", a)
    deep = drive.file("deep", parent=sub)
    f = drive.file("f", parent=b)
    drive.fs.rename(a, b"sub", b, b"f", EXCHANGE)
    assert drive.at("a/sub").ino == f
    assert drive.at("b/f/deep").ino == deep
    assert [drive.fs.getattr(i).nlink for i in (a, b)] == [2, 3]
    assert (drive.fs.getattr(f).parent, drive.fs.getattr(sub).parent) == (a, b)
    whole(drive)


def test_exchange_of_two_directories_and_with_an_own_child(drive: Drive) -> None:
    a, b = drive.dir("a"), drive.dir("b")
    c = drive.dir("c", b)
    drive.fs.rename(1, b"a", b, b"c", EXCHANGE)
    assert (drive.fs.getattr(a).parent, drive.fs.getattr(c).parent) == (b, 1)
    refuses(errno.EINVAL, drive.fs.rename, 1, b"b", b, b"c", EXCHANGE)
    refuses(errno.EINVAL, drive.fs.rename, b, b"c", 1, b"b", EXCHANGE)
    whole(drive)


def test_times(tmp_path: Path) -> None:
    now = [1_000]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    a, f, g = drive.dir("a"), drive.file("f"), drive.file("g")
    drive.fs.open(g)
    drive.fs.link(g, 1, b"h")
    now[0] = 2_000
    drive.fs.rename(1, b"f", a, b"f")
    assert [drive.fs.getattr(i).mtime_ns for i in (1, a, f)] == [2_000, 2_000, 1_000]
    assert drive.fs.getattr(f).ctime_ns == 2_000
    now[0] = 3_000
    drive.fs.rename(a, b"f", 1, b"g")
    assert drive.fs.getattr(g).ctime_ns == 3_000


# ---- names that are remembered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remembered", [1, 2, 3])
def test_remembered_names_follow_every_change(drive: Drive, monkeypatch: pytest.MonkeyPatch, remembered: int) -> None:
    """Whatever is forgotten meanwhile, a lookup says what the listing says, which reads the records."""
    monkeypatch.setattr("hivefs.filesystem.names.REMEMBERED", remembered)
    chance = random.Random(remembered)
    directories = [1, drive.dir("d")]
    names = [b"a", b"b", b"c", b"e"]
    for _ in range(600):
        (at, name), (to, other) = ((chance.choice(directories), chance.choice(names)) for _ in range(2))
        change = chance.choice(
            [
                partial(drive.fs.create, at, name, 0o644, ROOT),
                partial(drive.fs.unlink, at, name),
                partial(drive.fs.rename, at, name, to, other, 0),
                partial(drive.fs.rename, at, name, to, other, NOREPLACE),
                partial(drive.fs.rename, at, name, to, other, EXCHANGE),
            ]
        )
        with contextlib.suppress(PosixError):
            change()
        for directory in directories:
            listed = {name: inode.ino for _, name, inode in drive.fs.readdir(directory) if name in names}
            found = {}
            for one in chance.sample(names, len(names)):
                with contextlib.suppress(PosixError):
                    found[one] = drive.fs.lookup(directory, one).ino
            assert found == listed
    whole(drive)


def test_a_new_name_is_read_once(drive: Drive) -> None:
    """Looked up before it is made, as the kernel does, and renamed at once."""
    refuses(errno.ENOENT, drive.fs.lookup, 1, b"new")
    store, asked = drive.store, []
    hashed = store.name_hash
    store.name_hash = lambda directory, name: asked.append(name) or hashed(directory, name)  # type: ignore[method-assign]
    made = drive.fs.create(1, b"new", 0o644, ROOT)
    assert drive.fs.lookup(1, b"new") is made
    drive.fs.rename(1, b"new", 1, b"old")
    assert drive.fs.lookup(1, b"old") is made
    refuses(errno.ENOENT, drive.fs.lookup, 1, b"new")
    assert asked == [b"old"]
