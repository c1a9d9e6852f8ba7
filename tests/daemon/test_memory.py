"""Mapped pages of LMDB are given back, and what they hold is read again."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(self: Path) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", read_text)
    assert memory.file_bytes() == 0
    memory.let_go()
