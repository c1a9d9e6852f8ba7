"""Who reads a cold file ahead best: the kernel by itself, the kernel when it is asked, or threads past the page cache.

``python -m hivefs.testing.bench.read_ahead_figures [DIRECTORY]`` writes a file there (default /var/tmp), drops its pages,
and reads it in pieces of 1 MiB as the drive reads a segment of its stage: what is in memory at once, what is not by
waiting. All ways alternate; figures are medians, processor time is that of this process with all threads. What is found
depends on the disk's own read-ahead (chunkstore/disk.py, KERNEL_AHEAD), which is printed. Nothing is left behind.
"""

from __future__ import annotations

import mmap
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hivefs.chunkstore.disk import AHEAD

PIECE: Final = 1 << 20
PIECES: Final = 128
ROUNDS: Final = 7
THREADS: Final = 4
DEPTH: Final = 8


def _read(fd: int, into: memoryview, position: int) -> None:
    try:
        got = os.preadv(fd, [into], position, os.RWF_NOWAIT)
    except BlockingIOError:
        got = 0
    if got < len(into):
        os.preadv(fd, [into], position)


def by_itself(path: Path) -> None:
    """Nothing is asked for."""
    fd, into = os.open(path, os.O_RDONLY), memoryview(mmap.mmap(-1, PIECE))
    for position in range(0, PIECES * PIECE, PIECE):
        _read(fd, into, position)
    os.close(fd)


def asked(path: Path) -> None:
    """POSIX_FADV_WILLNEED, as far ahead as the drive asks."""
    fd, into = os.open(path, os.O_RDONLY), memoryview(mmap.mmap(-1, PIECE))
    os.posix_fadvise(fd, 0, AHEAD, os.POSIX_FADV_WILLNEED)
    for position in range(0, PIECES * PIECE, PIECE):
        _read(fd, into, position)
        os.posix_fadvise(fd, position + PIECE + AHEAD, PIECE, os.POSIX_FADV_WILLNEED)
    os.close(fd)


def past_the_cache(path: Path) -> None:
    """O_DIRECT, DEPTH pieces on their way in THREADS threads."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffers = [memoryview(mmap.mmap(-1, PIECE)) for _ in range(DEPTH)]
    with ThreadPoolExecutor(THREADS) as threads:
        coming = [threads.submit(os.preadv, fd, [buffers[n]], n * PIECE) for n in range(DEPTH)]
        for number in range(PIECES):
            coming[number % DEPTH].result()
            if number + DEPTH < PIECES:
                position = (number + DEPTH) * PIECE
                coming[number % DEPTH] = threads.submit(os.preadv, fd, [buffers[number % DEPTH]], position)
    os.close(fd)


WAYS: Final[dict[str, Callable[[Path], None]]] = {
    "the kernel by itself": by_itself,
    "the kernel, asked": asked,
    "threads past the cache": past_the_cache,
}


def measure(way: Callable[[Path], None], path: Path) -> tuple[float, float]:
    """MB/s, and milliseconds of processor time for each MiB, of one cold reading."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    way(path)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return PIECES * PIECE / 1e6 / took, processor * 1e3 / PIECES


def main() -> int:
    """See the head of the file."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "/var/tmp")  # noqa: S108 - a real disk, unlike /tmp
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        for _ in range(PIECES):
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
        device = os.fstat(file.fileno()).st_dev
        setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        sys.stdout.write(f"the disk reads {setting.read_text().strip() if setting.exists() else '?'} KiB ahead\n")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for _ in range(ROUNDS):
            for name, way in WAYS.items():
                found[name].append(measure(way, Path(file.name)))
    for name, figures in found.items():
        rates, costs = zip(*figures, strict=True)
        rate, cost = statistics.median(rates), statistics.median(costs)
        sys.stdout.write(f"{name:24} {rate:7.0f} MB/s {cost:7.3f} ms of processor time a MiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
