"""git on the drive: a repository lives there, is cloned, packed, judged, and clean after a mount."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from mount_tools import Mounted, run

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("git") is None, reason="the program git is missing (package git)"),
]

SETTINGS = {"safe.directory": "*", "core.fsync": "all", "init.defaultBranch": "main", "gc.auto": "0"}
GIT = {
    "HOME": "/nonexistent",
    "GIT_CONFIG_COUNT": str(len(SETTINGS)),
    **{f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(SETTINGS)},
    **{f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(SETTINGS.values())},
    **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(where: Path, *words: str) -> str:
    return run("git", "-C", where, *words, **GIT)


def fill(top: Path, salt: str) -> None:
    for number in range(25):
        path = top / f"directory {number % 7}" / f"file {number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{salt}\n" * (number * 30))
    (top / "program").write_text(f"#!/bin/sh\necho {salt}\n")
    (top / "program").chmod(0o755)
    (top / "image").write_bytes(os.urandom(300_000))


def test_a_repository(shared: Mounted) -> None:
    work, clone = shared.path / "work", shared.path / "clone"
    work.mkdir()
    git(work, "init", "-q")
    (work / "link").symlink_to("program")
    for salt in ("first", "second", "third"):
        fill(work, salt)
        git(work, "add", "-A")
        git(work, "commit", "-qm", salt)
    git(work, "checkout", "-q", "-b", "side", "HEAD~1")
    fill(work, "side")
    git(work, "commit", "-qam", "side")
    git(work, "merge", "-q", "-s", "ours", "-m", "merged", "main")
    git(work, "stash", "list")
    git(shared.path, "clone", "-q", "--no-hardlinks", str(work), str(clone))
    git(shared.path, "clone", "-q", "--local", str(work), str(shared.path / "linked"))
    git(work, "gc", "-q", "--aggressive", "--prune=now")
    git(work, "worktree", "add", "-q", str(shared.path / "tree"), "main")
    places = (work, clone, shared.path / "linked", shared.path / "tree")
    for place in places:
        assert git(place, "fsck", "--full", "--strict", "--no-progress") == ""
        assert git(place, "status", "--porcelain") == ""
    shared.unmount()
    shared.mount()
    for place in places:
        assert git(place, "fsck", "--full", "--strict", "--no-progress") == ""
        # What git remembers of each file (size, times, inode) is what it finds: it need not read a single one again.
        assert git(place, "diff-files", "--name-only") == ""
        assert git(place, "status", "--porcelain") == ""
    git(clone, "pull", "-q")
    assert git(clone, "rev-parse", "HEAD") == git(work, "rev-parse", "HEAD")
    assert (work / "program").read_text() == (clone / "program").read_text()


def test_a_repository_outlives_a_kill(drive: Mounted) -> None:
    """git makes objects durable (core.fsync=all) before it renames a reference to its place, but does not wait for the
    name: the last commit may be gone, as after a crash on any file system, but nothing may be broken.
    """
    work = drive.path / "work"
    work.mkdir()
    git(work, "init", "-q")
    heads = []
    for salt in ("first", "second"):
        fill(work, salt)
        git(work, "add", "-A")
        git(work, "commit", "-qm", salt)
        heads.append(git(work, "rev-parse", "HEAD"))
        if salt == "first":
            run("sync", "-f", work)
    assert drive.end(signal.SIGKILL) == -signal.SIGKILL
    drive.mount()
    assert git(work, "rev-parse", "HEAD") in heads
    assert git(work, "fsck", "--full", "--strict", "--no-progress", "--no-dangling") == ""
    for lock in (work / ".git").rglob("*.lock"):
        lock.unlink()  # as git tells people to do after a crash
    git(work, "reset", "-q", "--hard")
    assert git(work, "status", "--porcelain") == ""
