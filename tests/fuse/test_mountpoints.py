"""What is said about a mount point that cannot be used, and what fusermount3's words mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hivefs.errors import MountBusy, MountpointProblem, NoFuse
from hivefs.fuse import mounting

pytestmark = pytest.mark.fuse


def refusal(path: Path) -> str:
    with pytest.raises(MountpointProblem) as caught:
        mounting.prepare(path)
    return str(caught.value)


def test_missing(tmp_path: Path) -> None:
    assert "mkdir" in refusal(tmp_path / "nothing")


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not a directory" in refusal(tmp_path / "file")


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(tmp_path / "file" / "below")


def test_not_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not empty" in refusal(tmp_path)


def test_mounted_already() -> None:
    assert "mounted there already" in refusal(Path("/proc"))


def test_a_symbolic_link_leads_to_the_real_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mounting.prepare(tmp_path / "link") == (tmp_path / "real").resolve()


@pytest.mark.parametrize("name", ["plain", "with space", "with\ttab", "back\\slash", "ünïcödé", "new\nline"])
def test_a_mount_is_found_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = (tmp_path / name).resolve()
    path.mkdir()
    fd = mounting.mount(path, mounting.MountOptions())
    try:
        assert mounting.mounts_at(path) == [mounting.TYPE]
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
        mounting.heal(path, mounting.fusermount())
    assert mounting.mounts_at(path) == []


def test_a_dead_drive_is_healed_and_the_place_can_be_used(tmp_path: Path) -> None:
    os.close(mounting.mount(tmp_path, mounting.MountOptions()))
    with pytest.raises(OSError, match="not connected"):
        tmp_path.stat()
    assert mounting.prepare(tmp_path) == tmp_path.resolve()
    assert mounting.mounts_at(tmp_path.resolve()) == []


def test_what_fusermount_says_becomes_something_to_act_on(tmp_path: Path) -> None:
    words = {
        "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf": "user_allow_other",
        "fusermount3: failed to open /dev/fuse: Operation not permitted": "cannot be opened",
        "fusermount3: mount failed: Operation not permitted": "SYS_ADMIN",
    }
    for said, expected in words.items():
        problem = mounting._refused(tmp_path, said)
        assert isinstance(problem, NoFuse)
        assert expected in str(problem)
    said = "fusermount3: user has no write access to mountpoint /x"
    assert said in str(mounting._refused(tmp_path, said))
    assert isinstance(mounting.unmount_problem(tmp_path, "failed to unmount /x: Device or resource busy"), MountBusy)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoFuse, match="install the package fuse3"):
        mounting.fusermount()
