"""Which policy a file has: by the path that leads to it now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from drive_tools import run
from test_fs_service import SECOND, Timed

from hivefs.errors import PosixError
from hivefs.filesystem.ports import ROOT
from hivefs.model.ids import ROOT_INO
from hivefs.model.stripe import Level


@pytest.fixture
def drive(tmp_path: Path) -> Timed:
    return Timed(tmp_path / "drive")


def policies(drive: Timed) -> dict[int, str]:
    drive.fs.commits.now()
    drive.now += 100 * SECOND
    return {work.ino: work.policy for work in run(drive.service.dirty, 100, 0, [])}


def test_the_deepest_path_counts_through_renames_and_moves(drive: Timed) -> None:
    fs = drive.fs
    photos = fs.mkdir(ROOT_INO, b"Photos", 0o755, ROOT).ino
    raw = fs.mkdir(photos, b"raw", 0o755, ROOT).ino
    ours = {}
    for name, parent in (("a", photos), ("b", raw), ("c", ROOT_INO)):
        ours[name] = fs.create(parent, name.encode(), 0o644, ROOT).ino
        fs.write(ours[name], 0, b"data")
    drive.book.assigned = {"/Photos": "family", "/Photos/raw/": "strict", "/later": "other"}
    assert policies(drive) == {ours["a"]: "family", ours["b"]: "strict", ours["c"]: "default"}
    assert fs.getxattr(ours["b"], b"user.hivefs.policy") == b"strict"
    fs.rename(photos, b"raw", ROOT_INO, b"later")
    assert policies(drive) == {ours["a"]: "family", ours["b"]: "other", ours["c"]: "default"}
    fs.rename(ROOT_INO, b"c", photos, b"c")
    fs.rename(ROOT_INO, b"Photos", ROOT_INO, b"Pictures")
    assert set(policies(drive).values()) == {"default", "other"}
    drive.book.assigned = {"/": "all"}
    assert set(policies(drive).values()) == {"all"}
    assert fs.getxattr(ours["c"], b"user.hivefs.policy") == b"all"


def test_a_second_name_elsewhere_changes_nothing(drive: Timed) -> None:
    fs = drive.fs
    home = fs.mkdir(ROOT_INO, b"home", 0o755, ROOT).ino
    f = drive.file("f", b"data")
    fs.link(f, home, b"f")
    drive.book.assigned = {"/home": "home"}
    assert policies(drive)[f] == "default"
    drive.book.assigned = {"/f": "only"}
    assert policies(drive)[f] == "only", "a file may have a policy of its own"


def test_a_file_is_as_safe_as_its_own_policy_says(drive: Timed) -> None:
    f = drive.file("f", b"data")
    drive.place()
    run(drive.service.published, drive.fs.store.seq)
    drive.all_at(Level.GUARANTEED)
    assert run(drive.service.durability, f) == Level.GUARANTEED
    assert json.loads(drive.fs.getxattr(f, b"user.hivefs.placement"))[0]["policy"] == "default"
    drive.book.assigned = {"/f": "strict"}
    assert run(drive.service.durability, f) == Level.REMOTE, "it is not proved for that policy yet"


def test_renames_that_may_change_a_policy_are_counted_and_no_others(drive: Timed) -> None:
    fs, moves = drive.fs, lambda: run(drive.service.policy_moves)
    photos = fs.mkdir(ROOT_INO, b"Photos", 0o755, ROOT).ino
    raw = fs.mkdir(photos, b"raw", 0o755, ROOT).ino
    inner = fs.mkdir(photos, b"inner", 0o755, ROOT).ino
    for parent in (ROOT_INO, photos, raw):
        fs.create(parent, b"f", 0o644, ROOT)
    fs.rename(ROOT_INO, b"f", photos, b"g")
    assert moves() == 0, "no paths, no policies"
    drive.book.assigned = {"/Photos": "family", "/Photos/raw": "strict"}
    policies(drive)
    fs.rename(photos, b"f", photos, b"f.new")  # as editors do
    fs.rename(photos, b"f.new", inner, b"f")  # all of it is family's
    with pytest.raises(PosixError):
        fs.rename(photos, b"none", ROOT_INO, b"raw")
    assert moves() == 0
    for count, words in enumerate(
        (
            (inner, b"f", ROOT_INO, b"f"),
            (ROOT_INO, b"f", raw, b"h"),
            (photos, b"raw", photos, b"cooked"),
            (photos, b"cooked", photos, b"raw"),
            (ROOT_INO, b"Photos", ROOT_INO, b"Pictures"),
            (ROOT_INO, b"Pictures", ROOT_INO, b"Photos"),
        ),
        1,
    ):
        fs.rename(*words)
        assert moves() == count, words
