"""A faster way to wait for the next FUSE request, put in the place of the name ``trio`` inside pyfuse3.

pyfuse3.asyncio shows the means: pyfuse3 looks ``trio`` up in its module each time, so another object under that name
changes how its workers wait. Of the some 75 microseconds that a request costs in pyfuse3, half go into a fair lock and
a pass through trio's scheduler and epoll, although the next request is mostly there already or comes within a few
microseconds from the program that just got its answer. Therefore:

* **Look first.** A worker polls the descriptor; when a request is there it goes on without giving up its turn. The
  lock of pyfuse3 is replaced by nothing: what must hold is only that nobody else runs between a successful poll and the
  receive, and in one thread without an await nobody does.
* **Never block in the receive.** A request that was seen is gone when whoever made it was killed before it was received
  (the kernel takes it back). The receive would then wait for the next one, and with it the whole process. So the
  descriptor does not block, and a worker that found nothing, which pyfuse3 takes for a failure, begins anew. The
  buffer of the old one is lost each time; only a program killed in that very moment makes it so.
* **Then spin** for ``SPIN`` seconds, then wait in poll(2) itself for at most ``NAP`` (the thread sleeps, but is woken
  directly). Both only when no request is waiting for something else in trio, and once after each request: an idle drive
  does neither.
* **Then wait through trio.** One worker waits for the descriptor, the others are parked. A parked one is woken when a
  worker lets go of its turn in the middle of a request (_Watched sees that), or ends: only then is one missing. Waking
  one after each wait cost more passes through the scheduler than all requests of a program that calls fsync(2).

Fairness: a worker that has gone on for ``SLICE`` seconds passes through the scheduler once, so that commit, control
socket and timers run within some milliseconds whatever the load.

Shutdown: after an unmount the descriptor is "readable" for ever (ENODEV), so each worker sees it, ends, and wakes the
next. notify_closing (pyfuse3.terminate) wakes all with ClosedResourceError.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

log = logging.getLogger(__name__)

SPIN: Final = 15e-6
NAP: Final = 0.001
SLICE: Final = 0.002
LOAD_SECONDS: Final = 0.2
_RECEIVE: Final = "fuse_session_receive_buf"
"""Stands in what pyfuse3 raises when receiving failed (its _session_loop)."""


class _Done:
    """An awaitable that is done. Cheaper than a coroutine, and one is enough for all."""

    __slots__ = ()
    _nothing: Iterator[None] = iter(())

    def __await__(self) -> Generator[None, None, None]:
        return self._nothing  # type: ignore[return-value]  # an exhausted iterator returns None at once


_DONE: Final = _Done()


class _NoLock:
    """What pyfuse3 gets for trio.Lock()."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, *exception: object) -> _Done:
        return _DONE


class _Watched:
    """Awaiting it runs a worker; ``let_go`` is called each time that gives up its turn."""

    __slots__ = ("_let_go", "_worker")

    def __init__(self, worker: Coroutine[Any, Any, None], let_go: Callable[[], None]) -> None:
        self._worker, self._let_go = worker, let_go

    def __await__(self) -> Generator[Any, Any, None]:
        worker, let_go = self._worker, self._let_go
        try:
            trap = worker.send(None)
            while True:
                let_go()
                try:
                    answer = yield trap
                except BaseException as problem:  # noqa: BLE001 - it is the worker's
                    trap = worker.throw(problem)
                else:
                    trap = worker.send(answer)
        except StopIteration:
            return
        finally:
            worker.close()


class _Workers:
    """A nursery that counts the pyfuse3 workers that run in it."""

    def __init__(self, nursery: trio.Nursery, loop: ReceiveLoop) -> None:
        self._nursery, self._loop = nursery, loop

    def start_soon(self, worker: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str | None = None) -> None:
        self._nursery.start_soon(self._loop.run_worker, worker, args, name=name)
        self._loop.end_turn()


class ReceiveLoop:
    """Stands in for the module ``trio`` inside pyfuse3, and for ``trio.lowlevel`` too.

    ``before_first_wait`` is called once, when the first message has been answered (for the handshake). For one session
    at a time, in one thread.
    """

    def __init__(self, before_first_wait: Callable[[], None] | None = None) -> None:
        self.lowlevel = self
        self._opening = before_first_wait
        self._calls = 0
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._clock = time.perf_counter
        self._turn_ends = 0.0
        self._workers = 0
        self._idle = 0
        self._waiting = False
        self._yielding = False
        self._resting = False
        """The worker that lets go of its turn next does so between two requests."""
        self._parked = trio.lowlevel.ParkingLot()
        self._closing = False
        self._waited = 0.0
        self._waits_since: float | None = None
        self._looked = (self._clock(), 0.0)
        self._load = 0.0

    def __getattr__(self, name: str) -> Any:
        """Everything that is not replaced is trio's."""
        try:
            return getattr(trio, name)
        except AttributeError:
            return getattr(trio.lowlevel, name)

    Lock = _NoLock

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Workers]:
        """Stands in for trio.open_nursery in pyfuse3.main."""
        async with trio.open_nursery() as nursery:
            yield _Workers(nursery, self)

    async def run_worker(self, worker: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        """Run one pyfuse3 worker to its end."""
        self._workers += 1
        try:
            while not await self._ran(worker(*args)):
                log.debug("a request was taken back before it was received")
        finally:
            self._workers -= 1
            self._parked.unpark()

    async def _ran(self, worker: Coroutine[Any, Any, None]) -> bool:
        """Whether it came to its end, and not to a receive that found nothing."""
        try:
            await _Watched(worker, self._let_go)
        except OSError as problem:
            if problem.errno != errno.EAGAIN or _RECEIVE not in str(problem):
                raise
            return False
        return True

    def _let_go(self) -> None:
        """A worker gives up its turn. If it does so in the middle of a request, another one has to take the next."""
        if self._resting:
            self._resting = False
        else:
            self._parked.unpark()

    def load(self) -> float:
        """The share of the time, 0 to 1, in which requests came one after the other, over LOAD_SECONDS or as long as
        nobody has asked. Spinning between two requests counts as work: whoever sends them is at work.
        """
        now = self._clock()
        began, waited_then = self._looked
        if now - began >= LOAD_SECONDS:
            waited = self._waited + (0.0 if self._waits_since is None else now - self._waits_since)
            self._load = max(0.0, 1.0 - (waited - waited_then) / (now - began))
            self._looked = now, waited
        return self._load

    def end_turn(self) -> None:
        """Pass through the scheduler at the next wait: a new worker must get there, or one more is made each time."""
        self._turn_ends = 0.0

    def notify_closing(self, fd: int) -> None:
        """pyfuse3.terminate() was called: nobody waits any more."""
        self._closing = True
        self._parked.unpark_all()
        trio.lowlevel.notify_closing(fd)

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Stands in for trio.lowlevel.wait_readable: done at once when a request is there and the turn is not over."""
        if self._poll is not None and self._clock() < self._turn_ends and self._poll(0):
            return _DONE
        return self._wait(fd)

    async def _wait(self, fd: int) -> None:
        if self._poll is None and not self._open(fd):
            return
        poll = self._poll
        assert poll is not None  # noqa: S101 - made by _open
        self._idle += 1
        try:
            if self._clock() >= self._turn_ends and not self._yielding:
                await self._yield()
            if self._workers == self._idle and not self._yielding and self._soon(poll):
                return
            while self._yielding or not poll(0):
                if self._closing:
                    raise trio.ClosedResourceError
                self._resting = True
                if self._waiting or self._yielding:
                    await self._parked.park()
                    continue
                self._waiting = True
                before = self._clock()
                if self._workers == self._idle:  # else a request is on its way: somebody is at work
                    self._waits_since = before
                try:
                    await trio.lowlevel.wait_readable(fd)
                finally:
                    self._waiting = False
                    now = self._clock()
                    if self._waits_since is not None:
                        self._waited += now - before
                        self._waits_since = None
                self._turn_ends = now + SLICE
        finally:
            self._idle -= 1

    async def _yield(self) -> None:
        """Let every other task run once. Workers that wake meanwhile leave the requests to this one, which goes on right
        after: else each of them would take a turn of its own, and the others would wait for all of these.
        """
        self._yielding = self._resting = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._yielding = False
        self._turn_ends = self._clock() + SLICE

    def _soon(self, poll: Callable[[int], list[tuple[int, int]]]) -> bool:
        """Spin, then nap; whether a request came. No other task runs meanwhile, so this is bounded by SPIN + NAP."""
        clock = self._clock
        end = clock() + SPIN
        while not poll(0):
            now = clock()
            if now > end:
                found = bool(NAP and poll(1))
                self._waited += clock() - now
                return found
        return True

    def _open(self, fd: int) -> bool:
        """The first two waits: the first message is there for certain; before the second, the handshake is finished."""
        self._calls += 1
        if self._opening is not None:
            if self._calls == 1:
                return False
            self._opening()
        os.set_blocking(fd, False)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self._poll = poller.poll
        return True
