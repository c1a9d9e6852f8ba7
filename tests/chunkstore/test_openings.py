"""Files that will be read soon are opened by threads; what nobody takes is closed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outcome
import pytest

from hivefs.chunkstore import openings
from hivefs.chunkstore.cache import Cache, CacheReader, share_path
from hivefs.chunkstore.openings import Openings
from hivefs.model.ids import StripeId

STRIPE = StripeId(bytes(15) + b"\x07")
LIMIT = 90.0


class Later:
    """Threads that run when they are told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def __call__(self, work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        self.waiting.append((work, deliver))

    def run(self) -> None:
        while self.waiting:
            work, deliver = self.waiting.pop(0)
            deliver(outcome.capture(work))


def open_in(directory: Path) -> int:
    """Descriptors of files below, removed ones too; others of this process come and go by themselves."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(f"{directory}/")
        except OSError:
            continue
    return found


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_was_begun_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"bytes")
    later = Later()
    opened: Openings[str] = Openings(later)
    for name in ("there", "there", "gone"):
        opened.begin(name, tmp_path / name)
    assert opened.take() == []
    later.run()
    [(name, fd)] = opened.take()
    assert (name, os.read(fd, 10)) == ("there", b"bytes")
    os.close(fd)
    assert opened.take() == []
    opened.begin("there", tmp_path / "there")
    assert len(later.waiting) == 1


def test_not_more_than_some_are_on_their_way_in_few_threads(tmp_path: Path) -> None:
    later = Later()
    opened: Openings[int] = Openings(later)
    for number in range(3 * openings.MOST):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
        opened.begin(number, tmp_path / str(number))
    assert len(later.waiting) == openings.THREADS
    later.run()
    found = opened.take()
    assert sorted(key for key, _ in found) == list(range(openings.MOST))
    for key, fd in found:
        assert os.read(fd, 10) == b"%d" % key
        os.close(fd)
    opened.begin(0, tmp_path / "gone")
    assert len(later.waiting) == 1


def test_what_came_as_the_last_thread_ended_is_opened_after_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    later = Later()
    opened: Openings[int] = Openings(later)
    for number in range(openings.THREADS):
        opened.begin(number, tmp_path / "gone")
    ended = []
    while later.waiting:
        work, deliver = later.waiting.pop(0)
        work()
        ended.append(deliver)
    opened.begin(99, tmp_path / "file")
    assert later.waiting == [], "all threads seem to be at work"
    for deliver in ended:
        deliver(None)
    assert opened.take() == []
    later.run()
    [(key, fd)] = opened.take()
    os.close(fd)
    assert key == 99


def test_without_threads_nothing_is_begun_and_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    refused = []

    def start(work: Callable[[], Any], deliver: Callable[[Any], None]) -> None:
        refused.append(work)
        raise RuntimeError("can't start new thread")

    opened: Openings[int] = Openings(start)
    opened.begin(1, tmp_path / "file")
    opened.begin(1, tmp_path / "file")
    assert len(refused) == 2
    assert opened.take() == []


def test_closing_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    later = Later()
    opened: Openings[int] = Openings(later)
    opened.begin(1, tmp_path / "file")
    later.run()
    before = open_in(tmp_path)
    opened.begin(2, tmp_path / "file")
    work = opened._open_waiting
    opened.close()
    opened._waiting.append((3, tmp_path / "file"))  # a thread that had it in its hands already
    work()
    later.run()
    assert open_in(tmp_path) == before - 1, "the first one is closed, the others were not left open"
    assert opened.take() == []
    opened.begin(4, tmp_path / "file")
    assert later.waiting == []


def test_a_share_that_was_begun_is_read_through_the_descriptor_of_the_thread(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put(STRIPE, 1, b"a share")
    reader = CacheReader(tmp_path)
    reader.begin(STRIPE, 1)
    end = time.monotonic() + LIMIT
    while not reader._openings._opened:
        assert time.monotonic() < end
        time.sleep(0.001)
    cache.remove(STRIPE, 1)
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"  # the name is gone, so it was open before
    assert reader.read(STRIPE, 2, 0, 7) is None
    reader.close()


def test_one_that_comes_late_is_closed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put(STRIPE, 1, b"a share")
    assert cache.put(STRIPE, 2, b"another")
    reader = CacheReader(tmp_path)
    later = Later()
    reader._openings = Openings(later)
    reader.begin(STRIPE, 1)
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"
    [first] = reader._files.values()
    open_before = open_in(tmp_path)
    later.run()
    assert reader.read(STRIPE, 2, 0, 7) == b"another"
    assert open_in(tmp_path) == open_before + 1
    assert first in reader._files.values()
    assert is_open(first)
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"
    fds = list(reader._files.values())
    reader.close()
    assert len(fds) == 2
    assert not any(is_open(fd) for fd in fds)


@pytest.mark.parametrize("opened_before", [True, False])
def test_a_damaged_share_does_not_come_back_by_one_that_was_opened_late(tmp_path: Path, opened_before: bool) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put(STRIPE, 1, b"a sh")  # torn
    reader = CacheReader(tmp_path)
    later = Later()
    reader._openings = Openings(later)
    reader.begin(STRIPE, 1)
    if opened_before:
        assert cache.put(STRIPE, 2, b"another")
        assert reader.read(STRIPE, 1, 0, 4) == b"a sh"
        later.run()
    assert reader.read(STRIPE, 1, 0, 7) is None
    later.run()
    before = open_in(tmp_path)
    assert cache.put(STRIPE, 1, b"a share")
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"
    assert open_in(tmp_path) == before, "the late one was closed"
    reader.begin(STRIPE, 1)
    reader.close()


def test_a_disk_that_takes_no_share_and_lets_nothing_be_removed_is_a_full_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    share_path(tmp_path, STRIPE, 1).with_suffix(".tmp").mkdir()  # to open it and to unlink it are errors
    assert not cache.put(STRIPE, 1, b"a share")
    assert cache.usage == 0 and cache.get(STRIPE, 1) is None
