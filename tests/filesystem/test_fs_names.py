"""Names: lookup, create and its inheritance, links, removal, listings with cookies, symbolic links."""

from __future__ import annotations

import errno
import itertools
import random
import stat
from pathlib import Path

import pytest
from drive_tools import ROOT, Drive, refuses

from hivefs.filesystem.namespace import MAX_LINKS
from hivefs.filesystem.ports import Caller


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def test_a_new_drive_has_an_empty_root(drive: Drive) -> None:
    root = drive.fs.getattr(1)
    assert stat.S_ISDIR(root.mode) and stat.S_IMODE(root.mode) == 0o755
    assert (root.nlink, root.parent) == (2, 1)
    assert [name for _, name, _ in drive.fs.readdir(1)] == [b".", b".."]
    drive.remount()
    assert drive.fs.getattr(1).btime_ns == root.btime_ns


def test_any_bytes_but_slash_and_zero_are_a_name(drive: Drive) -> None:
    names = [bytes([n]) for n in range(1, 256) if n not in b"./"] + [b"...", b".x", b"\xff" * 255, "ä".encode(), b"a\nb"]
    for name in names:
        drive.fs.create(1, name, 0o644, ROOT)
    drive.remount()
    assert drive.names() == sorted(names)
    assert all(drive.fs.lookup(1, name).size == 0 for name in names)
    refuses(errno.ENAMETOOLONG, drive.fs.create, 1, b"x" * 256, 0o644, ROOT)
    refuses(errno.ENAMETOOLONG, drive.fs.lookup, 1, b"x" * 256)
    refuses(errno.EINVAL, drive.fs.create, 1, b"a/b", 0o644, ROOT)
    refuses(errno.EINVAL, drive.fs.create, 1, b"", 0o644, ROOT)
    refuses(errno.EEXIST, drive.fs.mkdir, 1, b".", 0o755, ROOT)
    refuses(errno.EEXIST, drive.fs.symlink, 1, b"..", b"x", ROOT)


def test_lookup(drive: Drive) -> None:
    a = drive.dir("a")
    b = drive.dir("b", a)
    f = drive.file("f", parent=b)
    assert drive.fs.lookup(a, b"b").ino == b
    assert drive.fs.lookup(b, b"..").ino == a
    assert drive.fs.lookup(1, b"..").ino == 1
    assert drive.fs.lookup(b, b".").ino == b
    refuses(errno.ENOENT, drive.fs.lookup, a, b"f")
    refuses(errno.ENOTDIR, drive.fs.lookup, f, b"x")
    refuses(errno.ENOENT, drive.fs.lookup, 999, b"x")
    refuses(errno.ENOENT, drive.fs.getattr, 999)


def test_mode_umask_and_owner_of_what_is_made(drive: Drive) -> None:
    caller = Caller(1000, 100, 0o027)
    made = drive.fs.create(1, b"f", 0o6666, caller)
    assert (made.mode, made.uid, made.gid, made.nlink) == (stat.S_IFREG | 0o6640, 1000, 100, 1)
    made = drive.fs.mkdir(1, b"d", 0o1777, caller)
    assert (made.mode, made.nlink, made.size) == (stat.S_IFDIR | 0o1750, 2, 4096)
    made = drive.fs.symlink(1, b"s", b"target", caller)
    assert (made.mode, made.size) == (stat.S_IFLNK | 0o777, 6)
    made = drive.fs.mknod(1, b"c", stat.S_IFCHR | 0o666, 0x105, caller)
    assert (made.mode, made.rdev) == (stat.S_IFCHR | 0o640, 0x105)
    assert drive.fs.mknod(1, b"p", stat.S_IFIFO | 0o666, 0x105, caller).rdev == 0
    assert stat.S_ISREG(drive.fs.mknod(1, b"r", 0o600, 0, caller).mode)
    refuses(errno.EPERM, drive.fs.mknod, 1, b"x", stat.S_IFDIR | 0o777, 0, caller)
    assert drive.fs.getattr(1).nlink == 3
    drive.remount()
    assert drive.at("c").rdev == 0x105
    assert drive.check() == []


def test_a_setgid_directory_passes_its_group_on(drive: Drive) -> None:
    d = drive.dir("d")
    drive.fs.setattr(d, mode=0o2775, gid=50)
    member = Caller(1000, 100, 0, groups=lambda: (50,))
    stranger = Caller(1000, 100, 0)
    sub = drive.fs.mkdir(d, b"sub", 0o755, stranger)
    assert (sub.gid, stat.S_IMODE(sub.mode)) == (50, 0o2755)
    assert drive.fs.create(d, b"f", 0o644, stranger).gid == 50
    assert stat.S_IMODE(drive.fs.create(d, b"g", 0o2775, stranger).mode) == 0o775
    assert stat.S_IMODE(drive.fs.create(d, b"h", 0o2775, member).mode) == 0o2775
    assert stat.S_IMODE(drive.fs.create(d, b"j", 0o2745, stranger).mode) == 0o2745
    assert drive.fs.symlink(d, b"k", b"x", stranger).gid == 50


def test_times_of_what_is_made_and_of_its_directory(tmp_path: Path) -> None:
    now = [1_000]
    drive = Drive(tmp_path / "drive", clock=lambda: now[0])
    now[0] = 2_000
    made = drive.fs.getattr(drive.file("f"))
    assert {made.atime_ns, made.mtime_ns, made.ctime_ns, made.btime_ns} == {2_000}
    root = drive.fs.getattr(1)
    assert (root.atime_ns, root.mtime_ns, root.ctime_ns, root.btime_ns) == (1_000, 2_000, 2_000, 1_000)
    now[0] = 3_000
    drive.fs.link(made.ino, 1, b"g")
    assert (made.ctime_ns, made.mtime_ns, root.mtime_ns) == (3_000, 2_000, 3_000)
    now[0] = 4_000
    drive.fs.unlink(1, b"g")
    assert (made.ctime_ns, root.ctime_ns) == (4_000, 4_000)


def test_hard_links(drive: Drive) -> None:
    a = drive.dir("a")
    f = drive.file("f", b"data")
    drive.fs.link(f, a, b"g")
    assert drive.fs.getattr(f).nlink == 2
    refuses(errno.EEXIST, drive.fs.link, f, a, b"g")
    refuses(errno.EPERM, drive.fs.link, a, 1, b"h")
    drive.fs.unlink(1, b"f")
    drive.remount()
    assert drive.at("a/g").ino == f and drive.at("a/g").nlink == 1
    assert drive.at("a/g").parent == a
    assert drive.read(f) == b"data"
    assert drive.check() == []
    drive.fs.getattr(f).nlink = MAX_LINKS
    refuses(errno.EMLINK, drive.fs.link, f, 1, b"x")


def test_removing(drive: Drive) -> None:
    a = drive.dir("a")
    drive.file("f", parent=a)
    refuses(errno.ENOTEMPTY, drive.fs.rmdir, 1, b"a")
    refuses(errno.ENOTDIR, drive.fs.rmdir, a, b"f")
    refuses(errno.EISDIR, drive.fs.unlink, 1, b"a")
    refuses(errno.ENOENT, drive.fs.unlink, 1, b"x")
    refuses(errno.EINVAL, drive.fs.rmdir, 1, b".")
    refuses(errno.ENOTEMPTY, drive.fs.rmdir, a, b"..")
    drive.fs.unlink(a, b"f")
    drive.fs.rmdir(1, b"a")
    assert drive.fs.getattr(1).nlink == 2
    refuses(errno.ENOENT, drive.fs.lookup, 1, b"a")
    drive.fs.commits.now()
    assert drive.check() == []
    assert drive.store.inodes == 1


def test_nothing_is_made_in_a_removed_directory(drive: Drive) -> None:
    a = drive.dir("a")
    f = drive.file("f")
    drive.fs.open(a)
    drive.fs.rmdir(1, b"a")
    assert drive.fs.getattr(a).nlink == 0
    refuses(errno.ENOENT, drive.fs.create, a, b"x", 0o644, ROOT)
    refuses(errno.ENOENT, drive.fs.link, f, a, b"x")
    refuses(errno.ENOENT, drive.fs.rename, 1, b"f", a, b"x")
    drive.fs.release(a)
    refuses(errno.ENOENT, drive.fs.getattr, a)


def test_symbolic_links(drive: Drive) -> None:
    target = b"\xff" * 4095
    s = drive.fs.symlink(1, b"s", target, ROOT).ino
    drive.remount()
    assert drive.fs.readlink(s) == target
    refuses(errno.ENAMETOOLONG, drive.fs.symlink, 1, b"t", b"x" * 4096, ROOT)
    refuses(errno.ENOENT, drive.fs.symlink, 1, b"t", b"", ROOT)
    refuses(errno.EINVAL, drive.fs.readlink, 1)


def test_listing_goes_on_behind_a_cookie_while_the_directory_changes(drive: Drive) -> None:
    rng = random.Random(5)
    d = drive.dir("d")
    kept = {f"keep{n}".encode() for n in range(300)}
    for name in kept:
        drive.fs.create(d, name, 0o644, ROOT)
    for n in range(300):
        drive.file(f"go{n}", parent=d)
    seen: list[bytes] = []
    cookie, n = 0, 0
    while page := [item for item, _ in zip(drive.fs.readdir(d, cookie), range(rng.randrange(1, 40)), strict=False)]:
        seen += [name for _, name, _ in page]
        assert len(seen) < 3000, "the listing does not end"
        cookie = page[-1][0]
        for _ in range(5):
            drive.file(f"new{n}", parent=d)
            if n < 300:
                drive.fs.unlink(d, f"go{n}".encode())
            n += 1
        if n % 40 == 0:
            drive.fs.commits.now()
    assert len(seen) == len(set(seen))
    assert kept <= set(seen)
    assert seen[:2] == [b".", b".."]


def test_cookies_fit_a_signed_64_bit_offset_and_rise(drive: Drive) -> None:
    for n in range(200):
        drive.file(f"f{n}")
    cookies = [cookie for cookie, _, _ in drive.fs.readdir(1)]
    assert cookies[:2] == [1, 2]
    assert all(a < b < 1 << 63 for a, b in itertools.pairwise(cookies))
    assert list(drive.fs.readdir(1, cookies[-1])) == []
    assert list(drive.fs.readdir(1, (1 << 63) - 1)) == []


def test_a_directory_of_200_000_entries(drive: Drive) -> None:
    d = drive.dir("d")
    for n in range(200_000):
        drive.fs.create(d, b"%d" % n, 0o644, ROOT)
        if n % 50_000 == 0:
            drive.fs.commits.now()
    drive.remount()
    assert drive.fs.lookup(d, b"199999").nlink == 1
    names = {name for _, name, _ in drive.fs.readdir(d)}
    assert len(names) == 200_002
    assert len(drive.fs.inodes._cache) < 30_000
    drive.fs.unlink(d, b"77")
    refuses(errno.ENOENT, drive.fs.lookup, d, b"77")
    refuses(errno.ENOTEMPTY, drive.fs.rmdir, 1, b"d")
