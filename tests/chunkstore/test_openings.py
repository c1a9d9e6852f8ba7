"""Files that will be read soon are opened by threads; what nobody takes is closed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import outcome

from hivefs.chunkstore import openings
from hivefs.chunkstore.cache import Cache, CacheReader
from hivefs.chunkstore.openings import Openings
from hivefs.model.ids import StripeId

STRIPE = StripeId(bytes(15) + b"\x07")
LIMIT = 30.0


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
    assert len(later.waiting) == 2
    assert opened.take() == []
    later.run()
    [(name, fd)] = opened.take()
    assert (name, os.read(fd, 10)) == ("there", b"bytes")
    os.close(fd)
    assert opened.take() == []
    opened.begin("there", tmp_path / "there")
    assert len(later.waiting) == 1


def test_not_more_than_some_are_on_their_way(tmp_path: Path) -> None:
    later = Later()
    opened: Openings[int] = Openings(later)
    for number in range(3 * openings.MOST):
        opened.begin(number, tmp_path / str(number))
    assert len(later.waiting) == openings.MOST
    later.run()
    assert opened.take() == []
    opened.begin(0, tmp_path / "0")
    assert len(later.waiting) == 1


def test_closing_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    later = Later()
    opened: Openings[int] = Openings(later)
    opened.begin(1, tmp_path / "file")
    later.run()
    opened.begin(2, tmp_path / "file")
    before = set(os.listdir("/proc/self/fd"))
    opened.close()
    later.run()
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0
    assert opened.take() == []
    opened.begin(3, tmp_path / "file")
    assert later.waiting == []


def test_a_share_that_was_begun_is_read_through_the_descriptor_of_the_thread(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put(STRIPE, 1, b"a share")
    reader = CacheReader(tmp_path)
    reader.begin(STRIPE, 1)
    end = time.monotonic() + LIMIT
    while not reader._openings._opened and time.monotonic() < end:
        time.sleep(0.001)
    cache.remove(STRIPE, 1)
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"  # the name is gone, so it was open before
    assert reader.read(STRIPE, 2, 0, 7) is None
    reader.close()


def test_one_that_comes_late_takes_the_place_of_the_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    assert cache.put(STRIPE, 1, b"a share")
    assert cache.put(STRIPE, 2, b"another")
    reader = CacheReader(tmp_path)
    later = Later()
    reader._openings = Openings(later)
    reader.begin(STRIPE, 1)
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"
    [first] = reader._files.values()
    later.run()
    assert reader.read(STRIPE, 2, 0, 7) == b"another"
    assert not is_open(first) or first in reader._files.values()
    assert reader.read(STRIPE, 1, 0, 7) == b"a share"
    fds = list(reader._files.values())
    reader.close()
    assert len(fds) == 2
    assert not any(is_open(fd) for fd in fds)
