"""The data file of LMDB is shorter than its count of pages after much was made and removed: whole, not cut short."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import lmdb
import pytest
from store_tools import make, reopen

from hivefs.errors import StoreDamaged
from hivefs.metadata.pages import UnreadablePages, needed_pages

PAGE = 4096


def state_of(environment: lmdb.Environment) -> tuple[int, int]:
    info = environment.info()
    return info["last_txnid"], (info["last_pgno"] + 1) * PAGE


@pytest.mark.parametrize("seed", range(12))
def test_what_is_in_use_lies_in_the_file(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    environment = lmdb.open(str(tmp_path), map_size=1 << 28, max_dbs=2)
    table = environment.open_db(b"table")
    path = tmp_path / "data.mdb"
    for _ in range(choose.randint(1, 5)):
        keys: list[bytes] = []
        with environment.begin(write=True, db=table) as transaction:
            for _ in range(choose.choice([5, 50, 2000])):
                if choose.random() < 0.55 or not keys:
                    keys.append(b"%06d" % choose.randrange(10_000))
                    transaction.put(keys[-1], choose.randbytes(choose.choice([10, 300, 1500, 9000])))
                else:
                    transaction.delete(keys.pop(choose.randrange(len(keys))))
        number, _ = state_of(environment)
        fd = os.open(path, os.O_RDONLY)
        needed = needed_pages(fd, PAGE, number)
        assert needed is not None
        assert needed * PAGE <= path.stat().st_size
        assert needed_pages(fd, PAGE, number + 1) is None
        os.close(fd)
    environment.close()


def test_files_made_and_removed_at_once_do_not_keep_the_store_from_opening(tmp_path: Path) -> None:
    store = make(tmp_path)
    data = tmp_path / "metadata" / "data.mdb"
    for size in (3000, 300, 9000):
        for number in range(60):
            store.put(b"m%d" % number, os.urandom(size))
        for number in range(60):
            store.delete(b"m%d" % number)
        store.commit()
        if data.stat().st_size < state_of(store.environment)[1]:
            break
    else:
        pytest.fail("LMDB writes every page: then metadata/pages.py is not needed any more")
    store.close()
    reopen(tmp_path).close()


def test_a_file_that_was_cut_short_is_noticed(tmp_path: Path) -> None:
    store = make(tmp_path)
    for number in range(200):
        store.put(b"m%03d" % number, os.urandom(1000))
    store.commit()
    number, _ = state_of(store.environment)
    store.close()
    path = tmp_path / "metadata" / "data.mdb"
    fd = os.open(path, os.O_RDWR)
    needed = needed_pages(fd, PAGE, number)
    assert needed is not None
    for length in (needed * PAGE - 1, (needed - 1) * PAGE, needed * PAGE // 2, 3 * PAGE, 2 * PAGE):
        os.ftruncate(fd, length)
        with pytest.raises(StoreDamaged, match="cut short"):
            reopen(tmp_path)
    os.close(fd)


def test_pages_that_make_no_sense_are_not_read_on(tmp_path: Path) -> None:
    store = make(tmp_path)
    for size in (3000, 9000):
        for number in range(300):
            store.put(b"m%03d" % number, os.urandom(size))
        for number in range(300):
            store.delete(b"m%03d" % number)
        store.commit()
    number, _ = state_of(store.environment)
    store.close()
    path = tmp_path / "metadata" / "data.mdb"
    whole = path.read_bytes()
    choose = random.Random(5)
    fd = os.open(path, os.O_RDWR)
    for _ in range(200):
        at = choose.randrange(len(whole) // 512) * 512
        os.pwrite(fd, choose.randbytes(512), at)
        with contextlib.suppress(UnreadablePages):
            needed_pages(fd, PAGE, number)
        os.pwrite(fd, whole[at : at + 512], at)
    os.close(fd)
