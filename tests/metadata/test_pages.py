"""A data file of LMDB that is shorter than its meta page says: whole, or cut."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import lmdb
import pytest

from hivefs.errors import StoreDamaged
from hivefs.metadata.environment import open_environment
from hivefs.metadata.pages import is_whole


def shortfall(environment: lmdb.Environment, path: Path) -> int:
    return (environment.info()["last_pgno"] + 1) * environment.stat()["psize"] - (path / "data.mdb").stat().st_size


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """A whole environment whose last pages were taken and given back in one transaction, as by making and removing."""
    path = tmp_path / "store"
    chance = random.Random(1)
    environment = lmdb.open(str(path), max_dbs=2, map_size=1 << 30)
    tables = [environment.open_db(name) for name in (b"one", b"two")]
    for _ in range(300):
        keys = [b"%06d" % chance.randrange(10**6) for _ in range(300)]
        with environment.begin(write=True) as transaction:
            for key in keys:
                transaction.put(key, chance.randbytes(100), db=tables[0])
                transaction.put(key, chance.randbytes(9000 if chance.random() < 0.05 else 50), db=tables[1])
            for key in keys[:290]:
                for table in tables:
                    transaction.delete(key, db=table)
        if shortfall(environment, path) > 0:
            break
    assert shortfall(environment, path) > 0
    environment.close()
    return path


def test_a_whole_file_that_is_shorter_opens_and_is_made_long(short: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert is_whole(short / "data.mdb", page)
    reader = open_environment(short, readonly=True)
    assert shortfall(reader, short) > 0
    reader.close()
    writer = open_environment(short, readonly=False)
    assert shortfall(writer, short) == 0
    with writer.begin() as transaction:
        for name in (b"one", b"two"):
            assert sum(1 for _ in transaction.cursor(db=writer.open_db(name, transaction))) > 0
    writer.close()


@pytest.mark.parametrize("pages", [1, 2, 10, 50])
def test_a_file_that_was_cut_is_noticed(short: Path, pages: int, tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    cut = tmp_path / "cut"
    shutil.copytree(short, cut)
    os.truncate(cut / "data.mdb", (cut / "data.mdb").stat().st_size - pages * page)
    assert not is_whole(cut / "data.mdb", page)
    with pytest.raises(StoreDamaged, match="cut short"):
        open_environment(cut, readonly=False)
