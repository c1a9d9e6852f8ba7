"""What is done on every target. A workload is a row of steps; each runs in a child of its own (bounded.py), between them
the target settles. A step gets a Place and gives figures; what a later step must know it gives as "note:..." strings.

Times are of the calls that a user waits for: comparing, and making the data, are outside of them.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hivefs.testing.bench.sources import Sizes, Sources, warm
from hivefs.testing.bench.tools import (
    Differs,
    command,
    digest,
    drop_caches,
    files_below,
    forget_pages,
    read_file,
    same_trees,
    sync_directory,
    sync_filesystem,
    write_all,
)

BLOCK: Final = 4096
MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Place:
    """Where a step works: an empty directory on the target, the inputs, the amounts, notes of the steps before."""

    directory: Path
    sources: Sources
    sizes: Sizes
    notes: Mapping[str, str]
    seed: int


Result = dict[str, float | str]
Step = Callable[[Place], Result]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``better`` is "more" for rates and "less" for seconds; ``goal`` a share of the ceiling."""

    key: str
    title: str
    unit: str
    goal: float
    better: str = "more"


@dataclass(frozen=True, slots=True)
class Workload:
    """Steps that follow each other on one target, and the rows that they fill."""

    name: str
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]


class _Clock:
    def __enter__(self) -> _Clock:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = max(time.perf_counter() - self._start, 1e-9)


# ---- sequential -----------------------------------------------------------------------------------------------------


def _write_sequentially(place: Place) -> Result:
    data = os.urandom(place.sizes.sequential_bytes)
    with _Clock() as clock:
        fd = os.open(place.directory / "large", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write_all(fd, data)
        os.fsync(fd)
        os.close(fd)
    return {"write": len(data) / MB / clock.seconds, "note:large": digest(data)}


def _read_sequentially(place: Place) -> float:
    size = place.sizes.sequential_bytes
    with _Clock() as clock:
        data = read_file(place.directory / "large", size)
    if digest(data) != place.notes["large"]:
        raise Differs("the large file is not what was written")
    return size / MB / clock.seconds


def _read_cold(place: Place) -> Result:
    forget_pages(place.directory / "large")
    drop_caches()
    return {"read_cold": _read_sequentially(place)}


def _read_warm(place: Place) -> Result:
    read_file(place.directory / "large", place.sizes.sequential_bytes)
    return {"read_warm": _read_sequentially(place)}


# ---- small files ----------------------------------------------------------------------------------------------------


def _small_names(place: Place) -> list[Path]:
    return [place.directory / f"d{i % 20:02}" / f"f{i:05}" for i in range(place.sizes.small_files)]


def _small_bytes(place: Place, number: int) -> bytes:
    """The same for one file of one round, and nothing that a codec makes small."""
    return random.Random(place.seed * 1_000_003 + number).randbytes(BLOCK)


def _small_create(place: Place) -> Result:
    names = _small_names(place)
    contents = [_small_bytes(place, i) for i in range(len(names))]
    for folder in sorted({path.parent for path in names}):
        folder.mkdir()
    with _Clock() as clock:
        for path, data in zip(names, contents, strict=True):
            with path.open("xb", buffering=0) as file:
                file.write(data)
    return {"small_create": len(names) / clock.seconds}


def _small_stat(place: Place) -> Result:
    drop_caches()
    count = 0
    with _Clock() as clock:
        for path in files_below(place.directory):
            if path.lstat().st_size != BLOCK:
                raise Differs(f"{path.name} has not {BLOCK} bytes")
            count += 1
    if count != place.sizes.small_files:
        raise Differs(f"{count} of {place.sizes.small_files} files are listed")
    return {"small_stat": count / clock.seconds}


def _small_read(place: Place) -> Result:
    drop_caches()
    names = _small_names(place)
    found = []
    with _Clock() as clock:
        for path in names:
            with path.open("rb", buffering=0) as file:
                found.append(file.read())
    if any(data != _small_bytes(place, i) for i, data in enumerate(found)):
        raise Differs("a small file is not what was written")
    return {"small_read": len(names) / clock.seconds}


def _small_rename(place: Place) -> Result:
    names = _small_names(place)[: max(1, place.sizes.small_files // 2)]
    with _Clock() as clock:
        for path in names:
            path.rename(path.with_suffix(".new"))
    if any(path.exists() or not path.with_suffix(".new").exists() for path in names):
        raise Differs("a file has not its new name")
    return {"small_rename": len(names) / clock.seconds}


def _small_delete(place: Place) -> Result:
    paths = list(files_below(place.directory))
    with _Clock() as clock:
        for path in paths:
            path.unlink()
    if any(True for _ in files_below(place.directory)):
        raise Differs("a deleted file is still there")
    return {"small_delete": len(paths) / clock.seconds}


# ---- random access --------------------------------------------------------------------------------------------------


def _offsets(place: Place, count: int, kind: int) -> list[int]:
    """The same for every target in one round."""
    chance = random.Random(place.seed * 10 + kind)
    return [chance.randrange(place.sizes.random_bytes // BLOCK) * BLOCK for _ in range(count)]


def _numbered(size: int, seed: int) -> bytearray:
    """Bytes that no codec makes small, the same for one seed."""
    return bytearray(random.Random(seed).randbytes(size))


def _random_prepare(place: Place) -> Result:
    fd = os.open(place.directory / "blocks", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    write_all(fd, memoryview(_numbered(place.sizes.random_bytes, place.seed)))
    os.fsync(fd)
    os.close(fd)
    return {}


def _random_read(place: Place) -> Result:
    offsets = _offsets(place, place.sizes.random_reads, 1)
    forget_pages(place.directory / "blocks")
    drop_caches()
    fd = os.open(place.directory / "blocks", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    with _Clock() as clock:
        found = [os.pread(fd, BLOCK, offset) for offset in offsets]
    os.close(fd)
    wanted = _numbered(place.sizes.random_bytes, place.seed)
    if any(data != wanted[offset : offset + BLOCK] for data, offset in zip(found, offsets, strict=True)):
        raise Differs("a random read is not what was written")
    return {"random_read": len(offsets) / clock.seconds}


def _random_write(place: Place) -> Result:
    offsets = _offsets(place, place.sizes.random_writes, 2)
    blocks = [os.urandom(BLOCK) for _ in offsets]
    fd = os.open(place.directory / "blocks", os.O_RDWR)
    with _Clock() as clock:
        for offset, block in zip(offsets, blocks, strict=True):
            os.pwrite(fd, block, offset)
        os.fsync(fd)
    os.close(fd)
    wanted = _numbered(place.sizes.random_bytes, place.seed)
    for offset, block in zip(offsets, blocks, strict=True):
        wanted[offset : offset + BLOCK] = block
    return {"random_write": len(offsets) / clock.seconds, "note:blocks": digest(wanted)}


def _random_compare(place: Place) -> Result:
    forget_pages(place.directory / "blocks")
    drop_caches()
    if digest(read_file(place.directory / "blocks", place.sizes.random_bytes)) != place.notes["blocks"]:
        raise Differs("the file is not what the overwrites made of it")
    return {}


# ---- programs -------------------------------------------------------------------------------------------------------


def _sqlite(place: Place) -> Result:
    path, count = place.directory / "test.db", place.sizes.transactions
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("create table t (a integer primary key, b blob)")
    value = os.urandom(500)
    with _Clock() as clock:
        for number in range(count):
            base.execute("begin")
            base.execute("insert into t values (?, ?)", (number, value))
            base.execute("commit")
    base.close()
    drop_caches()
    base = sqlite3.connect(path)
    whole = base.execute("pragma integrity_check").fetchone()[0]
    rows = base.execute("select count(*) from t where b = ?", (value,)).fetchone()[0]
    base.close()
    if whole != "ok" or rows != count:
        raise Differs(f"sqlite finds {rows} of {count} rows and says {whole}")
    return {"sqlite": count / clock.seconds}


def _atomic_saves(place: Place) -> Result:
    data = os.urandom(BLOCK)
    with _Clock() as clock:
        for number in range(place.sizes.saves):
            aside = place.directory / f"save{number}.tmp"
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            aside.rename(place.directory / f"save{number % 10}")
            sync_directory(place.directory)
    drop_caches()
    if any(path.read_bytes() != data or path.suffix for path in files_below(place.directory)):
        raise Differs("a saved file is not what was saved")
    return {"atomic": place.sizes.saves / clock.seconds}


def _photos_in(place: Place) -> Result:
    warm(place.sources.photos)
    copy = place.directory / "photos"
    with _Clock() as clock:
        command("cp", "-a", str(place.sources.photos), str(copy))
        sync_filesystem(copy)
    first = next(files_below(place.sources.photos))
    if (copy / first.relative_to(place.sources.photos)).stat().st_mtime_ns != first.stat().st_mtime_ns:
        raise Differs("cp -a did not keep a time")
    return {"photos": place.sources.photo_total / MB / clock.seconds}


def _photos_out(place: Place) -> Result:
    drop_caches()
    with _Clock() as clock:
        same_trees(place.sources.photo_digests, place.directory / "photos")
    return {"photos_read": place.sources.photo_total / MB / clock.seconds}


def _untar(place: Place) -> Result:
    place.sources.tar.read_bytes()
    tree = place.directory / "tree"
    tree.mkdir()
    with _Clock() as clock:
        command("tar", "-C", str(tree), "-xf", str(place.sources.tar))
    same_trees(place.sources.tree_digests, tree)
    return {"untar": clock.seconds}


def _git(place: Place, *words: str) -> str:
    name = {f"GIT_{who}_{what}": "bench@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    options = ["-c", "gc.auto=0", "-c", "safe.directory=*"]
    environment = {**os.environ, **name, "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    return command("git", *options, "-C", str(place.directory / "tree"), *words, environment=environment)


def _git_commit(place: Place) -> Result:
    with _Clock() as clock:
        _git(place, "init", "-q")
        _git(place, "add", "-A")
        _git(place, "commit", "-qm", "all")
    return {"git_commit": clock.seconds}


def _git_status(place: Place) -> Result:
    drop_caches()
    with _Clock() as clock:
        changed = _git(place, "status", "--porcelain")
    if changed.strip():
        raise Differs("git sees changes where there are none")
    _git(place, "fsck", "--full")
    return {"git_status": clock.seconds}


def _rsync(place: Place) -> Result:
    warm(place.sources.rsync)
    words = ["rsync", "-ai", f"{place.sources.rsync}/", f"{place.directory / 'copy'}/"]
    with _Clock() as first:
        command(*words)
    with _Clock() as second:
        again = command(*words)
    same_trees(place.sources.rsync_digests, place.directory / "copy")
    if again.strip():
        raise Differs("the second rsync had something to do")
    return {"rsync": first.seconds, "rsync_again": second.seconds}


WORKLOADS: Final = (
    Workload(
        "sequential",
        (_write_sequentially, _read_cold, _read_warm),
        (
            Row("write", "sequential write + fsync", "MB/s", 0.6),
            Row("read_cold", "sequential read, cold page cache", "MB/s", 0.6),
            Row("read_warm", "sequential read, warm", "MB/s", 0.6),
        ),
    ),
    Workload(
        "small",
        (_small_create, _small_stat, _small_read, _small_rename, _small_delete),
        (
            Row("small_create", "small files: create", "files/s", 0.6),
            Row("small_stat", "small files: stat walk", "files/s", 0.6),
            Row("small_read", "small files: read", "files/s", 0.6),
            Row("small_rename", "small files: rename", "files/s", 0.6),
            Row("small_delete", "small files: delete", "files/s", 0.6),
        ),
    ),
    Workload(
        "random",
        (_random_prepare, _random_read, _random_write, _random_compare),
        (
            Row("random_read", "random 4 KiB reads", "/s", 0.5),
            Row("random_write", "random 4 KiB overwrites + fsync", "/s", 0.5),
        ),
    ),
    Workload("sqlite", (_sqlite,), (Row("sqlite", "sqlite transactions", "/s", 0.5),)),
    Workload("atomic", (_atomic_saves,), (Row("atomic", "atomic saves", "/s", 0.5),)),
    Workload(
        "photos",
        (_photos_in, _photos_out),
        (
            Row("photos", "photo import, cp -a + sync", "MB/s", 0.6),
            Row("photos_read", "photos read back, cold", "MB/s", 0.6),
        ),
    ),
    Workload(
        "tree",
        (_untar, _git_commit, _git_status),
        (
            Row("untar", "untar of source files", "s", 0.6, "less"),
            Row("git_commit", "git add + commit", "s", 0.6, "less"),
            Row("git_status", "git status, cold", "s", 0.6, "less"),
        ),
    ),
    Workload(
        "rsync",
        (_rsync,),
        (Row("rsync", "rsync", "s", 0.6, "less"), Row("rsync_again", "rsync again", "s", 0.6, "less")),
    ),
)
