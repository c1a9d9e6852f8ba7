"""Runs a trio program so that the same seed gives the same run: virtual time, seeded order of tasks, no threads.

trio runs the tasks that are ready in an order of its own; with the switch that Hypothesis uses too it sorts them by age and
shuffles them with its own Random, which is seeded here. Work for threads is done in place: a thread would end at a time
that no seed knows.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from hivefs.chunkstore.steps import Counting

T = TypeVar("T")


async def _in_place(function: Callable[..., T], *arguments: Any, **how: Any) -> T:
    """Instead of trio.to_thread.run_sync: no thread, the same checkpoints."""
    await trio.lowlevel.checkpoint()
    result = function(*arguments)
    await trio.lowlevel.checkpoint()
    return result


@contextmanager
def patched(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes (owner, name, value) changed for as long as the block runs."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def run(seed: int, program: Callable[[], Awaitable[T]]) -> T:
    """``program`` under a virtual clock that begins at 0 and jumps to the next thing that happens."""
    core = sys.modules["trio._core._run"]
    order = random.Random(f"order of tasks {seed}")
    with patched(
        [(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True), (core, "_r", order), (trio.to_thread, "run_sync", _in_place)]
    ):
        return trio.run(program, clock=MockClock(autojump_threshold=0), instruments=[Counting()])
