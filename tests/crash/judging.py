"""After a power cut: recover as a mount does, and compare with what was promised."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alphabet import Step
from crash_drive import ROOT, Chunks, CrashDrive, Limits, Seen

from hivefs.model.ids import ROOT_INO
from hivefs.testing.fake_disk.crash import Image


@contextmanager
def memory_directory() -> Iterator[Path]:
    """A directory whose syncs cost nothing, where the machine has such a thing."""
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="hivefs-crash-", dir=fast if os.access(fast, os.W_OK) else None) as name:
        yield Path(name)


def put(image: Image, directory: Path) -> None:
    """Make a drive's directory of an image."""
    if directory.exists():
        shutil.rmtree(directory)
    for name in ("metadata", "stage"):
        (directory / name).mkdir(parents=True)
    for path, data in image.items():
        (directory / path).write_bytes(data)


class Judge:
    """Looks at recovered drives, in one directory that is used again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.states = 0

    def judge(
        self,
        image: Image,
        candidates: Sequence[Step],
        plain: dict[bytes, bytes],
        destroyed: Collection[bytes],
        limits: Limits,
        seed: str,
        clock: Callable[[], int],
        *,
        use: bool = True,
    ) -> Step:
        """Raises AssertionError when the drive that comes out of ``image`` is in none of the states ``candidates``, is not
        clean, or (with ``use``) cannot be used on; returns the step it shows.
        """
        self.states += 1
        put(image, self.directory)
        chunks = Chunks()
        chunks.plain, chunks.destroyed = dict(plain), set(destroyed)
        with limits.applied():
            drive = CrashDrive.existing(self.directory, limits, seed, clock, chunks)
            try:
                step = self._compare(drive, candidates)
                clean(drive)
                if use:
                    usable(drive)
                return step
            finally:
                drive.kill()

    def _compare(self, drive: CrashDrive, candidates: Sequence[Step]) -> Step:
        seen = drive.look()
        matching = [step for step in candidates if step.seen == seen]
        assert matching, _difference(seen, candidates)
        found = {ino: drive.contents(ino) for ino in seen.files}
        wrong = sorted(ino for ino, data in found.items() if all(data != step.contents[ino] for step in matching))
        matching = [step for step in matching if step.contents == found]
        assert matching, f"files with the right attributes hold wrong bytes: inodes {wrong}"
        for step in reversed(matching):
            if seen.accounted == step.seen.accounted and seen.changed >= step.seen.changed:
                return step
        step = matching[-1]
        raise AssertionError(
            f"chunks lost {step.seen.accounted - seen.accounted}, too many {seen.accounted - step.seen.accounted}, "
            f"changes that no checkpoint will hold {step.seen.changed - seen.changed}"
        )


def _difference(seen: Seen, candidates: Sequence[Step]) -> str:
    lines = [f"none of the {len(candidates)} states that are allowed; recovered, against each:"]
    for step in candidates:
        for path in sorted({*seen.tree, *step.seen.tree}):
            mine, wanted = seen.tree.get(path), step.seen.tree.get(path)
            if mine != wanted:
                lines.append(f"  {step.number} ({step.name}): {path or '/'} is {mine}, not {wanted}")
        if seen.chunks != step.seen.chunks:
            lines.append(f"  {step.number} ({step.name}): other chunks: {seen.chunks ^ step.seen.chunks}")
    return "\n".join(lines)


def clean(drive: CrashDrive) -> None:
    """What is left of deleted files goes, and check finds nothing."""
    before = drive.look()
    drive.settle_at_once()
    after = drive.look()
    assert after == before, "reaping changed what is seen"
    assert drive.check() == []
    assert drive.store.inodes == after.inodes, "inodes are counted wrong"
    named = {chunk for _, _, chunk in after.chunks}
    released = {bytes(chunk) for _, chunk in drive.store.released(0, 1000)}
    assert not named & released, "a chunk is given out that a file names"
    assert named | released == after.accounted == before.accounted, "a chunk is neither named nor released"


def usable(drive: CrashDrive) -> None:
    """The drive goes on: written to, committed both ways, killed, opened, clean again."""
    ino = drive.fs.create(ROOT_INO, b"after", 0o600, ROOT).ino
    drive.fs.write(ino, 0, b"x" * 300)
    if (old := drive.find("a")) is not None:
        drive.fs.write(old.ino, 3, b"y" * 500)
    drive.fs.commits.now(settle=False)
    drive.settle_at_once()
    drive.fs.write(ino, 100, b"z" * 300)
    drive.fs.commits.now(settle=False)
    seen = drive.look()
    written = {one for one in (ino, None if old is None else old.ino) if one is not None}
    contents = {one: drive.contents(one) for one in written}
    drive.kill()
    drive.open()
    assert drive.look() == seen, _difference(drive.look(), [Step(0, "before the second crash", seen, {})])
    assert {one: drive.contents(one) for one in written} == contents
    drive.settle_at_once()
    assert drive.check() == []
