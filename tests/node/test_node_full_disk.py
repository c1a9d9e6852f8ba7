"""A node on a disk that somebody else filled to the last byte: it starts, says so, and can be emptied."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hive_tools import DAY, share

from hivefs.daemon import node_process
from hivefs.daemon.node_process import RUN_FILE, recorded, running_node
from hivefs.errors import DiskFull, NodeProblem
from hivefs.model.ids import VaultId
from hivefs.node import reserve as reserve_module
from hivefs.node.reserve import RESERVE, RESERVE_BYTES, Reserve
from hivefs.node.space import SPARE_DISK, Space
from hivefs.node.store import PutJob, ShareStore
from hivefs.protocol.failures import Code, Refusal
from hivefs.testing.small_disk import NoSmallDisk, fill, small_disk

ANN = VaultId(b"a" * 16)
NOW = 1_800_000_000 * 10**9
MANY = 600


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with small_disk(disk, 24 << 20):
            yield disk
    except NoSmallDisk as missing:
        pytest.skip(str(missing))


def test_a_full_disk_can_be_emptied(disk: Path) -> None:
    store = ShareStore(disk)
    assert store.reserve.keep(store.free_on_disk())
    kept = [share(10) for _ in range(MANY)]
    for result in store.put_many([PutJob(ANN, i, NOW + DAY, data) for i, data in kept], NOW):
        assert result == NOW + DAY
    store.close()
    fill(disk / "somebody else's")
    store = ShareStore(disk)
    assert store.free_on_disk() < 1 << 20
    refused = 0
    while store.index.count:
        try:
            store.release([(share_id, ANN) for share_id, _ in kept])
        except DiskFull:
            refused += 1
            assert refused < 3, "room was given back and did not help"
    assert not (disk / RESERVE).exists() or not refused
    store.close()


def test_a_node_that_starts_on_a_full_disk_says_that_it_runs(disk: Path) -> None:
    assert Reserve(disk).keep(24 << 20)
    fill(disk / "somebody else's")
    with recorded(disk):
        found = running_node(disk)
        assert found is not None and found.pid == os.getpid()
        assert not (disk / RESERVE).exists()
    assert not (disk / RUN_FILE).exists()
    fill(disk / "and more")
    with pytest.raises(NodeProblem, match="No space left"), recorded(disk):
        raise AssertionError("it was written on a full disk")


def test_what_is_wrong_with_a_disk_that_is_not_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path, data: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert Reserve(tmp_path).keep(1 << 30)
    monkeypatch.setattr(node_process, "write_file", failing)
    with pytest.raises(NodeProblem, match="Input/output error"), recorded(tmp_path):
        raise AssertionError("it was not written")
    assert (tmp_path / RESERVE).exists()


def test_the_reserve_takes_real_blocks_and_only_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve(tmp_path)
    assert not reserve.keep(2 * RESERVE_BYTES - 1) and not (tmp_path / RESERVE).exists() and not reserve.give()
    assert reserve.keep(2 * RESERVE_BYTES) and reserve.keep(0)
    assert (tmp_path / RESERVE).stat().st_blocks * 512 >= RESERVE_BYTES
    assert reserve.give() and not reserve.give()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reserve_module.os, "posix_fallocate", full)
    assert not reserve.keep(1 << 30)
    assert not (tmp_path / RESERVE).exists()


@pytest.mark.parametrize("made", [0, RESERVE_BYTES // 2])
def test_a_reserve_that_a_kill_left_in_the_making_is_made_whole(tmp_path: Path, made: int) -> None:
    (tmp_path / RESERVE).write_bytes(bytes(made))
    reserve = Reserve(tmp_path)
    assert not reserve.keep(2 * RESERVE_BYTES - 1)
    assert reserve.keep(2 * RESERVE_BYTES)
    assert (tmp_path / RESERVE).stat().st_blocks * 512 >= RESERVE_BYTES


def test_shares_leave_the_index_some_of_the_disk(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    left = SPARE_DISK + 1000
    space = Space(store.index, 1 << 40, 0, lambda: left)
    assert space.free == 1000
    with space.reserve(ANN, 900):
        assert (space.free, space.missing(101)) == (100, 1)
        with pytest.raises(Refusal) as caught, space.reserve(ANN, 101):
            raise AssertionError("more than the disk has was promised")
        assert caught.value.code == Code.FULL
    left = SPARE_DISK - 1
    assert space.free == 0 and space.missing(5) == 5
    store.close()
