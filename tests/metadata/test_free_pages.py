"""LMDB files that end before their last page: whole when the missing pages are free, damaged otherwise."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from hivefs.errors import StoreDamaged
from hivefs.formats.journal import TABLES
from hivefs.metadata.environment import open_environment, open_tables
from hivefs.metadata.free_pages import is_whole

TABLE = TABLES[0]


def short_files(path: Path, seed: int) -> Iterator[tuple[lmdb.Environment, int]]:
    """Rows come and go; yields whenever LMDB has left its file shorter than it says. (environment, rows)"""
    dice = random.Random(seed)
    path.mkdir()
    environment = open_environment(path, readonly=False)
    table = open_tables(path, environment, create=True)[TABLE]
    rows: dict[bytes, bool] = {}
    for _ in range(400):
        with environment.begin(write=True) as transaction:
            for _ in range(dice.randrange(1, 200)):
                key = dice.randbytes(24)
                transaction.put(key, dice.randbytes(dice.choice((30, 150, 400, 9000 if seed % 2 else 20))), db=table)
                rows[key] = True
            for key in dice.sample(list(rows), min(len(rows), dice.randrange(400))):
                transaction.delete(key, db=table)
                del rows[key]
        information = environment.info()
        if (path / "data.mdb").stat().st_size < (information["last_pgno"] + 1) * environment.stat()["psize"]:
            yield environment, len(rows)
    environment.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_file_that_lacks_only_free_pages_is_whole(tmp_path: Path, seed: int) -> None:
    """LMDB does leave such files, in the best of health; cut further, each is found out before a row is missed."""
    seen = 0
    for environment, rows in itertools.islice(short_files(tmp_path / "store", seed), 4):
        seen += 1
        copy = tmp_path / "copy"
        copy.mkdir()
        shutil.copy(tmp_path / "store" / "data.mdb", copy)
        page = environment.stat()["psize"]
        for size in range((copy / "data.mdb").stat().st_size, 0, -page):
            os.truncate(copy / "data.mdb", size)
            try:
                opened = open_environment(copy, readonly=True)
            except StoreDamaged:
                assert size < (tmp_path / "store" / "data.mdb").stat().st_size
                break
            table = open_tables(copy, opened, create=False)[TABLE]
            with opened.begin() as transaction:
                assert sum(1 for _ in transaction.cursor(db=table)) == rows
            opened.close()
        else:
            pytest.fail("a file without any page was taken for whole")
        shutil.rmtree(copy)
    assert seen, "LMDB left no short file: nothing was tested"


def test_garbage_where_the_list_should_be_is_not_whole(tmp_path: Path) -> None:
    for environment, _ in short_files(tmp_path / "store", 1):
        file = tmp_path / "garbage"
        data = (tmp_path / "store" / "data.mdb").read_bytes()
        page = environment.stat()["psize"]
        file.write_bytes(data[: 2 * page] + os.urandom(len(data) - 2 * page))
        assert not is_whole(file, environment)
        file.write_bytes(os.urandom(len(data)))
        assert not is_whole(file, environment)
        return
    pytest.fail("LMDB left no short file: nothing was tested")
