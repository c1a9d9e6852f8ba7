"""The share store: what is on disk after every way to stop, a full disk, leases, scrubbing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hive_tools import DAY, share

from hivefs.errors import NodeProblem
from hivefs.model.ids import ShareId, VaultId
from hivefs.node import store as store_module
from hivefs.node.store import PutJob, ReadJob, ShareStore
from hivefs.protocol.failures import Code, Refusal
from hivefs.testing.small_disk import NoSmallDisk, small_disk

ANN, BOB = VaultId(b"a" * 16), VaultId(b"b" * 16)
NOW = 1_800_000_000 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ShareStore]:
    made = ShareStore(tmp_path)
    yield made
    made.close()


def put(store: ShareStore, *shares: tuple[ShareId, bytes], vault: VaultId = ANN, until: int = NOW + DAY) -> list[object]:
    return list(store.put_many([PutJob(vault, i, until, data) for i, data in shares], NOW))


def files(store: ShareStore) -> set[str]:
    return {path.name for path in (store.directory / "shares").rglob("*") if path.is_file()}


def read(store: ShareStore, share_id: ShareId, size: int) -> object:
    return store.read_many([ReadJob(share_id, 0, size)])[0]


def test_a_batch_has_one_result_for_each_share(store: ShareStore) -> None:
    good, other = share(10), share(20)
    wrong = (share()[0], b"wrong")
    results = put(store, good, wrong, other, good)
    assert isinstance(results[1], Refusal) and results[1].code == Code.WRONG_HASH
    assert [results[0], results[2], results[3]] == [NOW + DAY] * 3
    assert (store.index.used, store.index.count) == (30, 2)
    assert files(store) == {good[0].hex(), other[0].hex()}
    assert read(store, *_sized(good)) == good[1]


def _sized(one: tuple[ShareId, bytes]) -> tuple[ShareId, int]:
    return one[0], len(one[1])


def test_two_processes_cannot_have_one_store(store: ShareStore) -> None:
    with pytest.raises(NodeProblem, match="running already"):
        ShareStore(store.directory)


def test_totals_are_the_same_after_opening_again(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    one, two = share(100), share(200)
    put(store, one, two)
    put(store, one, vault=BOB)
    store.release([(two[0], ANN)])
    before = (store.index.used, store.index.count, +store.index.by_vault)
    store.close()
    store = ShareStore(tmp_path)
    assert (store.index.used, store.index.count, +store.index.by_vault) == before
    assert before == (100, 1, {ANN: 100, BOB: 100})
    store.close()


def test_files_without_entry_are_swept_and_entries_without_file_dropped(tmp_path: Path) -> None:
    store = ShareStore(tmp_path)
    kept = [share(100) for _ in range(20)]
    put(store, *kept)
    orphan, _ = share()
    (tmp_path / "shares" / orphan.hex()[:2] / orphan.hex()).write_bytes(b"not acknowledged")
    (tmp_path / "tmp" / "17").write_bytes(b"half of a sha")
    lost, cut = kept[3][0], kept[7][0]
    store._path(lost).unlink()
    store._path(cut).write_bytes(b"short")
    store.close()
    store = ShareStore(tmp_path)
    swept = store.sweep()
    # The cut file counts as lost; its remains leave with its entry.
    assert (swept.orphans, swept.lost) == (1, 2)
    assert files(store) == {i.hex() for i, _ in kept} - {lost.hex(), cut.hex()}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.index.count == 18 and store.index.used == 1800 and store.index.by_vault[ANN] == 1800
    assert store.sweep() == store_module.Sweep(0, 0)
    store.close()


class Killed(BaseException):
    """Stands for the process ending at this point."""


STEPS = ("os.write", "os.fdatasync", "Path.rename", "os.fsync", "index.writing", "Path.unlink")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("time_", [1, 2, 3])
def test_whatever_was_acknowledged_is_there_after_a_kill_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, time_: int
) -> None:
    """Stop before the n-th call of each kind; nothing after it runs, not even the cleaning up."""
    store = ShareStore(tmp_path)
    acknowledged = [share(300) for _ in range(3)]
    assert put(store, *acknowledged) == [NOW + DAY] * 3
    calls = 0
    dead = False

    def dying(real):  # type: ignore[no-untyped-def]
        def call(*arguments, **named):  # type: ignore[no-untyped-def]
            nonlocal calls, dead
            calls += not dead
            if dead or calls == time_:
                dead = True
                raise Killed
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        owner, name = step.split(".")
        target = {"os": os, "Path": Path, "index": store.index}[owner]
        patch.setattr(target, name, dying(getattr(target, name)))
        if step != "Path.unlink":
            # What a dead process does not do: clean up.
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None if dead else os.unlink(self))
        with contextlib.suppress(Killed):
            put(store, *(share(400) for _ in range(3)))
            store.release([(acknowledged[0][0], ANN), (acknowledged[1][0], ANN)])
            acknowledged = acknowledged[2:]
    unsure = acknowledged[:2] if len(acknowledged) == 3 and step in ("index.writing", "Path.unlink") else []
    store.close()

    store = ShareStore(tmp_path)
    swept = store.sweep()
    assert swept.lost == 0
    for share_id, data in acknowledged:
        if (share_id, data) not in unsure:
            assert read(store, share_id, 300) == data
    indexed = {share_id for share_id, _ in store.index.shares(b"", 100)}
    assert files(store) == {share_id.hex() for share_id in indexed}
    assert store.index.used == sum(size for _, size in store.index.shares(b"", 100))
    assert all(store.scrub(share_id, size) for share_id, size in store.index.shares(b"", 100))
    assert calls >= 1
    store.close()


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with small_disk(disk, 3 << 20):
            fill_and_release(disk)
    except NoSmallDisk as missing:
        pytest.skip(str(missing))


def fill_and_release(disk: Path) -> None:
    store = ShareStore(disk)
    kept, refused = [], 0
    for _ in range(12):
        batch = [share(150_000) for _ in range(3)]
        for one, result in zip(batch, put(store, *batch), strict=True):
            if isinstance(result, Refusal):
                assert result.code == Code.FULL
                refused += 1
            else:
                kept.append(one)
    assert refused and kept
    assert files(store) == {share_id.hex() for share_id, _ in kept}
    assert list((disk / "tmp").iterdir()) == []
    assert store.index.used == 150_000 * len(kept)
    store.release([(share_id, ANN) for share_id, _ in kept[:2]])
    assert put(store, share(1000)) == [NOW + DAY]
    store.close()
    store = ShareStore(disk)
    assert store.sweep() == store_module.Sweep(0, 0)
    for share_id, data in kept[2:]:
        assert read(store, share_id, 150_000) == data
    store.close()


def test_a_disk_that_fails_while_it_syncs_keeps_nothing_of_the_share(
    store: ShareStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = share(10)

    def failing(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        (result,) = put(store, one)
    assert isinstance(result, Refusal) and result.code == Code.BUSY
    assert files(store) == set() and store.index.count == 0
    assert put(store, one) == [NOW + DAY]


def test_one_file_that_cannot_be_synced_costs_the_others_of_its_batch_nothing(
    store: ShareStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and directories are synced by several threads at once; each result belongs to its own share."""
    shares, real = [share(1000 + number) for number in range(40)], os.fdatasync
    threads: set[str] = set()

    def failing(handle: int) -> None:
        threads.add(threading.current_thread().name)
        if os.fstat(handle).st_size % 10 == 7:
            raise OSError(5, "Input/output error")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        results = put(store, *shares)
    bad = {number for number, result in enumerate(results) if isinstance(result, Refusal)}
    assert bad == {7, 17, 27, 37} and len(threads) > 1
    assert files(store) == {share_id.hex() for number, (share_id, _) in enumerate(shares) if number not in bad}
    assert store.index.count == 36 and list((store.directory / "tmp").iterdir()) == []
    before = set(os.listdir("/proc/self/fd"))
    assert put(store, *shares) == [NOW + DAY] * 40
    assert set(os.listdir("/proc/self/fd")) == before, "a file was left open"


def test_a_directory_that_cannot_be_synced_keeps_nothing_of_its_batch(
    store: ShareStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, real, calls = [share(1000) for _ in range(20)], os.fsync, iter(range(1000))

    def failing(handle: int) -> None:
        if next(calls) == 5:
            raise OSError(5, "Input/output error")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        results = put(store, *shares)
    assert all(isinstance(result, Refusal) and result.code == Code.BUSY for result in results)
    assert files(store) == set() and store.index.count == 0
    assert put(store, *shares) == [NOW + DAY] * 20


def test_scrubbing_finds_one_changed_byte_and_drops_the_share(store: ShareStore) -> None:
    one, two = share(5000), share(5000)
    put(store, one, two)
    path = store._path(one[0])
    path.write_bytes(one[1][:-1] + bytes([one[1][-1] ^ 1]))
    assert store.scrub(*_sized(two))
    assert not store.scrub(*_sized(one))
    assert store.dropped == 1 and store.index.size(one[0]) is None and not path.exists()
    assert store.scrub(*_sized(one))
    refused = read(store, *_sized(one))
    assert isinstance(refused, Refusal) and refused.code == Code.MISSING


def test_only_ended_leases_are_collected_oldest_first_and_as_few_as_needed(store: ShareStore) -> None:
    shares = [share(1000) for _ in range(6)]
    for number, one in enumerate(shares):
        put(store, one, until=NOW + number * DAY)
    put(store, shares[0], vault=BOB, until=NOW + 100 * DAY)
    assert store.collect(NOW, 10_000) == 0
    freed = store.collect(NOW + 4 * DAY, 1)
    assert freed >= 1000
    assert store.index.size(shares[0][0]) == 1000, "Bob's lease holds it"
    assert store.collect(NOW + 4 * DAY, 1 << 60) + freed == 3000
    assert [store.index.size(i) for i, _ in shares] == [1000, None, None, None, 1000, 1000]
    store.renew(ANN, [shares[4][0]], NOW + 9 * DAY)
    assert store.collect(NOW + 8 * DAY, 1 << 60) == 1000
    assert store.index.size(shares[4][0]) == 1000


def test_a_share_put_again_while_it_is_released_is_there_or_not_as_a_whole(store: ShareStore) -> None:
    """Threads put and release one share; after every end file and index agree."""

    one = share(20_000)
    stop = time.monotonic() + 1.0
    ended: list[object] = []

    def hammer(work) -> None:  # type: ignore[no-untyped-def]
        while time.monotonic() < stop:
            work()
        ended.append(work)

    threads = [
        threading.Thread(target=hammer, args=(lambda: put(store, one),)),
        threading.Thread(target=hammer, args=(lambda: put(store, one),)),
        threading.Thread(target=hammer, args=(lambda: store.release([(one[0], ANN)]),)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert len(ended) == 3
    assert (store.index.size(one[0]) is not None) == (files(store) == {one[0].hex()})
    assert store.index.used == (20_000 if store.index.count else 0)
    put(store, one)
    assert read(store, *_sized(one)) == one[1]
    assert store.dropped == 0


def test_a_node_whose_shares_were_removed_while_it_runs_says_so_and_keeps_what_comes(store: ShareStore) -> None:
    """rm -rf of the directory with the shares: each is missing from then on, and there is room for new ones."""
    before, after = [share(n) for n in range(100, 120)], [share(n) for n in range(200, 220)]
    put(store, *before)
    shutil.rmtree(store.directory / "shares")
    assert store.free_on_disk() > 0
    answer = read(store, *_sized(before[0]))
    assert isinstance(answer, Refusal) and answer.code == Code.MISSING and store.dropped == 1
    swept = [store.sweep_some(number) for number in range(store_module.FANOUT)]
    assert sum(s.lost for s in swept) == 19 and store.index.count == 0
    assert put(store, *after) == [NOW + DAY] * 20
    assert [read(store, *_sized(one)) for one in after] == [data for _, data in after]
    assert store.free_on_disk() > 0 and store.sweep() == store_module.Sweep(0, 0)
    shutil.rmtree(store.directory)
    assert store.free_on_disk() == 0
    assert all(isinstance(r, Refusal) and r.code == Code.BUSY for r in put(store, share(7)))


def test_the_directories_of_shares_are_on_disk_before_a_share_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the node starts, and when one was removed: then also if the first try to make it again failed."""
    synced: list[Path] = []
    sync, broken = store_module._sync_directory, [False]

    def note(path: Path) -> OSError | None:
        synced.append(path)
        return OSError(errno.EIO, "broken") if broken[0] else sync(path)

    monkeypatch.setattr(store_module, "_sync_directory", note)
    store = ShareStore(tmp_path)
    try:
        assert synced == [tmp_path / "shares", tmp_path]
        one = share(1)
        place = tmp_path / "shares" / one[0].hex()[:2]
        place.rmdir()
        broken[0] = True
        assert all(isinstance(r, Refusal) for r in put(store, one))
        broken[0] = False
        synced.clear()
        assert put(store, one) == [NOW + DAY]
        assert synced == [tmp_path / "shares", tmp_path, place]
    finally:
        store.close()


def test_a_share_that_cannot_be_looked_at_now_is_not_dropped(store: ShareStore) -> None:
    """No descriptor is free: connections and batches of shares take many."""
    one = share(1)
    put(store, one)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.open("/dev/null", os.O_RDONLY)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.close(os.open("/dev/null", os.O_RDONLY))
        assert store.scrub(*_sized(one))
        answer = read(store, *_sized(one))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(answer, Refusal) and answer.code == Code.BUSY
    assert store.dropped == 0 and read(store, *_sized(one)) == one[1]
