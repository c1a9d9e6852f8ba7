"""The journal of the metadata: what it brings back after a crash, and what it does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_tools import KEYS, make, overwrite, reopen

from hivefs.crypto.seal import RecordSealer
from hivefs.errors import Corrupt, StoreDamaged
from hivefs.formats import journal as formats
from hivefs.formats.journal import BLOCK, FrameChain, Numbers, body_from_bytes, body_to_bytes, row_to_bytes
from hivefs.metadata import journal as journal_module
from hivefs.metadata.store import MetadataStore
from hivefs.model.staged import SegmentPiece

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "journal.json").read_text())
ROWS = [("tree", b"m" + bytes(16), b"sealed value"), ("changed", b"m" + bytes(16), None), ("orphans", b"12345678", b"")]
PIECES = [SegmentPiece(1 << 50, 80, b"units"), SegmentPiece(7, 0, b"")]


KEY = b"mkey"


def counted_random(first: int) -> Any:
    return lambda count: bytes((first + i) % 256 for i in range(count))


def file_of(directory: Path) -> Path:
    return directory / "metadata" / "journal"


def crashed(tmp_path: Path, name: str = "crashed") -> Path:
    """What is on the disk at this moment, as another home."""
    target = tmp_path / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tmp_path / "metadata", target / "metadata")
    return target


def values(store: MetadataStore) -> dict[bytes, bytes | None]:
    return dict(store.scan(b"m"))


def test_the_frames_of_earlier_releases_are_read_and_written_the_same() -> None:
    for vector in VECTORS["frames"]:
        body = body_to_bytes(
            Numbers(**vector["numbers"]),
            [
                row_to_bytes(r["table"], bytes.fromhex(r["key"]), None if r["value"] is None else bytes.fromhex(r["value"]))
                for r in vector["rows"]
            ],
            [SegmentPiece(p["segment"], p["position"], bytes.fromhex(p["data"])) for p in vector["pieces"]],
        )
        assert body.hex() == vector["body"]
    chain = FrameChain(RecordSealer(bytes.fromhex(VECTORS["metadata_key"]), counted_random(VECTORS["random_first"])))
    again = FrameChain(RecordSealer(bytes.fromhex(VECTORS["metadata_key"]), os.urandom))
    for vector in VECTORS["frames"]:
        frame = chain.seal(vector["number"], bytes.fromhex(vector["body"]))
        assert frame.rstrip(b"\0").hex() == vector["frame"].rstrip("0").ljust(len(frame.rstrip(b"\0").hex()), "0")
        assert (len(frame), chain.position) == (vector["length"], vector["position"])
        assert FrameChain.length_of(frame) == (vector["number"], vector["length"])
        assert again.open(vector["number"], frame).hex() == vector["body"]
        chain.follow(frame)
        again.follow(frame)


def test_a_body_survives_the_round_trip_and_nothing_else_is_taken() -> None:
    numbers = Numbers(1, 2, 3, 4)
    rows = [row_to_bytes(formats.TABLES.index(table) + 1, key, value) for table, key, value in ROWS]
    body = body_to_bytes(numbers, rows, PIECES)
    frame = body_from_bytes(body)
    assert (frame.numbers, frame.rows, frame.pieces) == (numbers, ROWS, PIECES)
    damaged = [b"", body[:-1], body[1:], rows[0] + body, body + body, body + b"\xfe" + bytes(6), body + b"\0"]
    damaged += [body + row_to_bytes(8, b"k", b"v"), body[:7] + bytes(8) + body[7:]]
    for wrong in damaged:
        with pytest.raises(Corrupt):
            body_from_bytes(wrong)


def test_a_frame_opens_only_in_its_place_after_the_one_before() -> None:
    sealer = RecordSealer(KEYS.metadata_key, os.urandom)
    chain = FrameChain(sealer)
    first = chain.seal(5, body_to_bytes(Numbers(1, 1, 1, 1), [], []))
    chain.follow(first)
    second = chain.seal(6, body_to_bytes(Numbers(2, 2, 2, 2), [], []))
    fresh = FrameChain(sealer)
    for number, frame in ((6, first), (6, second), (5, second)):
        with pytest.raises(Corrupt):
            fresh.open(number, frame)
    fresh.open(5, first)
    fresh.follow(first)
    with pytest.raises(Corrupt):
        fresh.open(7, second)
    fresh.open(6, second)


def test_what_was_journaled_survives_and_the_rest_does_not(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(b"m1", b"kept")
    store.put(b"m2", b"deleted")
    store.inodes = 7
    first = store.next_ino()
    assert store.journal([])
    store.delete(b"m2")
    store.put(b"m3", b"kept too")
    store.put_orphan(9)
    store.push_released(b"c" * 16)  # type: ignore[arg-type]
    assert store.journal([])
    assert store.journaled and not store.pending
    store.put(b"m4", b"lost")
    after = reopen(crashed(tmp_path))
    assert values(after) == {b"m1": b"kept", b"m3": b"kept too"}
    assert (after.seq, after.inodes, after.changed_seq, after.orphans()) == (store.seq, 7, store.seq - 1, [9])
    assert after.next_ino() == first + 1
    assert after.released(0, 10) == []
    after.commit()
    assert [number for number, _ in after.released(0, 10)] == [1]
    after.close()
    again = reopen(tmp_path / "crashed")
    assert values(again) == {b"m1": b"kept", b"m3": b"kept too"}
    assert again.seq == after.seq
    again.close()
    store.close()


def test_a_second_crash_before_the_first_commit_loses_nothing(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(b"m1", b"kept")
    assert store.journal([])
    home = crashed(tmp_path)
    for _ in range(3):
        after = reopen(home)
        assert values(after) == {b"m1": b"kept"}
        after.put(b"m2", b"lost")
        assert not after.journal([]), "the frames that were replayed must not be written over before a commit"
        after.close()
    store.close()


@pytest.mark.parametrize("sector", range(8))
def test_a_torn_frame_is_as_if_it_had_not_been_written(tmp_path: Path, sector: int) -> None:
    """512 bytes of the last frame are what was there before (zeros, or an older frame)."""
    store = make(tmp_path)
    for old in range(12):
        store.put(b"m%d" % old, os.urandom(1000))
        assert store.journal([])
    store.commit()
    store.put(b"mx", b"kept")
    assert store.journal([])
    before = file_of(tmp_path).read_bytes()
    kept = values(store)
    store.put(b"my", os.urandom(3000))
    assert store.journal([])
    whole = file_of(tmp_path).read_bytes()
    at = BLOCK + 512 * sector
    if whole[at : at + 512] == before[at : at + 512]:
        assert sector == 6 or not any(whole[at : at + 512]), "the frame is longer than the test believes"
        return
    home = crashed(tmp_path)
    file_of(home).write_bytes(whole[:at] + before[at : at + 512] + whole[at + 512 :])
    after = reopen(home)
    assert values(after) == kept
    after.close()
    store.close()


def test_frames_of_an_earlier_round_are_not_taken_again(tmp_path: Path) -> None:
    store = make(tmp_path)
    for number in range(5):
        store.put(KEY, b"old %d" % number)
        assert store.journal([])
    store.commit()
    between = reopen(crashed(tmp_path, "between"))
    assert values(between) == {KEY: b"old 4"}
    between.close()
    store.put(KEY, b"new")
    assert store.journal([])
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"new"}
    after.close()
    store.close()


def test_a_round_that_is_full_ends_with_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "ROUND_BYTES", 3 * BLOCK)
    monkeypatch.setattr(journal_module, "STEP_BYTES", BLOCK)
    store = make(tmp_path)
    for number in range(3):
        store.put(KEY, b"%d" % number)
        assert store.journal([])
    store.put(KEY, b"3")
    assert not store.journal([])
    assert store.pending
    store.commit()
    store.put(KEY, b"4")
    assert store.journal([])
    assert file_of(tmp_path).stat().st_size == 3 * BLOCK
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"4"}
    after.close()
    store.close()


def test_more_than_a_frame_holds_is_left_to_the_store(tmp_path: Path) -> None:
    store = make(tmp_path)
    for number in range(20):
        store.put(b"m%02d" % number, bytes(100_000))
    assert not store.journal([])
    store.commit()
    store.put(KEY, b"small")
    assert store.journal([])
    store.close()


@pytest.mark.parametrize("call", ["pwrite", "open"])
def test_a_journal_that_cannot_be_written_leaves_it_to_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = make(tmp_path)
    store.put(KEY, b"1")

    def failing(*arguments: Any) -> int:
        raise OSError(errno.EIO, "the disk does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        assert not store.journal([])
    assert store.pending
    assert not store.journal([]), "the same number would be written twice"
    store.commit()
    store.put(KEY, b"2")
    assert store.journal([])
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"2"}
    after.close()
    store.close()


class Calls:
    """os, for the journal: what it opens to write frames and how it writes them; ``refuse`` raises in their place."""

    def __init__(self, refuse: Callable[[str, int], None] = lambda call, flags: None, most: int = 1 << 30) -> None:
        self.flags: list[int] = []
        self.writes: list[tuple[int, int]] = []
        self._refuse, self._most = refuse, most

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DSYNC == os.O_DSYNC:
            self._refuse("open", flags)
            self.flags.append(flags)
        return os.open(path, flags, *rest)

    def pwrite(self, fd: int, data: memoryview, at: int) -> int:
        self._refuse("pwrite", self.flags[-1])
        written = os.pwrite(fd, data[: self._most], at)
        self.writes.append((at, written))
        return written


def test_a_frame_is_one_call_into_blocks_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(journal_module, "os", calls)
    store = make(tmp_path)
    step = journal_module.STEP_BYTES
    for number in range(3):
        store.put(KEY, b"%d" % number)
        assert store.journal([])
        assert file_of(tmp_path).stat().st_size == step
    store.put(KEY, b"large")
    assert store.journal([SegmentPiece(7, 0, bytes(step))])
    assert file_of(tmp_path).stat().st_size == 2 * step
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"large"}
    after.close()
    store.commit()
    store.put(KEY, b"next round")
    assert store.journal([])
    store.close()
    assert all(flags & os.O_DIRECT and flags & os.O_DSYNC == os.O_DSYNC for flags in calls.flags)
    assert calls.writes[0] == (0, step)
    assert calls.writes[1:3] == [(BLOCK, BLOCK), (2 * BLOCK, BLOCK)]
    assert calls.writes[3:] == [(3 * BLOCK, 2 * step - 3 * BLOCK), (0, BLOCK)]
    assert file_of(tmp_path).stat().st_size == 2 * step


@pytest.mark.parametrize("call", ["open", "pwrite"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_direct_writes_are_not_known_frames_go_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def refuse(asked: str, flags: int) -> None:
        if asked == call and flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))

    calls = Calls(refuse)
    monkeypatch.setattr(journal_module, "os", calls)
    store = make(tmp_path)
    for number in range(2):
        store.put(KEY, b"%d" % number)
        assert store.journal([])
    assert calls.flags[-1] & os.O_DSYNC == os.O_DSYNC
    assert not calls.flags[-1] & os.O_DIRECT
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"1"}
    after.close()
    store.close()


def test_a_frame_that_the_disk_takes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(most=3 * 512 + BLOCK)
    monkeypatch.setattr(journal_module, "os", calls)
    monkeypatch.setattr(journal_module, "STEP_BYTES", BLOCK)
    store = make(tmp_path)
    store.put(KEY, b"value")
    assert store.journal([SegmentPiece(7, 0, os.urandom(3 * BLOCK))])
    assert [at for at, _ in calls.writes] == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"value"}
    after.close()
    calls._most = 512
    store.put(KEY, b"never whole")
    assert not store.journal([]), "less than a block at a time leads nowhere"
    store.commit()
    store.close()


class SmallDisk(Calls):
    """A disk with room for so many bytes of the journal, and not for a byte more; it takes what fits (pwrite(2))."""

    room = 1 << 30

    def pwrite(self, fd: int, data: memoryview, at: int) -> int:
        left = (self.room - at) // 512 * 512
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().pwrite(fd, data[:left], at)


def test_where_there_is_no_room_for_zeros_the_frame_alone_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(journal_module, "os", disk)
    store = make(tmp_path)
    disk.room = 3 * BLOCK
    for number in range(3):
        store.put(KEY, b"%d" % number)
        assert store.journal([]), "there was room for the frame"
        after = reopen(crashed(tmp_path))
        assert values(after) == {KEY: b"%d" % number}
        after.close()
    assert not caplog.records
    store.close()


def test_a_full_disk_is_one_line_and_the_journal_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(journal_module, "os", disk)
    store = make(tmp_path)
    for room, lines in ((BLOCK, 1), (1 << 30, 2), (2 * BLOCK, 3), (1 << 30, 4)):
        store._journal.clear()
        disk.room = room
        for number in range(4):  # rounds: the store commits by itself what the journal cannot take
            store.put(KEY, b"small %d" % number)
            assert store.journal([])
            store.put(KEY, b"large %d" % number)
            written = store.journal([SegmentPiece(7, 0, bytes(3 * BLOCK))])
            assert written == (room > 3 * BLOCK)
            if not written:
                assert not store.journal([]), "the same number would be written twice"
                after = reopen(crashed(tmp_path))
                assert values(after) == {KEY: b"small %d" % number}, "half a frame was taken"
                after.close()
            store.commit()
            after = reopen(crashed(tmp_path))
            assert values(after) == {KEY: b"large %d" % number}
            after.close()
        assert len(caplog.records) == lines
    full, again = caplog.records[:2]
    assert "The disk under" in full.getMessage() and "is full" in full.getMessage() and "again" in again.getMessage()
    store.close()


def test_a_full_disk_that_does_not_tell_its_size_holds_up_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SmallDisk()
    monkeypatch.setattr(journal_module, "os", disk)
    store = make(tmp_path)

    def silent(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal_module.shutil, "disk_usage", silent)
    disk.room = 0
    store.put(KEY, b"value")
    assert not store.journal([])
    monkeypatch.undo()
    store.commit()  # and not: a frame is being written, for ever
    after = reopen(crashed(tmp_path))
    assert values(after) == {KEY: b"value"}
    after.close()
    store.close()


def test_a_frame_of_other_keys_or_another_store_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make(tmp_path / "other")
    store = make(tmp_path)
    for each in (store, other):
        each.put(KEY, b"mine" if each is store else b"another's")
        assert each.journal([])
    frame = bytearray(file_of(tmp_path).read_bytes())
    store.close()
    other.close()
    frame[100] ^= 1
    file_of(tmp_path).write_bytes(frame)
    after = reopen(tmp_path)
    assert values(after) == {}
    after.close()
    fresh = tmp_path / "fresh"
    (fresh / "metadata").mkdir(parents=True)
    shutil.copy(file_of(tmp_path / "other"), file_of(fresh))
    made = make(fresh)
    assert values(made) == {}
    assert file_of(fresh).stat().st_size == 0
    made.close()


def test_a_store_of_the_first_release_gets_a_journal(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put(KEY, b"value")
    store.close(commit=True)
    overwrite(tmp_path / "metadata", "info", {b"format": b"\x01"}, seal=True)
    stale = os.urandom(5000)
    file_of(tmp_path).write_bytes(stale)
    store = reopen(tmp_path)
    assert values(store) == {KEY: b"value"}
    assert file_of(tmp_path).stat().st_size == 0
    store.put(KEY, b"journaled")
    assert store.journal([])
    after = reopen(crashed(tmp_path))
    assert after.get_info(b"format") == b"\x02"
    assert values(after) == {KEY: b"journaled"}
    after.close()
    store.close()
    overwrite(tmp_path / "metadata", "info", {b"format": b"\x03"}, seal=True)
    with pytest.raises(StoreDamaged, match="newer"):
        reopen(tmp_path)


def test_pieces_of_the_stage_come_back_and_must_be_taken_before_a_commit(tmp_path: Path) -> None:
    store = make(tmp_path)
    for number, piece in enumerate(PIECES):
        store.put(KEY, b"%d" % number)
        assert store.journal([piece])
    after = reopen(crashed(tmp_path))
    with pytest.raises(RuntimeError):
        after.commit()
    assert after.take_pieces() == PIECES
    assert after.take_pieces() == []
    after.commit()
    after.close()
    store.close()


def test_garbage_in_the_file_is_not_a_frame(tmp_path: Path) -> None:
    make(tmp_path).close()
    header = struct.Struct(">8sQI")
    for garbage in (
        os.urandom(3 * BLOCK),
        header.pack(formats.MAGIC, 2, 0xFFFFFFFF) + bytes(BLOCK),
        header.pack(formats.MAGIC, 2, 3) + bytes(BLOCK),
        header.pack(formats.MAGIC, 2, 500) + bytes(100),
        header.pack(formats.MAGIC, 2, 500) + bytes(BLOCK),
        b"HVjrnl\0\x02" + bytes(BLOCK),
    ):
        file_of(tmp_path).write_bytes(garbage)
        store = reopen(tmp_path)
        assert values(store) == {}
        assert not store.pending
        store.close()
