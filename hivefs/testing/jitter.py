"""A noisy machine for tests: ``pytest --jitter 0.2`` makes every loop of this process stop and every short sleep end late.

No test may depend on speed; this finds the ones that do before a busy machine does. Real machines stop a process for some
tenths of a second at any step, and promise no sleep an upper bound. The processes that tests start stop too: stalls.py.
"""

from __future__ import annotations

import random
import time
from typing import Any

import trio
import trio.testing

SHORT = 0.1
"""Sleeps up to this are waits for something; longer ones are what the test measures. Seconds."""
LATE = 0.15
"""The part of short sleeps that end late."""

_sleep, _trio_sleep = time.sleep, trio.sleep


class Jitter(trio.abc.Instrument):
    """Stops the loop before some step of a task, for up to ``longest`` seconds, for about a ninth of the time."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._next = time.monotonic() + random.expovariate(1 / (4 * longest))

    def before_task_step(self, task: Any) -> None:
        if time.monotonic() >= self._next:
            _sleep(random.uniform(0, self._longest))
            self._next = time.monotonic() + random.expovariate(1 / (4 * self._longest))


def make_sleeps_late(longest: float) -> None:
    """Short sleeps of this process, of trio and of threads, take up to ``longest`` seconds more now and then."""

    def late(seconds: float) -> float:
        return seconds + random.uniform(0, longest) if 0 < seconds <= SHORT and random.random() < LATE else seconds

    async def trio_sleep(seconds: float) -> None:
        virtual = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)  # machines are not late in virtual time
        await _trio_sleep(seconds if virtual else late(seconds))

    trio.sleep = trio_sleep
    time.sleep = lambda seconds: _sleep(late(float(seconds)))
