"""daemon/warming.py: a small file that was met cold is read through, not too often, whatever the disk says."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from hivefs.crypto.keys import VaultKeys
from hivefs.daemon import warming
from hivefs.daemon.warming import PIECE_BYTES, Warming, read_through
from hivefs.metadata import store as stores
from hivefs.metadata.store import MetadataStore

LONG = 60.0


def test_a_small_file_is_read_to_its_end_and_a_large_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.mdb"
    for size in (0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 5):
        path.write_bytes(bytes(size))
        assert read_through(path) == size
    monkeypatch.setattr(warming, "SMALL_BYTES", 3 * PIECE_BYTES)
    assert read_through(path) == 0


def test_it_is_read_when_it_was_met_cold_and_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trio.Event(), trio.Event()
    times: list[float] = []

    def reading(path: Path) -> int:
        assert path == tmp_path / "x"
        times.append(trio.from_thread.run_sync(trio.current_time))
        if len(times) == 1:
            trio.from_thread.run_sync(asked[0].set)
            raise OSError(errno.EIO, "no")
        trio.from_thread.run_sync(asked[1].set)
        return 0

    monkeypatch.setattr(warming, "read_through", reading)
    monkeypatch.setattr(warming, "AGAIN_SECONDS", 0.2)

    async def main() -> None:
        cold = Warming(tmp_path / "x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cold.run)
            await trio.testing.wait_all_tasks_blocked()
            assert not times
            with trio.fail_after(LONG):
                cold.met()
                await asked[0].wait()
                while not asked[1].is_set():  # what is met during the pause is left; after it, it counts again
                    cold.met()
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert times[1] - times[0] >= 0.2


def test_a_scan_that_waits_for_the_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MetadataStore(tmp_path / "m", VaultKeys(bytes(32)), create=True)
    for number in range(1, 201):
        store.put(b"d" + bytes(16) + number.to_bytes(8, "big"), b"value")
    told: list[None] = []
    faults = [0]
    monkeypatch.setattr(stores, "_waits", lambda: faults[0])
    store.on_cold = lambda: told.append(None)
    assert len(list(store.scan(b"d"))) == 200 and not told

    def counting() -> int:
        faults[0] += 1
        return faults[0]

    monkeypatch.setattr(stores, "_waits", counting)
    assert len(list(store.scan(b"d"))) == 200 and told
    store.close()
