"""A power cut while a vault's stores are made: the next mount makes them, or finds what was committed."""

from __future__ import annotations

import shutil

import pytest
from crash_drive import LIMITS, ROOT, Chunks, Clock, CrashDrive, Limits, run
from judging import clean, put, usable
from playing import Player

from hivefs.model.ids import ROOT_INO
from hivefs.testing.fake_disk.crash import Disk

pytestmark = pytest.mark.fuse


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_cut_while_the_stores_are_made(player: Player, limits: Limits) -> None:
    path = player.disk.path / f"first-{limits.name}"
    player.disk.forget()
    put({}, path)
    player.disk.mark()
    disk = Disk()
    disk.follow(player.disk.events)
    disk.settle()
    player.disk.forget()
    with limits.applied():
        drive = CrashDrive(path, limits, "first", Clock(), Chunks())
        made = player.disk.mark()
        ino = drive.fs.create(ROOT_INO, b"f", 0o644, ROOT).ino
        drive.fs.write(ino, 0, b"kept" * 100)
        run(drive.fs.fsync, ino)
        synced = player.disk.mark()
        drive.kill()
    shutil.rmtree(path)
    states = 0
    for point, event in enumerate(player.disk.events[:synced], 1):
        disk.follow([event])
        for state in disk.states(path.name, str(point), deep=True):
            states += 1
            where = player.judge.directory
            put(state.image, where)
            with limits.applied():
                if point >= made:
                    again = CrashDrive.existing(where, limits, "again", Clock(), Chunks())
                else:
                    again = CrashDrive(where, limits, "again", Clock(), Chunks())
                there = f"event {point}: {event}; {state.label}"
                found = again.find("f")
                assert found is not None or point < synced, there
                assert found is None or again.contents(found.ino) == b"kept" * 100, there
                clean(again)
                usable(again)
                again.kill()
    print(f"{synced} crash points, {states} states")
