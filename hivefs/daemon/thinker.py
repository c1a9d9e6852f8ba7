"""Questions of placement that take long are answered by a process of their own, so that the engine's loop goes on.

Pure Python holds the interpreter's lock, so a thread would still hold up the loop, for some milliseconds each time the loop
wants the lock back. Most questions are answered at once, within a bound that is counted (placement/effort.py); what is
broken off there is sent, candidates in slices, to a child that has nothing but the rooms of placement: no key, no file of
the vault, no network. It is started when it is needed, and ends when its standard input does or it had nothing to do for
REST_S. One question at a time. When there is no child, or it dies or hangs twice with a question, that is answered in a
thread. So is all when the child is of another release than this process, because HiveFS was upgraded under a running
engine: that is said once, and no other child is started. The engine of the new release comes with the next mount.

The child is thinking.py, which says what goes over its pipes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import trio

from hivefs.daemon.launch import environment
from hivefs.daemon.thinking import GREETING, LENGTH, Follows, packed, release
from hivefs.model.node import Candidate
from hivefs.placement.capacity import Block, Blocks
from hivefs.placement.effort import BRIEF, TakesLong, within
from hivefs.placement.field import Field, Part
from hivefs.placement.picking import Missing
from hivefs.placement.policy import Policy

log = logging.getLogger(__name__)

REST_S: Final = 60.0
TRIES: Final = 2
GREETING_S: Final = 60.0
"""So long a child may take to say its release; one of before there was a greeting says nothing."""
AGAIN_S: Final = 600.0
"""After one that did not, the next is started so much later."""
PATIENCE_S: Final = 120.0
"""A child that has no answer by then (no question takes seconds) hangs or was stopped: it counts as dead."""
SLICE: Final = 32
"""Candidates that are packed at a time: some half a millisecond."""
MANY: Final = 64
"""Longer lists of candidates are sent in slices."""

T = TypeVar("T")


class Died(Exception):
    """A child ended, or closed its pipe."""


class _Another(Died):
    """It is of another release."""


class _Mute(Died):
    """It did not say its release."""


class Thinker:
    """A Think (chunkstore/ports.py). Its child lives as long as ``run``; without ``run`` there is none. ``sent`` counts
    what a child or a thread answered.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._child: trio.Process | None = None
        self._buffer = bytearray()
        self._open = False
        self._used = 0.0
        self._not_before = float("-inf")
        self._release = release()
        """Of this process: read when it starts, before anybody may upgrade what it was started from."""
        self.sent = 0

    async def __call__(self, question: Callable[..., T], *given: Any, **more: Any) -> T:
        """The answer, or what the question raises."""
        try:
            with within(BRIEF):
                return question(*given, **more)
        except TakesLong:
            self.sent += 1
        given, more = _plain(given, more)
        async with self._lock:
            for _ in range(TRIES):
                if not self._open or trio.current_time() < self._not_before:
                    break
                try:
                    with trio.fail_after(PATIENCE_S):
                        ok, answer = await self._ask((question, given, more))
                except _Another:
                    await self._end()
                    self._not_before = float("inf")
                    log.warning(
                        "HiveFS was upgraded while this engine runs: it looks for places by itself, which takes longer; "
                        "unmount and mount again to start the new one"
                    )
                except _Mute:
                    await self._end()
                    self._not_before = trio.current_time() + AGAIN_S
                    log.warning("the process that looks for places does not say its release: the engine looks itself")
                except (Died, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
                    log.warning("the process that looks for places ended: %s", str(error) or "it did not answer in time")
                    await self._end()
                else:
                    self._used = trio.current_time()
                    if ok:
                        return answer  # type: ignore[no-any-return]
                    raise answer[0](**answer[1])
        return await trio.to_thread.run_sync(lambda: question(*given, **more))

    async def run(self) -> None:
        """Keep the child while it is used, until cancelled."""
        self._open = True
        try:
            while True:
                await trio.sleep(REST_S / 4)
                if self._child is not None and trio.current_time() - self._used > REST_S:
                    async with self._lock:
                        await self._end()
        finally:
            self._open = False
            with trio.CancelScope(shield=True):
                await self._end()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Thinker]:
        """For as long as the block lasts."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            await trio.lowlevel.checkpoint()
            yield self
            nursery.cancel_scope.cancel()

    async def _end(self) -> None:
        child, self._child = self._child, None
        self._buffer.clear()
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    await pipe.aclose()

    async def _ask(self, asked: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[bool, Any]:
        self._used = trio.current_time()
        fresh = False
        if self._child is None:
            self._child = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "hivefs.daemon.thinking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",
                env=environment(),
            )
            fresh = True
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise AssertionError("it was started with pipes")
        done = False
        try:
            if fresh:
                await self._greeted(child.stdout)
            async for frame in _frames(asked):
                await child.stdin.send_all(frame)
            answer = await frame_from(child.stdout, self._buffer)
            done = True
        finally:
            if not done and self._child is child:  # cancelled in the middle: what it answers is not for the next question
                with trio.CancelScope(shield=True):
                    await self._end()
        found: tuple[bool, Any] = pickle.loads(answer)  # noqa: S301
        return found

    async def _greeted(self, stream: trio.abc.ReceiveStream) -> None:
        """Hear which release the child is. Raises _Another, _Mute, Died."""
        with trio.move_on_after(GREETING_S):
            if await frame_from(stream, self._buffer) != GREETING + self._release:
                raise _Another
            return
        raise _Mute


async def frame_from(stream: trio.abc.ReceiveStream, buffer: bytearray) -> bytes:
    """The next frame of a child; what comes behind it stays in ``buffer``. Raises Died when the child closed its end."""
    while len(buffer) < LENGTH or len(buffer) < LENGTH + int.from_bytes(buffer[:LENGTH], "big"):
        data = await stream.receive_some()
        if not data:
            raise Died("it closed its pipe")
        buffer += data
    end = LENGTH + int.from_bytes(buffer[:LENGTH], "big")
    frame = bytes(buffer[LENGTH:end])
    del buffer[:end]
    return frame


def _plain(given: tuple[Any, ...], more: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A field is not sent whole: a part of it, as large as the exact search looks at."""
    policy = next((one for one in given if isinstance(one, Policy)), None)
    missing = next((one for one in given if isinstance(one, Missing)), None)
    size = more.get("share_bytes", 0) if missing is None else missing.share_bytes
    away = more.get("avoid", ()) if missing is None else missing.away

    def plain(one: Any) -> Any:
        return one.part(policy, os.urandom(32), size, away) if isinstance(one, Field) and policy is not None else one

    return tuple(map(plain, given)), {name: plain(one) for name, one in more.items()}


async def _frames(asked: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> AsyncIterator[bytes]:
    question, given, more = asked
    lists: list[Sequence[Candidate | Block]] = []

    def short(one: Any) -> Any:
        if isinstance(one, Blocks):
            lists.append(one)
            return Follows(len(one), False)
        if not (isinstance(one, list) and len(one) > MANY and isinstance(one[0], Candidate)):
            return one
        lists.append(one)
        return Follows(-(-len(one) // SLICE), isinstance(one, Part))

    head = question, tuple(map(short, given)), {name: short(one) for name, one in more.items()}
    yield packed(head)
    for one in lists:
        step = 1 if isinstance(one, Blocks) else SLICE
        for at in range(0, len(one), step):
            await trio.lowlevel.checkpoint()
            yield packed(list(one[at : at + step]))
