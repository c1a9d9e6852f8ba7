"""A drive that comes back from the hive page by page: every call asks for what it misses before it changes anything."""

from __future__ import annotations

import errno
import random
import shutil
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from drive_tools import MIB, ROOT, Drive, MemoryChunks, pattern, run

from hivefs.errors import NotLoaded, PosixError

T = TypeVar("T")
Records = list[tuple[bytes, bytes]]


class Recovered(Drive):
    """A drive over the checkpoint of another one, of which nothing is loaded yet."""

    def __init__(self, path: Path, records: Records, chunks: MemoryChunks, page: int) -> None:
        self.records = records
        self.bounds = [b"", *(key for key, _ in records[page::page])]
        self.page = page
        self.loads: list[bytes] = []
        super().__init__(path)
        self.kill()
        shutil.rmtree(path)
        self.chunks = chunks
        self.mount(create=True, hydrating=True, device=2)

    def load(self, key: bytes) -> None:
        at = bisect_right(self.bounds, key) - 1
        low = self.bounds[at]
        high = self.bounds[at + 1] if at + 1 < len(self.bounds) else None
        self.loads.append(key)
        self.store.load_page(low, high, self.records[at * self.page : (at + 1) * self.page])

    def load_rest(self) -> None:
        while (gap := self.store.unloaded()) is not None:
            self.load(gap[0])

    def state(self) -> list[Any]:
        """All that a call could have changed."""
        return [
            self.store.pending,
            self.fs.inodes.pending,
            self.fs.overlay.bytes,
            len(self.fs.overlay),
            dict(self.fs.inodes.orphans),
            self.store.counts(),
            sorted((i, live.nlink, live.size, live.mtime_ns) for i, live in self.fs.inodes._cache.items()),
        ]

    def call(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call again and again, loading what is missing; nothing may have changed when something was."""
        for _ in range(100):
            before = self.state()
            known = set(self.fs.inodes._cache)
            try:
                return function(*args, **options)
            except NotLoaded as missing:
                after = self.state()
                after[-1] = [row for row in after[-1] if row[0] in known]
                assert after == before
                self.load(missing.key)
        raise AssertionError("it asks for ever more")

    def find(self, path: str) -> int:
        ino = 1
        for part in filter(None, path.encode().split(b"/")):
            ino = self.call(self.fs.lookup, ino, part).ino
        return ino

    def listing(self, ino: int) -> list[bytes]:
        return sorted(name for _, name, _ in self.call(lambda: list(self.fs.readdir(ino))))


def original(tmp_path: Path) -> tuple[Drive, Records]:
    """A drive with something of everything, and its checkpoint."""
    drive = Drive(tmp_path / "original")
    a = drive.dir("a")
    for n in range(40):
        drive.file(f"f{n}", pattern(1000, n), parent=a)
    big = drive.file("big", pattern(5 * MIB))
    drive.fs.setattr(big, size=20 * MIB)
    drive.fs.write(big, 20 * MIB, b"end")
    drive.fs.setxattr(big, b"user.a", b"value")
    drive.fs.link(drive.at("a/f0").ino, 1, b"hard")
    b = drive.dir("b", a)
    drive.fs.symlink(b, b"link", b"../f1", ROOT)
    drive.place()
    lost = drive.file("lost", pattern(3 * MIB))
    drive.place(only=lambda work: work.ino == lost and work.slot != 1)
    drive.file("never", b"placed")
    drive.fs.commits.now()
    snapshot = drive.snapshot()
    records = [(key, value) for key, value in snapshot.scan(b"") if value is not None]
    snapshot.close()
    return drive, records


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_everything_is_there_again(tmp_path: Path, page: int) -> None:
    source, records = original(tmp_path)
    drive = Recovered(tmp_path / "again", records, source.chunks, page)
    assert drive.listing(1) == [b".", b"..", b"a", b"big", b"hard", b"lost", b"never"]
    for n in range(40):
        assert drive.call(drive.fs.read_now, drive.find(f"a/f{n}"), 0, MIB) == pattern(1000, n)
    big = drive.find("big")
    assert drive.call(drive.fs.getattr, big).size == 20 * MIB + 3
    assert drive.call(drive.fs.read_now, big, 5 * MIB - 10, 20) == pattern(5 * MIB)[-10:] + bytes(10)
    assert drive.call(drive.fs.read_now, big, 20 * MIB - 2, 100) == bytes(2) + b"end"
    assert drive.call(drive.fs.getxattr, big, b"user.a") == b"value"
    assert drive.call(drive.fs.readlink, drive.find("a/b/link")) == b"../f1"
    if page == 1:
        assert drive.store.hydrating
    drive.load_rest()
    assert not drive.store.hydrating
    drive.remount()
    assert drive.check() == []
    assert drive.names(drive.at("a").ino) == source.names(source.at("a").ino)
    assert drive.store.inodes == source.store.inodes


def test_what_was_never_placed_is_an_error_after_the_recovery(tmp_path: Path) -> None:
    source, records = original(tmp_path)
    drive = Recovered(tmp_path / "again", records, source.chunks, 5)
    lost = drive.find("lost")
    assert drive.call(drive.fs.read_now, lost, 0, MIB) == pattern(3 * MIB)[:MIB]
    for offset, ino in ((MIB, lost), (2 * MIB - 1, lost), (0, drive.find("never"))):
        with pytest.raises(PosixError) as caught:
            drive.call(drive.fs.read_now, ino, offset, 10)
        assert caught.value.errno == errno.EIO
    assert drive.call(drive.fs.read_now, lost, 2 * MIB, MIB) == pattern(3 * MIB)[2 * MIB :]


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_changes_before_everything_is_here(tmp_path: Path, page: int) -> None:
    source, records = original(tmp_path)
    drive = Recovered(tmp_path / "again", records, source.chunks, page)
    fs = drive.fs
    a, big = drive.find("a"), drive.find("big")
    drive.call(fs.unlink, a, b"f1")
    drive.call(fs.rename, a, b"f2", 1, b"f3")
    drive.call(fs.rename, a, b"f4", a, b"f5")
    drive.call(fs.rename, 1, b"never", a, b"b-x", 1)
    drive.call(fs.write, big, 4 * MIB + 5, b"changed")
    drive.call(fs.write, big, 10 * MIB, b"in the hole")
    drive.call(fs.setattr, big, size=12 * MIB)
    drive.call(fs.setattr, big, size=13 * MIB)
    drive.call(fs.setxattr, big, b"user.b", b"2")
    drive.call(fs.removexattr, big, b"user.a")
    new = drive.call(fs.create, a, b"new", 0o644, ROOT).ino
    assert new >> 40 == 2
    drive.call(fs.write, new, 0, b"fresh")
    with pytest.raises(PosixError):
        drive.call(fs.rmdir, 1, b"a")
    drive.call(fs.link, new, 1, b"also new")
    drive.call(fs.unlink, 1, b"hard")
    drive.publish()
    drive.remount()
    fs = drive.fs
    drive.load_rest()
    drive.reap()
    fs.commits.now()
    assert drive.check() == []
    wanted = bytearray(13 * MIB)
    wanted[: 5 * MIB] = pattern(5 * MIB)
    wanted[4 * MIB + 5 : 4 * MIB + 12] = b"changed"
    wanted[10 * MIB : 10 * MIB + 11] = b"in the hole"
    assert drive.read(big) == wanted
    names = {b"b", b"b-x", b"new", *(b"f%d" % n for n in range(40) if n not in (1, 2, 4))}
    assert drive.names(a) == sorted(names)
    assert drive.read(drive.at("f3").ino) == pattern(1000, 2)
    assert drive.read(drive.at("a/f5").ino) == pattern(1000, 4)
    assert drive.fs.listxattr(big) == [b"user.b"]


def test_a_removed_file_whose_map_is_not_here_is_reaped_later(tmp_path: Path) -> None:
    source, records = original(tmp_path)
    drive = Recovered(tmp_path / "again", records, source.chunks, 1)
    big = drive.find("big")
    drive.call(drive.fs.unlink, 1, b"big")
    drive.reap()
    assert big in drive.fs.inodes.orphans
    drive.load_rest()
    drive.reap()
    drive.fs.commits.now()
    assert drive.check() == []
    assert len(run(drive.service.released, 0, 100)) == 6


def test_files_without_a_name_in_the_checkpoint_are_reaped(tmp_path: Path) -> None:
    source = Drive(tmp_path / "original")
    f = source.file("f", pattern(MIB))
    source.place()
    source.fs.open(f)
    source.fs.unlink(1, b"f")
    source.fs.commits.now()
    snapshot = source.snapshot()
    records = [(key, value) for key, value in snapshot.scan(b"") if value is not None]
    snapshot.close()
    drive = Recovered(tmp_path / "again", records, source.chunks, 1)
    drive.load_rest()
    drive.remount()
    drive.reap()
    drive.fs.commits.now()
    assert drive.check() == []
    assert drive.store.inodes == 1
    assert len(run(drive.service.released, 0, 10)) == 1


def directories(drive: Drive, ino: int = 1, below: str = "") -> list[str]:
    """Paths of all directories but the root."""
    found = []
    for _, name, inode in list(drive.fs.readdir(ino, 2)):
        if inode.mode >> 12 == 4:
            found += [below + name.decode(), *directories(drive, inode.ino, f"{below}{name.decode()}/")]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_random_work_while_pages_come_in_any_order(tmp_path: Path, seed: int) -> None:
    """The same steps on the original and on the recovered drive end the same."""
    rng = random.Random(seed)
    source, records = original(tmp_path)
    drive = Recovered(tmp_path / "again", records, source.chunks, rng.choice([1, 2, 5, 20]))
    skip = {b"lost", b"never"}  # parts of these are lost
    for step in range(60):
        directory = rng.choice(["", *directories(source)])
        names = [name for name in source.names(source.at(directory).ino) if name not in skip]
        name = rng.choice(names) if names and rng.random() < 0.8 else b"n%d" % step
        other = rng.choice(names) if names and rng.random() < 0.5 else b"o%d" % step
        action, offset = rng.randrange(7), rng.choice([0, 5, MIB - 3, 7 * MIB, 20 * MIB])

        def work(
            target: Drive,
            action: int = action,
            directory: str = directory,
            name: bytes = name,
            other: bytes = other,
            offset: int = offset,
            step: int = step,
        ) -> Any:
            call = target.call if isinstance(target, Recovered) else lambda function, *a, **o: function(*a, **o)
            try:
                parent = target.find(directory) if isinstance(target, Recovered) else target.at(directory).ino
                if action == 0:
                    return call(target.fs.create, parent, name, 0o644, ROOT).size
                if action == 1:
                    return call(target.fs.unlink, parent, name)
                if action == 2:
                    return call(target.fs.rename, parent, name, parent, other)
                if action == 3:
                    return call(target.fs.rename, parent, name, 1, other, 1)
                ino = call(target.fs.lookup, parent, name).ino
                if action == 4:
                    return call(target.fs.write, ino, offset, pattern(100, step))
                if action == 5:
                    return call(target.fs.setattr, ino, size=offset).size
                return call(target.fs.read_now, ino, offset, 3 * MIB)
            except PosixError as error:
                return errno.errorcode[error.errno]

        if rng.random() < 0.3 and drive.store.hydrating:
            drive.load(rng.choice(drive.bounds))
        assert work(drive) == work(source)
        if rng.random() < 0.1:
            drive.place()
            drive.publish()
            source.place()
        if rng.random() < 0.1:
            drive.remount()
    drive.load_rest()
    drive.reap()
    drive.fs.commits.now()
    assert drive.check() == []

    def tree(target: Drive, ino: int = 1) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for _, name, inode in list(target.fs.readdir(ino, 2)):
            if inode.mode >> 12 == 4:
                found[name] = tree(target, inode.ino)
            elif inode.mode >> 12 == 8 and name not in skip:
                found[name] = target.read(inode.ino)
        return found

    assert tree(drive) == tree(source)


def test_acls_are_brought_before_anything_is_changed(tmp_path: Path) -> None:
    """chmod and creating depend on ACLs that may not be here yet."""
    minimal = b"\2\0\0\0" + b"".join(tag + b"\0\7\0\xff\xff\xff\xff" for tag in (b"\1", b"\4", b"\x20"))
    named = minimal[:12] + b"\2\0\6\0\xe8\3\0\0" + minimal[12:20] + b"\x10\0\7\0\xff\xff\xff\xff" + minimal[20:]
    source, _ = original(tmp_path)
    for name in ("a", "big"):
        source.fs.setxattr(source.at(name).ino, b"system.posix_acl_access", named)
    source.fs.setxattr(source.at("a").ino, b"system.posix_acl_default", named)
    source.fs.commits.now()
    snapshot = source.snapshot()
    records = [(key, value) for key, value in snapshot.scan(b"") if value is not None]
    snapshot.close()
    drive = Recovered(tmp_path / "again", records, source.chunks, 1)
    new = drive.call(drive.fs.create, drive.find("a"), b"new", 0o640, ROOT)
    assert new.mode & 0o777 == 0o640
    assert drive.call(drive.fs.getxattr, new.ino, b"system.posix_acl_access")[14] == 6
    drive.call(drive.fs.setattr, drive.find("big"), mode=0o700)
    assert drive.call(drive.fs.getxattr, drive.find("big"), b"system.posix_acl_access")[30] == 0
    drive.call(drive.fs.setxattr, drive.find("never"), b"system.posix_acl_access", named)
    drive.call(drive.fs.removexattr, drive.find("a"), b"system.posix_acl_default")
    assert drive.call(drive.fs.create, drive.find("a"), b"plain", 0o666, ROOT).mode & 0o777 == 0o666
    drive.load_rest()
    drive.remount()
    assert drive.check() == []
