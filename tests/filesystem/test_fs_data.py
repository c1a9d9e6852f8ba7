"""Reading and writing through stage, chunks and holes; sizes; sparse files; what was lost stays an error."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from drive_tools import MIB, Drive, pattern, refuses, run

from hivefs.chunkstore.disk import LONG
from hivefs.errors import NotInMemory
from hivefs.filesystem.data import AHEAD, AROUND, AROUND_AFTER, LOCAL_AHEAD, MAX_FILE_BYTES
from hivefs.formats.records import extent_from_bytes, extent_to_bytes, map_key, map_prefix
from hivefs.model.inode import ChunkRef, MapExtent, SlotKind
from hivefs.stage import reader


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path / "drive")


def file_map(drive: Drive, ino: int) -> list[tuple[int, int, str]]:
    drive.fs.commits.now()
    extents = [
        extent_from_bytes(int.from_bytes(key[9:], "big"), value or b"") for key, value in drive.store.scan(map_prefix(ino))
    ]
    return [(extent.slot, extent.count, extent.kind.name) for extent in extents]


# ---- what is written is read ------------------------------------------------------------------------------------------


def test_a_write_over_slot_borders_and_over_staged_and_placed_bytes(drive: Drive) -> None:
    f = drive.file("f")
    wanted = bytearray(3 * MIB + 100)
    for step, (offset, length) in enumerate([(0, 3 * MIB + 100), (MIB - 5, 10), (2 * MIB, MIB), (5, 1), (3 * MIB, 100)]):
        data = pattern(length, step)
        assert drive.fs.write(f, offset, memoryview(data)) == length
        wanted[offset : offset + length] = data
        assert drive.read(f) == wanted
        if step % 2:
            assert drive.place() > 0
            assert drive.fs.overlay.bytes == 0
            assert drive.read(f) == wanted
    drive.remount()
    assert drive.read(f) == wanted
    assert drive.read(f, 100, 7) == wanted[100:107]
    assert drive.read(f, len(wanted) - 3, 100) == wanted[-3:]
    assert drive.read(f, len(wanted), 100) == b""
    assert drive.fs.write(f, 0, b"") == 0
    assert drive.check() == []


def test_chunks_that_are_not_here_are_fetched_with_what_comes_next(drive: Drive) -> None:
    data = pattern(12 * MIB)
    f = drive.file("f", data)
    drive.place()
    drive.chunks.remote = True
    assert drive.fs.read_now(f, MIB - 10, 20) is None
    assert run(drive.fs.read, f, MIB - 10, 20) == data[MIB - 10 : MIB + 10]
    first, second = drive.chunks.fetched
    assert (first[1:], second[1:]) == ((MIB - 10, MIB), (0, 10))
    extents = [extent_from_bytes(0, value or b"") for _, value in drive.store.scan(map_prefix(f))]
    assert list(drive.chunks.hints[0]) == [extent.chunk for extent in extents[2 : 2 + AHEAD]]
    drive.chunks.failing = True
    refuses(errno.EIO, run, drive.fs.read, f, 0, 10)


def test_reading_on_asks_for_more_in_the_middle_of_what_was_asked_for(drive: Drive) -> None:
    f = drive.file("f", pattern(30 * MIB))
    drive.place()
    drive.chunks.remote = True
    run(drive.fs.read, f, 0, 1000)
    drive.chunks.remote = False
    extents = [extent_from_bytes(0, value or b"") for _, value in drive.store.scan(map_prefix(f))]
    chunks = [extent.chunk for extent in extents]
    assert drive.chunks.hints == [chunks[1 : 1 + AHEAD]]
    for slot in range(1, 30):
        drive.read(f, slot * MIB + 5, 100)
        drive.read(f, slot * MIB + 500, 100)
    middle = (AHEAD + 1) // 2
    starts = [chunks.index(hint[0]) for hint in drive.chunks.hints[1:] if hint]
    assert starts[:4] == [middle + 1, 2 * middle + 1, 3 * middle + 1, 4 * middle + 1]
    assert len(drive.chunks.fetched) == 1 and max(len(hint) for hint in drive.chunks.hints) == AHEAD
    assert sum(chunks[-1] in hint for hint in drive.chunks.hints) >= 1


def test_a_read_somewhere_brings_nothing_ahead_until_it_goes_on(drive: Drive) -> None:
    f = drive.file("f", pattern(12 * MIB))
    drive.place()
    drive.chunks.remote = True
    for slot in (11, 8, 1):
        run(drive.fs.read, f, slot * MIB, 10)
    assert drive.chunks.hints == [[], [], []]
    run(drive.fs.read, f, 2 * MIB, 10)
    assert len(drive.chunks.hints[-1]) == AHEAD


def chunks_of(drive: Drive, ino: int) -> list[ChunkRef | None]:
    return [extent_from_bytes(0, value or b"").chunk for _, value in drive.store.scan(map_prefix(ino))]


def test_shares_of_this_machine_are_begun_ahead_of_who_reads_on(drive: Drive) -> None:
    f = drive.file("f", pattern(20 * MIB))
    drive.place()
    chunks = chunks_of(drive, f)
    for offset in range(0, 20 * MIB, LONG):
        drive.fs.read_now(f, offset, LONG)
        slot = offset // MIB
        assert drive.chunks.begun == chunks[1 : slot + 1 + LOCAL_AHEAD], "each once, so far ahead and not further"
    drive.chunks.begun.clear()
    for slot in (15, 3, 9):
        drive.fs.read_now(f, slot * MIB, LONG)
    assert drive.chunks.begun == [], "nothing is known of what is read after a jump"
    drive.fs.read_now(f, 10 * MIB, MIB)
    assert drive.chunks.begun == chunks[11 : 11 + LOCAL_AHEAD]
    drive.chunks.begun.clear()
    drive.fs.read_now(f, 0, LONG)
    assert drive.chunks.begun == chunks[1 : 1 + LOCAL_AHEAD], "from the start again"
    drive.chunks.begun.clear()
    for offset in range(0, 4 * MIB, 4096):
        drive.fs.read_now(f, offset, 4096)
    assert drive.chunks.begun == [], "small reads begin nothing while all is in memory"


def test_small_reads_that_miss_begin_what_lies_around(drive: Drive) -> None:
    f = drive.file("f", pattern(2 * AROUND * MIB))
    drive.place()
    chunks = chunks_of(drive, f)
    drive.chunks.cold = {chunk.chunk_id for chunk in chunks if chunk is not None}
    for number, slot in enumerate((AROUND - 1, 2, AROUND, 5, AROUND + 1)):
        assert drive.chunks.begun == (chunks[:AROUND] if number > AROUND_AFTER else [])
        assert drive.fs.read_now(f, slot * MIB + 7, 100) is None
        drive.chunks.cold.add(((chunk := chunks[slot]) and chunk.chunk_id) or b"")
        assert len(run(drive.fs.read, f, slot * MIB + 7, 100)) == 100


def test_a_hint_says_nothing_of_damage(drive: Drive) -> None:
    data = pattern(4 * MIB)
    f = drive.file("f", data)
    drive.place()
    drive.fs.commits.now()
    drive.store.put(map_key(f, 2), b"nonsense")
    assert drive.fs.read_now(f, 0, MIB) == data[:MIB]
    refuses(errno.EIO, drive.fs.read_now, f, 2 * MIB, MIB)


def test_bytes_behind_a_short_chunk_are_zeros(drive: Drive) -> None:
    f = drive.file("f", b"short")
    drive.place()
    drive.fs.setattr(f, size=MIB + 1)
    assert drive.read(f) == b"short" + bytes(MIB - 4)
    drive.fs.write(f, 100, b"x")
    assert drive.read(f, 0, 102) == b"short" + bytes(95) + b"x\0"


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("again", ["truncate", "write", "write far"])
def test_what_was_cut_off_does_not_come_back(drive: Drive, placed: bool, again: str) -> None:
    f = drive.file("f", b"\xff" * (2 * MIB))
    if placed:
        drive.place()
    drive.fs.setattr(f, size=MIB // 2)
    if again == "truncate":
        drive.fs.setattr(f, size=2 * MIB)
        wanted = b"\xff" * (MIB // 2) + bytes(3 * MIB // 2)
    else:
        at = MIB - 1 if again == "write" else 3 * MIB
        drive.fs.write(f, at, b"new")
        wanted = b"\xff" * (MIB // 2) + bytes(at - MIB // 2) + b"new"
    assert drive.read(f) == wanted
    drive.place()
    drive.remount()
    assert drive.read(f) == wanted
    drive.forget_released()
    assert drive.read(f) == wanted
    assert drive.check() == []


def test_a_cut_below_everything_staged_makes_a_hole(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.write(f, 500_000, b"data")
    drive.fs.setattr(f, size=10)
    assert file_map(drive, f) == [(0, 1, "HOLE")]
    assert (drive.fs.getattr(f).allocated, drive.fs.overlay.bytes) == (0, 0)
    drive.remount()
    assert drive.read(f) == bytes(10)
    assert drive.check() == []


def test_limits(drive: Drive) -> None:
    f = drive.file("f")
    refuses(errno.EFBIG, drive.fs.write, f, MAX_FILE_BYTES, b"x")
    assert drive.fs.write(f, MAX_FILE_BYTES - 1, b"x") == 1
    assert drive.fs.getattr(f).size == MAX_FILE_BYTES
    refuses(errno.EINVAL, drive.fs.write, f, -1, b"x")
    refuses(errno.EISDIR, drive.fs.read_now, 1, 0, 10)
    refuses(errno.EISDIR, drive.fs.write, 1, 0, b"x")
    assert len(file_map(drive, f)) == 2


# ---- sparse files -----------------------------------------------------------------------------------------------------


def test_a_sparse_file_of_a_tebibyte_is_three_records(drive: Drive) -> None:
    f = drive.file("f")
    drive.fs.setattr(f, size=1 << 40)
    assert file_map(drive, f) == [(0, 1 << 20, "HOLE")]
    drive.fs.write(f, 1 << 39, b"middle")
    assert file_map(drive, f) == [(0, 1 << 19, "HOLE"), (1 << 19, 1, "PENDING"), ((1 << 19) + 1, (1 << 19) - 1, "HOLE")]
    assert (drive.fs.getattr(f).allocated, drive.fs.getattr(f).stored) == (MIB, MIB)
    assert drive.read(f, (1 << 39) - 5, 16) == bytes(5) + b"middle" + bytes(5)
    drive.place()
    assert [kind for _, _, kind in file_map(drive, f)] == ["HOLE", "CHUNK", "HOLE"]
    drive.fs.setattr(f, size=1 << 41)
    drive.fs.setattr(f, size=1 << 42)
    assert len(file_map(drive, f)) == 3
    drive.fs.setattr(f, size=1 << 38)
    assert file_map(drive, f) == [(0, 1 << 18, "HOLE")]
    assert drive.check() == []
    drive.fs.unlink(1, b"f")
    assert file_map(drive, f) == []


def test_a_gap_left_by_a_write_far_beyond_the_end_is_a_hole(drive: Drive) -> None:
    f = drive.file("f", b"start")
    drive.fs.write(f, 10 * MIB + 3, b"end")
    assert file_map(drive, f) == [(0, 1, "PENDING"), (1, 9, "HOLE"), (10, 1, "PENDING")]
    assert drive.read(f, 5, 20 * MIB) == bytes(10 * MIB - 2) + b"end"
    assert drive.fs.getattr(f).allocated == 2 * MIB


def test_stored_bytes_of_a_dense_file_are_its_size(drive: Drive) -> None:
    f = drive.file("f", bytes(MIB + 4096))
    assert drive.fs.getattr(f).stored == MIB + 4096
    drive.place()
    drive.remount()
    assert drive.fs.getattr(f).stored == MIB + 4096


# ---- what the map says ------------------------------------------------------------------------------------------------


def test_a_slot_is_pending_from_the_first_commit_and_a_chunk_once_placed(drive: Drive) -> None:
    f = drive.file("f", bytes(2 * MIB))
    assert file_map(drive, f) == [(0, 1, "PENDING"), (1, 1, "PENDING")]
    drive.place(only=lambda work: work.slot == 1)
    assert file_map(drive, f) == [(0, 1, "PENDING"), (1, 1, "CHUNK")]
    drive.fs.write(f, MIB, b"new")
    assert file_map(drive, f) == [(0, 1, "PENDING"), (1, 1, "CHUNK")]


def test_pending_with_nothing_staged_was_lost_and_is_an_error_not_zeros(drive: Drive) -> None:
    f = drive.file("f", bytes(3 * MIB))
    drive.place()
    for slot in (1, 2):
        drive.store.put(map_key(f, slot), extent_to_bytes(MapExtent(slot, 1, SlotKind.PENDING)))
    assert drive.read(f, 0, MIB) == bytes(MIB)
    refuses(errno.EIO, drive.read, f, MIB, 1)
    refuses(errno.EIO, drive.read, f, MIB - 1, 2)


def test_lost_bytes_stay_lost_until_they_are_written_again(drive: Drive) -> None:
    f = drive.file("f", bytes(3 * MIB))
    drive.place()
    drive.store.put(map_key(f, 1), extent_to_bytes(MapExtent(1, 1, SlotKind.PENDING)))
    drive.fs.write(f, MIB + 1000, b"new")
    drive.remount()
    assert drive.read(f, MIB + 1000, 3) == b"new"
    refuses(errno.EIO, drive.read, f, MIB + 999, 4)
    refuses(errno.EIO, drive.read, f, MIB + 1000, 4)
    assert run(drive.service.dirty, 10, 0, []) == []
    drive.fs.write(f, MIB, pattern(1000))
    drive.fs.write(f, MIB + 1003, pattern(MIB - 1003))
    assert drive.read(f, MIB, MIB) == pattern(1000) + b"new" + pattern(MIB - 1003)
    assert drive.place() == 1
    drive.remount()
    assert drive.read(f, MIB, MIB) == pattern(1000) + b"new" + pattern(MIB - 1003)
    assert drive.check() == []


def test_a_lost_tail_can_be_cut_off(drive: Drive) -> None:
    f = drive.file("f", bytes(MIB + 500))
    drive.place()
    drive.store.put(map_key(f, 1), extent_to_bytes(MapExtent(1, 1, SlotKind.PENDING)))
    drive.fs.write(f, MIB + 100, b"new")
    drive.fs.setattr(f, size=MIB + 50)
    refuses(errno.EIO, drive.read, f, MIB, 1)
    drive.fs.setattr(f, size=MIB)
    drive.fs.write(f, MIB, b"again")
    assert drive.read(f, MIB, 10) == b"again"
    assert drive.check() == []


def test_a_gap_in_the_map_is_an_error_not_zeros(drive: Drive, caplog: pytest.LogCaptureFixture) -> None:
    f = drive.file("f", bytes(3 * MIB))
    drive.place()
    drive.store.delete(map_key(f, 1))
    refuses(errno.EIO, drive.read, f, MIB, 1)
    refuses(errno.EIO, drive.fs.write, f, MIB, b"x")
    assert drive.read(f, 0, MIB) == bytes(MIB)
    drive.fs.commits.now()
    assert [finding.kind for finding in drive.check()] == ["map", "allocated"]
    assert caplog.text.count("gap") == 1


@pytest.mark.parametrize("times", [1, 5, 1000])
def test_what_the_disk_must_bring_is_read_without_holding_up_the_loop(
    drive: Drive, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """However often memory is too short to keep what was brought: after some tries it is waited for."""
    ino, data = drive.file("f", b""), pattern(3 * MIB + 5)
    drive.fs.write(ino, 0, data)
    drive.fs.commits.now()
    asked: list[bool] = []
    real = reader.read_now

    def read_now(fd: int, path: Path, into: memoryview, position: int) -> int:
        asked.append(True)
        if len(asked) <= times:
            raise NotInMemory(path, position, len(into))
        return real(fd, path, into, position)

    monkeypatch.setattr(reader, "read_now", read_now)
    assert drive.fs.read_now(ino, 0, MIB) is None
    assert run(drive.fs.read, ino, 0, 4 * MIB) == data
    assert len(asked) > 1
