"""POSIX ACLs: their binary form, what they mean for the mode, and how the drive keeps both in step."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drive_tools import ROOT, Drive, refuses
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hivefs.errors import PosixError
from hivefs.filesystem import acl
from hivefs.filesystem.acl import ACCESS, DEFAULT, GROUP, GROUP_OWNER, MASK, OTHER, OWNER, USER, Acl, Entry, parse
from hivefs.filesystem.ports import Caller


def form(*entries: tuple[int, int] | tuple[int, int, int], version: int = 2) -> bytes:
    """The binary form, written here a second time."""
    head = struct.pack("<I", version)
    return head + b"".join(struct.pack("<HHI", e[0], e[1], e[2] if len(e) > 2 else 0xFFFFFFFF) for e in entries)


def minimal(mode: int) -> bytes:
    return form((OWNER, mode >> 6), (GROUP_OWNER, mode >> 3 & 7), (OTHER, mode & 7))


NAMED = form((OWNER, 7), (USER, 6, 1000), (USER, 7, 1001), (GROUP_OWNER, 5), (GROUP, 4, 50), (MASK, 6), (OTHER, 1))


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def stored(drive: Drive, ino: int, name: bytes) -> bytes | None:
    try:
        return drive.fs.getxattr(ino, name)
    except PosixError as problem:
        assert problem.errno == errno.ENODATA
        return None


def made(wanted: bytes) -> Acl:
    found = parse(wanted)
    assert found is not None
    return found


# ---- the form -----------------------------------------------------------------------------------------------------------


def test_worked_bytes() -> None:
    """As setfacl -m u:1000:rw makes it of mode 0640 (getfattr -e hex on ext4)."""
    text = "02000000 01000600ffffffff 02000600e8030000 04000400ffffffff 10000600ffffffff 20000000ffffffff"
    found = made(bytes.fromhex(text))
    assert found.entries == (Entry(OWNER, 6), Entry(USER, 6, 1000), Entry(GROUP_OWNER, 4), Entry(MASK, 6), Entry(OTHER, 0))
    assert found.to_bytes() == bytes.fromhex(text)
    assert found.mode == 0o660
    assert not found.minimal


def test_ids_of_entries_without_a_name_do_not_matter() -> None:
    assert made(form((OWNER, 7, 5), (GROUP_OWNER, 5, 0), (OTHER, 0, 9))).to_bytes() == minimal(0o750)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x02\0\0",
        NAMED[:-1],
        NAMED + b"\0",
        form((OWNER, 7), (GROUP_OWNER, 5)),
        form((OWNER, 7), (OTHER, 5)),
        form((GROUP_OWNER, 7), (OTHER, 5)),
        form((OWNER, 7), (GROUP_OWNER, 5), (OTHER, 0), (OTHER, 0)),
        form((OWNER, 7), (OWNER, 7), (GROUP_OWNER, 5), (OTHER, 0)),
        form((OWNER, 7), (OTHER, 5), (GROUP_OWNER, 0)),
        form((OWNER, 8), (GROUP_OWNER, 5), (OTHER, 0)),
        form((OWNER, 7), (GROUP_OWNER, 5), (OTHER, 0xFFFF)),
        form((OWNER, 7), (GROUP_OWNER, 5), (OTHER, 0), (0x40, 0)),
        form((OWNER, 7), (3, 0), (GROUP_OWNER, 5), (OTHER, 0)),
        form((OWNER, 7), (USER, 4, 1), (GROUP_OWNER, 5), (OTHER, 0)),
        form((OWNER, 7), (GROUP_OWNER, 5), (GROUP, 4, 1), (OTHER, 0)),
        form((OWNER, 7), (USER, 4), (GROUP_OWNER, 5), (MASK, 7), (OTHER, 0)),
        form((OWNER, 7), (GROUP_OWNER, 5), (GROUP, 4, 1), (MASK, 7), (MASK, 7), (OTHER, 0)),
    ],
)
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    refuses(errno.EINVAL, parse, value)


def test_other_versions_are_not_understood_and_nothing_is_no_acl() -> None:
    refuses(errno.EOPNOTSUPP, parse, form((OWNER, 7), version=3))
    assert parse(form()) is None


@given(st.binary(max_size=80))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for value in (data, struct.pack("<I", 2) + data[: len(data) // 8 * 8]):
        try:
            found = parse(value)
        except PosixError:
            continue
        assert found is None or parse(found.to_bytes()) == found


# ---- modes --------------------------------------------------------------------------------------------------------------


def test_a_minimal_acl_is_its_mode_and_follows_it() -> None:
    for mode in range(0o1000):
        found = made(minimal(mode))
        assert found.minimal
        assert found.mode == mode
        assert made(minimal(0o777)).after_chmod(mode) == found


def test_the_group_bits_are_the_mask_and_chmod_leaves_names_alone() -> None:
    found = made(NAMED)
    assert found.mode == 0o761
    assert found.after_chmod(0o7640).to_bytes() == form(
        (OWNER, 6), (USER, 6, 1000), (USER, 7, 1001), (GROUP_OWNER, 5), (GROUP, 4, 50), (MASK, 4), (OTHER, 0)
    )
    masked = made(form((OWNER, 7), (GROUP_OWNER, 5), (MASK, 4), (OTHER, 0)))
    assert not masked.minimal, "a mask says more than permission bits do"
    assert masked.after_chmod(0o777).entries[1] == Entry(GROUP_OWNER, 5)


def test_what_is_inherited_grants_what_both_grant() -> None:
    for default, mode in itertools.product((0o777, 0o750, 0o027), (0o777, 0o666, 0o604)):
        assert made(minimal(default)).inherited(mode) == made(minimal(default & mode))
    assert made(NAMED).inherited(0o666).to_bytes() == form(
        (OWNER, 6), (USER, 6, 1000), (USER, 7, 1001), (GROUP_OWNER, 5), (GROUP, 4, 50), (MASK, 6), (OTHER, 0)
    )


# ---- on the drive -------------------------------------------------------------------------------------------------------


def test_an_access_acl_sets_the_mode_and_is_kept(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, mode=0o1644)
    drive.fs.setxattr(f, ACCESS, NAMED)
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o1761
    drive.remount()
    assert drive.fs.getxattr(f, ACCESS) == NAMED
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o1761
    assert drive.fs.listxattr(f) == [ACCESS]
    assert drive.check() == []
    drive.fs.removexattr(f, ACCESS)
    assert stored(drive, f, ACCESS) is None
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o1761, "as ext4"
    drive.fs.removexattr(f, ACCESS)


def test_an_acl_that_says_no_more_than_a_mode_is_not_stored(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setxattr(f, ACCESS, minimal(0o604))
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o604
    assert drive.fs.listxattr(f) == []
    drive.fs.setxattr(f, ACCESS, NAMED)
    drive.fs.setxattr(f, ACCESS, minimal(0o640))
    assert stored(drive, f, ACCESS) is None
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o640
    d = drive.dir("d")
    drive.fs.setxattr(d, DEFAULT, minimal(0o700))
    assert drive.fs.getxattr(d, DEFAULT) == minimal(0o700), "a default ACL is never the mode's"
    drive.fs.setxattr(d, DEFAULT, form())
    drive.fs.setxattr(d, DEFAULT, form())
    assert drive.fs.listxattr(d) == []


def test_default_acls_are_for_directories(drive: Drive) -> None:
    f = drive.file("f")
    refuses(errno.EACCES, drive.fs.setxattr, f, DEFAULT, NAMED)
    link = drive.fs.symlink(1, b"l", b"f", ROOT).ino
    refuses(errno.EOPNOTSUPP, drive.fs.setxattr, link, ACCESS, NAMED)
    refuses(errno.EINVAL, drive.fs.setxattr, f, ACCESS, NAMED[:-1])
    refuses(errno.EOPNOTSUPP, drive.fs.setxattr, f, b"system.posix_acl_other", NAMED)
    assert drive.fs.listxattr(f) == []
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o644


def test_chmod_changes_the_acl(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setxattr(f, ACCESS, NAMED)
    drive.fs.setattr(f, mode=0o640)
    assert made(drive.fs.getxattr(f, ACCESS)) == made(NAMED).after_chmod(0o640)
    drive.remount()
    drive.fs.setattr(f, mode=0o777)
    assert made(drive.fs.getxattr(f, ACCESS)) == made(NAMED).after_chmod(0o777)


@pytest.mark.parametrize("umask", [0, 0o027, 0o777])
def test_inheritance(drive: Drive, umask: int) -> None:
    d = drive.dir("d")
    drive.fs.setxattr(d, DEFAULT, NAMED)
    drive.remount()
    caller = Caller(0, 0, umask)
    f = drive.fs.create(d, b"f", 0o4640, caller).ino
    assert stat.S_IMODE(drive.fs.getattr(f).mode) == 0o4640, "the umask has no say"
    assert made(drive.fs.getxattr(f, ACCESS)) == made(NAMED).inherited(0o640)
    assert stored(drive, f, DEFAULT) is None
    sub = drive.fs.mkdir(d, b"sub", 0o777, caller).ino
    assert stat.S_IMODE(drive.fs.getattr(sub).mode) == 0o761
    assert drive.fs.getxattr(sub, ACCESS) == NAMED
    assert drive.fs.getxattr(sub, DEFAULT) == NAMED
    fifo = drive.fs.mknod(sub, b"fifo", stat.S_IFIFO | 0o666, 0, caller).ino
    assert stat.S_IMODE(drive.fs.getattr(fifo).mode) == 0o660
    link = drive.fs.symlink(d, b"l", b"f", caller).ino
    assert stat.S_IMODE(drive.fs.getattr(link).mode) == 0o777
    assert drive.fs.listxattr(link) == []
    drive.remount()
    assert drive.check() == []
    drive.fs.setxattr(d, DEFAULT, minimal(0o750))
    plain = drive.fs.create(d, b"plain", 0o666, caller).ino
    assert stat.S_IMODE(drive.fs.getattr(plain).mode) == 0o640
    assert drive.fs.listxattr(plain) == [], "what it inherits is no more than a mode"
    drive.fs.removexattr(d, DEFAULT)
    assert stat.S_IMODE(drive.fs.create(d, b"masked", 0o666, caller).mode) == 0o666 & ~umask


def test_who_is_not_of_the_group_takes_set_gid_away_by_setting_an_acl(drive: Drive) -> None:
    callers = ((ROOT, True), (Caller(5, 100), True), (Caller(5, 6, groups=lambda: (100,)), True), (Caller(5, 6), False))
    for number, (caller, kept) in enumerate(callers):
        f = drive.file(f"f{number}")
        drive.fs.setattr(f, uid=5, gid=100)
        drive.fs.setattr(f, mode=0o2750)
        drive.fs.setxattr(f, ACCESS, NAMED, 0, caller)
        assert bool(drive.fs.getattr(f).mode & stat.S_ISGID) is kept


def test_acls_count_among_the_names_that_may_be_set(drive: Drive) -> None:
    """listxattr(2) can hand out 64 KiB of names; an ACL is one of them, and taking it away makes room."""
    d = drive.dir("d")
    drive.fs.setxattr(d, ACCESS, NAMED)
    drive.fs.setxattr(d, ACCESS, NAMED)
    count = 0
    with pytest.raises(PosixError) as caught:
        for count in range(1000):
            drive.fs.setxattr(d, b"user.%0250d" % count, b"")
    assert caught.value.errno == errno.ENOSPC
    assert count == (65_536 - len(ACCESS) - 1) // 256
    refuses(errno.ENOSPC, drive.fs.setxattr, d, b"user.%0250d" % 1000, b"")
    drive.fs.setxattr(d, b"user.%0250d" % 0, b"changing one takes no room")
    drive.fs.setxattr(d, ACCESS, minimal(0o750))
    drive.fs.setxattr(d, b"user.%0250d" % 1000, b"")
    assert sum(len(name) + 1 for name in drive.fs.listxattr(d)) == 65_536
    refuses(errno.ENOSPC, drive.fs.setxattr, d, DEFAULT, NAMED)
    drive.fs.removexattr(d, b"user.%0250d" % 1000)
    drive.fs.setxattr(d, DEFAULT, NAMED)


def test_files_without_acls_store_nothing_and_are_known_to(drive: Drive) -> None:
    d = drive.dir("d")
    f = drive.file("f", parent=d)
    drive.fs.setattr(f, mode=0o640)
    for ino in (d, f):
        refuses(errno.ENODATA, drive.fs.getxattr, ino, ACCESS)
        assert drive.fs.inodes.get(ino).plain
    assert drive.store.keys(b"x") == []


def test_a_damaged_acl_is_an_error_and_not_a_permission(drive: Drive) -> None:
    d = drive.dir("d")
    drive.fs.setxattr(d, DEFAULT, NAMED)
    drive.fs._xattrs._put(drive.fs.inodes.get(d), DEFAULT, b"nonsense")
    refuses(errno.EIO, drive.fs.create, d, b"f", 0o666, ROOT)
    assert drive.names(d) == []
    f = drive.file("f")
    drive.fs._xattrs._put(drive.fs.inodes.get(f), ACCESS, NAMED)
    drive.fs.commits.now()
    assert [(finding.kind, finding.ino) for finding in drive.check()] == [("acl", d), ("acl", f)]
    assert acl.NAMES == (b"system.posix_acl_access", b"system.posix_acl_default")


# ---- compared with a plain directory ------------------------------------------------------------------------------------

permissions = st.integers(0, 7)
named = st.lists(st.tuples(st.sampled_from((USER, GROUP)), permissions, st.integers(0, 3)), max_size=3)
masks = st.one_of(st.none(), permissions)


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """Mostly valid ACLs; now and then one without the mask that it needs, or without any entry."""
    names, mask = draw(named), draw(masks)
    if names and mask is None and draw(permissions):
        mask = draw(permissions)
    entries: list[Any] = [(OWNER, draw(permissions)), *names, (GROUP_OWNER, draw(permissions)), (OTHER, draw(permissions))]
    if mask is not None:
        entries.append((MASK, mask))
    return form(*sorted(entries, key=lambda entry: entry[0])) if draw(st.integers(0, 9)) else form()


steps = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(("access", "default")), values()),
    st.tuples(st.just("remove"), st.sampled_from(("access", "default"))),
    st.tuples(st.just("chmod"), st.integers(0, 0o777)),
    st.tuples(st.just("mkdir"), st.integers(0, 0o777), st.integers(0, 0o777)),
    st.tuples(st.just("create"), st.integers(0, 0o777), st.integers(0, 0o777)),
    st.tuples(st.just("mkfifo"), st.integers(0, 0o777), st.integers(0, 0o777)),
)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PosixError as problem:
        return errno.errorcode[problem.errno]
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]


class Pair:
    """The same things on a drive and in a plain directory."""

    def __init__(self, root: Path) -> None:
        self.drive = Drive(root / "drive")
        self.plain = root / "plain"
        self.plain.mkdir(mode=0o755)
        self.made: list[tuple[int, Path]] = [(1, self.plain)]

    def make(self, number: int, kind: str, mode: int, umask: int) -> None:
        ino, directory = self.made[number % len(self.made)]
        while not directory.is_dir():
            ino, directory = next(one for one in self.made if one[1] == directory.parent)
        path = directory / str(len(self.made))
        name, caller, fs = path.name.encode(), Caller(os.getuid(), os.getgid(), umask), self.drive.fs
        here: dict[str, Callable[[], Any]] = {
            "mkdir": lambda: fs.mkdir(ino, name, mode, caller),
            "create": lambda: fs.create(ino, name, mode, caller),
            "mkfifo": lambda: fs.mknod(ino, name, stat.S_IFIFO | mode, 0, caller),
        }
        there: dict[str, Callable[[], Any]] = {
            "mkdir": lambda: path.mkdir(mode),
            "create": lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode)),
            "mkfifo": lambda: os.mkfifo(path, mode),
        }
        before = os.umask(umask)
        try:
            there[kind]()
        finally:
            os.umask(before)
        self.made.append((here[kind]().ino, path))

    def do(self, number: int, step: tuple[Any, ...]) -> None:
        kind, *rest = step
        if kind in ("mkdir", "create", "mkfifo"):
            self.make(number, kind, *rest)
            return
        ino, path = self.made[number % len(self.made)]
        fs = self.drive.fs
        if kind == "chmod":
            path.chmod(rest[0])
            fs.setattr(ino, mode=rest[0])
            return
        name = f"system.posix_acl_{rest[0]}"
        if kind == "remove":
            mine, wanted = outcome(lambda: fs.removexattr(ino, name.encode())), outcome(lambda: os.removexattr(path, name))
        else:
            mine = outcome(lambda: fs.setxattr(ino, name.encode(), rest[1]))
            wanted = outcome(lambda: os.setxattr(path, name, rest[1]))
        assert mine == wanted, (step, path)

    def compare(self) -> None:
        for ino, path in self.made:
            assert stat.S_IMODE(self.drive.fs.getattr(ino).mode) == stat.S_IMODE(path.stat().st_mode), path
            for name in ("system.posix_acl_access", "system.posix_acl_default"):
                mine, wanted = (
                    outcome(lambda: self.drive.fs.getxattr(ino, name.encode())),  # noqa: B023 - called at once
                    outcome(lambda: os.getxattr(path, name)),  # noqa: B023 - called at once
                )
                assert mine == wanted, (name, path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 30), steps), max_size=25))
def test_whatever_is_done_ends_as_on_a_plain_directory(
    tmp_path_factory: pytest.TempPathFactory, does: list[tuple[int, tuple[Any, ...]]]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("root (uid 0) is missing: files whose owner may do nothing are looked at")
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as root:
        pair = Pair(Path(root))
        try:
            os.setxattr(pair.plain, "system.posix_acl_access", NAMED)
            os.removexattr(pair.plain, "system.posix_acl_access")
            pair.plain.chmod(0o755)
        except OSError as error:
            pytest.skip(f"POSIX ACLs are missing in the file system of temporary files (setxattr: {error.strerror})")
        for number, step in does:
            pair.do(number, step)
        pair.compare()
        pair.drive.remount()
        pair.compare()
        assert pair.drive.check() == []
        pair.drive.unmount()
