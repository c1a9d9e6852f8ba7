"""What is in memory is read at once; what is not is brought there by someone who can wait."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hivefs.chunkstore import disk
from hivefs.errors import NotInMemory

SIZE = 3 << 20


def written(path: Path) -> bytes:
    data = os.urandom(SIZE)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data


def not_in_memory(path: Path) -> NotInMemory | None:
    """Drop the pages of a file and ask for some; None where the kernel does not forget (a file system in memory)."""
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(20):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                disk.read_now(fd, path, memoryview(bytearray(4096)), SIZE // 2)
            except NotInMemory as cold:
                return cold
    finally:
        os.close(fd)
    return None


def test_what_is_in_memory_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = written(path)
    with path.open("rb") as file:
        buffer = memoryview(bytearray(1 << 20))
        assert disk.read_now(file.fileno(), path, buffer[:5000], 7) == 5000
        assert buffer[:5000] == data[7:5007]
        assert disk.read_now(file.fileno(), path, buffer, SIZE - 10) == 10
        assert disk.read_now(file.fileno(), path, buffer, SIZE + 10) == 0


def test_what_is_not_is_said_and_brought(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = written(path)
    cold = not_in_memory(path)
    if cold is None:
        pytest.skip(
            "a disk under the directory of temporary files is missing (POSIX_FADV_DONTNEED drops nothing there, a tmpfs?)"
        )
    with path.open("rb") as file:
        buffer = memoryview(bytearray(1 << 20))
        assert (cold.path, cold.position, cold.length) == (path, SIZE // 2, 4096)
        disk.warm(cold, disk.Windows().next(cold))
        assert disk.read_now(file.fileno(), path, buffer[:4096], SIZE // 2) == 4096
        assert buffer[:4096] == data[SIZE // 2 : SIZE // 2 + 4096]


def test_a_file_that_is_gone_is_left_to_the_reader(tmp_path: Path) -> None:
    disk.warm(NotInMemory(tmp_path / "gone", 0, 10), (0, 10))


def test_a_file_system_that_does_not_know_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    data = written(path)
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with path.open("rb") as file:
        buffer = memoryview(bytearray(100))
        assert disk.read_now(file.fileno(), path, buffer, 50) == 100
        assert buffer == data[50:150]


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    path = tmp_path / "file"
    written(path)
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.read_now(fd, path, memoryview(bytearray(10)), 0)
    finally:
        os.close(fd)


class Later:
    """A thread that runs when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], None], Callable[[None], None]]] = []

    def __call__(self, work: Callable[[], None], deliver: Callable[[None], None]) -> None:
        self.waiting.append((work, deliver))

    def run(self) -> None:
        work, deliver = self.waiting.pop()
        deliver(work())


def test_more_is_read_around_the_more_often_something_is_missing_and_then_all(tmp_path: Path) -> None:
    later, path = Later(), tmp_path / "file"
    data = written(path)
    windows = disk.Windows(later)
    position = 5 * disk.WINDOW + 7
    cold = NotInMemory(path, position, 4096)
    sizes = [windows.next(cold)[1] for _ in range(disk.FILL_AFTER)]
    assert sizes[: disk.WIDER] == [disk.WINDOW] * disk.WIDER
    assert sizes[disk.WIDER] == 2 * disk.WINDOW
    assert later.waiting == []
    for _ in range(2 * disk.FILL_AFTER + 1):
        assert windows.next(cold) == (position, 4096), "all of it comes, so only the piece is waited for"
    assert len(later.waiting) == 1
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    later.run()
    buffer = memoryview(bytearray(SIZE))
    assert disk.read_now(fd, path, buffer, 0) == SIZE
    os.close(fd)
    assert buffer == data
    sizes = [windows.next(cold)[1] for _ in range(2)]
    assert disk.WINDOW < sizes[0] <= disk.WINDOW << disk.DOUBLINGS
    assert windows.next(NotInMemory(Path("other"), position, 4096)) == (5 * disk.WINDOW, disk.WINDOW)


def test_a_file_that_does_not_stay_in_memory_is_filled_less_and_less_often(tmp_path: Path) -> None:
    missed = 0
    fills = []

    def start(work: Callable[[], None], deliver: Callable[[None], None]) -> None:
        fills.append(missed)
        deliver(None)

    windows = disk.Windows(start)
    while missed < disk.FILL_AFTER * 10:
        windows.next(NotInMemory(tmp_path / "file", 0, 10))
        missed += 1
    assert fills == [disk.FILL_AFTER * times for times in (1, 2, 4, 8)]


def test_without_threads_more_is_read_around_as_before(tmp_path: Path) -> None:
    def start(work: Callable[[], None], deliver: Callable[[None], None]) -> None:
        raise RuntimeError("can't start new thread")

    windows, sizes = disk.Windows(start), []
    for _ in range(100):
        sizes.append(windows.next(NotInMemory(tmp_path / "file", 0, 10))[1])
    assert sizes[0] == disk.WINDOW
    assert sizes[-1] == disk.WINDOW << disk.DOUBLINGS


def test_filling_is_for_few_files_at_once_and_none_that_is_gone(tmp_path: Path) -> None:
    later = Later()
    windows = disk.Windows(later)
    for number in range(10):
        for _ in range(disk.FILL_AFTER + 1):
            windows.next(NotInMemory(tmp_path / str(number), 0, 10))
    assert len(later.waiting) == 2
    later.run()
    later.run()


@pytest.mark.parametrize("setting", ["8192", "128", "nonsense", None])
def test_a_long_piece_is_read_ahead_of_by_whoever_does_it_better(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, position, length, advice: asked.append((position, length)))
    real = Path.read_text

    def read_text(path: Path) -> str:
        if path.name != "read_ahead_kb":
            return real(path)
        if setting is None:
            raise FileNotFoundError
        return setting + "\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    disk.kernel_reads_ahead.cache_clear()
    path = tmp_path / "file"
    written(path)
    try:
        with path.open("rb") as file:
            buffer = memoryview(bytearray(disk.LONG))
            file.read(disk.LONG)
            disk.read_now(file.fileno(), path, buffer, 0)
            disk.read_now(file.fileno(), path, buffer, 0, whole=True)
        window = disk.Windows().next(NotInMemory(path, 7, disk.LONG))
    finally:
        disk.kernel_reads_ahead.cache_clear()
    if setting == "8192":
        assert (asked, window) == ([], (7, disk.LONG))
    else:
        assert asked == [(disk.LONG + disk.AHEAD, disk.LONG)]
        assert window == (7, disk.LONG + disk.AHEAD)
