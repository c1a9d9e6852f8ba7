"""Programs that copy trees: what they have copied once they must find up to date, whichever way they look at it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mount_tools import Mounted, run, tree

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("source") / "tree"
    (top / "a" / "b").mkdir(parents=True)
    (top / "empty").mkdir(mode=0o700)
    for number, size in enumerate((0, 1, 4096, 40_000, (1 << 20) + 1, 2_500_000)):
        path = top / "a" / f"file {number}"
        path.write_bytes(os.urandom(size))
        path.chmod(0o600 + number)
        os.setxattr(path, "user.number", str(number).encode())
        os.utime(path, ns=(10**18 + number, 15 * 10**17 + 123_456_789 + number))
    with (top / "sparse").open("wb") as file:
        file.seek(3 << 20)
        file.write(b"end")
    os.link(top / "a" / "file 2", top / "a" / "b" / "same")
    (top / "link").symlink_to("a/file 1")
    (top / "ünïcödé \U0001f600").write_text("name")
    os.mkfifo(top / "fifo")
    # rsync takes times within one second for the same, so nothing may be as new as the copy
    for number, path in enumerate((top, *top.rglob("*"))):
        if path.is_symlink() or not path.is_file():
            os.utime(path, ns=(10**18, 14 * 10**17 + number), follow_symlinks=False)
    return top


def seen(top: Path) -> dict[str, tuple[int, ...]]:
    """What copying changes when it copies something: inode numbers and times."""
    paths = [top, *top.rglob("*")]
    found = {str(p.relative_to(top)): p.lstat() for p in paths}
    return {name: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_size) for name, s in found.items()}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="the program rsync is missing (package rsync)")
def test_rsync_has_nothing_to_do_the_second_time(shared: Mounted, source: Path) -> None:
    target = shared.path / "rsync"
    assert run("rsync", "-aiHX", f"{source}/", f"{target}/")
    assert tree(target) == tree(source)
    before = seen(target)
    assert run("rsync", "-aiHX", f"{source}/", f"{target}/") == ""
    assert run("rsync", "-aiHXc", f"{source}/", f"{target}/") == "", "contents differ"
    assert seen(target) == before
    shared.unmount()
    shared.mount()
    assert run("rsync", "-aiHXc", "--delete", f"{source}/", f"{target}/") == ""
    assert seen(target) == before
    (target / "a" / "file 3").write_bytes(b"changed")
    assert run("rsync", "-ai", f"{source}/", f"{target}/").split() == [">f.st......", "a/file", "3"]
    assert run("rsync", "-ai", f"{target}/", f"{source}/") == "", "back again"


def test_cp_has_nothing_to_do_the_second_time(shared: Mounted, source: Path) -> None:
    target = shared.path / "cp"
    run("cp", "-a", source, target)
    assert tree(target) == tree(source)
    before = seen(target)
    run("cp", "-auT", source, target)
    after = seen(target)
    for name in before:
        path = target / name
        if path.is_file() and not path.is_symlink():
            # only a file with two names gets a new ctime: cp makes the second name anew
            kept = before[name] if path.stat().st_nlink == 1 else (*before[name][:2], after[name][2], *before[name][3:])
            assert after[name] == kept, f"{name} was copied although it is not newer"
        assert after[name][1] == before[name][1], "a time of modification was changed"
    back = shared.path / "cp again"
    run("cp", "-a", "--reflink=auto", target, back)
    assert tree(back) == tree(source)


def test_tar_finds_no_difference(shared: Mounted, source: Path, tmp_path: Path) -> None:
    work = shared.path / "tar"
    work.mkdir()
    run("tar", "--format=posix", "--xattrs", "-cf", work / "made on the drive.tar", "-C", source, ".")
    (work / "x").mkdir()
    run("tar", "--xattrs", "-xpf", work / "made on the drive.tar", "-C", work / "x")
    assert tree(work / "x") == tree(source)
    assert run("tar", "-df", work / "made on the drive.tar", "-C", work / "x") == ""
    run("tar", "--format=posix", "-czf", tmp_path / "made of the drive.tgz", "-C", work / "x", ".")
    assert run("tar", "-dzf", tmp_path / "made of the drive.tgz", "-C", source) == ""
    assert os.getxattr(work / "x/a/file 3", "user.number") == b"3"
    assert (work / "x/a/b/same").stat().st_ino == (work / "x/a/file 2").stat().st_ino
