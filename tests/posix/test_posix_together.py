"""Several threads and processes on one file of a real mount: no torn blocks, nothing stale, nothing that hangs."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mount_tools import Mounted

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

BLOCK = 4096
MIB = 1 << 20
LIMIT = 150.0


def block(writer: int, turn: int) -> bytes:
    """A block that shows when it is mixed from two."""
    return bytes([writer]) * 16 + turn.to_bytes(8, "big") * ((BLOCK - 16) // 8)


def is_whole(data: bytes) -> bool:
    """Whether a block is one that was written, or was never written or cut off."""
    return data == bytes(BLOCK) or data == block(data[0], int.from_bytes(data[16:24], "big"))


def together(*calls: Callable[[], None]) -> None:
    """Run all at once; raises what one of them raised, and when they do not end."""
    problems: list[BaseException] = []

    def caught(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as problem:  # noqa: BLE001 - raised below
            problems.append(problem)

    threads = [threading.Thread(target=caught, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    if problems:
        raise problems[0]
    assert not any(thread.is_alive() for thread in threads), "something waits for ever"


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_writers_readers_and_truncation_tear_no_block(here: Path, direct: bool) -> None:
    """Aligned blocks in three MiB, across the borders of slots, while the file is cut and grown."""
    path = here / "f"
    path.touch()
    flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
    blocks = 3 * MIB // BLOCK

    def write(writer: int) -> None:
        chance, file = random.Random(writer), os.open(path, flags)
        buffer = mmap.mmap(-1, BLOCK)
        for turn in range(600):
            buffer[:] = block(writer, turn)
            at = chance.choice([0, 255, 256, 511, 512, chance.randrange(blocks)])
            assert os.pwritev(file, [buffer], at * BLOCK) == BLOCK
        os.close(file)

    def read(reader: int) -> None:
        chance, file = random.Random(reader), os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        buffer = mmap.mmap(-1, BLOCK)
        for _ in range(900):
            got = os.preadv(file, [buffer], chance.choice([0, 255, 256, chance.randrange(blocks)]) * BLOCK)
            assert got in (0, BLOCK), "sizes are whole blocks at every moment"
            assert not got or is_whole(buffer[:]), "a torn block"
        os.close(file)

    def cut() -> None:
        chance, file = random.Random(9), os.open(path, flags)
        for turn in range(150):
            os.ftruncate(file, chance.choice([0, 1, 255, 256, 257, 512, blocks]) * BLOCK)
            if not turn % 10:
                os.fsync(file)
        os.close(file)

    together(lambda: write(1), lambda: write(2), lambda: read(3), lambda: read(4), cut)
    data = path.read_bytes()
    assert len(data) % BLOCK == 0
    assert all(is_whole(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK))


def test_appending_from_several_handles_loses_nothing(here: Path) -> None:
    path = here / "f"
    path.touch()

    def append(writer: int) -> None:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        for turn in range(300):
            line = b"%d %d\n" % (writer, turn)
            assert os.write(file, line) == len(line)
        os.close(file)

    together(*[lambda writer=writer: append(writer) for writer in range(4)])
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (writer, turn) for writer in range(4) for turn in range(300))


def test_a_file_that_is_cut_while_it_is_read_is_short_but_true(here: Path, mount: Mounted) -> None:
    path = here / "f"
    data = os.urandom(2 * MIB)
    path.write_bytes(data)
    mount.call("flush")

    def read() -> None:
        for _ in range(60):
            found = path.read_bytes()
            assert len(found) <= len(data)
            solid = found.rstrip(b"\0")
            assert data.startswith(solid)

    def cut() -> None:
        for size in (MIB, 5, MIB + 5, 0, 2 * MIB, 100_000) * 20:
            os.truncate(path, size)

    together(read, read, cut)


def test_names_are_changed_by_several_at_once(here: Path) -> None:
    (here / "a").mkdir()
    (here / "b").mkdir()

    def make(worker: int) -> None:
        for turn in range(120):
            path = here / "a" / f"{worker}-{turn}"
            path.write_text(str(turn))
            path.rename(here / "b" / path.name)
            os.link(here / "b" / path.name, here / "a" / path.name)
            if turn % 2:
                (here / "b" / path.name).unlink()

    def swap() -> None:
        for _ in range(120):
            (here / "b").rename(here / "c")
            (here / "c").rename(here / "b")

    def look() -> None:
        for _ in range(60):
            for name in os.listdir(here / "a"):
                with contextlib.suppress(FileNotFoundError):  # it was moved meanwhile
                    assert (here / "a" / name).stat().st_nlink in (1, 2)

    def tolerant(worker: int) -> None:
        try:
            make(worker)
        except FileNotFoundError:  # "b" was away at that moment
            tolerant_turns.append(worker)

    tolerant_turns: list[int] = []
    together(lambda: make(1), lambda: make(2), look)
    together(lambda: tolerant(3), swap, look)
    assert len([name for name in os.listdir(here / "a") if name[0] in "12"]) == 240
    assert len([name for name in os.listdir(here / "b") if name[0] in "12"]) == 120


def test_a_mapping_and_write_see_each_other_in_two_processes(here: Path) -> None:
    path = here / "f"
    path.write_bytes(bytes(2 * MIB))
    program = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(file, 0)
for line in sys.stdin:
    how, at, value = line.split()
    at, value = int(at), int(value)
    if how == "map":
        view[at] = value
    elif how == "write":
        os.pwrite(file, bytes([value]), at)
    print(view[at], os.pread(file, 1, at)[0], flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        file = os.open(path, os.O_RDWR)
        view = mmap.mmap(file, 0)
        for turn, at in enumerate((0, 1, 4095, 4096, MIB - 1, MIB, 2 * MIB - 1) * 10, 1):
            how, value = ("map", "write")[turn % 2], turn % 250 + 1
            other.stdin.write(f"{how} {at} {value}\n")
            other.stdin.flush()
            assert other.stdout.readline().split() == [str(value)] * 2
            assert (view[at], os.pread(file, 1, at)[0]) == (value, value)
            view[at] = 251
            other.stdin.write(f"look {at} 0\n")
            other.stdin.flush()
            assert other.stdout.readline().split() == ["251", "251"]
        other.stdin.close()
        assert other.wait(LIMIT) == 0
        private = mmap.mmap(file, 0, mmap.MAP_PRIVATE)
        private[5] = 77
        assert os.pread(file, 1, 5) == b"\0"
        view.flush()
        view.close()
        private.close()
        os.close(file)
    assert path.read_bytes()[:1] == bytes([251])


def test_a_mapping_beyond_the_end_is_sigbus_as_elsewhere(here: Path) -> None:
    path = here / "f"
    path.write_bytes(bytes(3 * BLOCK))
    program = (
        "import mmap, os, sys; file = os.open(sys.argv[1], os.O_RDWR); view = mmap.mmap(file, 0)\n"
        "os.ftruncate(file, 4096); print(view[4095], flush=True); print(view[4096], flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.stdout, done.returncode) == ("0\n", -7)
