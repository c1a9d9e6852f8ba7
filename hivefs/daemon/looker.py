"""Questions for which the whole book is looked through are answered by a process of their own (looking.py).

In the engine's loop such a look of a million stripes was as slow as turns of half a millisecond make it, and what it saw
was in the engine's memory. A thread would hold the interpreter's lock. So each question gets a child that reads the stores
from snapshots and ends with its answer. What the engine does for it is to pass on which nodes there are, SLICE of them at a
time, and how far the child is. Whoever asked and goes away (Ctrl-C) takes the child with him.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from hivefs.crypto.keys import ReadingKeys
from hivefs.daemon.control_frames import Encoded
from hivefs.daemon.home import Home
from hivefs.daemon.launch import environment, error_from_frame
from hivefs.daemon.looking import DONE, GREETING, SPOKEN_OF, STEP, Question
from hivefs.daemon.policy_nodes import Node
from hivefs.daemon.thinker import Died, frame_from
from hivefs.daemon.thinking import packed, release
from hivefs.errors import HivefsError
from hivefs.maintenance.turns import Turns

log = logging.getLogger(__name__)

AT_ONCE: Final = 3
"""Children at a time; more questions wait, and say so."""

SLICE: Final = 16
"""Nodes that are packed at a time: a fifth of a millisecond."""

STEP_S: Final = 2.0
GREETING_S: Final = 60.0
"""So long a child may take to start."""

Report = Callable[[Any], Awaitable[None]]


def _out(child: trio.Process) -> trio.abc.ReceiveStream:
    if child.stdout is None:
        raise AssertionError("it was started with pipes")
    return child.stdout


class Looker:
    """Asks about one vault. ``default`` is its own policy, and with it what is said of a hive without a text."""

    def __init__(self, home: Home, keys: ReadingKeys) -> None:
        self._home = home
        self._keys = keys
        self._room = trio.CapacityLimiter(AT_ONCE)
        self._release = release(SPOKEN_OF)
        self.children: set[int] = set()
        """Processes that look now."""
        self.on_end: Callable[[], None] = lambda: None
        """Called after each of them: one that was killed has left its places as a reader of the stores taken."""

    async def ask(self, kind: str, given: dict[str, Any], nodes: Iterable[Node], report: Report) -> Encoded:
        """The answer. Raises what the question does, HivefsError when the child ends without one."""
        async with self._turn(report):
            try:
                async with self._child() as child:
                    await self._greeted(child)
                    await self._put(child, kind, given, nodes)
                    return await self._answer(child, report)
            except (Died, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.warning("the process that looks through the book ended: %s", error)
                raise HivefsError(detail="the process that looks through the book ended; see the engine's log") from None

    @asynccontextmanager
    async def _turn(self, report: Report) -> AsyncIterator[None]:
        while True:
            with trio.move_on_after(STEP_S):
                await self._room.acquire()
                break
            await report(["waiting for other questions", 0, 0])
        try:
            yield
        finally:
            self._room.release()

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[trio.Process]:
        child = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "hivefs.daemon.looking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=environment(),
        )
        self.children.add(child.pid)
        try:
            yield child
        finally:
            with trio.CancelScope(shield=True):
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
                self.children.discard(child.pid)
                self.on_end()
                for pipe in (child.stdin, child.stdout):
                    if pipe is not None:
                        await pipe.aclose()

    async def _put(self, child: trio.Process, kind: str, given: dict[str, Any], nodes: Iterable[Node]) -> None:
        if child.stdin is None:
            raise AssertionError("it was started with pipes")
        home = self._home
        question = Question(kind, given, home.engine, home.metadata, home.run, home.policy(), self._keys)
        await child.stdin.send_all(packed(question))
        turns, batch = Turns(), list[tuple[Any, ...]]()
        for node in nodes:
            batch.append((node.node_id, node.state, node.attributes, node.here, node.free_bytes))
            if len(batch) == SLICE:
                await child.stdin.send_all(packed(batch))
                batch = []
                await turns.over()
        for last in (batch, []) if batch else ([],):
            await child.stdin.send_all(packed(last))

    async def _greeted(self, child: trio.Process) -> None:
        """HiveFS may have been upgraded under this engine: pickles are for both ends of one release."""
        with trio.move_on_after(GREETING_S):
            if await frame_from(_out(child), bytearray()) == GREETING + self._release:
                return
        raise HivefsError(detail="HiveFS was upgraded under this engine; unmount and mount the drive to ask this")

    async def _answer(self, child: trio.Process, report: Report) -> Encoded:
        buffer = bytearray()
        while True:
            kind, value = pickle.loads(await frame_from(_out(child), buffer))  # noqa: S301
            if kind == STEP:
                await report(value)
            elif kind == DONE:
                return Encoded(value)
            else:
                raise error_from_frame(value)
