"""One sequence on a fake disk, a power cut after every single thing its last operation asked of the disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alphabet import Step, Story, make_base
from crash_drive import Chunks, Clock, CrashDrive, Limits
from judging import Judge, put

from hivefs.testing.fake_disk.crash import Disk, Image
from hivefs.testing.fake_disk.recorder import Recorder


@dataclass
class Base:
    """The drive that every sequence begins with, as it lies on the disk."""

    image: Image
    story: Story
    now: int

    @staticmethod
    def make(directory: Path, limits: Limits) -> Base:
        """Made in a plain directory."""
        put({}, directory)
        clock = Clock()
        with limits.applied():
            story = Story(CrashDrive(directory, limits, "base", clock, Chunks()), lambda: 0)
            make_base(story)
            story.number = 0
            story.note("base")
            story.drive.kill()
        files = (path for path in directory.rglob("*") if path.is_file() and path.name not in ("lock", "lock.mdb"))
        return Base({str(path.relative_to(directory)): path.read_bytes() for path in files}, story, clock.now)


@dataclass
class Counts:
    """What was done, for the report."""

    sequences: int = 0
    points: int = 0
    states: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.sequences} sequences, {self.points} crash points, {self.states} states, {self.seconds:.0f} s"


class Failed(AssertionError):
    """A state that must not be. The message says how to play it again."""


@dataclass
class Player:
    """Plays sequences on a fake disk. ``deep``: more states at each crash point."""

    disk: Recorder
    judge: Judge
    bases: dict[str, Base]
    deep: bool = False
    counts: Counts = field(default_factory=Counts)
    _number: int = 0

    @contextmanager
    def begun(self, limits: Limits, seed: str, clock: Callable[[], int] | None = None) -> Iterator[tuple[Story, Disk, str]]:
        """The base on the fake disk, opened; what is certain of the disk; the name of the directory."""
        base = self.bases[limits.name]
        self._number += 1
        home = f"s{self._number}"
        path = self.disk.path / home
        self.disk.forget()
        put(base.image, path)
        self.disk.mark()
        disk = Disk()
        disk.follow(self.disk.events)
        disk.settle()
        self.disk.forget()
        chunks = Chunks()
        chunks.plain = dict(base.story.drive.chunks.plain)
        with limits.applied():
            drive = CrashDrive.existing(path, limits, seed, clock or Clock(base.now), chunks)
            story = Story(drive, self.disk.mark, dict(base.story.contents), list(base.story.alive), number=0)
            try:
                yield story, disk, home
            finally:
                self.disk.heal()
                drive.kill()
                shutil.rmtree(path)

    def play(self, limits: Limits, names: Sequence[str]) -> None:
        """The operations, then a power cut after each event of the last. Raises Failed."""
        began = time.monotonic()
        seed = f"{limits.name}: {' '.join(names)}"
        with self.begun(limits, seed) as (story, disk, home):
            for name in names[:-1]:
                story.perform(name)
            before, durable = list(story.alive), story.durable
            start = self.disk.mark()
            story.perform(names[-1])
            end = self.disk.mark()
            disk.follow(self.disk.events[:start])
            self.cut(story, disk, home, range(start, end), before, durable, seed)
            for ino, data in story.contents.items():
                assert story.drive.contents(ino) == data, f"{seed}: inode {ino} reads wrong before any crash"
        self.counts.sequences += 1
        self.counts.seconds += time.monotonic() - began

    def cut(
        self, story: Story, disk: Disk, home: str, points: range, before: list[Step], durable: int, seed: str
    ) -> None:
        """A power cut after each event with a number in ``points``, all of the last operation, which began when the steps
        ``before`` were possible and ``durable`` was the last durable one.
        """
        told: set[tuple[bytes, bool, int]] = set()
        for point in points:
            event = self.disk.events[point]
            disk.follow([event])
            self.counts.points += 1
            ended = point + 1 == points.stop
            steps = story.alive if ended else [*before, story.alive[-1]]
            candidates = [step for step in steps if step.number >= (story.durable if ended else durable)]
            destroyed = {chunk for mark, chunk in story.destroyed if mark <= point + 1}
            for state in disk.states(home, f"{seed}/{point}", deep=self.deep):
                key = (state.digest, ended, len(destroyed))
                if key in told:
                    continue
                told.add(key)
                self.counts.states += 1
                try:
                    clock = Clock(story.drive.clock() + 1)
                    self.judge.judge(
                        state.image, candidates, story.drive.chunks.plain, destroyed, story.drive.limits, seed, clock
                    )
                except Exception as error:
                    raise Failed(
                        f"{type(error).__name__}: {error}\n"
                        f"sequence: {seed}\npower cut after event {point}: {event}\nstate: {state.label}\n"
                        f"allowed: {[(step.number, step.name) for step in candidates]}\n"
                        f"replay: play(LIMITS[{story.drive.limits.name!r}], {seed.partition(': ')[2].split()!r})"
                    ) from error
