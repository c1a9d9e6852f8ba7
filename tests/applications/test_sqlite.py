"""SQLite on the drive: all journal modes, two programs at once, programs and mounts that are killed.

What "is there" means is SQLite's own promise (sqlite.org/pragma.html#pragma_synchronous): with FULL a commit that has
returned is durable, but in DELETE mode, where the last one may be rolled back by a journal whose removal was not durable
yet; EXTRA closes that.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mount_tools import LIMIT, Mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]
MODES = ("wal", "delete", "truncate", "persist")

WRITER = """
import os, sqlite3, sys
path, mode, synchronous = sys.argv[1:]
base = sqlite3.connect(path, isolation_level=None, timeout=60)
assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
base.execute(f"pragma synchronous={synchronous}")
base.execute("create table if not exists t(a integer primary key, b blob)")
base.execute("create index if not exists byb on t(b)")
for number in range(1_000_000):
    base.execute("begin immediate")
    for part in range(5):
        base.execute("insert into t values(?, ?)", (number * 5 + part, os.urandom(700)))
    base.execute("commit")
    print(number, flush=True)
"""

COUNTER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
for _ in range(int(sys.argv[2])):
    base.execute("begin immediate")
    value = base.execute("select n from t").fetchone()[0]
    base.execute("update t set n = ?", (value + 1,))
    base.execute("commit")
    base.execute("select n from t").fetchone()
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def acknowledged(writer: subprocess.Popen[str], count: int) -> int:
    """Wait until that many transactions are acknowledged; the number of the last one."""
    assert writer.stdout is not None
    last = -1
    for _ in range(count):
        last = int(writer.stdout.readline())
    return last


def rest(writer: subprocess.Popen[str], last: int) -> int:
    """What was acknowledged after that, once the program has ended."""
    out, _ = writer.communicate(timeout=LIMIT)
    return max([last, *(int(line) for line in out.split())])


def judge(path: Path, at_least: int) -> None:
    """The data base is whole, and so is each of its transactions; there are at least so many."""
    base = sqlite3.connect(path, timeout=60)
    assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
    numbers = [a for (a,) in base.execute("select a from t order by a")]
    assert numbers == list(range(len(numbers))), "a transaction in the middle is missing"
    assert len(numbers) % 5 == 0, "half a transaction"
    assert len(numbers) // 5 >= at_least, f"{at_least} were acknowledged, {len(numbers) // 5} are there"
    base.execute("insert into t values(-1, x'00')")
    base.commit()
    base.close()


def test_data_bases_are_used_and_there_after_a_mount(shared: Mounted) -> None:
    for mode in MODES:
        base = sqlite3.connect(shared.path / f"used {mode}.db", isolation_level=None)
        assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        base.execute("pragma synchronous=normal")
        base.execute("create table t(a integer primary key, b blob)")
        for i in range(30):
            base.execute("insert into t values(?, ?)", (i, os.urandom(3000)))
        base.execute("begin")
        base.execute("delete from t")
        base.execute("rollback")
        base.execute("delete from t where a % 3 = 0")
        base.execute("vacuum")
        base.close()
    shared.unmount()
    shared.mount()
    for mode in MODES:
        again = sqlite3.connect(shared.path / f"used {mode}.db")
        assert again.execute("pragma integrity_check").fetchone() == ("ok",)
        assert again.execute("select count(*) from t").fetchone() == (20,)
        again.close()


@pytest.mark.parametrize("mode", MODES)
def test_two_programs_wait_for_each_other(shared: Mounted, mode: str) -> None:
    path, each = shared.path / f"two {mode}.db", 25
    base = sqlite3.connect(path, isolation_level=None)
    base.execute(f"pragma journal_mode={mode}")
    base.execute("pragma synchronous=off")
    base.execute("create table t(n)")
    base.execute("insert into t values(0)")
    programs = [start(COUNTER, path, each) for _ in range(2)]
    assert [program.wait(LIMIT) for program in programs] == [0, 0]
    assert base.execute("select n from t").fetchone() == (2 * each,)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.execute("begin exclusive")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, isolation_level=None, timeout=0).execute("begin immediate")
    base.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_writer_is_killed(shared: Mounted, mode: str) -> None:
    for count in (1, 5):
        path = shared.path / f"killed {mode} {count}.db"
        writer = start(WRITER, path, mode, "full")
        last = acknowledged(writer, count)
        writer.send_signal(signal.SIGKILL)
        judge(path, rest(writer, last) + 1)


@pytest.mark.parametrize(
    ("mode", "synchronous", "lost"),
    [("wal", "full", 0), ("truncate", "full", 0), ("persist", "full", 0), ("delete", "extra", 0), ("delete", "full", 1)],
)
def test_the_mount_is_killed(drive: Mounted, mode: str, synchronous: str, lost: int) -> None:
    path = drive.path / "base.db"
    writer = start(WRITER, path, mode, synchronous)
    last = acknowledged(writer, 8)
    assert drive.end(signal.SIGKILL) == -signal.SIGKILL
    last = rest(writer, last)
    drive.mount()
    judge(path, last + 1 - lost)
    drive.unmount()
    assert "ERROR" not in drive.log()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", MODES)
def test_the_mount_is_killed_again_and_again(drive: Mounted, mode: str) -> None:
    for count in range(1, 60, 6):
        path = drive.path / f"base {count}.db"
        writer = start(WRITER, path, mode, "extra")
        last = acknowledged(writer, count)
        assert drive.end(signal.SIGKILL) == -signal.SIGKILL
        last = rest(writer, last)
        drive.mount()
        judge(path, last + 1)
