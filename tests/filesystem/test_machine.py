"""The same operations on the drive and on a plain directory: results, errors, attributes and contents must be the same.

Between them the drive places slots, loses released chunks, is committed, unmounted and mounted, or killed after a commit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive_tools import MIB, ROOT, Drive, pattern, run
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hivefs.errors import PosixError
from hivefs.filesystem import overlay
from hivefs.filesystem.ports import Caller

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
IS_ROOT = os.geteuid() == 0
FAKE_NS = 10**18
"""Times that the test sets are before 2001; everything else is now."""

NAMES = [b"a", b"b", b"c", b"\xff\x01 \n", b"n" * 255, b"n" * 256]
names = st.sampled_from(NAMES)
picks = st.integers(0, 30)
offsets = st.one_of(
    st.sampled_from([0, 1, 4095, 32 << 10, MIB - 1, MIB, MIB + 5, 2 * MIB, 5 * MIB // 2]), st.integers(0, 3 * MIB)
)
lengths = st.one_of(st.sampled_from([1, 10, 4096, 40_000, MIB, MIB + 3]), st.integers(1, 100_000))
modes = st.integers(0, 0o777)
times = st.integers(0, FAKE_NS - 1)
xattr_names = st.sampled_from([b"user.a", b"user.b", b"user." + b"x" * 100])


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PosixError as error:
        return ("errno", errno.errorcode[error.errno])
    except OSError as error:
        return ("errno", errno.errorcode[error.errno or 0])


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags):
        raise OSError(ctypes.get_errno(), "renameat2")


class Machine(RuleBasedStateMachine):
    """``self.dirs`` and ``self.paths`` are what the plain directory holds, relative, as bytes."""

    @initialize()
    def start(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="hivefs-machine-"))
        self.plain = os.fsencode(self.base / "plain")
        os.mkdir(self.plain)
        self.stamped, overlay.STAMPED = overlay.STAMPED, 2  # most staged slots are cold
        self.drive = Drive(self.base / "drive", slice_records=2)
        self.handles: list[tuple[int, int]] = []
        for name in (b"a", b"b"):
            ino = self.drive.fs.create(1, name, 0o644, ROOT).ino
            self.drive.fs.open(ino)
            self.handles.append((ino, os.open(self.there(name), os.O_CREAT | os.O_RDWR, 0o644)))
        self.seed = 0
        self.same_directory_links = os.stat(self.plain).st_nlink == 2
        self.look()

    def teardown(self) -> None:
        if not hasattr(self, "drive"):
            return
        overlay.STAMPED = self.stamped
        try:
            self.close_all()
            self.drive.reap()
            self.drive.fs.commits.now()
            self.compare_all()
            assert self.drive.check() == []
            self.drive.forget_released()
            assert self.drive.chunks.plain.keys() == self.drive.named_chunks(), "a chunk was released too early or never"
            self.drive.remount()
            self.compare_all()
            self.drive.unmount()
        finally:
            for _, fd in self.handles:
                os.close(fd)
            shutil.rmtree(self.base)

    # ---- both sides -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        self.dirs, self.paths = [b""], []
        for at, below, files in os.walk(self.plain):
            here = at[len(self.plain) + 1 :]
            self.dirs += [os.path.join(here, name) for name in below if not os.path.islink(os.path.join(at, name))]
            self.paths += [os.path.join(here, name) for name in below + files]
        self.dirs.sort()
        self.paths.sort()

    def resolve(self, path: bytes) -> int:
        ino = 1
        for part in path.split(b"/"):
            if part:
                ino = self.drive.fs.lookup(ino, part).ino
        return ino

    def there(self, path: bytes) -> bytes:
        return os.path.join(self.plain, path)

    def pick(self, number: int) -> bytes:
        return self.paths[number % len(self.paths)]

    def target(self, number: int, name: bytes) -> bytes:
        """A path that may exist: mostly inside a directory, sometimes inside something else."""
        others = [path for path in self.paths if not os.path.islink(self.there(path))]
        inside = others if others and number % 7 == 6 else self.dirs
        parent = inside[number % len(inside)]
        return os.path.join(parent, name) if parent.count(b"/") < 3 else os.path.join(self.dirs[0], name)

    def both(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> Any:
        mine, wanted = outcome(ours), outcome(theirs)
        assert mine == wanted, f"{mine} instead of {wanted}"
        self.look()
        return wanted

    def split(self, path: bytes) -> tuple[int, bytes]:
        parent, name = os.path.split(path)
        return self.resolve(parent), name

    # ---- names ------------------------------------------------------------------------------------------------------

    @rule(at=picks, name=names, mode=modes)
    def create(self, at: int, name: bytes, mode: int) -> None:
        path = self.target(at, name)

        def theirs() -> None:
            os.close(os.open(self.there(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            os.chmod(self.there(path), mode)

        self.both(lambda: self.drive.fs.create(*self.split(path), mode, ROOT) and None, theirs)

    @rule(at=picks, name=names)
    def mkdir(self, at: int, name: bytes) -> None:
        path = self.target(at, name)
        self.both(
            lambda: self.drive.fs.mkdir(*self.split(path), 0o755, Caller(0, 0, 0o022)) and None,
            lambda: os.mkdir(self.there(path), 0o755),
        )

    @rule(at=picks, name=names)
    def mkfifo(self, at: int, name: bytes) -> None:
        path = self.target(at, name)
        self.both(
            lambda: self.drive.fs.mknod(*self.split(path), stat.S_IFIFO | 0o600, 0, ROOT) and None,
            lambda: os.mkfifo(self.there(path), 0o600),
        )

    @rule(at=picks, name=names, to=st.sampled_from([b"nowhere", b"a", b"x" * 4095, b"x" * 4096]))
    def symlink(self, at: int, name: bytes, to: bytes) -> None:
        path = self.target(at, name)
        self.both(
            lambda: self.drive.fs.symlink(*self.split(path), to, ROOT) and None,
            lambda: os.symlink(to, self.there(path)),
        )

    @precondition(lambda self: self.paths)
    @rule(source=picks, at=picks, name=names)
    def link(self, source: int, at: int, name: bytes) -> None:
        old, new = self.pick(source), self.target(at, name)
        self.both(
            lambda: self.drive.fs.link(self.resolve(old), *self.split(new)) and None,
            lambda: os.link(self.there(old), self.there(new), follow_symlinks=False),
        )

    @precondition(lambda self: self.paths)
    @rule(at=picks)
    def unlink(self, at: int) -> None:
        path = self.pick(at)

        def ours() -> None:
            self.drive.fs.unlink(*self.split(path))  # it says how many names are left

        self.both(ours, lambda: os.unlink(self.there(path)))

    @precondition(lambda self: self.paths)
    @rule(at=picks)
    def rmdir(self, at: int) -> None:
        path = self.pick(at)
        self.both(lambda: self.drive.fs.rmdir(*self.split(path)), lambda: os.rmdir(self.there(path)))

    @precondition(lambda self: self.paths)
    @rule(source=picks, at=picks, name=names, onto=st.booleans(), flags=st.sampled_from([0, 0, 0, 1, 2, 2]))
    def rename(self, source: int, at: int, name: bytes, onto: bool, flags: int) -> None:
        old = self.pick(source)
        new = self.pick(at) if onto else self.target(at, name)

        def ours() -> None:
            parent, old_name = self.split(old)
            self.drive.fs.rename(parent, old_name, *self.split(new), flags)

        self.both(ours, lambda: renameat2(self.there(old), self.there(new), flags))

    # ---- attributes -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.paths)
    @rule(at=picks, mode=modes)
    def chmod(self, at: int, mode: int) -> None:
        path = self.pick(at)
        if os.path.islink(self.there(path)):
            return
        self.both(
            lambda: self.drive.fs.setattr(self.resolve(path), mode=mode) and None,
            lambda: os.chmod(self.there(path), mode),
        )

    @precondition(lambda self: IS_ROOT and self.paths)
    @rule(at=picks, uid=st.integers(0, 2), gid=st.integers(0, 2))
    def chown(self, at: int, uid: int, gid: int) -> None:
        path = self.pick(at)
        self.both(
            lambda: self.drive.fs.setattr(self.resolve(path), uid=uid, gid=gid) and None,
            lambda: os.chown(self.there(path), uid, gid, follow_symlinks=False),
        )

    @precondition(lambda self: self.paths)
    @rule(at=picks, atime=times, mtime=times)
    def utimens(self, at: int, atime: int, mtime: int) -> None:
        path = self.pick(at)
        self.both(
            lambda: self.drive.fs.setattr(self.resolve(path), atime_ns=atime, mtime_ns=mtime) and None,
            lambda: os.utime(self.there(path), ns=(atime, mtime), follow_symlinks=False),
        )
        assert self.drive.fs.getattr(self.resolve(path)).atime_ns == atime

    @precondition(lambda self: self.paths)
    @rule(at=picks, name=xattr_names, value=st.binary(max_size=200), flags=st.sampled_from([0, 0, 1, 2]))
    def setxattr(self, at: int, name: bytes, value: bytes, flags: int) -> None:
        path = self.pick(at)
        self.both(
            lambda: self.drive.fs.setxattr(self.resolve(path), name, value, flags),
            lambda: os.setxattr(self.there(path), name, value, flags, follow_symlinks=False),
        )

    @precondition(lambda self: self.paths)
    @rule(at=picks, name=xattr_names)
    def removexattr(self, at: int, name: bytes) -> None:
        path = self.pick(at)
        if os.path.islink(self.there(path)) or not os.path.isfile(self.there(path)):
            return
        self.both(
            lambda: self.drive.fs.removexattr(self.resolve(path), name),
            lambda: os.removexattr(self.there(path), name, follow_symlinks=False),
        )

    # ---- data -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.paths)
    @rule(at=picks, truncate=st.booleans())
    def open(self, at: int, truncate: bool) -> None:
        path = self.pick(at)
        if not stat.S_ISREG(os.lstat(self.there(path)).st_mode) or len(self.handles) > 5:
            return
        flags = os.O_RDWR | (os.O_TRUNC if truncate else 0)
        self.handles.append((self.resolve(path), os.open(self.there(path), flags)))
        self.drive.fs.open(self.handles[-1][0], flags)

    @precondition(lambda self: self.handles)
    @rule(at=picks)
    def close(self, at: int) -> None:
        ino, fd = self.handles.pop(at % len(self.handles))
        os.close(fd)
        self.drive.fs.release(ino)

    @precondition(lambda self: self.handles)
    @rule(at=picks, offset=offsets, length=lengths)
    def write(self, at: int, offset: int, length: int) -> None:
        ino, fd = self.handles[at % len(self.handles)]
        self.seed += 1
        data = pattern(length, self.seed)
        self.both(lambda: self.drive.fs.write(ino, offset, data), lambda: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.handles)
    @rule(at=picks, size=offsets)
    def truncate(self, at: int, size: int) -> None:
        ino, fd = self.handles[at % len(self.handles)]
        self.both(lambda: self.drive.fs.setattr(ino, size=size) and None, lambda: os.ftruncate(fd, size))

    @precondition(lambda self: self.handles)
    @rule(at=picks, offset=offsets, length=lengths)
    def read(self, at: int, offset: int, length: int) -> None:
        ino, fd = self.handles[at % len(self.handles)]
        assert self.drive.read(ino, offset, length) == os.pread(fd, length, offset)

    @precondition(lambda self: self.handles)
    @rule(at=picks)
    def compare_open(self, at: int) -> None:
        ino, fd = self.handles[at % len(self.handles)]
        assert self.drive.read(ino) == os.pread(fd, 1 << 24, 0)
        assert self.drive.fs.getattr(ino).nlink == os.fstat(fd).st_nlink

    # ---- what else happens ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.handles)
    @rule(at=picks, fill=st.booleans(), cut=offsets, grow=offsets, release=st.booleans())
    def place_cut_and_grow(self, at: int, fill: bool, cut: int, grow: int, release: bool) -> None:
        """What was cut off must not come back, neither from the stage nor from a chunk."""
        ino, fd = self.handles[at % len(self.handles)]
        if fill:
            self.seed += 1
            data = pattern(5 * MIB, self.seed)
            assert self.drive.fs.write(ino, 0, data) == os.pwrite(fd, data, 0)
        self.drive.place()
        for size in (cut, grow):
            self.drive.fs.setattr(ino, size=size)
            os.ftruncate(fd, size)
            if release:
                self.drive.reap()
                run(self.drive.fs.syncfs)
                self.drive.forget_released()
        assert self.drive.read(ino) == os.pread(fd, 1 << 24, 0)

    @rule(which=st.integers(0, 3), remote=st.booleans())
    def place(self, which: int, remote: bool) -> None:
        self.drive.place(only=lambda work: which == 3 or (work.ino + work.slot) % 3 == which)
        self.drive.chunks.remote = remote

    @precondition(lambda self: self.handles)
    @rule(at=picks, offset=offsets)
    def write_while_placing(self, at: int, offset: int) -> None:
        ino, fd = self.handles[at % len(self.handles)]
        work = run(self.drive.service.dirty, 100, 0, [])
        results = [(w.ino, w.slot, w.generation, self.drive.chunks.put(self.drive.plain(w))) for w in work]
        self.seed += 1
        data = pattern(5000, self.seed)
        assert self.drive.fs.write(ino, offset, data) == os.pwrite(fd, data, offset)
        hit = {(ino, offset // MIB), (ino, (offset + len(data) - 1) // MIB)}
        taken = run(self.drive.service.placed, results)
        for good, (owner, slot, _, ref) in zip(taken, results, strict=True):
            assert not (good and (owner, slot) in hit)
            if not good:
                del self.drive.chunks.plain[ref.chunk_id]

    @rule()
    def fsync(self) -> None:
        run(self.drive.fs.fsync, self.handles[0][0] if self.handles else 1)

    @rule()
    def forget_released(self) -> None:
        self.drive.forget_released()

    @rule()
    def publish(self) -> None:
        self.drive.publish()

    @rule(kill=st.booleans())
    def remount(self, kill: bool) -> None:
        if kill:
            run(self.drive.fs.syncfs)
            self.drive.kill()
            for _, fd in self.handles:
                os.close(fd)
            self.handles.clear()
            self.drive.mount()
        else:
            self.close_all()
            self.drive.remount()

    @rule()
    def check(self) -> None:
        run(self.drive.fs.syncfs)
        assert self.drive.check() == []

    def close_all(self) -> None:
        while self.handles:
            self.close(0)

    # ---- comparing --------------------------------------------------------------------------------------------------

    @invariant()
    def same_attributes(self) -> None:
        if hasattr(self, "drive"):
            for path in self.paths[:6]:
                self.compare_attributes(path)

    def compare_attributes(self, path: bytes) -> None:
        mine, wanted = self.drive.fs.getattr(self.resolve(path)), os.lstat(self.there(path))
        assert mine.mode == wanted.st_mode
        if IS_ROOT:
            assert (mine.uid, mine.gid) == (wanted.st_uid, wanted.st_gid)
        if stat.S_ISDIR(mine.mode):
            assert not self.same_directory_links or mine.nlink == wanted.st_nlink
        else:
            assert (mine.nlink, mine.size) == (wanted.st_nlink, wanted.st_size)
        times = (mine.mtime_ns, wanted.st_mtime_ns)
        assert times[0] == times[1] or min(times) >= FAKE_NS, times

    def compare_all(self) -> None:
        for path in self.dirs:
            assert self.drive.names(self.resolve(path)) == sorted(os.listdir(self.there(path)))
            assert self.paged_names(self.resolve(path)) == sorted([*os.listdir(self.there(path)), b".", b".."])
        for path in self.paths:
            self.compare_attributes(path)
            ino, there = self.resolve(path), self.there(path)
            if os.path.islink(there):
                assert self.drive.fs.readlink(ino) == os.readlink(there)
                continue
            if os.path.isfile(there):
                assert self.drive.read(ino) == Path(os.fsdecode(there)).read_bytes(), path
            if os.path.isfile(there) or os.path.isdir(there):
                named = sorted(os.fsencode(name) for name in os.listxattr(there) if name.startswith("user."))
                assert sorted(self.drive.fs.listxattr(ino)) == named
                for name in named:
                    assert self.drive.fs.getxattr(ino, name) == os.getxattr(there, name)

    def paged_names(self, ino: int) -> list[bytes]:
        """The listing as the kernel asks for it, two names at a time."""
        found: list[bytes] = []
        cookie = 0
        while len(found) < 1000:
            page = [item for item, _ in zip(self.drive.fs.readdir(ino, cookie), range(2), strict=False)]
            if not page:
                return sorted(found)
            found += [name for _, name, _ in page]
            cookie = page[-1][0]
        raise AssertionError("the listing does not end")


def xattrs_there() -> bool:
    with tempfile.NamedTemporaryFile() as file:
        try:
            os.setxattr(file.name, "user.test", b"")
        except OSError:
            return False
    return True


if not xattrs_there():  # the directory for temporary files cannot hold them: nothing to compare with
    del Machine.setxattr, Machine.removexattr

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class TestMachine(Machine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=_CHECKS)


@pytest.mark.slow
class TestMachineForLong(Machine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=800, stateful_step_count=80, deadline=None, suppress_health_check=_CHECKS)
