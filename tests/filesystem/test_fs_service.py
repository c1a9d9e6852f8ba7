"""What the engine asks: work in the right order, placing against changes, released chunks, levels of durability."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from drive_tools import MIB, Drive, pattern, run

from hivefs.errors import DiskFull
from hivefs.filesystem import inodes, service
from hivefs.maintenance.ports import Vault
from hivefs.model.ids import ROOT_INO, ChunkId, NodeId, ShareId, StripeId
from hivefs.model.stripe import ChunkPlace, Level, Purpose, Share, Stripe

SECOND = 10**9


class Book:
    """Placements in memory: every chunk in a stripe of its own, named like the chunk."""

    def __init__(self) -> None:
        self.levels: dict[bytes, Level] = {}
        self.metadata = Level.GUARANTEED
        self.assigned: dict[str, str] = {}
        self.proved_for = "default"

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        return ChunkPlace(StripeId(chunk_id), 0, 0, 10) if chunk_id in self.levels else None

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        nodes = [NodeId(bytes([n]) * 32) for n in range(2)]
        shares = tuple(Share(ShareId(bytes(32)), bytes(32), node) for node in (*nodes, None))
        return Stripe(stripe_id, Purpose.DATA, 2, 4096, shares)

    def stripe_level(self, stripe_id: StripeId, policy: str = "") -> Level:
        return self.levels[stripe_id] if policy == self.proved_for else min(self.levels[stripe_id], Level.REMOTE)

    def paths(self) -> Mapping[str, str]:
        return self.assigned

    def explained(self, stripe_id: StripeId) -> dict[str, Any]:
        return {"policy": self.proved_for}

    def metadata_level(self) -> Level:
        return self.metadata


class Timed(Drive):
    """A drive whose clock is moved by hand, with placements."""

    def __init__(self, path: Path) -> None:
        self.now = 1_000 * SECOND
        self.book = Book()
        super().__init__(path, clock=lambda: self.now, placements=self.book)

    def all_at(self, level: Level) -> None:
        self.book.levels = dict.fromkeys(self.chunks.plain, level)


@pytest.fixture
def drive(tmp_path: Path) -> Timed:
    return Timed(tmp_path / "drive")


def test_the_service_is_what_the_engine_wants(drive: Timed) -> None:
    vault: Vault = drive.service
    assert len(drive.service.session) == 16
    assert run(vault.released, 0, 10) == []


# ---- work to place ----------------------------------------------------------------------------------------------------


def test_quiet_slots_come_first_dirty_first_served(drive: Timed) -> None:
    files = []
    for n in range(5):
        files.append(drive.file(f"f{n}", b"data"))
        drive.now += SECOND
    drive.fs.write(files[1], 0, b"again")
    drive.fs.commits.now()
    work = run(drive.service.dirty, 10, 2 * SECOND, [])
    assert [w.ino for w in work] == [files[0], files[2], files[3]]
    assert [w.ino for w in run(drive.service.dirty, 2, 2 * SECOND, [])] == [files[0], files[2]]
    assert [w.ino for w in run(drive.service.dirty, 10, 2 * SECOND, [(files[0], 0), (files[3], 0)])] == [files[2]]
    assert len(run(drive.service.dirty, 10, 0, [])) == 5


def test_a_slot_that_is_never_quiet_is_given_out_after_ten_times_as_long(drive: Timed) -> None:
    f = drive.file("f", b"data")
    for n in range(21):
        drive.now += SECOND
        drive.fs.write(f, n, b"x")
        drive.fs.commits.now()
        if n < 18:
            assert run(drive.service.dirty, 10, 2 * SECOND, []) == []
    assert [w.ino for w in run(drive.service.dirty, 10, 2 * SECOND, [])] == [f]


def test_a_clock_that_was_set_back_stops_nothing(drive: Timed) -> None:
    f = drive.file("f", b"data")
    drive.fs.commits.now()
    drive.now -= 900 * SECOND
    assert [w.ino for w in run(drive.service.dirty, 10, 2 * SECOND, [])] == [f]


def test_only_committed_bytes_are_given_out_and_a_hurry_commits(drive: Timed) -> None:
    f = drive.file("f", b"data")
    drive.now += 100 * SECOND
    assert run(drive.service.dirty, 10, SECOND, []) == []
    assert [w.ino for w in run(drive.service.dirty, 10, 0, [])] == [f]
    drive.fs.write(f, 0, b"more")
    drive.now += 100 * SECOND
    assert run(drive.service.dirty, 10, SECOND, []) == []


def test_a_slot_of_work(drive: Timed) -> None:
    f = drive.file("f", pattern(MIB + 10))
    first, second = run(drive.service.dirty, 10, 0, [])
    assert (first.length, second.length, second.base) == (MIB, 10, None)
    assert drive.plain(first) + drive.plain(second) == pattern(MIB + 10)
    drive.place()
    drive.fs.write(f, MIB + 5, b"end")
    (work,) = run(drive.service.dirty, 10, 0, [])
    assert work.base is not None and work.base.length == 10
    assert drive.plain(work) == pattern(MIB + 10)[MIB : MIB + 5] + b"end" + pattern(MIB + 10)[-2:]


def test_a_removed_file_is_no_work(drive: Timed) -> None:
    f = drive.file("f", b"data")
    drive.fs.open(f)
    (work,) = run(drive.service.dirty, 10, 0, [])
    drive.fs.unlink(1, b"f")
    assert run(drive.service.dirty, 10, 0, []) == []
    ref = drive.chunks.put(drive.plain(work))
    assert run(drive.service.placed, [(f, 0, work.generation, ref)]) == [False]
    drive.fs.release(f)
    assert run(drive.service.placed, [(f, 0, work.generation, ref)]) == [False]


# ---- placed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["write", "truncate", "remount", "place", "other session"])
def test_what_was_changed_meanwhile_is_not_taken(drive: Timed, change: str) -> None:
    f = drive.file("f", b"data")
    drive.file("g", b"data")
    work = run(drive.service.dirty, 10, 0, [])[0]
    ref = drive.chunks.put(drive.plain(work))
    if change == "write":
        drive.fs.write(f, 0, b"D")
    elif change == "truncate":
        drive.fs.setattr(f, size=2)
    elif change == "place":
        drive.place()
    before = drive.read(f)
    generation = work.generation + (change in ("remount", "other session"))
    assert run(drive.service.placed, [(f, 0, generation, ref), (f, 7, 1, ref), (99, 0, 1, ref)]) == [False] * 3
    assert drive.read(f) == before
    assert ref.chunk_id not in {chunk_id for _, chunk_id in run(drive.service.released, 0, 10)}


def test_taken_is_durable(drive: Timed, tmp_path: Path) -> None:
    f = drive.file("f", pattern(3 * MIB))
    assert drive.place() == 3
    copied = drive.copy(tmp_path / "copy")
    assert copied.read(f) == pattern(3 * MIB)
    assert copied.stage.usage == 0 or copied.fs.overlay.bytes == 0
    assert len(copied.fs.overlay) == 0
    copied.unmount()


def test_placing_waits_for_a_full_disk(drive: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    drive.file("f", b"data")
    work = run(drive.service.dirty, 10, 0, [])[0]
    ref = drive.chunks.put(drive.plain(work))
    attempts = 0

    def disk() -> tuple[int, int]:
        nonlocal attempts
        attempts += 1
        return 1 << 40, 0 if attempts < 3 else 1 << 39

    monkeypatch.setattr(drive.store, "disk", disk)
    monkeypatch.setattr("hivefs.filesystem.service._RETRY", 0.01)
    assert run(drive.service.placed, [(work.ino, 0, work.generation, ref)]) == [True]
    assert not drive.fs.commits.pending
    monkeypatch.setattr(drive.store, "disk", lambda: (1 << 40, 0))
    drive.file("g")
    with pytest.raises(DiskFull):
        run(drive.service.flush)


def test_replaced_and_removed_chunks_are_released_once_committed(drive: Timed) -> None:
    f = drive.file("f", pattern(2 * MIB))
    drive.place()
    old = set(drive.chunks.plain)
    drive.fs.write(f, 0, b"new")
    drive.place()
    assert run(drive.service.released, 0, 10) == []  # durable by the journal, but no snapshot is without the chunk yet
    run(drive.service.flush)
    ((first, chunk_id),) = run(drive.service.released, 0, 10)
    assert chunk_id in old
    drive.fs.unlink(1, b"f")
    assert len(run(drive.service.released, 0, 10)) == 1
    run(drive.service.flush)
    assert [number for number, _ in run(drive.service.released, first, 10)] == [first + 1, first + 2]
    run(drive.service.released_done, first + 2)
    assert run(drive.service.released, 0, 10) == []
    run(drive.service.flush)
    drive.remount()
    assert run(drive.service.released, 0, 10) == []


# ---- durability -------------------------------------------------------------------------------------------------------


def test_levels_of_a_file(drive: Timed) -> None:
    f = drive.file("f", pattern(2 * MIB))
    assert run(drive.service.durability, f) == Level.LOCAL
    drive.place()
    drive.all_at(Level.GUARANTEED)
    assert run(drive.service.durability, f) == Level.LOCAL
    drive.publish()
    assert run(drive.service.durability, f) == Level.GUARANTEED
    assert drive.fs.getxattr(f, b"user.hivefs.durability") == b"guaranteed"
    drive.book.levels[next(iter(drive.chunks.plain))] = Level.REMOTE
    assert run(drive.service.durability, f) == Level.REMOTE
    drive.all_at(Level.GUARANTEED)
    drive.book.metadata = Level.LOCAL
    assert run(drive.service.durability, f) == Level.LOCAL
    drive.book.metadata = Level.GUARANTEED
    drive.book.levels.clear()
    assert run(drive.service.durability, f) == Level.LOCAL


def test_every_change_makes_a_file_local_again(drive: Timed) -> None:
    a = drive.dir("a")
    b = drive.dir("b", a)
    f = drive.file("f", b"data", parent=b)
    other = drive.file("other", b"data")

    def settle() -> None:
        drive.place()
        drive.all_at(Level.GUARANTEED)
        drive.publish()
        assert run(drive.service.durability, f) == Level.GUARANTEED

    changes = [
        lambda: drive.fs.write(f, 0, b"D"),
        lambda: drive.fs.setattr(f, mode=0o600),
        lambda: drive.fs.setattr(f, size=1),
        lambda: drive.fs.setxattr(f, b"user.a", b"x"),
        lambda: drive.fs.removexattr(f, b"user.a"),
        lambda: drive.fs.link(f, 1, b"g"),
        lambda: drive.fs.rename(b, b"f", b, b"h"),
        lambda: drive.fs.rename(1, b"a", 1, b"c"),
    ]
    for change in changes:
        settle()
        change()
        assert run(drive.service.durability, f) == Level.LOCAL
        run(drive.service.flush)
        assert run(drive.service.durability, f) == Level.LOCAL
        if change is not changes[7]:
            assert run(drive.service.durability, other) == Level.GUARANTEED
    settle()
    drive.remount()
    assert run(drive.service.durability, f) == Level.GUARANTEED
    assert run(drive.service.durability, 1) == Level.GUARANTEED


def test_a_file_made_in_a_directory_does_not_make_its_neighbours_local(drive: Timed) -> None:
    d = drive.dir("d")
    f = drive.file("f", b"data", parent=d)
    drive.place()
    drive.all_at(Level.GUARANTEED)
    drive.publish()
    drive.file("new", parent=d)
    assert run(drive.service.durability, f) == Level.GUARANTEED
    assert run(drive.service.durability, d) == Level.LOCAL


def test_counting_a_tree_for_those_who_wait(drive: Timed) -> None:
    d = drive.dir("d")
    files = [drive.file(f"f{n}", b"data", parent=d) for n in range(20)]
    ask = lambda: run(drive.service.durability_below, d, Level.REMOTE, 3)  # noqa: E731
    assert ask() == (21, 0)
    drive.place(only=lambda work: work.ino in files[:5])
    drive.all_at(Level.REMOTE)
    drive.publish()
    assert ask() == (21, 6)
    drive.place()
    drive.all_at(Level.REMOTE)
    drive.publish()
    assert ask() == (21, 21)
    drive.fs.unlink(d, b"f3")
    drive.file("new", parent=d)
    assert ask() == (21, 19)
    assert run(drive.service.durability_below, 1, Level.LOCAL) == (22, 22)
    assert run(drive.service.durability_below, files[0], Level.REMOTE) == (1, 1)
    assert run(drive.service.durability_below, files[0], Level.GUARANTEED) == (1, 0)


def test_the_place_of_a_file(drive: Timed) -> None:
    f = drive.file("f", pattern(2 * MIB))
    assert run(drive.service.placement, f) == []
    drive.place()
    drive.all_at(Level.REMOTE)
    rows = run(drive.service.placement, f)
    assert len(rows) == 2
    assert {row["stripe"] for row in rows} == {chunk_id.hex() for chunk_id in drive.chunks.plain}
    assert (rows[0]["needed"], rows[0]["total"], rows[0]["level"], rows[0]["chunks"]) == (2, 3, "remote", 1)
    assert rows[0]["nodes"] == ["00" * 32, "01" * 32, None]
    assert json.loads(drive.fs.getxattr(f, b"user.hivefs.placement")) == rows
    big = drive.file("big", bytes(1))
    drive.fs.setattr(big, size=400 * MIB)
    for slot in range(400):
        drive.fs.write(big, slot * MIB, b"x")
    drive.place()
    drive.all_at(Level.REMOTE)
    assert len(run(drive.service.placement, big)) == 400
    assert len(drive.fs.getxattr(big, b"user.hivefs.placement")) <= 60_000


def test_published_and_status(drive: Timed) -> None:
    drive.file("f", b"data")
    status = run(drive.service.status)
    assert (status["dirty_bytes"], status["dirty_slots"], status["uncommitted"]) == (4, 1, True)
    run(drive.service.flush)
    run(drive.service.published, 1 << 60)
    run(drive.service.flush)
    status = run(drive.service.status)
    assert status["published"] >= status["committed"] > 0
    assert status["files"] == 2
    snapshot = drive.snapshot()
    assert list(snapshot.changes()) == []
    drive.fs.unlink(1, b"f")
    run(drive.service.flush)
    snapshot.begin()
    assert len(list(snapshot.changes())) == 4
    assert run(drive.service.status)["committed"] > run(drive.service.status)["published"]
    snapshot.close()


def test_publishing_alone_makes_no_checkpoint_necessary(drive: Timed) -> None:
    drive.file("f", b"data")
    drive.place()
    drive.publish()
    for _ in range(3):
        run(drive.service.flush)
        status = run(drive.service.status)
        assert status["published"] >= status["committed"]
        run(drive.service.published, drive.store.seq - 1)


def test_a_long_count_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million files the first count takes minutes; who waits must hear from it."""
    drive = Drive(tmp_path / "drive")
    for number in range(30):
        drive.file(f"f{number}", b"x")
    drive.fs.commits.now()
    monkeypatch.setattr(service, "_TELL_EVERY", -1.0)
    monkeypatch.setattr(inodes, "CACHED", 8)
    told: list[list[int]] = []

    async def report(step: list[int]) -> None:
        told.append(step)
        assert len(drive.fs.inodes._cache) <= 8, "counting fills the memory with inodes"

    for passes in (1, 2):  # the second looks at what was behind only
        told.clear()
        assert run(lambda: drive.service.durability_below(1, Level.REMOTE, 5, report)) == (31, 0)
        assert len(told) == 6, passes
        assert all(0 <= done <= total <= 31 for total, done in told)
    assert told[-1][0] == 31


def test_the_policies_of_placed_chunks_are_told_some_at_a_time(drive: Timed) -> None:
    """By where their file is now; what is staged only has no chunk yet."""
    photos = drive.dir("Photos")
    drive.file("plain", pattern(2 * MIB + 5))
    moved = drive.file("moved", b"a picture")
    drive.place()
    drive.book.assigned = {"/Photos": "family"}

    def told() -> dict[ChunkId, str]:
        found: dict[ChunkId, str] = {}
        after = b""
        while True:
            after, some = run(drive.service.policies_of_chunks, after, 2)
            assert len(some) <= 2 and not found.keys() & {chunk for chunk, _ in some}
            found |= dict(some)
            if not after:
                return found

    assert set(told()) == set(drive.chunks.plain) and set(told().values()) == {"default"}
    drive.fs.rename(ROOT_INO, b"moved", photos, b"moved")
    names = told()
    assert sorted(names.values()) == ["default", "default", "default", "family"]
    (chunk,) = (chunk for chunk, name in names.items() if name == "family")
    assert drive.chunks.plain[chunk] == b"a picture"
    drive.fs.write(moved, 0, b"another, not placed")
    assert len(told()) == 4
