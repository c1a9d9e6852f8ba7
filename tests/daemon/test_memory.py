"""Mapped pages of LMDB are given back, and what they hold is read again."""

from __future__ import annotations

import gc
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
import trio
import trio.testing

from hivefs.daemon import memory

ROWS = 200_000


def test_pages_are_let_go_and_read_again(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    environment = lmdb.open(str(tmp_path / "store"), map_size=1 << 30)
    with environment.begin(write=True) as txn:
        for number in range(ROWS):
            txn.put(b"%012d" % number, b"%300d" % number)

    def walk() -> int:
        with environment.begin() as txn:
            return sum(int(value) == int(key) for key, value in txn.cursor())

    before = memory.file_bytes()

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.keep_maps_small)
            await trio.testing.wait_all_tasks_blocked()
            assert walk() == ROWS
            mapped = memory.file_bytes()
            await trio.sleep(2 * memory.EVERY)
            nursery.cancel_scope.cancel()
        return mapped

    mapped = trio.run(main, clock=autojump_clock)
    assert mapped - before > memory.MOST_BYTES
    assert memory.file_bytes() - before < memory.MOST_BYTES
    assert walk() == ROWS
    environment.close()


@pytest.fixture(autouse=True)
def _looked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little processor time these tests take."""
    monkeypatch.setattr(memory, "LITTLE_S", 0.0)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(self: Path) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.file_bytes() == 0
    memory.let_go()


class Replaced:
    """An object that the collector looks at."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_what_replaces_old_objects_does_not_pile_up(autojump_clock: trio.testing.MockClock) -> None:
    """As many are let go as are made, so the collector is not called by itself."""
    threshold = gc.get_threshold()
    kept = {number: Replaced(number) for number in range(30_000)}
    gc.collect()
    gc.freeze()
    try:
        memory.collect_often()

        def replace_all() -> None:
            for number in kept:
                kept[number] = Replaced(-number)

        async def main() -> tuple[int, int]:
            replace_all()
            alone = len(gc.get_objects(generation=0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(memory.keep_small)
                await trio.sleep(1.5 * memory.EVERY)
                looked_at = len(gc.get_objects(generation=0))
                nursery.cancel_scope.cancel()
            return alone, looked_at

        alone, looked_at = trio.run(main, clock=autojump_clock)
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
    assert alone > 20_000, "this is what it is there for"
    assert looked_at < 1000


class Cycle:
    """An object that only the collector can let go."""

    gone = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Cycle.gone += 1


def test_cycles_that_lived_for_a_while_are_let_go(autojump_clock: trio.testing.MockClock) -> None:
    """Few at a time, so that the collector is never called by itself between two calls by time."""
    threshold = gc.get_threshold()
    made = 0

    async def main() -> None:
        nonlocal made
        waiting = deque[Cycle]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.keep_small)
            await trio.sleep(memory.EVERY / 2)
            while made < 40_000 and not Cycle.gone:
                waiting.extend(Cycle() for _ in range(10))
                made += 10
                if len(waiting) > 200:  # as long as it takes until they are old
                    for _ in range(10):
                        waiting.popleft()
                await trio.sleep(memory.EVERY)
            nursery.cancel_scope.cancel()

    gc.collect()
    gc.freeze()
    gc.collect()  # so that a quarter more than was left is little, whatever the other tests left
    try:
        memory.collect_often()
        trio.run(main, clock=autojump_clock)
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
        gc.collect()
    assert made < 40_000


def test_the_collector_does_nothing_while_the_engine_starts() -> None:
    try:
        memory.collect_nothing()
        assert not gc.isenabled()
    finally:
        memory.settled()
        gc.unfreeze()
    assert gc.isenabled()


def test_a_process_that_does_little_is_looked_at_seldom(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its processor time since the last look, so that nothing is left out for longer than that is little."""
    used, looks = [0.0], dict.fromkeys(("collector", "maps"), 0)

    def looked(what: str) -> int:
        looks[what] += 1
        return 0

    monkeypatch.setattr(memory, "LITTLE_S", 0.01)
    monkeypatch.setattr(memory, "time", SimpleNamespace(process_time=lambda: used[0]))
    monkeypatch.setattr(
        memory, "gc", SimpleNamespace(collect=lambda _: looked("collector"), get_threshold=gc.get_threshold)
    )
    monkeypatch.setattr(memory, "file_bytes", lambda: looked("maps"))

    async def passes(turns: int, each: float) -> dict[str, int]:
        looks.update(dict.fromkeys(looks, 0))
        for _ in range(turns):
            used[0] += each
            await trio.sleep(memory.EVERY)
        return dict(looks)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.keep_small)
            await trio.sleep(memory.EVERY / 2)
            assert await passes(100, 0.0) == {"collector": 0, "maps": 0}
            assert await passes(100, 0.00201) == {"collector": 20, "maps": 20}, "a hundredth of a core: once a second"
            assert (await passes(100, 0.2)) == {"collector": 100, "maps": 100}
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)
