"""stage/log.py and stage/reader.py: what is written is read back, cheaply."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_tools import KEY, StagedFile, file_of, make_log, open_files, pattern

from hivefs.errors import Corrupt, StoreDamaged
from hivefs.formats.staged import HEADER_BYTES, UNIT_BYTES, UNIT_STRIDE, run_bytes
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent
from hivefs.stage.reader import CACHED_UNITS, StageReader

INO = 7


def test_one_run_per_slot_and_units_where_the_contract_says(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    data = pattern(100_000)
    offset = CHUNK_BYTES - 40_000
    (first, a), (second, b) = log.write(INO, offset, data)
    assert (first, second) == (0, 1)
    assert a == StagedExtent(offset, 40_000, a.segment, HEADER_BYTES, offset, 40_000)
    assert b == StagedExtent(0, 60_000, a.segment, HEADER_BYTES + run_bytes(40_000), 0, 60_000)
    assert log.read(INO, 0, a, a.start, a.length) + log.read(INO, 1, b, 0, b.length) == data
    assert log.usage == file_of(tmp_path, a).stat().st_size == HEADER_BYTES + run_bytes(40_000) + run_bytes(60_000)
    log.close()


def test_nothing_of_the_plaintext_is_on_disk(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    ((_, extent),) = log.write(INO, 0, b"a secret sentence " * 5000)
    log.close()
    stored = file_of(tmp_path, extent).read_bytes()
    assert b"secret" not in stored
    assert KEY not in stored


def test_an_empty_write_and_any_kind_of_buffer(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    assert log.write(INO, 5, b"") == []
    assert log.usage == 0
    words = memoryview(bytes(range(64))).cast("I")
    ((_, extent),) = log.write(INO, 5, words)
    assert log.read(INO, 0, extent, 5, 64) == bytes(range(64))
    with pytest.raises(ValueError):
        log.write(INO, -1, b"x")
    log.close()


def test_a_read_outside_the_extent_is_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    ((_, extent),) = log.write(INO, 100, pattern(50))
    for start, length in ((99, 1), (100, 51), (150, 1), (120, -1)):
        with pytest.raises(ValueError):
            log.read(INO, 0, extent, start, length)
    assert log.read(INO, 0, extent, 150, 0) == b""
    log.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * CHUNK_BYTES + 5000),
            st.one_of(st.integers(0, 9000), st.sampled_from([UNIT_BYTES, UNIT_BYTES + 1, 3 * UNIT_BYTES, 1_200_000])),
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.tuples(st.integers(0, 3 * CHUNK_BYTES), st.integers(0, 200_000)), max_size=8),
    st.sampled_from([200_000, 1 << 26]),
)
def test_a_file_of_staged_writes_is_a_byte_array(
    writes: list[tuple[int, int]], reads: list[tuple[int, int]], segment_limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        log = make_log(directory, segment_limit=segment_limit)
        log.loaded()
        reader = StageReader(directory, KEY)
        file, model = StagedFile(log, INO), bytearray(4 * CHUNK_BYTES)
        for seed, (offset, length) in enumerate(writes):
            data = pattern(length, seed)
            file.write(offset, data)
            model[offset : offset + length] = data
            assert file.read(0, len(model), reader) == model
            log.reclaim()
        for start, length in reads:
            assert file.read(start, start + length) == model[start : start + length]
        assert file.read(0, len(model)) == model
        file.truncate(CHUNK_BYTES // 2)
        model[CHUNK_BYTES // 2 :] = bytes(len(model) - CHUNK_BYTES // 2)
        log.reclaim()
        assert file.read(0, len(model)) == model
        file.truncate(0)
        log.reclaim()
        assert all(not use.closed for use in log.segments())
        log.close()
        reader.close()


def test_a_small_read_opens_one_unit(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    data = pattern(CHUNK_BYTES)
    ((_, extent),) = log.write(INO, 0, data)
    for start in (0, 4096, UNIT_BYTES - 4096, 20 * UNIT_BYTES + 4096, CHUNK_BYTES - 4096):
        before = log.units_opened
        assert log.read(INO, 0, extent, start, 4096) == data[start : start + 4096]
        assert log.units_opened - before <= 1
    log.close()


@pytest.mark.parametrize("step", [1000, 4096, 50_000, 131_072, 200_000])
@pytest.mark.parametrize("run_start", [0, 777])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_sequential_reader_opens_each_unit_once(tmp_path: Path, step: int, run_start: int, backwards: bool) -> None:
    log = make_log(tmp_path)
    data = pattern(CHUNK_BYTES - run_start)
    ((_, extent),) = log.write(INO, run_start, data)
    starts = list(range(extent.start, extent.end, step))
    found = {}
    for start in reversed(starts) if backwards else starts:
        found[start] = log.read(INO, 0, extent, start, min(step, extent.end - start))
    assert b"".join(found[start] for start in starts) == data
    assert log.units_opened == -(-len(data) // UNIT_BYTES)
    log.close()


def test_several_sequential_readers_at_once_open_each_unit_once(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    length = 4 * UNIT_BYTES
    extents = [log.write(ino, 0, pattern(length, ino))[0][1] for ino in range(1, CACHED_UNITS + 1)]
    out = [b""] * len(extents)
    for start in range(0, length, 4096):
        for index, extent in enumerate(extents):
            out[index] += log.read(index + 1, 0, extent, start, 4096)
    assert out == [pattern(length, ino) for ino in range(1, CACHED_UNITS + 1)]
    assert log.units_opened == 4 * CACHED_UNITS
    log.close()


def test_the_cache_of_units_gives_nothing_to_another_place(tmp_path: Path) -> None:
    """A hit must prove as much as opening does: the same unit asked for under another name is Corrupt."""
    log = make_log(tmp_path)
    ((_, extent),) = log.write(INO, 0, pattern(UNIT_BYTES))
    assert log.read(INO, 0, extent, 0, 100) == pattern(UNIT_BYTES)[:100]
    moved = StagedExtent(1, 100, extent.segment, extent.position, 1, UNIT_BYTES)
    longer = StagedExtent(0, 100, extent.segment, extent.position, 0, UNIT_BYTES + 5)
    for ino, slot, wrong in ((INO + 1, 0, extent), (INO, 1, extent), (INO, 0, moved), (INO, 0, longer)):
        with pytest.raises(Corrupt):
            log.read(ino, slot, wrong, wrong.start, 100)
    assert log.read(INO, 0, extent, 0, 100) == pattern(UNIT_BYTES)[:100]
    log.close()


def test_the_next_process_reads_on_and_begins_a_new_segment(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    ((_, old),) = log.write(INO, 0, pattern(5000))
    log.sync()
    log.close()
    size = file_of(tmp_path, old).stat().st_size

    log = make_log(tmp_path)
    log.retain(old)
    log.loaded()
    assert log.usage == size
    ((_, new),) = log.write(INO, 5000, pattern(5000, 2))
    assert new.segment != old.segment
    assert file_of(tmp_path, old).stat().st_size == size
    assert log.read(INO, 0, old, 0, 5000) == pattern(5000)
    assert log.read(INO, 0, new, 5000, 5000) == pattern(5000, 2)
    assert log.reclaim() == 0
    log.close()


def test_a_reader_of_another_process(tmp_path: Path) -> None:
    log = make_log(tmp_path / "stage")
    log.loaded()
    reader = StageReader(tmp_path / "stage", KEY)
    file = StagedFile(log, INO)
    file.write(0, pattern(2 << 20))
    extent = next(iter(file.slots[0]))
    assert reader.read(INO, 0, extent, 10, 5000) == pattern(2 << 20)[10:5010]
    file.truncate(0)
    assert log.reclaim() > 2 << 20

    # it may still have the segment open, and then reads the right bytes; having let go of it, it says so
    assert reader.read(INO, 0, extent, 10, 5000) in (None, pattern(2 << 20)[10:5010])
    reader.trim()
    assert open_files(tmp_path / "stage") == []
    assert reader.read(INO, 0, extent, 10, 5000) is None
    with pytest.raises(Corrupt):
        log.read(INO, 0, extent, 10, 5000)
    reader.close()
    log.close()


def test_a_reader_tells_a_missing_stage_from_a_missing_segment(tmp_path: Path) -> None:
    reader = StageReader(tmp_path / "none", KEY)
    with pytest.raises(StoreDamaged):
        reader.read(INO, 0, StagedExtent(0, 5, 1, 80, 0, 5), 0, 5)


def test_few_files_stay_open(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    log = make_log(directory, segment_limit=1)
    extents = [log.write(INO, n * 10, pattern(10, n))[0][1] for n in range(20)]
    log.sync()
    assert len(open_files(directory)) == 1
    reader = StageReader(directory, KEY, open_files=4)
    for n, extent in enumerate(extents):
        assert reader.read(INO, 0, extent, n * 10, 10) == pattern(10, n)
    assert len(open_files(directory)) == 5
    reader.close()
    log.close()
    assert open_files(directory) == []


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    for name in ("README", "0123456789abcdef", "0123456789ABCDEF.seg", "123.seg", "0123456789abcdef.segx"):
        (tmp_path / name).write_bytes(b"x")
    before = sorted(os.listdir(tmp_path))
    log = make_log(tmp_path)
    log.loaded()
    assert log.usage == 0 and log.segments() == [] and log.reclaim() == 0
    log.close()
    assert sorted(os.listdir(tmp_path)) == before


def test_segments_are_private(tmp_path: Path) -> None:
    log = make_log(tmp_path / "stage")
    ((_, extent),) = log.write(INO, 0, b"x")
    assert (tmp_path / "stage").stat().st_mode & 0o777 == 0o700
    assert file_of(tmp_path / "stage", extent).stat().st_mode & 0o777 == 0o600
    log.close()


def test_a_write_larger_than_the_buffer(tmp_path: Path) -> None:
    log = make_log(tmp_path)
    data = pattern(3 * CHUNK_BYTES + 12_345)
    parts = log.write(INO, 999_999, data)
    found = b"".join(log.read(INO, slot, e, e.start, e.length) for slot, e in parts)
    assert found == data
    assert UNIT_STRIDE == UNIT_BYTES + 32
    log.close()
