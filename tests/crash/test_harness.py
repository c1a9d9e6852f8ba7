"""The harness itself: the simulator allows what a disk allows, and a drive that breaks its order is found out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from crash_drive import TIGHT, USUAL, Limits
from playing import Failed, Player

import hivefs.metadata.environment as environment
import hivefs.metadata.journal as journal
import hivefs.stage.files as stage_files
import hivefs.stage.syncing as syncing
from hivefs.filesystem.commits import Commits
from hivefs.metadata.store import MetadataStore
from hivefs.stage.log import StageLog
from hivefs.testing.fake_disk.crash import Disk
from hivefs.testing.fake_disk.events import Event, Kind, events_from_bytes


def file_written(*writes: tuple[int, bytes], synced: int = 0, named: bool = True) -> Disk:
    """File ``f`` with inode 2, ``synced`` of the writes before a sync."""
    disk = Disk()
    disk.follow([Event(Kind.CREATE, 1, 2, name=b"f")])
    disk.follow([Event(Kind.SYNC, 1)] if named else [])
    for number, (offset, data) in enumerate(writes):
        disk.follow([Event(Kind.SYNC, 2)] if number == synced and number else [])
        disk.follow([Event(Kind.WRITE, 2, offset=offset, data=data)])
    disk.follow([Event(Kind.SYNC, 2)] if synced == len(writes) else [])
    return disk


def outcomes(disk: Disk) -> set[bytes | None]:
    """What ``f`` may hold; None when it may be missing."""
    return {state.image.get("f") for seed in range(20) for state in disk.states("", str(seed), deep=True)}


def test_what_is_synced_is_there_and_nothing_else_is_certain() -> None:
    assert outcomes(file_written((0, b"one"), synced=1)) == {b"one"}
    assert outcomes(file_written((0, b"one"))) == {b"", b"one", b"\0\0\0"}
    found = outcomes(file_written((0, b"one"), (3, b"two"), synced=1))
    assert found == {b"one", b"onetwo", b"one\0\0\0"}


def test_later_writes_may_be_there_without_earlier_ones() -> None:
    disk = file_written((0, b"a" * 512), (512, b"b" * 512), (1024, b"c" * 512))
    found = outcomes(disk)
    assert b"\0" * 512 + b"b" * 512 + b"c" * 512 in found
    assert b"a" * 512 + b"\0" * 512 + b"c" * 512 in found
    assert b"a" * 512 + b"b" * 512 in found


def test_writes_are_torn_at_sectors_only() -> None:
    old, new = b"o" * 2048, b"n" * 2000
    found = outcomes(file_written((0, old), (24, new), synced=1))
    assert len(found) > 5
    for data in found:
        assert data is not None
        for start, end in ((24, 512), (512, 1024), (1024, 1536), (1536, 2024)):
            assert data[start:end] in (b"o" * (end - start), b"n" * (end - start))
        assert data[:24] == b"o" * 24


def test_a_name_is_certain_after_a_sync_of_its_directory_only() -> None:
    assert None in outcomes(file_written((0, b"one"), synced=1, named=False))
    disk = file_written((0, b"one"), synced=1)
    disk.follow([Event(Kind.UNLINK, 1, name=b"f")])
    assert outcomes(disk) == {b"one", None}
    disk.follow([Event(Kind.SYNC, 1)])
    assert outcomes(disk) == {None}


def test_what_a_sync_failed_to_store_stays_uncertain() -> None:
    disk = file_written((0, b"one"), (0, b"two"), synced=1)
    disk.follow([Event(Kind.FAILED_SYNC, 2), Event(Kind.SYNC, 2)])
    assert outcomes(disk) == {b"one", b"two"}
    disk.follow([Event(Kind.WRITE, 2, offset=0, data=b"six"), Event(Kind.SYNC, 2)])
    assert outcomes(disk) == {b"six"}


def test_truncations_and_renames() -> None:
    disk = file_written((0, b"one"), synced=1)
    disk.follow([Event(Kind.TRUNCATE, 2, offset=1)])
    assert outcomes(disk) == {b"one", b"o"}
    disk.follow([Event(Kind.SYNC, 2), Event(Kind.RENAME, 1, 1, name=b"f", data=b"g"), Event(Kind.SYNC, 1)])
    assert [state.image for state in disk.states("", "")] == [{"g": b"o"}]


def test_the_same_seed_gives_the_same_states_and_events_come_back_from_bytes() -> None:
    disk = file_written(*[(number * 700, bytes([number]) * 1500) for number in range(6)])
    first, again = ([state.digest for state in disk.states("", "seed", deep=True)] for _ in range(2))
    assert first == again
    assert first != [state.digest for state in disk.states("", "other", deep=True)]
    events = [Event(kind, 1, 2, 1 << 40, b"name", b"data" * number) for number, kind in enumerate(Kind)]
    assert list(events_from_bytes(b"".join(event.to_bytes() for event in events))) == events


# ---- a drive that breaks its promises -----------------------------------------------------------------------------------


def nothing(*arguments: Any) -> None:
    """A sync that does nothing."""


def claims_synced(segment: Any, end: int) -> None:
    segment.synced = end


BROKEN: dict[str, tuple[Limits, list[str], Callable[[pytest.MonkeyPatch], None]]] = {
    "segments are not synced": (
        TIGHT,
        ["overwrite", "syncfs"],
        lambda patch: patch.setattr(syncing, "_sync_segment", claims_synced),
    ),
    "names of segments are not synced": (
        TIGHT,
        ["overwrite", "syncfs"],
        lambda patch: patch.setattr(syncing, "sync_directory", nothing),
    ),
    "segments are not synced before the store commits": (
        USUAL,
        ["overwrite", "settle"],
        lambda patch: patch.setattr(StageLog, "sync", nothing),
    ),
    "the journal is not synced": (
        USUAL,
        ["append", "fsync"],
        lambda patch: patch.setattr(journal, "os", _With(os, "O_DSYNC", 0)),
    ),
    "pieces of a frame are not put back": (
        USUAL,
        ["append", "fsync"],
        lambda patch: patch.setattr(stage_files, "put_back", nothing),
    ),
    "a frame has no pieces": (
        USUAL,
        ["append", "fsync"],
        lambda patch: patch.setattr(StageLog, "loose_pieces", lambda self, limit: []),
    ),
    "frames are written over before the store commits": (
        USUAL,
        ["append", "fsync", "create-write", "fsync-dir"],
        lambda patch: patch.setattr(MetadataStore, "journal", _first_place_again(MetadataStore.journal)),
    ),
    "released chunks are given out too early": (
        USUAL,
        ["unlink-placed", "destroy", "settle"],
        lambda patch: patch.setattr(MetadataStore, "released", _uncommitted_too(MetadataStore.released)),
    ),
}


class _With:
    """A module with another value under one name."""

    def __init__(self, module: Any, name: str, value: Any) -> None:
        self._module, self._name, self._value = module, name, value

    def __getattr__(self, name: str) -> Any:
        return self._value if name == self._name else getattr(self._module, name)


def _first_place_again(original: Callable[..., bool]) -> Callable[..., bool]:
    def written(self: Any, pieces: Any) -> bool:
        self._journal.begin_round()
        return original(self, pieces)

    return written


def _uncommitted_too(original: Callable[..., Any]) -> Callable[..., Any]:
    def released(self: Any, after: int, limit: int) -> Any:
        self._committed_release = self._release_counter
        return original(self, after, limit)

    return released


@pytest.mark.fuse
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_drive_is_found_out(player: Player, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    limits, names, breaking = BROKEN[how]
    player.play(limits, names)
    breaking(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        player.play(limits, names)
    if isinstance(caught.value, Failed):
        for words in ("sequence:", "power cut after event", "state:", "allowed:"):
            assert words in str(caught.value)


@pytest.mark.fuse
def test_a_drive_that_believes_the_page_cache_is_found_out(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(commits: Commits) -> None:
        commits._store.durable = commits._store.seq - 1  # type: ignore[misc]  # only a store says so

    monkeypatch.setattr(environment, "_make_last", nothing)
    monkeypatch.setattr(Commits, "begin", believe)
    with pytest.raises(Failed, match="killed at its event"):
        player.play_killed(USUAL, ["append", "settle"], ["fsync"])
