"""The alternation: every round does every workload on every target, the targets in another order each round."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from hivefs.testing.bench.bounded import Failed, Overrun, Stuck, run_bounded
from hivefs.testing.bench.sources import Sizes, Sources
from hivefs.testing.bench.targets import CannotStart, Target
from hivefs.testing.bench.workloads import Place, Result, Workload

SETTLE_SECONDS = 90.0
CLEAN_SECONDS = 120.0


class Record:
    """Figures as they come: ``values[target][row]`` a list with one per round (None where there is none), ``errors``
    as sentences, and the names of targets that ``failed`` in any way.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.values: dict[str, dict[str, list[float | None]]] = {}
        self.errors: list[str] = []
        self.failed: set[str] = set()

    def put(self, target: str, row: str, number: int, value: float) -> None:
        """The figure of one round."""
        self.values.setdefault(target, {}).setdefault(row, [None] * self.rounds)[number] = value

    def problem(self, target: str, text: str) -> None:
        """Something that did not work; the run goes on."""
        self.failed.add(target)
        self.errors.append(f"{target}: {text}")
        say(f"  problem: {target}: {text}")


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Rounds:
    """Runs workloads. ``settle`` False leaves the background of one step running into the next. ``deadline`` is of
    time.monotonic(); no workload begins after it.
    """

    def __init__(
        self, targets: Sequence[Target], sources: Sources, sizes: Sizes, record: Record, *, settle: bool, deadline: float
    ) -> None:
        self.targets = list(targets)
        self._sources = sources
        self._sizes = sizes
        self._record = record
        self._settle = settle
        self._deadline = deadline

    def run(self, workloads: Iterable[Workload]) -> None:
        """All rounds of all workloads; what fails is recorded and the rest goes on."""
        chosen = list(workloads)
        for number in range(self._record.rounds):
            for workload in chosen:
                turn = number % len(self.targets) if self.targets else 0
                for target in [*self.targets[turn:], *self.targets[:turn]]:
                    if time.monotonic() > self._deadline:
                        self._record.problem(target.name, f"{workload.name} is left out, the time is over")
                        continue
                    try:
                        self._one(workload, target, number)
                    except (Stuck, CannotStart) as problem:
                        self._record.problem(target.name, f"{workload.name}: {problem}; it is left out from here on")
                        self.targets.remove(target)
                        target.stop()

    def _one(self, workload: Workload, target: Target, number: int) -> None:
        target.fresh()
        directory = target.directory / f"bench-{workload.name}-{number}"
        notes: dict[str, str] = {}
        began = time.monotonic()
        figures: list[str] = []
        try:
            self._bounded(directory.mkdir)
            for step in workload.steps:
                place = Place(directory, self._sources, self._sizes, dict(notes), number + 1)
                for name, value in self._step(partial(step, place)).items():
                    if isinstance(value, str):
                        notes[name.removeprefix("note:")] = value
                    else:
                        self._record.put(target.name, name, number, value)
                        figures.append(f"{name} {value:.4g}")
                if self._settle:
                    self._quiet(target)
        except (Overrun, Failed) as problem:
            if isinstance(problem, Stuck):
                raise
            self._record.problem(target.name, f"{workload.name}: {problem}")
        finally:
            self._clean(target, directory)
        took = time.monotonic() - began
        say(f"round {number + 1} {workload.name:11} {target.name:12} {took:6.1f} s  {'  '.join(figures)}")

    def _step(self, step: Callable[[], Result]) -> Result:
        result = run_bounded(step, self._sizes.step_limit_s)
        if not isinstance(result, dict):
            raise Failed("a step gave no figures")
        return result

    def _bounded(self, function: Callable[[], None]) -> None:
        run_bounded(function, CLEAN_SECONDS)

    def _quiet(self, target: Target) -> None:
        run_bounded(partial(target.settle, SETTLE_SECONDS), SETTLE_SECONDS + 30)

    def _clean(self, target: Target, directory: Path) -> None:
        try:
            self._bounded(partial(shutil.rmtree, directory, ignore_errors=True))
            self._quiet(target)
        except Stuck:
            raise
        except (Overrun, Failed) as problem:
            self._record.problem(target.name, f"cleaning up: {problem}")
