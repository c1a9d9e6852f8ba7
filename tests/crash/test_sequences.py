"""All sequences of up to three operations, each followed by a power cut at every point of the last one (the ACE idea: Mohan
and others, Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing, OSDI 2018).

What must hold after each cut is in judging.py. A shorter sequence is the cut at an earlier point, so only the last
operation is cut. Normally: all of one operation, and a fifth of those of two. Slow: all of two, with more states each,
and all of three. A failure says sequence, point and state; ``test_one_sequence`` plays one again:

    CRASH="usual: append place settle" python -m pytest tests/crash -k one_sequence
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence

import pytest
from alphabet import ASKING, OPERATIONS
from crash_drive import LIMITS, Limits
from playing import Player

pytestmark = pytest.mark.fuse


def number_of(names: Sequence[str]) -> int:
    """The same for the same sequence in every run."""
    return zlib.crc32(" ".join(names).encode())


def limits_for(names: Sequence[str]) -> Limits:
    """Half of the sequences are played with each."""
    return list(LIMITS.values())[number_of(names) // 7 % len(LIMITS)]


def test_the_names_of_what_asks_the_disk_are_right(player: Player) -> None:
    asking = set()
    for first in ("append", "create-write"):
        for name in OPERATIONS:
            before = player.counts.points
            player.play(LIMITS["usual"], [first, name])
            asking |= {name} if player.counts.points > before else set()
    assert asking == set(ASKING)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_one_operation(player: Player, limits: Limits) -> None:
    for name in OPERATIONS:
        player.play(limits, [name])
    print(player.counts)


def test_a_fifth_of_two_operations(player: Player) -> None:
    for first in OPERATIONS:
        for last in ASKING:
            if number_of((first, last)) % 5 == 0:
                player.play(limits_for((first, last)), [first, last])
    print(player.counts)


@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_two_operations(player: Player, limits: Limits) -> None:
    player.deep = True
    for first in OPERATIONS:
        for last in ASKING:
            player.play(limits, [first, last])
    print(player.counts)


@pytest.mark.slow
@pytest.mark.parametrize("first", OPERATIONS)
def test_three_operations(player: Player, first: str) -> None:
    for second in OPERATIONS:
        for last in ASKING:
            player.play(limits_for((first, second, last)), [first, second, last])
    print(player.counts)


@pytest.mark.skipif(
    "CRASH" not in os.environ, reason="the environment variable CRASH is missing: it names the one sequence to run again"
)
def test_one_sequence(player: Player) -> None:
    name, _, names = os.environ["CRASH"].partition(": ")
    player.deep = True
    player.play(LIMITS[name], names.split())
