"""A process that is killed within an operation, and a power cut under the next one.

What the first wrote and did not sync is in the page cache: the second sees it, and nobody knows whether the disk has it.
So nothing may be built on it, and no fsync answered because of it, before it is synced.
"""

from __future__ import annotations

import pytest
from crash_drive import LIMITS, TIGHT, USUAL, Limits
from playing import Player

pytestmark = pytest.mark.fuse

CHANGING = ("append", "create-write", "unlink-placed", "place", "rename-over")
COMMITTING = ("fsync", "syncfs", "settle", "place", "remount", "kill")
FOLLOWING = (("fsync",), ("fsync-dir",), ("overwrite", "syncfs"), ("create-write", "fsync-dir", "settle"))


@pytest.mark.parametrize(
    ("limits", "names", "follow"),
    [
        (USUAL, ["append", "fsync"], ["fsync"]),
        (USUAL, ["append", "settle"], ["fsync"]),
        (USUAL, ["create-write", "settle"], ["overwrite", "syncfs"]),
        (TIGHT, ["append", "fsync"], ["fsync"]),
        (TIGHT, ["unlink-placed", "settle"], ["create-write", "fsync-dir"]),
        (TIGHT, ["fsync", "remount"], ["append", "fsync"]),
    ],
    ids=lambda value: value.name if isinstance(value, Limits) else " ".join(value),
)
def test_killed_and_opened(player: Player, limits: Limits, names: list[str], follow: list[str]) -> None:
    player.play_killed(limits, names, follow)
    print(player.counts)


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("first", CHANGING)
def test_killed_anywhere(player: Player, limits: Limits, first: str) -> None:
    for last in COMMITTING:
        for follow in FOLLOWING:
            player.play_killed(limits, [first, last], follow)
    print(player.counts)
