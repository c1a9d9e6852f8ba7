"""Rules that are better gone through in full than met by chance: each on the drive and on a plain directory."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hands import Other, Root
from mount_tools import Mounted
from oracle import Oracle, coarse_ns

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="root (uid 0) is missing: the test becomes other users"),
]

KINDS = ["nothing", "file", "link of it", "empty", "full", "symlink", "loop", "fifo", "socket"]
SPELLINGS = [(b"source", b"target"), (b"source/", b"target"), (b"source", b"target/"), (b"source", b"source/x")]
IN_DIRECTORY = (b"file", b"full", b"empty", b"symlink", b"none", b"own", b"theirs")
ROOT, NOBODY, MEMBER = 0, 1, 2


class Both:
    """Two directories, and three users who do the same in both."""

    def __init__(self, drive: Path, plain: Path) -> None:
        self.bases = (os.fsencode(drive), os.fsencode(plain))
        for base in self.bases:
            os.mkdir(base)
            os.chmod(base, 0o777)
        self.users: list[Root | Other] = [Root(), Other(65534, 65534, ()), Other(1000, 1000, (2000,))]
        for user in self.users:
            user.begin(*self.bases)
        self.oracle = Oracle(*self.bases)

    def __call__(self, who: int, name: str, *args: Any) -> Any:
        since = coarse_ns()
        mine, wanted = self.users[who].both(name, *args)
        self.oracle.doing = f"{name}{args}"
        assert mine == wanted, f"{name}{args}: {mine} instead of {wanted}"
        self.oracle.compare(since)
        return wanted

    def make(self, kind: str, path: bytes) -> None:
        """One of KINDS."""
        if kind in ("file", "socket", "fifo"):
            self(
                ROOT, "mknod", path, {"file": stat.S_IFREG, "socket": stat.S_IFSOCK, "fifo": stat.S_IFIFO}[kind] | 0o644, 0
            )
        elif kind == "link of it":
            self(ROOT, "link", b"source", path, False)
        elif kind in ("empty", "full"):
            self(ROOT, "mkdir", path, 0o755)
            if kind == "full":
                self(ROOT, "mkdir", path + b"/below", 0o755)
        elif kind in ("symlink", "loop"):
            self(ROOT, "symlink", b"nowhere" if kind == "symlink" else os.path.basename(path), path)

    def clear(self) -> None:
        for base in self.bases:
            for name in os.listdir(base):
                path = os.path.join(base, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
        self.oracle.look()

    def end(self) -> None:
        for user in self.users:
            user.end()


@pytest.fixture
def both(mount: Mounted, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Both]:
    name = request.node.name[:60].replace("/", "_")
    plain = mount.path.parent / "plain"
    plain.mkdir(exist_ok=True)
    sides = Both(mount.path / name, plain / name)
    try:
        yield sides
    finally:
        sides.end()


@pytest.mark.parametrize("flags", [0, 1, 2], ids=["plain", "noreplace", "exchange"])
def test_rename_of_everything_onto_everything(both: Both, flags: int) -> None:
    refusals = set()
    for source, target in itertools.product(KINDS, KINDS):
        if source == "link of it" or (target == "link of it" and source != "file"):
            continue
        both.make(source, b"source")
        both.make(target, b"target")
        for old, new in (
            (b"source", b"target"),
            (b"source/", b"target"),
            (b"source", b"target/"),
            (b"source", b"source/x"),
        ):
            result = both(ROOT, "rename", old, new, flags)
            refusals.add(result[1] if result else None)
        both.clear()
    wanted = {0: {"ENOENT", "EISDIR", "ENOTDIR", "ENOTEMPTY", "EINVAL", "ELOOP"}, 1: {"EEXIST", "ENOENT"}, 2: {"ENOENT"}}
    assert wanted[flags] <= refusals


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_on_every_kind(both: Both, kind: str) -> None:
    both.make("file", b"source")
    for suffix in (b"", b"/", b"/.", b"/..", b"/x"):
        both.make(kind, b"it")
        path = b"it" + suffix
        for name, *args in (
            ("stat",),
            ("lstat",),
            ("readlink",),
            ("listdir",),
            ("open", 0, os.O_RDWR, 0o644),
            ("open", 0, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644),
            ("open", 0, os.O_RDONLY | os.O_DIRECTORY, 0o644),
            ("open", 0, os.O_RDONLY | os.O_NOFOLLOW, 0o644),
            ("truncate", 3),
            ("setxattr", b"user.a", b"1", 0, True),
            ("setxattr", b"user.a", b"1", 0, False),
            ("setxattr", b"trusted.a", b"1", 0, False),
            ("listxattr", False),
            ("chmod", 0o600),
            ("chown", 1, 1, False),
            ("link", b"new", False),
            ("link", b"new2", True),
            ("mkdir", 0o755),
            ("mknod", stat.S_IFREG | 0o644, 0),
            ("unlink",),
            ("rmdir",),
        ):
            if name == "open":
                both(ROOT, name, args[0], path, *args[1:])
            else:
                both(ROOT, name, path, *args)
        both.clear()
        both.make("file", b"source")


def test_permissions_come_before_or_after_other_errors(both: Both) -> None:
    """Which of two errors is told: of a closed, a read-only, a sticky directory."""
    for mode in (0o700, 0o755, 0o777, 0o1777, 0o2777):
        both(ROOT, "mkdir", b"d", 0o755)
        for kind in ("file", "full", "empty", "symlink"):
            both.make(kind, b"d/" + kind.encode())
        both(ROOT, "chmod", b"d", mode)
        both(NOBODY, "mkdir", b"d/own", 0o777)
        both(MEMBER, "open", 1, b"d/theirs", os.O_CREAT | os.O_RDWR, 0o666)
        for who, name in itertools.product(
            (NOBODY, MEMBER), (b"file", b"full", b"empty", b"symlink", b"none", b"own", b"theirs")
        ):
            path = b"d/" + name
            both(who, "rename", path, b"d/moved", 0)
            both(who, "rename", b"d/moved", path, 0)
            both(who, "rename", path, b"d/file", 2)
            both(who, "rename", path, b"d/file", 2)
            both(who, "mkdir", path, 0o755)
            both(who, "open", 0, path, os.O_RDWR | os.O_CREAT, 0o600)
            both(who, "chmod", path, 0o2770)
            both(who, "chown", path, 65534, 2000, False)
            both(who, "utimens", path, (1, 1), (1, 1), False)
            both(who, "utimens", path, (0, (1 << 30) - 1), (0, (1 << 30) - 1), True)
            both(who, "link", path, b"d/linked", False)
            both(who, "unlink", path)
            both(who, "rmdir", path)
        both.clear()


def test_set_id_bits_go_when_linux_takes_them(both: Both) -> None:
    for mode, gid in itertools.product((0o4755, 0o6777, 0o2766, 0o2777, 0o6666, 0o1777), (0, 2000, 65534)):
        for who in (ROOT, NOBODY, MEMBER):
            for call in ("pwrite", "store", "ftruncate", "truncate", "chown", "chown to", "fchown", "write past"):
                both(ROOT, "open", 0, b"f", os.O_CREAT | os.O_RDWR, 0o666)
                both(ROOT, "pwrite", 0, b"x" * 100, 0)
                both(ROOT, "chown", b"f", 1000, gid, True)
                both(ROOT, "chmod", b"f", mode | 0o666)
                both(who, "open", 1, b"f", os.O_RDWR, 0)
                if call in ("pwrite", "write past"):
                    both(who, "pwrite", 1, b"new", 0 if call == "pwrite" else 5000)
                elif call == "store":
                    both(who, "store", 1, 0, b"new", True)
                elif call in ("ftruncate", "fchown"):
                    both(who, call, 1, *((50,) if call == "ftruncate" else (-1, -1)))
                elif call == "truncate":
                    both(who, call, b"f", 70)
                else:
                    both(who, "chown", b"f", -1, 2000 if call == "chown to" else -1, True)
                both(ROOT, "fsync", 0)
                both(ROOT, "ask", b"f")
                both(ROOT, "unlink", b"f")


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def test_a_capability_goes_when_linux_takes_it(both: Both) -> None:
    calls: dict[str, tuple[Any, ...]] = {
        "chown": (b"f", 1000, 2000, False),
        "chown same": (b"f", 0, 0, False),
        "chown nothing": (b"f", -1, -1, False),
        "chmod": (b"f", 0o750),
        "truncate": (b"f", 3),
        "utimens": (b"f", (1, 1), (1, 1), False),
        "pwrite": (1, b"new", 0),
        "store": (1, 0, b"new", True),
    }
    for kind, mode in (
        ("file", 0o644),
        ("file", 0o6777),
        ("empty", 0o755),
        ("empty", 0o6777),
        ("symlink", 0),
        ("fifo", 0o600),
    ):
        for (call, words), who in itertools.product(calls.items(), (ROOT, NOBODY, MEMBER)):
            both.make(kind, b"f")
            if kind == "file":
                both(ROOT, "open", 0, b"f", os.O_RDWR, 0)
                both(ROOT, "pwrite", 0, b"x" * 100, 0)
            if mode:
                both(ROOT, "chmod", b"f", mode)
            both(ROOT, "setxattr", b"f", b"security.capability", CAPABILITY, 0, False)
            if call in ("pwrite", "store"):
                if kind == "file":
                    both(who, "open", 1, b"f", os.O_RDWR, 0)
                    both(who, call, *words)
                    both(ROOT, "fsync", 0)
            elif kind in ("file", "empty") or call.startswith("chown"):
                both(who, call.split()[0], *words)
            both(ROOT, "listxattr", b"f", False)
            both(ROOT, "rmdir" if kind == "empty" else "unlink", b"f")


def test_what_a_set_gid_directory_gives_on(both: Both) -> None:
    both(ROOT, "mkdir", b"d", 0o777)
    both(ROOT, "chown", b"d", 0, 2000, True)
    both(ROOT, "chmod", b"d", 0o2777)
    for who in (ROOT, NOBODY, MEMBER):
        both(who, "umask", 0)
        for mode in (0o644, 0o2755, 0o2745, 0o6777):
            for name in (b"f", b"d", b"p", b"s"):
                path = b"d/%d%s%o" % (who, name, mode)
                if name == b"f":
                    both(who, "open", 0, path, os.O_CREAT | os.O_WRONLY, mode)
                elif name == b"d":
                    both(who, "mkdir", path, mode)
                elif name == b"p":
                    both(who, "mknod", path, stat.S_IFIFO | mode, 0)
                else:
                    both(who, "symlink", b"to", path)
        both(who, "umask", 0o022)


def test_links_of_directories_and_chains_of_symbolic_links(both: Both) -> None:
    both(ROOT, "mkdir", b"d", 0o755)
    for number in range(5):
        both(ROOT, "mkdir", b"d/%d" % number, 0o755)
    both(ROOT, "mknod", b"d/file", stat.S_IFREG | 0o644, 0)
    both(ROOT, "rename", b"d/0", b"moved", 0)
    both(ROOT, "rename", b"d/1", b"d/2", 0)
    both(ROOT, "rename", b"d/3", b"moved", 2)
    both(ROOT, "open", 0, b"d/4", os.O_RDONLY, 0)
    both(ROOT, "rmdir", b"d/4")
    assert both(ROOT, "fstat", 0)[1] == 0
    both(ROOT, "symlink", b"d", b"l0")
    for number in range(1, 45):
        both(ROOT, "symlink", b"l%d" % (number - 1), b"l%d" % number)
        both(ROOT, "stat", b"l%d" % number)
    assert both(ROOT, "stat", b"l44") == ("errno", "ELOOP")


def test_other_file_systems_are_exdev(here: Path, tmp_path: Path) -> None:
    (here / "f").touch()
    for call in (os.rename, os.link):
        with pytest.raises(OSError) as caught:
            call(here / "f", tmp_path / "g")
        assert caught.value.errno == errno.EXDEV


@pytest.mark.slow
def test_a_file_has_65000_names_at_most(here: Path) -> None:
    (here / "0").touch()
    for number in range(1, 65_000):
        os.link(here / "0", here / str(number))
    assert (here / "0").stat().st_nlink == 65_000
    with pytest.raises(OSError) as caught:
        os.link(here / "0", here / "more")
    assert caught.value.errno == errno.EMLINK
    shutil.rmtree(here)
