"""A clock that steps back, stands still or leaps ahead, between operations and while nobody has the drive open."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from alphabet import OPERATIONS, Story, make_base
from crash_drive import EPOCH, MIB, SECOND, USUAL, Chunks, Clock, CrashDrive, run
from judging import put
from playing import Player

DAY = 86_400 * SECOND
STEPS = {
    "an hour back": -3600 * SECOND,
    "ten years back": -3650 * DAY,
    "before 1970": -2 * EPOCH,
    "a century ahead": 36_500 * DAY,
    "still": 0,
}


def made(directory: Path, clock: Clock) -> Story:
    put({}, directory)
    story = Story(CrashDrive(directory, USUAL, "clock", clock, Chunks()), lambda: 0)
    make_base(story)
    story.note("base")
    return story


def opened_anew(story: Story) -> None:
    story.perform("kill")


def dirty(story: Story, quiet_ns: int) -> set[tuple[int, int]]:
    return {(work.ino, work.slot) for work in run(story.drive.service.dirty, 100, quiet_ns, [])}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("reopened", [False, True], ids=["open", "opened anew"])
def test_dirty_slots_are_offered_whatever_the_clock_does(tmp_path: Path, step: int, reopened: bool) -> None:
    clock = Clock()
    story = made(tmp_path / "drive", clock)
    story.perform("append")
    story.perform("settle")
    everything = dirty(story, 0)
    assert len(everything) == 3
    assert dirty(story, 3600 * SECOND) == set(), "not quiet yet"
    clock.now += step
    if not step:
        clock.tick = 0
    if reopened:
        opened_anew(story)
    story.perform("overwrite")
    story.perform("settle")
    clock.tick = 1_000_000
    clock.now += 2 * 3600 * SECOND
    assert dirty(story, 3600 * SECOND) == everything, "two hours after the last write by the clock there is"
    before = story.drive.fs.overlay.bytes
    story.perform("place")
    assert story.drive.fs.overlay.bytes == 0 < before
    story.drive.kill()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_slot_written_before_a_step_back_does_not_wait_for_the_clock(tmp_path: Path, step: int) -> None:
    """After a step back the quiet time cannot be measured: such a slot counts as quiet, rather than wait for years."""
    clock = Clock()
    story = made(tmp_path / "drive", clock)
    story.perform("settle")
    clock.now += step
    found = dirty(story, 3600 * SECOND)
    assert len(found) == (0 if step == 0 else 3)
    story.drive.kill()


@pytest.mark.parametrize("seed", range(6))
def test_any_operations_with_any_clock(tmp_path: Path, seed: int) -> None:
    """Nothing fails, commits go on, times are what the clock said, and check is clean after each reopening."""
    choose = random.Random(seed)
    clock = Clock()
    story = made(tmp_path / "drive", clock)
    for _ in range(60):
        story.perform(choose.choice([*OPERATIONS, "overwrite", "append"]))
        clock.now += choose.choice(list(STEPS.values())) if choose.random() < 0.4 else choose.randrange(DAY)
        clock.now = max(-(1 << 62), min(clock.now, 1 << 62))
        if choose.random() < 0.3:
            for ino, data in story.contents.items():
                assert story.drive.contents(ino) == data
        if choose.random() < 0.2:
            story.perform("settle")
            assert story.drive.fs.commits.settled
            story.perform("remount")
            assert story.drive.check() == []
    story.perform("settle")
    assert story.drive.check() == []
    story.drive.kill()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_access_times_follow_the_clock_there_is(tmp_path: Path, step: int) -> None:
    clock = Clock()
    story = made(tmp_path / "drive", clock)
    ino = story.ino("a")
    clock.now += step
    story.drive.contents(ino)
    first = story.drive.fs.getattr(ino).atime_ns
    assert first == clock.now
    story.drive.contents(ino)
    story.perform("overwrite")
    story.drive.contents(ino)
    inode = story.drive.fs.getattr(ino)
    assert inode.mtime_ns <= inode.atime_ns == clock.now, "read after a change, by the same clock"
    assert len(story.contents[ino]) == 2000 < MIB
    story.drive.kill()


@pytest.mark.fuse
@pytest.mark.parametrize(
    "names", [["append", "settle"], ["create-write", "fsync"], ["unlink-placed", "place"]], ids=" ".join
)
def test_power_cuts_while_the_clock_runs_backwards(player: Player, names: list[str]) -> None:
    with player.begun(USUAL, "backwards", Clock(EPOCH, -3600 * SECOND)) as (story, disk, home):
        start = player.disk.mark()
        disk.follow(player.disk.events)
        for name in [*names, "remount", "overwrite", "fsync"]:
            story.perform(name)
        player.cut(story, disk, home, start, "backwards")
