"""Somebody who can change the files of a locked stage: everything that is moved, mixed or put back is Corrupt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stage_tools import KEY, copy_of, file_of, make_log, pattern, read_or_none

from hivefs.errors import Corrupt
from hivefs.formats.staged import HEADER_BYTES, UNIT_BYTES, UNIT_STRIDE
from hivefs.model.staged import StagedExtent
from hivefs.stage.log import StageLog
from hivefs.stage.reader import StageReader

INO = 7
RUN = 4 * UNIT_BYTES


@pytest.fixture
def log(tmp_path: Path) -> StageLog:
    return make_log(tmp_path / "stage")


def unit_of(extent: StagedExtent, index: int) -> slice:
    start = extent.position + index * UNIT_STRIDE
    return slice(start, start + UNIT_STRIDE)


def test_two_units_of_a_run_swapped(log: StageLog, tmp_path: Path) -> None:
    ((_, extent),) = log.write(INO, 0, pattern(RUN))
    log.close()
    path = file_of(tmp_path / "stage", extent)
    data = bytearray(path.read_bytes())
    data[unit_of(extent, 1)], data[unit_of(extent, 2)] = data[unit_of(extent, 2)], data[unit_of(extent, 1)]
    path.write_bytes(data)
    reader = StageReader(tmp_path / "stage", KEY)
    for index in (1, 2):
        with pytest.raises(Corrupt):
            reader.read(INO, 0, extent, index * UNIT_BYTES, 10)
    assert reader.read(INO, 0, extent, 0, 10) == pattern(RUN)[:10]
    reader.close()


@pytest.mark.parametrize(("ino", "offset"), [(INO, 0), (INO, 1 << 20), (INO + 1, 0), (INO, RUN)])
def test_a_unit_of_another_write_put_in_its_place(log: StageLog, tmp_path: Path, ino: int, offset: int) -> None:
    """The same place overwritten (replay of older content), another slot, another file, the neighbour."""
    ((slot, other),) = log.write(ino, offset, pattern(RUN, 2))
    ((_, extent),) = log.write(INO, 0, pattern(RUN))
    log.close()
    directory = tmp_path / "stage"
    path = file_of(directory, extent)
    data = bytearray(path.read_bytes())
    data[extent.position : extent.position + 4 * UNIT_STRIDE] = data[other.position : other.position + 4 * UNIT_STRIDE]
    path.write_bytes(data)
    assert read_or_none(directory, INO, 0, extent) is None
    assert read_or_none(directory, ino, slot, other) == pattern(RUN, 2)


def test_an_extent_that_names_the_units_of_another_file_or_place(log: StageLog, tmp_path: Path) -> None:
    """As if the record of one slot were put under another key (the metadata refuses that itself)."""
    ((_, extent),) = log.write(INO, 0, pattern(RUN))
    log.close()
    e = extent
    wrong = [
        (INO + 1, 0, e),
        (INO, 1, e),
        (INO, 0, StagedExtent(UNIT_BYTES, 100, e.segment, e.position, UNIT_BYTES, RUN)),  # shifted in the file
        (INO, 0, StagedExtent(0, 100, e.segment, e.position + UNIT_STRIDE, 0, RUN)),  # the next unit
        (INO, 0, StagedExtent(0, 100, e.segment, e.position + 1, 0, RUN)),  # between units
        (INO, 0, StagedExtent(0, 100, e.segment, e.position, 0, RUN - UNIT_BYTES)),  # a run cut short
        (INO, 0, StagedExtent(0, 100, e.segment, e.position, 0, 100)),
        (INO, 0, StagedExtent(0, 100, e.segment, 1 << 31, 0, 100)),  # beyond the end
        (INO, 0, StagedExtent(0, 100, e.segment + 1, e.position, 0, RUN)),  # no such segment
    ]
    reader = StageReader(tmp_path / "stage", KEY)
    assert reader.read(INO, 0, e, 0, RUN) == pattern(RUN)
    for ino, slot, extent in wrong[:-1]:
        with pytest.raises(Corrupt):
            reader.read(ino, slot, extent, extent.start, extent.length)
    assert reader.read(INO, 0, wrong[-1][2], 0, 100) is None
    reader.close()


def test_one_segment_in_the_place_of_another(tmp_path: Path) -> None:
    """Both wrote the same file at the same place: as a file, with its number patched, and unit by unit."""
    directory = tmp_path / "stage"
    log = make_log(directory, segment_limit=1)
    ((_, old),) = log.write(INO, 0, pattern(RUN, 1))
    ((_, new),) = log.write(INO, 0, pattern(RUN, 2))
    log.close()
    assert old.segment != new.segment and old.position == new.position
    earlier, path = file_of(directory, old).read_bytes(), file_of(directory, new)
    good = path.read_bytes()
    forged = [
        earlier,
        earlier[:8] + new.segment.to_bytes(8, "big") + earlier[16:],
        good[:HEADER_BYTES] + earlier[HEADER_BYTES:],
        good[:16] + earlier[16:],
    ]
    for data in forged:
        path.write_bytes(data)
        assert read_or_none(directory, INO, 0, new) is None
    path.write_bytes(good)
    assert read_or_none(directory, INO, 0, new) == pattern(RUN, 2)


def test_an_older_state_of_a_segment_put_back(tmp_path: Path) -> None:
    """Every older state, after any history of writes, failures and restarts: right bytes or Corrupt."""
    directory = tmp_path / "stage"
    log = make_log(directory)
    states: list[Path] = []
    extents: list[tuple[StagedExtent, bytes]] = []
    for n in range(6):
        ((_, extent),) = log.write(INO, 0, pattern(5000, n))  # the same place again and again
        extents.append((extent, pattern(5000, n)))
        states.append(copy_of(directory, f"state{n}"))
        if n == 2:
            log.close()
            log = make_log(directory)
    log.close()
    for age, state in enumerate(states):
        for n, (extent, data) in enumerate(extents):
            path = file_of(directory, extent)
            kept = path.read_bytes()
            older = file_of(state, extent)
            if not older.exists():
                continue
            path.write_bytes(older.read_bytes())
            found = read_or_none(directory, INO, 0, extent)
            assert found == (data if n <= age else None)
            path.write_bytes(kept)


def test_a_torn_write_put_back_after_it_was_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write may have reached the disk in whole. Repeated with other bytes, its units must not come back."""
    directory = tmp_path / "stage"
    log = make_log(directory)
    ((_, first),) = log.write(INO, 0, pattern(100))
    path = file_of(directory, first)
    real = os.pwrite
    torn: list[bytes] = []

    def fail_after_writing(fd: int, data: memoryview, position: int) -> int:
        real(fd, data, position)
        torn.append(path.read_bytes())
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail_after_writing)
    with pytest.raises(Exception, match="Input/output"):
        log.write(INO, 100, pattern(100, 2))
    monkeypatch.undo()
    ((_, again),) = log.write(INO, 100, pattern(100, 3))
    log.close()
    assert len(torn[0]) > path.stat().st_size
    path.write_bytes(torn[0])
    assert read_or_none(directory, INO, 0, again) == pattern(100, 3)
    assert read_or_none(directory, INO, 0, first) == pattern(100)
    file_of(directory, again).write_bytes(torn[0])
    assert read_or_none(directory, INO, 0, again) is None


def test_another_key_opens_nothing(log: StageLog, tmp_path: Path) -> None:
    ((_, extent),) = log.write(INO, 0, pattern(100))
    log.close()
    reader = StageReader(tmp_path / "stage", bytes(32))
    with pytest.raises(Corrupt):
        reader.read(INO, 0, extent, 0, 100)
    reader.close()


def test_the_same_bytes_never_look_the_same(log: StageLog, tmp_path: Path) -> None:
    ((_, a),) = log.write(INO, 0, bytes(1000))
    ((_, b),) = log.write(INO, 0, bytes(1000))
    log.close()
    data = file_of(tmp_path / "stage", a).read_bytes()
    units = [data[e.position : e.position + 1032] for e in (a, b)]
    assert units[0][:16] != units[1][:16] and units[0][16:] != units[1][16:]
