"""Which steps of which tasks hold a loop of trio for long, and where they are then.

A step is what a task does between two checkpoints; nothing else of the loop happens meanwhile. An interval timer is armed
for each step, so a step that lasts is looked at in the midst of it (a signal handler of the loop's own thread: in a call
of C it waits for its end, so what is seen is the line that made the call). What counts is processor time of the thread,
which other programs of the machine do not make longer. The collector of garbage tells its own part.

``LongSteps`` is a trio instrument of the main thread; it takes SIGALRM.
"""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import trio.abc

FROM_S: Final = 0.001
DEEP: Final = 6
"""Frames of a stack that are told."""


@dataclass(slots=True)
class Step:
    """One that was long: the task's name, seconds of processor time and of the clock, of it the collector's with the
    oldest generation it looked at (-1: none), and where it was seen.
    """

    task: str
    processor: float
    clock: float
    collecting: float
    generation: int
    seen: str


class LongSteps(trio.abc.Instrument):
    """See the head of the file. ``steps`` counts all, ``long`` are those of ``from_s`` seconds and more, longest first when
    asked for by ``worst``. ``between``: the longest time of the loop's own work between two steps.
    """

    def __init__(self, from_s: float = FROM_S) -> None:
        self.from_s = from_s
        self.steps = 0
        self.long: list[Step] = []
        self.between = 0.0
        self.collections: Counter[int] = Counter()
        self._begun = self._used = self._over = 0.0
        self._collecting = self._since = 0.0
        self._generation = -1
        self._seen = ""
        self._before: Any = None

    def before_run(self) -> None:
        """The run begins."""
        self._before = signal.signal(signal.SIGALRM, self._look)
        gc.callbacks.append(self._collector)

    def after_run(self) -> None:
        """It is over."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        gc.callbacks.remove(self._collector)
        signal.signal(signal.SIGALRM, self._before)

    def forget(self) -> None:
        """What was seen so far does not count."""
        self.steps, self.long, self.between = 0, [], 0.0
        self.collections.clear()

    def before_task_step(self, task: Any) -> None:
        """A task goes on."""
        del task
        self._collecting, self._generation = 0.0, -1
        signal.setitimer(signal.ITIMER_REAL, self.from_s)
        self._begun, self._used = time.perf_counter(), time.thread_time()
        if self._over:
            self.between = max(self.between, self._used - self._over)

    def after_task_step(self, task: Any) -> None:
        """It comes to a checkpoint or to its end."""
        self._over = time.thread_time()
        used, clock = self._over - self._used, time.perf_counter() - self._begun
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self.steps += 1
        if used >= self.from_s:
            self.long.append(Step(task.name, used, clock, self._collecting, self._generation, self._seen))
        self._seen = ""

    def before_io_wait(self, timeout: float) -> None:
        """What is waited for is nobody's time."""
        del timeout
        if self._over:
            self.between = max(self.between, time.thread_time() - self._over)
        self._over = 0.0

    def worst(self, most: int) -> list[str]:
        """The longest ones in words, one for each task and place."""
        found: dict[tuple[str, str], list[Step]] = {}
        for step in self.long:
            found.setdefault((step.task, step.seen), []).append(step)
        ordered = sorted(found.items(), key=lambda kind: -max(step.processor for step in kind[1]))
        told = []
        for (task, place), steps in ordered[:most]:
            longest = max(steps, key=lambda step: step.processor)
            collector = (
                f", {1000 * longest.collecting:.2f} the collector ({longest.generation})" if longest.collecting else ""
            )
            told.append(
                f"{1000 * longest.processor:8.2f} ms{collector} {len(steps)} times: {task} at {place or 'no stack'}"
            )
        return told

    def _look(self, number: int, frame: FrameType | None) -> None:
        del number
        left = self.from_s - (time.thread_time() - self._used)
        if left > 0:  # another program had the processor
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.0001))
            return
        words: list[str] = []
        while frame is not None and len(words) < DEEP:
            code = frame.f_code
            if not _skipped(code.co_filename):
                words.append(f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}")
            frame = frame.f_back
        self._seen = " < ".join(words)

    def _collector(self, phase: str, told: dict[str, int]) -> None:
        if phase == "start":
            self._since = time.thread_time()
        else:
            self._collecting += time.thread_time() - self._since
            self._generation = max(self._generation, told["generation"])
            self.collections[told["generation"]] += 1


def _skipped(path: str) -> bool:
    return path == __file__ or "/trio/" in path or "/outcome/" in path
