"""Work for threads on a machine that gives no more of them (pids of a cgroup, RLIMIT_NPROC).

Python raises RuntimeError then. A node goes on, with the threads that it has, and in the worst case with the one that asks:
slower, and while it waits for its disk it does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import trio

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class _Said:
    """One line for a process: a limit that is reached is reached again and again."""

    done = False


def say() -> None:
    """There are no more threads."""
    if not _Said.done:
        _Said.done = True
        log.warning("this machine gives the node no more threads: it does the work of some with those it has, more slowly")


class _Job(Generic[T, R]):
    """Something that is done once, by whoever comes first."""

    def __init__(self, work: Callable[[T], R], item: T) -> None:
        self._work = work
        self._item = item
        self._taken = threading.Lock()
        self._done = threading.Event()
        self._result: list[R] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, if nobody did or does."""
        if self._taken.acquire(blocking=False):
            try:
                self._result.append(self._work(self._item))
            except BaseException as error:  # whatever it is, ``result`` raises it; raised again
                self._error = error
                raise
            finally:
                self._done.set()

    def result(self) -> R:
        """Wait for it."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]


class Together:
    """Up to ``most`` threads, which are kept, and do several things at once. Any thread may call."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        """One that has a thread: what it could not begin waits in it, and in one without would do so for ever."""

    def all_at_once(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``work`` for each, once, in the threads, and here as far as there are none. What one raises is raised."""
        jobs = [_Job(work, item) for item in items]
        pool = self._pool or ThreadPoolExecutor(self._most, self._name)
        try:
            for job in jobs:
                pool.submit(job.run)
                self._pool = pool
        except RuntimeError:  # the pool has queued this one all the same, perhaps for nobody
            say()
            for job in jobs:
                with contextlib.suppress(BaseException):  # ``result`` raises it
                    job.run()
        return [job.result() for job in jobs]

    def close(self) -> None:
        """Let the threads go, when they have done what they are at."""
        if self._pool is not None:
            self._pool.shutdown()


async def in_thread(work: Callable[..., R], *given: Any, limiter: trio.CapacityLimiter | None = None) -> R:
    """As trio.to_thread.run_sync; here, holding up everything, when there is no thread."""
    begun = False

    def noted() -> R:
        nonlocal begun
        begun = True
        return work(*given)

    try:
        return await trio.to_thread.run_sync(noted, limiter=limiter)
    except RuntimeError:
        if begun:
            raise
    say()
    return work(*given)
