"""Slots that wait for long have no stamp in memory: they are still found, offered, changed and removed as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from drive_tools import MIB, ROOT, Drive, run

from hivefs.filesystem import overlay
from hivefs.model.inode import ChunkRef


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    monkeypatch.setattr(overlay, "STAMPED", 2)
    return Drive(tmp_path / "drive")


def files(drive: Drive, count: int) -> list[int]:
    made = []
    for number in range(count):
        ino = drive.fs.create(1, b"f%d" % number, 0o644, ROOT).ino
        drive.fs.write(ino, 0, b"%d" % number)
        made.append(ino)
        if number % 3 == 2:
            drive.fs.commits.now()
    drive.fs.commits.now()
    return made


def offered(drive: Drive, limit: int, skip: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [(w.ino, w.slot, w.generation) for w in run(drive.service.dirty, limit, 0, skip)]


def test_each_is_offered_once_and_placed(drive: Drive) -> None:
    made = files(drive, 40)
    assert len(drive.fs.overlay._stamps) < 12, "most are cold"
    assert len(drive.fs.overlay) == 40
    seen: list[tuple[int, int, int]] = []
    while new := offered(drive, 7, [(ino, slot) for ino, slot, _ in seen]):
        seen += new
    assert sorted(ino for ino, _, _ in seen) == made
    assert len({generation for _, _, generation in seen}) == 40
    drive.place()
    assert (len(drive.fs.overlay), drive.fs.overlay.bytes) == (0, 0)
    assert [drive.read(ino) for ino in made] == [b"%d" % number for number in range(40)]


def test_all_are_cold_after_a_start(drive: Drive) -> None:
    made = files(drive, 10)
    drive.remount()
    assert not drive.fs.overlay._stamps
    assert len(drive.fs.overlay) == 10
    assert [drive.read(ino) for ino in made] == [b"%d" % number for number in range(10)]
    drive.place()
    assert len(drive.fs.overlay) == 0


def answer(drive: Drive, ino: int, generation: int, plain: bytes) -> bool:
    ref: ChunkRef = drive.chunks.put(plain)
    return run(drive.service.placed, [(ino, 0, generation, ref)])[0]


def test_an_answer_about_an_older_state_is_not_taken(drive: Drive) -> None:
    made = files(drive, 10)
    drive.remount()
    given = {ino: generation for ino, _, generation in offered(drive, 100, [])}
    drive.fs.write(made[3], 0, b"new")
    assert not answer(drive, made[3], given[made[3]], b"3")
    assert drive.read(made[3]) == b"new"
    assert answer(drive, made[4], given[made[4]], b"4")


def test_no_stamp_goes_while_the_engine_may_answer(drive: Drive) -> None:
    made = files(drive, 20)
    given = {ino: generation for ino, _, generation in offered(drive, 100, [])}
    for number in range(20, 60):
        ino = drive.fs.create(1, b"f%d" % number, 0o644, ROOT).ino
        drive.fs.write(ino, 0, b"x")
        drive.fs.commits.now()
    assert all((ino, 0) in drive.fs.overlay._stamps for ino in made)
    drive.fs.write(made[0], 0, b"z")
    drive.fs.commits.now()
    assert not answer(drive, made[0], given[made[0]], b"0")
    assert all(answer(drive, ino, given[ino], b"%d" % number) for number, ino in enumerate(made) if number)
    assert drive.read(made[0]) == b"z"


def test_cold_ones_are_cut_written_and_removed(drive: Drive) -> None:
    ino = drive.fs.create(1, b"big", 0o644, ROOT).ino
    for slot in range(12):
        drive.fs.write(ino, slot * MIB, b"%02d" % slot)
    drive.fs.commits.now()
    drive.remount()
    drive.fs.setattr(ino, size=6 * MIB + 1)
    assert len(drive.fs.overlay) == 7
    drive.fs.write(ino, 2 * MIB + 1, b"!")
    drive.remount()
    assert drive.read(ino)[2 * MIB : 2 * MIB + 3] == b"0!\0"
    assert drive.read(ino)[6 * MIB :] == b"0"
    drive.fs.unlink(1, b"big")
    assert (len(drive.fs.overlay), drive.fs.overlay.bytes) == (0, 0)
    drive.remount()
    assert len(drive.fs.overlay) == 0
