"""The same system calls on a mounted drive and on a plain directory: results, errors, attributes, contents are the same.

The drive is a real mount process; calls are made by root and by two other users. One drive serves all examples, each in
a directory of its own. What FUSE cannot carry is not called here: docs/posix.md has the list.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hands import UTIME_NOW, UTIME_OMIT, Other, Root
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from mount_tools import Mounted, mounted, open_to_others
from oracle import Oracle, coarse_ns

from hivefs.errors import MountBusy

IS_ROOT = os.geteuid() == 0
pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not IS_ROOT, reason="root (uid 0) is missing: the test becomes other users"),
]

MIB = 1 << 20
SLOTS = 4
NAMES = [b"a", b"b", b"c", b"d", b"\xff\x01 \n", b"n" * 255, b"n" * 256]
SHAPES = ["there"] * 6 + ["new"] * 4 + ["inside", "inside", "slash", "new slash", "dot", "dotdot", "longest", "too long"]
PATH_MAX = 4096

picks = st.integers(0, 40)
slots = st.integers(0, SLOTS - 1)
users = st.sampled_from([0, 0, 0, 1, 2])
places = st.tuples(picks, st.sampled_from(NAMES), st.sampled_from(SHAPES))
offsets = st.one_of(
    st.sampled_from([0, 1, 4095, 4096, 32 << 10, MIB - 1, MIB, MIB + 5, 2 * MIB, 5 * MIB // 2]), st.integers(0, 3 * MIB)
)
lengths = st.one_of(st.sampled_from([0, 1, 10, 4096, 40_000, MIB, MIB + 3]), st.integers(1, 100_000))
modes = st.one_of(
    st.sampled_from([0o644, 0o755, 0o777, 0o4755, 0o2755, 0o6777, 0o2766, 0o1777, 0o2777]), st.integers(0, 0o7777)
)
owners = st.sampled_from([-1, 0, 1000, 65534])
groups = st.sampled_from([-1, 0, 1000, 2000, 65534])
seconds = st.one_of(st.sampled_from([0, -1, 1 << 31, 1 - (1 << 31)]), st.integers(1 - (1 << 31), 1_000_000_000))
moments = st.one_of(
    st.tuples(seconds, st.integers(0, 999_999_999)),
    st.sampled_from([(0, UTIME_NOW), (0, UTIME_OMIT), (0, 1_000_000_000)]),
)
flags = st.tuples(
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR]),
    st.sampled_from([0, 0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
    st.sampled_from([0, 0, 0, os.O_TRUNC]),
    st.sampled_from([0, 0, 0, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW, os.O_SYNC, os.O_NOATIME]),
).map(sum)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
xattrs = st.sampled_from(
    [
        *[b"user.a", b"user.b", b"user." + b"x" * 250, b"user." + b"x" * 251, b"user.", b"trusted.t", b"trusted."],
        *[b"security.s", b"security.capability", b"system.s", b"other.o", b"other"],
    ]
)
kinds = st.sampled_from(
    [
        *[(stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFREG, 0), (0, 0), (stat.S_IFIFO, 259), (stat.S_IFDIR, 0)],
        *[(stat.S_IFCHR, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(259, 70_000)), (stat.S_IFLNK, 0)],
    ]
)


class Shared:
    """What all examples use: the drive, the plain directory beside it, the users, how much was done."""

    mounted: Mounted
    plain: Path
    users: list[Root | Other]
    examples = 0
    steps = 0


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    mask = os.umask(0o022)
    with open_to_others() as top, mounted(top, allow_other=True) as Shared.mounted:
        Shared.plain = top / "plain"
        Shared.plain.mkdir()
        for directory in (Shared.mounted.path, Shared.plain):
            directory.chmod(directory.stat().st_mode | 0o111)
        Shared.users = [Root(), Other(65534, 65534, ()), Other(1000, 1000, (65534, 2000))]
        yield
        for user in Shared.users:
            user.end()
        os.umask(mask)
        print(f"\n{Shared.steps} calls in {Shared.examples} examples")
        Shared.mounted.unmount()
        assert "ERROR" not in Shared.mounted.log() and "Traceback" not in Shared.mounted.log()


class Machine(RuleBasedStateMachine):
    """See the head of the file."""

    @initialize(mode=st.sampled_from([0o777, 0o1777, 0o2777]))
    def start(self, mode: int) -> None:
        Shared.examples += 1
        name = f"e{Shared.examples}"
        self.bases = (os.fsencode(Shared.mounted.path / name), os.fsencode(Shared.plain / name))
        for base in self.bases:
            os.mkdir(base)
        for user in Shared.users:
            user.begin(*self.bases)
        self.oracle = Oracle(*self.bases)
        self.seed = 0
        for base in self.bases:
            os.chown(base, 0, 2000)
            os.chmod(base, mode)
        self.both(0, "mkdir", b"a", 0o777)
        self.both(0, "chmod", b"a", 0o1777)
        for slot, who in enumerate((0, 1, 2)):
            self.both(who, "open", slot, b"f%d" % slot, os.O_CREAT | os.O_RDWR, 0o666)
        self.both(0, "chmod", b"f0", 0o6777)

    def teardown(self) -> None:
        if not hasattr(self, "oracle"):
            return
        try:
            for user in Shared.users:
                user.begin(*self.bases)
            since = coarse_ns()
            self.oracle.compare_contents()
            self.oracle.compare(since)
        finally:
            for base in self.bases:
                shutil.rmtree(base)

    # ---- both sides -------------------------------------------------------------------------------------------------

    def both(self, who: int, name: str, *args: Any) -> Any:
        Shared.steps += 1
        since = coarse_ns()
        mine, wanted = Shared.users[who].both(name, *args)
        self.oracle.doing = f"{name}{args}"[:200]
        assert mine == wanted, f"{self.oracle.doing}: {str(mine)[:200]} instead of {str(wanted)[:200]}"
        self.oracle.compare(since)
        return wanted

    def path(self, place: tuple[int, bytes, str]) -> bytes:
        number, name, shape = place
        paths, dirs = self.oracle.paths, self.oracle.dirs
        there = paths[number % len(paths)] if paths else name
        parent = dirs[number % len(dirs)]
        new = os.path.join(parent, name) if parent.count(b"/") < 2 else name
        if shape in ("longest", "too long"):
            room = PATH_MAX - (shape == "longest") - len(self.bases[0]) - 1 - len(there)
            return b"./" * (room // 2) + b"/" * (room % 2) + there
        return {
            "there": there,
            "new": new,
            "inside": there + b"/" + name,
            "slash": there + b"/",
            "new slash": new + b"/",
            "dot": there + b"/.",
            "dotdot": there + b"/..",
        }[shape]

    def data(self, length: int) -> bytes:
        self.seed = self.seed % 250 + 1
        return (bytes([self.seed]) * 61 + b"%05d" % length) * (length // 66 + 1)

    # ---- names ------------------------------------------------------------------------------------------------------

    @rule(who=users, place=places, slot=slots, how=flags, mode=modes)
    def open(self, who: int, place: tuple[int, bytes, str], slot: int, how: int, mode: int) -> None:
        self.both(who, "open", slot, self.path(place), how, mode)

    @rule(who=users, place=places, mode=modes)
    def mkdir(self, who: int, place: tuple[int, bytes, str], mode: int) -> None:
        self.both(who, "mkdir", self.path(place), mode)

    @rule(who=users, place=places, mode=modes, kind=kinds)
    def mknod(self, who: int, place: tuple[int, bytes, str], mode: int, kind: tuple[int, int]) -> None:
        self.both(who, "mknod", self.path(place), kind[0] | mode, kind[1])

    @rule(who=users, place=places, to=st.sampled_from([b"nowhere", b"a", b"b", b".", b"..", b"", b"x" * 4095, b"x" * 4096]))
    def symlink(self, who: int, place: tuple[int, bytes, str], to: bytes) -> None:
        self.both(who, "symlink", to, self.path(place))

    @rule(who=users, source=places, place=places, follow=st.booleans())
    def link(self, who: int, source: tuple[int, bytes, str], place: tuple[int, bytes, str], follow: bool) -> None:
        self.both(who, "link", self.path(source), self.path(place), follow)

    @rule(who=users, place=places)
    def unlink(self, who: int, place: tuple[int, bytes, str]) -> None:
        self.both(who, "unlink", self.path(place))

    @rule(who=users, place=places)
    def rmdir(self, who: int, place: tuple[int, bytes, str]) -> None:
        self.both(who, "rmdir", self.path(place))

    @rule(who=users, source=places, place=places, how=st.sampled_from([0, 0, 0, 0, 1, 2, 2, 3]))
    def rename(self, who: int, source: tuple[int, bytes, str], place: tuple[int, bytes, str], how: int) -> None:
        self.both(who, "rename", self.path(source), self.path(place), how)

    @rule(who=users, place=places, mode=st.integers(0, 7))
    def look(self, who: int, place: tuple[int, bytes, str], mode: int) -> None:
        path = self.path(place)
        for name in ("readlink", "listdir", "stat", "lstat", "ask"):
            self.both(who, name, path)
        self.both(who, "access", path, mode)

    # ---- attributes -------------------------------------------------------------------------------------------------

    @rule(who=users, place=places, mode=modes)
    def chmod(self, who: int, place: tuple[int, bytes, str], mode: int) -> None:
        self.both(who, "chmod", self.path(place), mode)

    @rule(who=users, place=places, uid=owners, gid=groups, follow=st.booleans())
    def chown(self, who: int, place: tuple[int, bytes, str], uid: int, gid: int, follow: bool) -> None:
        self.both(who, "chown", self.path(place), uid, gid, follow)

    @rule(who=users, place=places, atime=moments, mtime=moments, follow=st.booleans())
    def utimens(
        self, who: int, place: tuple[int, bytes, str], atime: tuple[int, int], mtime: tuple[int, int], follow: bool
    ) -> None:
        self.both(who, "utimens", self.path(place), atime, mtime, follow)

    @rule(who=users, slot=slots, mode=modes, uid=owners, gid=groups, atime=moments, mtime=moments, which=st.integers(0, 2))
    def change_open(self, who: int, slot: int, mode: int, uid: int, gid: int, atime: Any, mtime: Any, which: int) -> None:
        calls = (("fchmod", mode), ("fchown", uid, gid), ("futimens", atime, mtime))
        name, *args = calls[which]
        self.both(who, name, slot, *args)

    @rule(who=users, place=places, size=offsets)
    def truncate(self, who: int, place: tuple[int, bytes, str], size: int) -> None:
        path = self.path(place)
        try:
            same = os.stat(self.bases[1] + b"/" + path).st_size == size
        except OSError:
            same = False
        # The kernel shows no new times when the size stays (docs/posix.md).
        self.both(who, "truncate", path, size + same)

    @rule(
        who=users,
        place=places,
        name=xattrs,
        value=st.binary(max_size=60),
        how=st.sampled_from([0, 0, 1, 2]),
        follow=st.booleans(),
    )
    def setxattr(self, who: int, place: tuple[int, bytes, str], name: bytes, value: bytes, how: int, follow: bool) -> None:
        value = CAPABILITY if name == b"security.capability" else value
        if Shared.users[0].both("getxattr", self.path(place), name, follow)[1] == value:
            return  # the same again moves ctime here, not on ext4 (docs/posix.md)
        self.both(who, "setxattr", self.path(place), name, value, how, follow)

    @rule(who=users, place=places, name=xattrs, follow=st.booleans(), remove=st.booleans())
    def xattr(self, who: int, place: tuple[int, bytes, str], name: bytes, follow: bool, remove: bool) -> None:
        path = self.path(place)
        self.both(who, "getxattr", path, name, follow)
        self.both(who, "listxattr", path, follow)
        if remove:
            self.both(who, "removexattr", path, name, follow)

    # ---- open files -------------------------------------------------------------------------------------------------

    @rule(who=users, slot=slots, offset=offsets, length=lengths)
    def pwrite(self, who: int, slot: int, offset: int, length: int) -> None:
        self.both(who, "pwrite", slot, self.data(length)[:length], offset)

    @rule(who=users, slot=slots, offset=offsets, length=lengths)
    def pread(self, who: int, slot: int, offset: int, length: int) -> None:
        self.both(who, "pread", slot, length, offset)

    @rule(
        who=users,
        slot=slots,
        length=st.integers(0, 5000),
        offset=offsets,
        whence=st.sampled_from([0, 1, 2]),
        parts=st.booleans(),
    )
    def seek_and_write(self, who: int, slot: int, length: int, offset: int, whence: int, parts: bool) -> None:
        self.both(who, "lseek", slot, offset if whence == 0 else -offset % 5000 - 2500, whence)
        data = self.data(length)[:length]
        if parts:
            self.both(who, "writev", slot, [data[:10], data[10:]])
        else:
            self.both(who, "write", slot, data)
        self.both(who, "lseek", slot, 0, os.SEEK_CUR)

    @rule(who=users, slot=slots, length=st.integers(0, 5000))
    def read(self, who: int, slot: int, length: int) -> None:
        self.both(who, "read", slot, length)

    @rule(who=users, slot=slots, size=offsets)
    def ftruncate(self, who: int, slot: int, size: int) -> None:
        self.both(who, "ftruncate", slot, size)

    @rule(who=users, slot=slots, offset=offsets, length=st.integers(1, 5000), shared=st.booleans())
    def store(self, who: int, slot: int, offset: int, length: int, shared: bool) -> None:
        self.both(who, "store", slot, offset, self.data(length)[:length], shared)

    @rule(who=users, slot=slots, offset=offsets, length=lengths)
    def load(self, who: int, slot: int, offset: int, length: int) -> None:
        self.both(who, "load", slot, offset, length)

    @rule(who=users, slot=slots, to=slots, offset=offsets, place=offsets, length=lengths, send=st.booleans())
    def copy(self, who: int, slot: int, to: int, offset: int, place: int, length: int, send: bool) -> None:
        if send:
            self.both(who, "sendfile", slot, to, offset, min(length, 4096))
        else:
            self.both(who, "copy_range", slot, to, offset, place, length)

    @rule(who=users, slot=slots, kind=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]))
    def flock(self, who: int, slot: int, kind: int) -> None:
        self.both(who, "flock", slot, kind)

    @rule(
        who=users,
        slot=slots,
        kind=st.sampled_from([fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN]),
        start=st.integers(0, 20),
        length=st.integers(0, 20),
    )
    def lockf(self, who: int, slot: int, kind: int, start: int, length: int) -> None:
        self.both(who, "lockf", slot, kind, start, length)

    @rule(who=users, slot=slots)
    def fsync(self, who: int, slot: int) -> None:
        self.both(who, "fsync", slot)
        self.both(who, "fstat", slot)

    @rule(who=users, slot=slots)
    def close(self, who: int, slot: int) -> None:
        self.both(who, "close", slot)

    @rule(who=users, mask=st.sampled_from([0, 0o022, 0o077, 0o777]))
    def umask(self, who: int, mask: int) -> None:
        self.both(who, "umask", mask)

    # ---- what else happens ------------------------------------------------------------------------------------------

    @rule()
    def compare_contents(self) -> None:
        since = coarse_ns()
        self.oracle.compare_contents()
        self.oracle.compare(since)


class Remounting(Machine):
    """The same, and the drive is now and then unmounted and mounted again."""

    @rule(now=st.integers(0, 9))
    def remount(self, now: int) -> None:
        if now:
            return
        for user in Shared.users:
            user.begin(*self.bases)
        before = self.oracle.times()
        for patience in range(100):  # whoever looks at all mounts of this machine keeps ours busy for a moment
            try:
                Shared.mounted.unmount()
                break
            except MountBusy:
                assert patience < 99
                time.sleep(0.05)
        Shared.mounted.mount(allow_other=True)
        after = self.oracle.times()
        assert after == before, [(path, before[path], after[path]) for path in before if before[path] != after[path]]
        since = coarse_ns()
        self.oracle.compare_contents()
        self.oracle.compare(since)


_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class TestOracle(Machine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=_CHECKS)


@pytest.mark.slow
class TestOracleForLong(Remounting.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=2000, stateful_step_count=100, deadline=None, suppress_health_check=_CHECKS)
