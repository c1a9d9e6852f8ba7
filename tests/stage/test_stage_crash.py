"""A crash at any byte, and damage of any byte: synced extents read right, the others are Corrupt, never wrong bytes."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from stage_tools import KEY, copy_of, file_of, make_log, pattern, read_or_none

from hivefs.errors import Corrupt, StoreDamaged, UnknownVersion
from hivefs.formats.staged import HEADER_BYTES, UNIT_BYTES, UNIT_STRIDE, run_bytes
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent
from hivefs.stage import files
from hivefs.stage.reader import StageReader

INO = 7
Written = list[tuple[int, StagedExtent, bytes]]


def end_of(extent: StagedExtent) -> int:
    """Where the run of an extent ends in its segment."""
    return extent.position + run_bytes(extent.run_length)


def written_log(directory: Path, sizes: list[tuple[int, int]], synced: int) -> tuple[Written, Written]:
    """(synced, not synced) writes of (offset, length) in one segment."""
    log = make_log(directory)
    done: Written = []
    before = 0
    for number, (offset, length) in enumerate(sizes):
        data = pattern(length, number)
        at = 0
        for slot, extent in log.write(INO, offset, data):
            done.append((slot, extent, data[at : at + extent.length]))
            at += extent.length
        if number + 1 == synced:
            log.sync()
            assert log.unsynced_bytes == 0
            before = len(done)
    log.close()
    return done[:before], done[before:]


SIZES = [(0, 10), (5, 300), (CHUNK_BYTES - 7, 20), (4096, UNIT_BYTES + 100), (0, 1), (9000, 2 * UNIT_BYTES), (77, 500)]


def test_cut_at_every_boundary_and_beside_it(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    synced, unsynced = written_log(directory, SIZES, 4)
    path = file_of(directory, synced[0][1])
    whole = path.read_bytes()
    boundaries = {0, 1, 7, 8, 16, HEADER_BYTES, len(whole)}
    for _, extent, _ in synced + unsynced:
        for position in range(extent.position, end_of(extent), UNIT_STRIDE):
            boundaries |= {position, position + 16, position + 17}
        boundaries |= {end_of(extent) - 16, end_of(extent)}
    cuts = sorted({cut + d for cut in boundaries for d in (-1, 0, 1) if 0 <= cut + d <= len(whole)})
    assert len(cuts) > 80
    for cut in cuts:
        path.write_bytes(whole[:cut])
        for slot, extent, data in synced + unsynced:
            found = read_or_none(directory, INO, slot, extent)
            assert found == (data if end_of(extent) <= cut else None), cut


def test_cut_at_every_byte_of_a_small_segment(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    synced, unsynced = written_log(directory, [(0, 10), (CHUNK_BYTES - 7, 20), (50, 30)], 2)
    path = file_of(directory, synced[0][1])
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        for slot, extent, data in synced + unsynced:
            assert read_or_none(directory, INO, slot, extent) == (data if end_of(extent) <= cut else None)


def test_every_flipped_byte_is_noticed_where_it_matters(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    synced, unsynced = written_log(directory, [(0, 10), (CHUNK_BYTES - 7, 20), (50, 30)], 2)
    path = file_of(directory, synced[0][1])
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        for slot, extent, data in synced + unsynced:
            hit = at < HEADER_BYTES or extent.position <= at < end_of(extent)
            if at == 7:  # the version byte
                with pytest.raises(UnknownVersion):
                    read_or_none(directory, INO, slot, extent)
            else:
                assert read_or_none(directory, INO, slot, extent) == (None if hit else data)


def test_a_flipped_byte_spoils_its_unit_only(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    ((slot, extent, data),), _ = written_log(directory, [(0, 4 * UNIT_BYTES)], 1)
    path = file_of(directory, extent)
    whole = bytearray(path.read_bytes())
    whole[extent.position + 2 * UNIT_STRIDE + 20_000] ^= 1
    path.write_bytes(whole)
    reader = StageReader(directory, KEY)
    for unit in range(4):
        if unit == 2:
            for start, length in ((unit * UNIT_BYTES, 10), (unit * UNIT_BYTES - 5, 10), (0, 4 * UNIT_BYTES)):
                with pytest.raises(Corrupt):
                    reader.read(INO, slot, extent, start, length)
        else:
            start = unit * UNIT_BYTES
            assert reader.read(INO, slot, extent, start, UNIT_BYTES) == data[start : start + UNIT_BYTES]
    reader.close()


@pytest.mark.parametrize("seed", range(30))
def test_pages_that_never_reached_the_disk(tmp_path: Path, seed: int) -> None:
    """After the synced end, any subset of 4 KiB pages is zeros, and the file is as long as it likes."""
    directory = tmp_path / "stage"
    synced, unsynced = written_log(directory, SIZES, 4)
    rng = random.Random(seed)
    path = file_of(directory, synced[0][1])
    whole = path.read_bytes()
    lasts = end_of(synced[-1][1])
    torn = bytearray(whole)
    for page in range(0, len(torn), 4096):
        if rng.random() < 0.4:
            start = max(page, lasts)
            torn[start : page + 4096] = bytes(max(0, min(page + 4096, len(torn)) - start))
    torn = torn[: rng.randrange(lasts, len(torn) + 1)] + bytes(rng.choice([0, 1, 5000]))
    path.write_bytes(torn)

    for slot, extent, data in synced:
        assert read_or_none(directory, INO, slot, extent) == data
    for slot, extent, data in unsynced:
        same = torn[extent.position : end_of(extent)] == whole[extent.position : end_of(extent)]
        assert read_or_none(directory, INO, slot, extent) == (data if same else None)

    # the next process does not care, reads the same, and does not append to the torn file
    copied = copy_of(directory)
    log = make_log(copied)
    for _, extent, _ in synced:
        log.retain(extent)
    log.loaded()
    size = file_of(copied, synced[0][1]).stat().st_size
    ((_, new),) = log.write(INO, 0, pattern(100, 99))
    assert log.read(INO, 0, new, 0, 100) == pattern(100, 99)
    assert file_of(copied, synced[0][1]).stat().st_size == size == len(torn)
    for slot, extent, data in synced:
        assert log.read(INO, slot, extent, extent.start, extent.length) == data
    log.close()


def test_a_segment_that_lost_its_header_or_itself(tmp_path: Path) -> None:
    directory = tmp_path / "stage"
    synced, _ = written_log(directory, SIZES, len(SIZES))
    path = file_of(directory, synced[0][1])
    whole = path.read_bytes()
    for damaged in (b"", bytes(HEADER_BYTES) + whole[HEADER_BYTES:], bytes(len(whole))):
        path.write_bytes(damaged)
        log = make_log(directory)
        for slot, extent, _ in synced:
            with pytest.raises(Corrupt):
                log.read(INO, slot, extent, extent.start, extent.length)
        log.close()
    path.unlink()
    log = make_log(directory)
    for slot, extent, _ in synced:
        with pytest.raises(Corrupt):
            log.read(INO, slot, extent, extent.start, extent.length)
    log.close()


def test_pieces_in_the_journal_stand_for_a_sync(tmp_path: Path) -> None:
    """A crash takes the segment file altogether, or leaves its length and zeros: the pieces bring every byte back."""
    log = make_log(tmp_path / "stage")
    first = log.write(1, 0, b"first")
    pieces = log.loose_pieces(1 << 20)
    assert pieces is not None
    log.pieces_kept(pieces)
    assert log.loose_bytes == 0
    assert log.unsynced_bytes
    second = log.write(1, 5, b"second")
    more = log.loose_pieces(1 << 20)
    assert more is not None and [p.position for p in more] == [sum(len(p.data) for p in pieces)]
    log.pieces_kept(more)
    log.write(1, 100, bytes(5000))
    assert log.loose_pieces(100) is None
    (segment,) = {p.segment for p in [*pieces, *more]}
    log.close()
    for there in (None, b"", bytes(500), b"\xff" * 7):
        home = tmp_path / f"home-{there!r:.10}"
        home.mkdir()
        if there is not None:
            files.segment_path(home, segment).write_bytes(there)
        again = make_log(home, restore=[*more, *pieces])
        for extents, data in ((first, b"first"), (second, b"second")):
            ((slot, extent),) = extents
            assert again.read(1, slot, extent, extent.start, extent.length) == data
        again.close()


def test_a_failed_sync_leaves_nothing_to_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log(tmp_path / "stage")
    log.write(1, 0, b"data")

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "the disk does not store")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(StoreDamaged):
            log.sync()
    assert log.loose_pieces(1 << 20) is None
    log.close()
