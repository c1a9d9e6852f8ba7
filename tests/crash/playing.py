"""One sequence on a fake disk, a power cut after every single thing its last operation asked of the disk."""

from __future__ import annotations

import errno
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from alphabet import Moment, Step, Story, make_base
from crash_drive import Chunks, Clock, CrashDrive, Limits
from judging import Judge, put

from hivefs.testing.fake_disk.crash import Disk, Image, State
from hivefs.testing.fake_disk.events import Kind
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
            story = Story(drive, self.disk.mark, dict(base.story.contents), list(base.story.alive))
            story.moments.append(Moment(self.disk.mark(), story.alive, 0))
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
            for name in names:
                story.perform(name)
            start = story.moments[-2].mark
            disk.follow(self.disk.events[:start])
            self.cut(story, disk, home, start, seed)
            for ino, data in story.contents.items():
                assert story.drive.contents(ino) == data, f"{seed}: inode {ino} reads wrong before any crash"
        self._count(began)

    def play_killed(self, limits: Limits, names: Sequence[str], follow: Sequence[str]) -> None:
        """The process is killed before each event of the last of ``names``; on the same disk, which has lost nothing, a
        new one opens the drive and does what ``follow`` says; a power cut after each event of that. Raises Failed.
        """
        began = time.monotonic()
        with self.begun(limits, f"{limits.name}: {' '.join(names)}") as (story, _, _):
            for name in names:
                story.perform(name)
            done, asked = story.alive[-1], story.moments[-1].mark - story.moments[-2].mark
        for number in range(asked):
            seed = f"{limits.name}: {' '.join(names)} (killed at its event {number}) {' '.join(follow)}"
            with self.begun(limits, f"{limits.name}: {' '.join(names)}") as (story, disk, home):
                for name in names[:-1]:
                    story.perform(name)
                story.die(names[-1], done, lambda n=number: self.disk.fail(errno.EIO, n, dead=True), self.disk.heal)
                disk.follow(self.disk.events[: story.moments[-2].mark])
                for name in follow:
                    story.perform(name)
                self.cut(story, disk, home, story.moments[-1 - len(follow) - 1].mark, seed)
        self._count(began)

    def play_failing(
        self, limits: Limits, names: Sequence[str], code: int, only: Collection[Kind], *, lasting: bool, cuts: bool
    ) -> None:
        """The disk answers ``code`` to the n-th change of these kinds in the last operation (``lasting``: to all that
        follow), for every n; then it is well again and the drive goes on. With ``cuts`` a power cut after each event since.
        Raises Failed.
        """
        began = time.monotonic()
        plain = f"{limits.name}: {' '.join(names)}"
        with self.begun(limits, plain) as (story, _, _):
            for name in names[:-1]:
                story.perform(name)
            self.disk.fail(0, only=only)
            story.perform(names[-1])
            done, asked = story.alive[-1], self.disk.changes
        for number in range(asked):
            seed = f"{plain} (errno {code}{' from' if lasting else ' at'} change {number} of {sorted(only)})"
            with self.begun(limits, plain) as (story, disk, home):
                for name in names[:-1]:
                    story.perform(name)
                disk.follow(self.disk.events[: story.moments[-1].mark])
                start = story.moments[-1].mark
                try:
                    story.suffer(
                        names[-1],
                        done,
                        lambda n=number: self.disk.fail(code, n, lasting=lasting, only=only),
                        self.disk.heal,
                    )
                    self._go_on(story)
                except Exception as error:
                    raise Failed(f"{type(error).__name__}: {error}\nsequence: {seed}") from error
                if cuts:
                    self.cut(story, disk, home, start, seed)
                else:
                    disk.follow(self.disk.events[start:-1])
                    self.cut(story, disk, home, len(self.disk.events) - 1, seed)
        self._count(began)

    @staticmethod
    def _go_on(story: Story) -> None:
        """Write, commit both ways; what a segment holds that could not be synced is moved out first (StageLog.movable)."""
        story.perform("append")
        story.perform("syncfs")
        if story.drive.fs.commits.pending:
            number = story.drive.stage.movable(0)
            assert number is not None, "an fsync fails, and no segment is to blame"
            list(story.drive.fs.overlay.move_out_of(number))
            story.perform("syncfs")
        assert not story.drive.fs.commits.pending, "the disk is well and an fsync fails"
        story.perform("create-write")
        story.perform("settle")
        assert story.drive.fs.commits.settled
        assert story.drive.check() == []
        for ino, data in story.contents.items():
            assert story.drive.contents(ino) == data, f"inode {ino} reads wrong"

    def _count(self, began: float) -> None:
        self.counts.sequences += 1
        self.counts.seconds += time.monotonic() - began

    def cut(self, story: Story, disk: Disk, home: str, start: int, seed: str) -> None:
        """A power cut after each event from number ``start`` on; ``disk`` has followed all before."""
        told: set[tuple[bytes, int, int]] = set()
        moments = story.moments
        for point in range(start, len(self.disk.events)):
            event = self.disk.events[point]
            disk.follow([event])
            self.counts.points += 1
            at = bisect_right([moment.mark for moment in moments], point + 1) - 1
            # Of the operation that was at work, everything may be there.
            steps = [*moments[at].alive, *(moments[at + 1].alive[-1:] if at + 1 < len(moments) else [])]
            candidates = [step for step in steps if step.number >= moments[at].durable]
            destroyed = {chunk for mark, chunk in story.destroyed if mark <= point + 1}
            for state in disk.states(home, f"{seed}/{point}", deep=self.deep):
                key = (state.digest, at, len(destroyed))
                if key in told:
                    continue
                told.add(key)
                self.counts.states += 1
                try:
                    self._judge(story, state, candidates, destroyed, seed)
                except Exception as error:
                    raise Failed(
                        f"{type(error).__name__}: {error}\n"
                        f"sequence: {seed}\npower cut after event {point}: {event}\nstate: {state.label}\n"
                        f"allowed: {[(step.number, step.name) for step in candidates]}"
                    ) from error

    def _judge(self, story: Story, state: State, candidates: list[Step], destroyed: set[bytes], seed: str) -> None:
        use = state.label == "everything" or state.digest[0] < 40
        clock = Clock(story.drive.clock() + 1)
        chunks, limits = story.drive.chunks.plain, story.drive.limits
        self.judge.judge(state.image, candidates, chunks, destroyed, limits, seed, clock, use=use)
