"""A real SIGKILL before and after every step of everything that a share store does; then it is opened again and compared
with what had been promised.

A forked child plays one script: shares put, put again, renewed, released, collected when their leases ended, swept,
scrubbed. It counts its steps (each call that changes the disk) and kills itself at the one that it was given.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hive_tools import DAY, share

from hivefs.model.ids import ShareId, VaultId
from hivefs.node import index as index_module
from hivefs.node.index import Change, NodeIndex
from hivefs.node.store import FANOUT, PutJob, ShareStore

ANN, BOB = VaultId(b"a" * 16), VaultId(b"b" * 16)
NOW = 1_800_000_000 * 10**9
SHARES = {name: share(300 + number, bytes([number + 1])) for number, name in enumerate("abcdefgh")}
MOST_STEPS = 300

Say = Callable[[str], None]


def job(name: str, vault: VaultId = ANN, until: int = NOW + 9 * DAY) -> PutJob:
    share_id, data = SHARES[name]
    return PutJob(vault, share_id, until, data)


def script(directory: Path, say: Say) -> None:
    """``say`` is told "+x" when x is acknowledged, "?x" before it may go, "-x" when it is gone for sure."""
    store = ShareStore(directory)
    store.clear_tmp()

    def put(*jobs: PutJob) -> None:
        names = {share_id: name for name, (share_id, _) in SHARES.items()}
        for done, result in zip(jobs, store.put_many(jobs, NOW), strict=True):
            assert isinstance(result, int)
            say("+" + names[done.share_id])

    put(job("a"), job("b"), job("c"))
    put(job("a"), job("a", BOB))
    store.renew(ANN, [SHARES["b"][0]], NOW + 20 * DAY)
    say("?a?c")
    assert store.release([(SHARES["a"][0], ANN), (SHARES["c"][0], ANN)]) == [True, True]
    say("-c+a")  # Bob's lease holds a
    put(job("d", until=NOW), job("e", until=NOW), job("f"))
    say("?d?e")
    assert store.collect(NOW + DAY, 1 << 40) > 0
    say("-d-e")
    # What a put that was killed leaves, and what a damaged disk does: the sweep and the scrub.
    orphan = SHARES["g"][0]
    (directory / "shares" / orphan.hex()[:2] / orphan.hex()).write_bytes(b"never acknowledged")
    say("?f")
    store._path(SHARES["f"][0]).write_bytes(b"short")
    for number in range(FANOUT):
        store.sweep_some(number)
    say("-f-g")
    put(job("g"), job("f"), job("h"))
    say("?h")
    damaged = store._path(SHARES["h"][0])
    damaged.write_bytes(bytes(len(SHARES["h"][1])))
    assert not store.scrub(SHARES["h"][0], len(SHARES["h"][1]))
    say("-h")
    put(job("h"), job("c"))
    say("!")


@contextmanager
def dying(at: int, counted: list[str]) -> Iterator[None]:
    """Every step that changes the disk is a point before and a point after; at point ``at`` this process is killed."""

    def point(name: str) -> None:
        counted.append(name)
        if len(counted) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            point("before " + name)
            try:
                return real(*arguments, **named)
            finally:
                point("after " + name)

        return call

    real_writing = NodeIndex.writing

    @contextmanager
    def writing(self: NodeIndex) -> Iterator[Change]:
        point("before transaction")
        with real_writing(self) as change:
            yield change
            point("before commit")
        point("after commit")

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "write"), (os, "fdatasync"), (os, "fsync"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, stepping(name, getattr(owner, name)))
        patch.setattr(NodeIndex, "writing", writing)
        yield


def play(directory: Path, at: int) -> tuple[str, bool]:
    """The script in a child, killed at a point: what it had said, and whether it came to its end."""
    receive, send = os.pipe()
    real_write = os.write
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with dying(at, []):
                script(directory, lambda text: real_write(send, text.encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    said = b""
    while piece := os.read(receive, 4096):
        said += piece
    os.close(receive)
    _, status = os.waitpid(pid, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the script failed at point {at}: {said!r}"
    return said.decode(), status == 0


def empty(directory: Path) -> None:
    """A new store, but for the directories, which cost more than all else."""
    shutil.rmtree(directory / "index", ignore_errors=True)
    for path in directory.glob("shares/*/*"):
        path.unlink()


def promised(said: str) -> tuple[set[str], set[str]]:
    """(shares that must be there, shares that must not), from what was said."""
    there: set[str] = set()
    gone = set(SHARES)
    unsure: set[str] = set()
    for sign, name in zip(said[::2], said[1::2], strict=False):
        there.discard(name)
        gone.discard(name)
        unsure.discard(name)
        {"+": there, "-": gone, "?": unsure}[sign].add(name)
    return there, gone


def compare(store: ShareStore, said: str, at: int) -> None:
    there, _ = promised(said.rstrip("!"))
    indexed = dict(store.index.shares(b"", 100))
    for name in there:
        share_id, data = SHARES[name]
        assert indexed.get(share_id) == len(data), f"{name} was acknowledged, lost by a kill at point {at} ({said})"
        assert store._path(share_id).read_bytes() == data
    for name in ("d", "e"):  # collected, and never put again by the script
        assert f"-{name}" not in said or SHARES[name][0] not in indexed
    on_disk = {path.name for path in (store.directory / "shares").rglob("*") if path.is_file()}
    assert on_disk == {share_id.hex() for share_id in indexed}, f"files and index differ after point {at} ({said})"
    assert list((store.directory / "tmp").iterdir()) == []
    _compare_tables(store, indexed)


def _compare_tables(store: ShareStore, indexed: dict[ShareId, int]) -> None:
    """Shares, leaves, leases in both orders and totals tell one story."""
    index = store.index
    with index._env.begin() as txn:
        rows = {name: [(bytes(k), bytes(v)) for k, v in txn.cursor(db=index._db[name])] for name in index_module.TABLES}
    assert {key for key, _ in rows["leaves"]} == set(indexed)
    assert {key[:32] for key, _ in rows["leases"]} == set(indexed)
    assert sorted(end + key for key, end in rows["leases"]) == [key for key, _ in rows["ends"]]
    before = (index.used, index.count, +index.by_vault)
    assert before[:2] == (sum(indexed.values()), len(indexed))
    index._count_anew()
    assert (index.used, index.count, +index.by_vault) == before


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: a kill does not take what the kernel has, and thousands of fsyncs cost nothing."""
    if not os.access("/dev/shm", os.W_OK):
        (tmp_path / "node").mkdir()
        yield tmp_path / "node"
        return
    made = Path(tempfile.mkdtemp(prefix="hivefs-kills-", dir="/dev/shm"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_point_loses_nothing_that_was_promised_and_leaves_nothing_behind(directory: Path, step: int) -> None:
    """At every fourth point; ``--slow`` takes them all."""
    points = 0
    for at in range(1, MOST_STEPS, step):
        empty(directory)
        said, ended = play(directory, at)
        store = ShareStore(directory)
        try:
            unswept = {share_id for share_id, _ in store.index.shares(b"", 100)}
            store.sweep()
            for share_id, size in store.index.shares(b"", 100):
                store.scrub(share_id, size)
            compare(store, said, at)
            # It works: what was lost or given up can be put again.
            results = store.put_many([job(name) for name in SHARES], NOW)
            assert all(isinstance(result, int) for result in results)
            assert len(store.index.shares(b"", 100)) == len(SHARES) >= len(unswept)
        finally:
            store.close()
        if ended:
            points = at
            assert said.endswith("!")
            break
    assert points > 80, "the script has all its steps"


def test_the_judge_sees_what_it_must(tmp_path: Path) -> None:
    """A share lost, and a file left over, are found."""
    said, ended = play(tmp_path, MOST_STEPS * 10)
    assert ended
    store = ShareStore(tmp_path)
    compare(store, said, 0)
    path = store._path(SHARES["a"][0])
    data = path.read_bytes()
    path.unlink()
    with pytest.raises((AssertionError, FileNotFoundError)):
        compare(store, said, 0)
    path.write_bytes(data)
    (tmp_path / "shares" / "00" / "more").write_bytes(b"")
    with pytest.raises(AssertionError, match="files and index differ"):
        compare(store, said, 0)
    (tmp_path / "shares" / "00" / "more").unlink()
    store.release([(SHARES["b"][0], ANN)])
    with pytest.raises(AssertionError, match="b was acknowledged"):
        compare(store, said, 0)
    store.close()
