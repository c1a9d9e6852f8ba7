"""Accounts of live bytes, reclaiming of segments, their numbers, and what is worth moving."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from stage_tools import StagedFile, file_of, make_log, pattern

from hivefs.errors import StoreDamaged
from hivefs.formats.staged import HEADER_BYTES, run_bytes
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import SegmentUse, StagedExtent
from hivefs.stage.ledger import Ledger, movable
from hivefs.stage.log import StageLog

INO = 7
MIB = 1 << 20


def small_segments(directory: Path, count: int, length: int = 1000) -> tuple[StageLog, list[StagedExtent]]:
    """A log with one write in each of its segments."""
    log = make_log(directory, segment_limit=1)
    log.loaded()
    return log, [log.write(INO, n * length, pattern(length, n))[0][1] for n in range(count)]


def test_a_segment_goes_when_its_last_byte_goes(tmp_path: Path) -> None:
    log, extents = small_segments(tmp_path, 4)
    first = extents[0]
    head = StagedExtent(first.start, 400, first.segment, first.position, first.run_start, first.run_length)
    tail = StagedExtent(400, 600, first.segment, first.position, first.run_start, first.run_length)
    log.release(head)
    assert log.reclaim() == 0
    assert log.read(INO, 0, tail, 400, 600) == pattern(1000, 0)[400:]
    log.release(tail)
    usage = log.usage
    assert log.reclaim() == HEADER_BYTES + run_bytes(1000)
    assert log.usage == usage - HEADER_BYTES - run_bytes(1000)
    assert not file_of(tmp_path, first).exists()
    assert all(file_of(tmp_path, extent).exists() for extent in extents[1:])
    assert log.usage == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    log.close()


def test_the_current_segment_goes_too_when_it_is_dead_and_large(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    log.loaded()
    ((_, small),) = log.write(INO, 0, pattern(5000))
    log.release(small)
    assert log.reclaim() == 0, "too small to be worth a new file"
    ((_, large),) = log.write(INO, 0, pattern(MIB))
    assert large.segment == small.segment
    log.release(large)
    assert log.reclaim() > MIB
    assert log.usage == 0 and os.listdir(tmp_path) == []
    ((_, new),) = log.write(INO, 0, pattern(5000))
    assert new.segment != large.segment
    assert log.read(INO, 0, new, 0, 5000) == pattern(5000)
    log.close()


def test_nothing_is_reclaimed_before_everything_was_retained(tmp_path: Path) -> None:
    log, extents = small_segments(tmp_path, 3)
    log.close()
    log = make_log(tmp_path)
    log.retain(extents[1])
    with pytest.raises(RuntimeError):
        log.reclaim()
    assert all(file_of(tmp_path, extent).exists() for extent in extents)
    log.loaded()
    assert log.reclaim() == 2 * (HEADER_BYTES + run_bytes(1000))
    assert log.read(INO, 0, extents[1], 1000, 1000) == pattern(1000, 1)
    log.close()


def test_when_some_extents_could_not_be_read_old_segments_stay(tmp_path: Path) -> None:
    log, extents = small_segments(tmp_path, 2)
    log.close()
    log = make_log(tmp_path, segment_limit=1)
    log.retain(extents[0])
    log.loaded(complete=False)
    log.release(extents[0])
    new = [log.write(INO, n, b"x")[0][1] for n in range(2)]
    log.release(new[0])
    assert log.reclaim() == HEADER_BYTES + run_bytes(1), "what came since is accounted for in full"
    assert all(file_of(tmp_path, extent).exists() for extent in extents)
    log.close()


def test_an_extent_whose_segment_is_lost_can_be_retained_and_released(tmp_path: Path) -> None:
    log, extents = small_segments(tmp_path, 2)
    log.close()
    file_of(tmp_path, extents[0]).unlink()
    log = make_log(tmp_path)
    for extent in extents:
        log.retain(extent)
    log.loaded()
    log.release(extents[0])
    assert log.reclaim() == 0
    assert [use.number for use in log.segments()] == [extents[1].segment]
    log.close()


def test_releasing_twice_is_an_error_and_keeps_the_segment(tmp_path: Path) -> None:
    log, extents = small_segments(tmp_path, 2)
    part = StagedExtent(0, 600, extents[0].segment, 80, 0, 1000)
    log.release(part)
    with pytest.raises(ValueError):
        log.release(part)
    log.reclaim()
    assert log.read(INO, 0, extents[0], 0, 1000) == pattern(1000, 0)
    log.close()


def test_segment_numbers_are_never_used_again(tmp_path: Path) -> None:
    """Else an older file under the number of a new one would open."""
    seen: set[int] = set()
    for _ in range(20):
        log, extents = small_segments(tmp_path, 3)
        numbers = {extent.segment for extent in extents}
        assert len(numbers) == 3 and not numbers & seen
        seen |= numbers
        for extent in extents:
            log.release(extent)
        log.reclaim()
        log.close()
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_number_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    """The same random bytes twice: the second session finds the first one's files and draws again."""

    def fixed(first: bytes) -> Callable[[int], bytes]:
        draws = iter([first])
        return lambda count: next(draws, None) or os.urandom(count) if count == 5 else os.urandom(count)

    log = make_log(tmp_path, random=fixed(b"abcde"))
    ((_, one),) = log.write(INO, 0, pattern(100))
    log.close()
    log = make_log(tmp_path, random=fixed(b"abcde"))
    ((_, two),) = log.write(INO, 0, pattern(100, 2))
    assert one.segment != two.segment
    assert log.read(INO, 0, one, 0, 100) == pattern(100)
    log.close()


def test_no_free_number_is_an_error_not_a_loop(tmp_path: Path) -> None:
    log = make_log(tmp_path, random=bytes)
    log.write(INO, 0, b"x")
    log.close()
    log = make_log(tmp_path, random=bytes)
    with pytest.raises(StoreDamaged):
        log.write(INO, 0, b"x")
    log.close()


# ---- moving stragglers -----------------------------------------------------------------------------------------------


def test_what_is_worth_moving() -> None:
    uses = [
        SegmentUse(1, 0, 64 * MIB, True),  # dead: reclaim does it
        SegmentUse(2, 40 * MIB, 64 * MIB, True),  # mostly alive
        SegmentUse(3, 3 * MIB, 64 * MIB, True),
        SegmentUse(4, 2 * MIB, 64 * MIB, True),
        SegmentUse(5, 5, 64 * MIB, False),  # current
        SegmentUse(6, 600, 1000, True),  # few bytes, but most of the file
    ]
    assert movable(uses, 8 * MIB) == 4
    assert movable(uses, 2 * MIB) == 4
    assert movable(uses, 2 * MIB - 1) is None
    assert movable(uses[:2], 64 * MIB) is None


def test_moving_the_stragglers_as_the_docstring_says(tmp_path: Path) -> None:
    log = make_log(tmp_path, segment_limit=2 * MIB)
    log.loaded()
    file = StagedFile(log, INO)
    file.write(0, pattern(4 * MIB))
    model = bytearray(pattern(4 * MIB))
    file.write(5000, pattern(2 * MIB - 9000, 2))
    model[5000 : 2 * MIB - 4000] = pattern(2 * MIB - 9000, 2)
    log.reclaim()
    assert log.movable(8999) is None
    number = log.movable(9000)
    (use,) = [use for use in log.segments() if use.number == number]
    assert use.live == 9000 and use.closed and use.size > 2 * MIB

    for slot, extents in file.slots.items():
        for extent in [e for e in extents if e.segment == number]:
            file.write(slot * CHUNK_BYTES + extent.start, log.read(INO, slot, extent, extent.start, extent.length))
    assert log.reclaim() == use.size
    assert number not in [use.number for use in log.segments()]
    assert file.read(0, 4 * MIB) == model
    log.close()


def test_ledger() -> None:
    ledger = Ledger()
    ledger.retain(1, 10)
    ledger.retain(2, 5)
    ledger.release(1, 4)
    assert ledger.live(1) == 6 and ledger.live(3) == 0
    assert ledger.dead() == []
    ledger.release(1, 6)
    assert ledger.dead() == [1]
    ledger.retain(1, 1)
    assert ledger.dead() == []
    ledger.release(1, 1)
    ledger.empty(9)
    assert ledger.dead() == [1, 9]
    ledger.forget(1)
    assert ledger.dead() == [9]
    with pytest.raises(ValueError):
        ledger.release(2, 6)
    assert ledger.live(2) == 5
