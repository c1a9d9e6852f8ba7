"""A machine that gives a node no more threads: it is slower, and loses and refuses nothing."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import time
import weakref
from collections import Counter
from pathlib import Path

import pytest
import trio
from trio._core import _thread_cache

from hivefs.model.ids import ShareId, VaultId
from hivefs.node import threads
from hivefs.node.batching import Batcher
from hivefs.node.events import Events
from hivefs.node.reserve import RESERVE
from hivefs.node.store import PutJob, ShareStore
from hivefs.node.threads import Together, in_thread
from hivefs.node.upkeep import Upkeep, open_lease_clock

NOW = 10**18


class Limit:
    """So many threads may be started yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 30
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if self.left <= 0:
                raise RuntimeError("can't start new thread")
            self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        # trio keeps threads that had nothing to do for ten seconds, of whatever ran before.
        monkeypatch.setattr(_thread_cache, "THREAD_CACHE", _thread_cache.ThreadCache())


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    monkeypatch.setattr(threads._Said, "done", False)
    return Limit(monkeypatch)


def shares(count: int) -> list[PutJob]:
    made = [os.urandom(5000) for _ in range(count)]
    return [PutJob(VaultId(bytes(16)), ShareId(hashlib.sha256(data).digest()), NOW + 10**15, data) for data in made]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_each_is_done_once_and_all_are(limit: Limit, left: int) -> None:
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def work(number: int) -> int:
        time.sleep(0.002)
        with lock:
            done[number] += 1
        return 2 * number

    limit.left = left
    pool = Together(8, "test")
    for _ in range(5):
        done.clear()
        assert pool.all_at_once(work, range(20)) == [2 * n for n in range(20)]
        assert done == Counter(range(20))
    limit.left = 1 << 30  # what is left in the queue is done by nobody again
    assert pool.all_at_once(work, range(100, 120)) == [2 * n for n in range(100, 120)]
    pool.close()
    assert set(done.values()) == {1}


@pytest.mark.parametrize("left", [0, 1])
def test_what_was_done_is_not_kept_for_threads_that_never_come(limit: Limit, left: int) -> None:
    class Thing:
        pass

    limit.left = left
    pool = Together(8, "test")
    seen = []
    for _ in range(20):
        things = [Thing() for _ in range(3)]
        seen += [weakref.ref(thing) for thing in things]
        pool.all_at_once(lambda thing: None, things)
    del things
    end = time.monotonic() + 30
    while any(ref() is not None for ref in seen) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert not [ref for ref in seen if ref() is not None]
    limit.left = 1 << 30
    pool.close()


@pytest.mark.parametrize("left", [0, 2])
def test_a_batch_is_kept_without_new_threads(
    limit: Limit, left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ShareStore(tmp_path)
    limit.left = left
    for _ in range(3):
        jobs = shares(12)
        results = store.put_many(jobs, NOW)
        assert all(isinstance(result, int) for result in results)
    assert sum("no more threads" in record.getMessage() for record in caplog.records) == 1
    store.close()
    limit.left = 1 << 30
    store = ShareStore(tmp_path)
    assert store.index.used >= 36 * 5000 and store.sweep().lost == 0
    store.close()


def test_a_lane_without_a_thread_does_its_work_itself(limit: Limit) -> None:
    def work(jobs: list[int]) -> list[int]:
        seen.add(threading.get_ident())
        return [2 * job for job in jobs]

    async def test() -> None:
        batching = Batcher[int, int](work, lanes=2, most=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batching.run)
            for left in (0, 1):
                limit.left = left
                with trio.fail_after(100):
                    assert [await batching.do(n) for n in range(5)] == [0, 2, 4, 6, 8]
            nursery.cancel_scope.cancel()

    seen: set[int] = set()
    trio.run(test)
    assert threading.get_ident() in seen and len(seen) == 2


def test_upkeep_goes_on_without_a_thread(limit: Limit, tmp_path: Path) -> None:
    async def test() -> None:
        now = time.time_ns()
        upkeep = Upkeep(store, open_lease_clock(store, now), lambda: now, Events(trio.current_time))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            with trio.fail_after(100):
                while not (tmp_path / RESERVE).exists():
                    await trio.sleep(0.01)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    store = ShareStore(tmp_path)
    limit.left = 0
    trio.run(test)
    store.close()


def test_an_error_of_the_work_itself_passes_out_and_is_not_tried_again(limit: Limit) -> None:
    def work() -> None:
        times.append(1)
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        with pytest.raises(RuntimeError):
            await in_thread(work)

    times: list[int] = []
    trio.run(test)
    assert times == [1]
