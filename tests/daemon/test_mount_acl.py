"""POSIX ACLs on a real mount: the same commands on the drive and on a plain directory must end in the same state."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_tools import Mounted, mounted, open_to_others, run

ALICE, BOB, CAROL = 61001, 61002, 61003
STAFF, GUESTS = 62001, 62002

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Mounted, Path]]:
    """A drive that all users may see, and a plain directory that keeps ACLs."""
    if os.geteuid() != 0:
        pytest.skip("root (uid 0) is missing: the test becomes other users")
    if shutil.which("setfacl") is None:
        pytest.skip("the program setfacl is missing (package acl)")
    with open_to_others() as root:
        yield from _pair(root)


def _pair(root: Path) -> Iterator[tuple[Mounted, Path]]:
    plain = root / "plain"
    plain.mkdir()
    tried = subprocess.run(
        ["setfacl", "-m", f"u:{ALICE}:r", plain], capture_output=True, text=True, timeout=60, check=False
    )
    if tried.returncode:
        pytest.skip(f"POSIX ACLs are missing in the file system of temporary files: {tried.stderr.strip()}")
    run("setfacl", "-b", plain)
    with mounted(root, allow_other=True) as drive:
        for top in (plain, drive.path):
            top.chmod(0o777)
        yield drive, plain
        assert "ERROR" not in drive.log() and "Traceback" not in drive.log()


def places(pair: tuple[Mounted, Path], name: str) -> tuple[Path, Path]:
    """A new directory in both."""
    drive, plain = pair
    found = (plain / name, drive.path / name)
    for top in found:
        top.mkdir()
    return found


def as_user(uid: int, gid: int, groups: tuple[int, ...], program: str, *arguments: object, top: Path) -> str:
    """Output of a Python program run in ``top`` by somebody else."""
    head = f"import os, sys; os.setgroups({list(groups)}); os.setgid({gid}); os.setuid({uid}); os.chdir(sys.argv[1])\n"
    return run(sys.executable, "-c", head + program, top, *map(str, arguments))


def state(top: Path) -> str:
    """All ACLs and modes below, sorted by path (a directory may list its names in any order)."""
    return "\n\n".join(sorted(run("getfacl", "-R", "-n", ".", cwd=top).strip().split("\n\n"))) + "\n"


def same(tops: tuple[Path, Path], script: str, **variables: str) -> str:
    """Run a shell script in both places; output and what is left must be the same. The state."""
    said = [run("sh", "-c", script, cwd=top, **variables) for top in tops]
    assert said[1] == said[0]
    expected, found = state(tops[0]), state(tops[1])
    assert found == expected, script
    return found


def test_setting_changing_and_removing(pair: tuple[Mounted, Path]) -> None:
    tops = places(pair, "setting")
    same(tops, f"touch f && chmod 640 f && setfacl -m u:{ALICE}:rwx,g:{STAFF}:r f && stat -c %a f && ls -l f | cut -c1-11")
    same(tops, "chmod 600 f && getfacl -nc f")
    same(tops, "chmod 4777 f && stat -c %a f && getfacl -nc f")
    same(tops, f"setfacl -m m::r,u:{BOB}:- f && stat -c %a f")
    same(tops, f"setfacl -x u:{ALICE} f && getfacl -nc f")
    same(tops, "setfacl -b f && stat -c %a f && getfattr -d -m - f")
    same(tops, "setfacl --set u::rw,g::r,o::- f && stat -c %a f && getfattr -d -m - f")
    same(tops, f"mkdir d && setfacl -d -m u:{ALICE}:rwx d && getfacl -n d && setfacl -k d && getfattr -d -m - d")
    same(tops, f"ln -s f link && setfacl -m u:{BOB}:r link && getfacl -n f")
    for command in (f"setfacl -d -m u:{ALICE}:r f", "setfacl -m u:1:rwx missing"):
        same(tops, f"{command} 2>&1 || echo refused")
    assert str(ALICE) not in state(tops[1])


@pytest.mark.parametrize("value", ["0x", "0x02000000", "0x03000000", "0x0200000001000700ffffffff", "0x02000000ffff"])
@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_raw_values(pair: tuple[Mounted, Path], name: str, value: str) -> None:
    tops = places(pair, f"raw {name} {value}")
    same(tops, f"mkdir d; touch f; for i in d f; do setfattr -n {name} -v {value} $i 2>&1 || echo refused; done")


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
def test_inheritance(pair: tuple[Mounted, Path], umask: str) -> None:
    tops = places(pair, f"inheritance {umask}")
    for number, default in enumerate(
        (f"u:{ALICE}:rwx,g:{STAFF}:rx", f"u:{ALICE}:rw,m::r", "g::rx,o::-", "u::rx,g::-,o::w")
    ):
        found = same(
            tops,
            f"mkdir {number} && setfacl -d -m {default} {number} && cd {number} && umask {umask} && touch f"
            " && mkdir -p a/b/c && mkfifo fifo && mknod null c 1 3 && ln -s f l && cp /bin/true program"
            " && mkdir -m 700 private && touch a/b/c/deep && stat -c '%n %a' *",
        )
        assert (str(ALICE) in found) or "g::" in default
    same(tops, f"umask {umask} && touch without && mkdir none && stat -c '%a' without none")


PROBE = """
for root, directories, files in sorted(os.walk('.')):
    for name in sorted(files) + sorted(directories) + ['.']:
        path = os.path.join(root, name)
        can = []
        for word, flags in (('r', os.O_RDONLY), ('w', os.O_WRONLY)):
            try:
                os.close(os.open(path, flags))
                can.append(word)
            except OSError as error:
                can.append(os.strerror(error.errno))
        can += [os.access(path, way) for way in (os.R_OK, os.W_OK, os.X_OK)]
        print(path, *can)
for name in ('new', 'open/new', 'shut/new'):
    try:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o666))
        os.unlink(name)
        print('made', name)
    except OSError as error:
        print(name, os.strerror(error.errno))
"""

WHO = ((ALICE, 100, ()), (BOB, 100, (STAFF,)), (BOB, GUESTS, ()), (CAROL, 100, ()), (CAROL, STAFF, (GUESTS,)), (0, 0, ()))


def test_what_others_may_do(pair: tuple[Mounted, Path]) -> None:
    """The kernel judges by the stored ACLs: for owner, named users, groups, and the mask."""
    tops = places(pair, "judged")
    named = (f"u:{BOB}:rw", f"u:{BOB}:-", f"g:{STAFF}:rw", f"g:{STAFF}:-,g:{GUESTS}:r", f"u:{CAROL}:rwx,m::r")
    script = [f"chown {ALICE}:100 .", "mkdir open shut", f"setfacl -m u:{BOB}:rwx open", f"setfacl -m g:{STAFF}:- shut"]
    for number, (mode, acl) in enumerate(itertools.product(("640", "604", "777", "000"), named)):
        script.append(f"touch {number} && chown {ALICE}:100 {number} && chmod {mode} {number} && setfacl -m {acl} {number}")
    same(tops, " && ".join(script))
    seen = set()
    for uid, gid, groups in WHO:
        expected, found = (as_user(uid, gid, groups, PROBE, top=top) for top in tops)
        assert found == expected, (uid, gid, groups)
        seen.add(found)
    assert len(seen) >= 4, "the ACLs make no difference"
    same(tops, f"setfacl -x u:{BOB} open && setfacl -m u:{CAROL}:rwx open shut && chmod 700 1")
    for uid, gid, groups in WHO:
        expected, found = (as_user(uid, gid, groups, PROBE, top=top) for top in tops)
        assert found == expected, f"an old ACL is still believed: {(uid, gid, groups)}"


def test_what_is_made_by_others(pair: tuple[Mounted, Path]) -> None:
    """Default ACLs and set-gid directories, used by people who are and are not of the group."""
    tops = places(pair, "made by others")
    same(
        tops, f"chmod 777 . && mkdir team && chgrp {STAFF} team && chmod 2777 team && setfacl -d -m g:{STAFF}:rwx,o::- team"
    )
    program = """
os.umask(int(sys.argv[2], 8))
name = sys.argv[2] + sys.argv[3]
os.close(os.open('team/' + name, os.O_CREAT | os.O_WRONLY, 0o2676))
os.mkdir('team/d' + name, 0o755)
os.chmod('team/' + name, 0o2670)
try:
    value = os.getxattr('team', 'system.posix_acl_default')
    os.setxattr('team/' + name, 'system.posix_acl_access', value)
    print(oct(os.stat('team/' + name).st_mode))
    os.setxattr('team', 'system.posix_acl_default', value)
except OSError as error:
    print(error.strerror)
"""
    for umask, (number, who) in itertools.product(("022", "077"), enumerate(WHO)):
        said = [as_user(*who, program, umask, number, top=top) for top in tops]
        assert said[1] == said[0], who
        assert state(tops[1]) == state(tops[0]), who
        modes = [sorted(p.lstat().st_mode for p in top.rglob("*")) for top in tops]
        assert modes[1] == modes[0]


def test_copies_keep_acls_and_they_are_there_after_a_mount(pair: tuple[Mounted, Path]) -> None:
    drive, _ = pair
    tops = places(pair, "copies")
    source = tops[0].parent / "source"
    source.mkdir()
    script = (
        f"mkdir -p d/e && touch f d/g plain && setfacl -m u:{ALICE}:rw,g:{STAFF}:r f d/g && chmod 2750 d && chmod 604 plain"
    )
    run("sh", "-c", f"{script} && setfacl -d -m u:{BOB}:rwx d && setfacl -m u:{CAROL}:x d", cwd=source)
    wanted = state(source)
    for command in ("cp -a {} cp", "rsync -aAX {}/ rsync", "mkdir tar; tar -C {} --acls -c . | tar -C tar --acls -px"):
        if shutil.which(command.split()[0]):
            same(tops, command.format(source))
    assert all(state(path) == wanted for path in tops[1].iterdir())
    if shutil.which("rsync"):
        assert run("rsync", "-aiAX", f"{source}/", tops[1] / "rsync") == ""
    run("cp", "-a", tops[1] / "cp", tops[0] / "back")
    assert state(tops[0] / "back") == wanted
    run("setfacl", f"--restore={_saved(source, tops[0].parent)}", cwd=tops[1] / "cp")
    assert state(tops[1] / "cp") == wanted
    drive.unmount()
    drive.mount(allow_other=True)
    assert all(state(path) == wanted for path in tops[1].iterdir())
    assert stat.S_IMODE((tops[1] / "cp" / "plain").stat().st_mode) == 0o604
    assert os.listxattr(tops[1] / "cp" / "plain") == []
    assert "ERROR" not in drive.log()


def _saved(source: Path, where: Path) -> Path:
    saved = where / "saved"
    saved.write_text(run("getfacl", "-R", "-n", ".", cwd=source))
    return saved
