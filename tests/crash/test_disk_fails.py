"""A disk that is full, or does not answer, at each point of an operation: nothing that was acknowledged is lost, errors are
those that programs know, and once the disk is well the drive goes on.
"""

from __future__ import annotations

import errno

import pytest
from alphabet import OPERATIONS
from crash_drive import LIMITS, USUAL, Limits, run
from playing import Player

from hivefs.errors import DiskFull, PosixError
from hivefs.testing.fake_disk.events import Kind

pytestmark = pytest.mark.fuse

TAKES_SPACE = (Kind.CREATE, Kind.WRITE)
SEQUENCES = [
    *(["create-write"], ["append", "write-span"], ["append", "fsync"], ["create-write", "syncfs"]),
    *(["rename-over", "settle"], ["unlink-placed", "settle"], ["append", "place"], ["overwrite", "move"]),
    *(["append", "publish"], ["append", "remount"]),
]
both = pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)


def cut_too(limits: Limits, names: list[str]) -> bool:
    """Whether the power is cut at every point too; otherwise once, at the end."""
    return limits is USUAL and names[-1] in ("fsync", "syncfs", "settle")


@both
@pytest.mark.parametrize("names", SEQUENCES[:-1], ids=" ".join)
def test_full_at_each_write(player: Player, limits: Limits, names: list[str]) -> None:
    player.play_failing(limits, names, errno.ENOSPC, TAKES_SPACE, lasting=True, cuts=cut_too(limits, names))
    print(player.counts)


@both
@pytest.mark.parametrize("names", SEQUENCES[2:-1], ids=" ".join)
def test_a_sync_that_fails(player: Player, limits: Limits, names: list[str]) -> None:
    player.play_failing(limits, names, errno.EIO, [Kind.SYNC], lasting=False, cuts=cut_too(limits, names))
    print(player.counts)


@pytest.mark.slow
@both
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_anything_that_fails(player: Player, limits: Limits, code: int, lasting: bool) -> None:
    everything = (*TAKES_SPACE, Kind.SYNC, Kind.TRUNCATE, Kind.UNLINK)
    for first in ("append", "create-write", "unlink-placed", "rename-over", "grow"):
        for last in OPERATIONS:
            if last not in ("remount", "kill"):
                player.play_failing(limits, [first, last], code, everything, lasting=lasting, cuts=True)
    print(player.counts)


@both
def test_a_disk_that_says_it_is_full(player: Player, limits: Limits) -> None:
    """statvfs tells before anything fails: ENOSPC, nothing is lost, and a commit works again once there is room."""
    with player.begun(limits, "full") as (story, disk, home):
        story.perform("append")
        story.perform("unlink-placed")
        player.disk.fail(0, free=1 << 20)
        ino = story.ino("a")
        with pytest.raises(PosixError) as caught:
            run(story.drive.fs.fsync, ino)
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(DiskFull):
            run(story.drive.service.flush)
        with pytest.raises(PosixError) as caught:
            story.write("a", 0, 10)
        assert caught.value.errno == errno.ENOSPC
        assert story.drive.contents(ino) == story.contents[ino]
        assert story.handed_out() == []
        player.disk.heal()
        start = player.disk.mark()
        disk.follow(player.disk.events)
        story.perform("fsync")
        assert story.durable == story.number
        story.perform("overwrite")
        story.perform("settle")
        player.cut(story, disk, home, start, "full")


@both
def test_a_drive_that_is_closed_on_a_full_disk_is_committed(player: Player, limits: Limits) -> None:
    """The last commit may use what is reserved."""
    with player.begun(limits, "full at the end") as (story, _, _):
        story.perform("append")
        player.disk.fail(0, free=1 << 20)
        story.perform("remount")
        assert story.durable == story.number
        player.disk.heal()
        assert story.drive.contents(story.ino("a")) == story.contents[story.ino("a")]
