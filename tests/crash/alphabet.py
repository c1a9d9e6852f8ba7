"""What a sequence is made of: operations of programs, of the engine and of the drive's own loop, on a few names.

The base they begin from: file ``a`` (2000 bytes, staged), file ``b`` (1 MiB + 300 bytes in two chunks, and 100 staged bytes
over the first), directory ``d`` with the file ``d/c`` (40 bytes, known to the journal only when ``fresh``).
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crash_drive import KEYS, MIB, ROOT, CrashDrive, Seen, run

from hivefs.errors import DiskFull, HivefsError, PosixError, StoreDamaged
from hivefs.formats.records import extent_from_bytes
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.model.ids import ROOT_INO


@dataclass(frozen=True)
class Step:
    """The drive after an operation: what is seen of it, and the contents of its files by a model of their own."""

    number: int
    name: str
    seen: Seen
    contents: dict[int, bytes]


@dataclass(frozen=True)
class Moment:
    """What holds once the record of the disk has ``mark`` events: a power cut may show the steps ``alive`` from the one
    with the number ``durable`` on.
    """

    mark: int
    alive: list[Step]
    durable: int


@dataclass
class Story:
    """A drive and what happened to it. ``alive`` are the steps that a crash may show, the last one is now; ``durable`` is
    the number of the step that a crash must not fall behind.
    """

    drive: CrashDrive
    mark: Callable[[], int]
    contents: dict[int, bytes] = field(default_factory=dict)
    alive: list[Step] = field(default_factory=list)
    durable: int = 0
    destroyed: list[tuple[int, bytes]] = field(default_factory=list)
    """(how long the record was, chunk): from then on the chunk is gone."""
    changed_at: dict[int, int] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)
    number: int = 0
    restart: bool = False

    def perform(self, name: str) -> None:
        """One operation, to its end. What POSIX refuses changes nothing."""
        self.number += 1
        with contextlib.suppress(PosixError):
            OPERATIONS[name](self)
        self.note(name)

    def die(self, name: str, done: Step, dying: Callable[[], None], reborn: Callable[[], None]) -> None:
        """The process is killed within an operation, which would have ended with ``done``; a new one opens the drive."""
        self.number += 1
        dying()
        with contextlib.suppress(HivefsError, PosixError, OSError):
            OPERATIONS[name](self)
        self._open_again(done, reborn)

    def suffer(self, name: str, done: Step, failing: Callable[[], None], healed: Callable[[], None]) -> bool:
        """The disk fails within an operation, which would have ended with ``done``. Errors are those that a caller knows
        (anything else is raised), and nothing of what is there reads wrong. Once the disk is well again the drive goes on;
        if LMDB failed, after it was opened anew. Returns whether that was so.
        """
        self.number += 1
        failing()
        try:
            OPERATIONS[name](self)
        except (DiskFull, StoreDamaged):
            pass
        except PosixError as error:
            assert error.errno in (errno.ENOSPC, errno.EIO), error
        if self.drive.store.failed:
            healed()
            try:
                self.drive.fs.write(done.seen.tree["a"][0] if "a" in done.seen.tree else ROOT_INO, 0, b"refused")
            except PosixError as error:
                assert error.errno in (errno.EIO, errno.EISDIR), error
            else:
                raise AssertionError("bytes are taken that cannot be committed any more")
            self._open_again(done, healed)
            return True
        for ino, data in self.contents.items():
            assert ino not in self.drive.look().files or self.drive.contents(ino) == data
        healed()
        self.note(name)
        return False

    def _open_again(self, done: Step, healed: Callable[[], None]) -> None:
        self.alive = [*self.alive, done]
        self.drive.kill()
        healed()
        self.moments.append(Moment(self.mark(), self.alive, self.durable))
        self.drive.open()
        self.number += 1
        self.restart = True
        self.note("opened")

    def note(self, name: str) -> None:
        """The state now is one that a crash may show."""
        seen = self.drive.look()
        if self.restart:
            self.restart = False
            found = [s for s in self.alive if s.seen == seen and s.number >= self.durable]
            assert found, f"after a restart the drive is in none of the states it was in: {seen}"
            self.contents = dict(found[-1].contents)
            self.alive = [s for s in self.alive if s.number <= found[-1].number]
            self.changed_at = {ino: min(number, found[-1].number) for ino, number in self.changed_at.items()}
        self.contents = {ino: data for ino, data in self.contents.items() if ino in seen.files}
        self.alive = [*self.alive, Step(self.number, name, seen, dict(self.contents))]
        self.moments.append(Moment(self.mark(), self.alive, self.durable))

    # ---- what operations are made of --------------------------------------------------------------------------------

    def bytes(self, length: int) -> bytes:
        """Bytes that this step writes."""
        return random.Random(f"{self.number}/{length}").randbytes(length)

    def changed(self, *inodes: int) -> None:
        """This step changes these inodes, which a later fsync of them covers."""
        for ino in inodes:
            self.changed_at[ino] = self.number

    def all_durable(self) -> None:
        self.durable = self.number

    def ino(self, path: str) -> int:
        found = self.drive.find(path) if path else self.drive.fs.getattr(ROOT_INO)
        if found is None:
            raise PosixError(errno.ENOENT)
        return found.ino

    def write(self, path: str, offset: int, length: int) -> None:
        ino = self.ino(path)
        data = self.bytes(length)
        self.drive.fs.write(ino, offset, data)
        old = self.contents[ino].ljust(offset, b"\0")
        self.contents[ino] = old[:offset] + data + old[offset + length :]
        self.changed(ino)

    def resize(self, path: str, size: int) -> None:
        ino = self.ino(path)
        self.drive.fs.setattr(ino, size=size)
        self.contents[ino] = self.contents[ino][:size].ljust(size, b"\0")
        self.changed(ino)

    def handed_out(self) -> list[tuple[int, bytes]]:
        """What the engine may destroy, which no state that others can see names."""
        queue = run(self.drive.service.released, 0, 1000)
        snapshot = MetadataSnapshot(self.drive.path / "metadata", KEYS, store=self.drive.store)
        try:
            named = set()
            for _, value in snapshot.scan(b"m"):
                extent = extent_from_bytes(0, value or b"")
                named.add(None if extent.chunk is None else bytes(extent.chunk.chunk_id))
        finally:
            snapshot.close()
        assert not named & {bytes(chunk) for _, chunk in queue}, "a chunk is given out that a snapshot names"
        return [(number, bytes(chunk)) for number, chunk in queue]


def _create(story: Story) -> None:
    ino = story.drive.fs.create(ROOT_INO, b"n", 0o644, ROOT).ino
    story.contents[ino] = b""
    story.changed(ROOT_INO, ino)


def _create_and_write(story: Story) -> None:
    _create(story)
    story.write("n", 0, 600)


def _append(story: Story) -> None:
    story.write("a", len(story.contents[story.ino("a")]), 200)


def _rename(old: str, new: str, flags: int = 0) -> Callable[[Story], None]:
    def act(story: Story) -> None:
        involved = [found.ino for path in (old, new) if (found := story.drive.find(path)) is not None]
        story.drive.fs.rename(ROOT_INO, old.encode(), ROOT_INO, new.encode(), flags)
        story.changed(ROOT_INO, *involved)

    return act


def _link(story: Story) -> None:
    ino, directory = story.ino("a"), story.ino("d")
    story.drive.fs.link(ino, directory, b"l")
    story.changed(ino, directory)


def _unlink(path: str, *, opened: bool = False) -> Callable[[Story], None]:
    def act(story: Story) -> None:
        directory, _, name = path.rpartition("/")
        ino, parent = story.ino(path), story.ino(directory)
        if opened:
            story.drive.fs.open(ino)
        story.drive.fs.unlink(parent, name.encode())
        story.changed(ino, parent)

    return act


def _mkdir(story: Story) -> None:
    ino = story.drive.fs.mkdir(ROOT_INO, b"m", 0o755, ROOT).ino
    story.changed(ROOT_INO, ino)


def _rmdir(story: Story) -> None:
    story.drive.fs.rmdir(ROOT_INO, b"m")
    story.changed(ROOT_INO)


def _setxattr(story: Story) -> None:
    ino = story.ino("a")
    story.drive.fs.setxattr(ino, b"user.k", story.bytes(50))
    story.changed(ino)


def _fsync(path: str) -> Callable[[Story], None]:
    def act(story: Story) -> None:
        ino = story.ino(path)
        run(story.drive.fs.fsync, ino)
        if story.drive.fs.commits.pending:
            story.durable = max(story.durable, story.changed_at.get(ino, 0))
        else:
            story.all_durable()

    return act


def _syncfs(story: Story) -> None:
    run(story.drive.fs.syncfs)
    story.all_durable()


def _settle(story: Story) -> None:
    story.drive.settle()
    story.all_durable()


def _place(story: Story) -> None:
    drive = story.drive
    work = run(drive.service.dirty, 100, 0, [])
    results = []
    for item in work:
        name = f"{story.number}/{item.ino}/{item.slot}"
        results.append((item.ino, item.slot, item.generation, drive.sealed(item, name)))
    if results:
        taken = run(drive.service.placed, results)
        assert all(taken)
        story.all_durable()


def _destroy(story: Story) -> None:
    """The engine destroys what was released."""
    queue = story.handed_out()
    if not queue:
        return
    mark = story.mark()
    story.destroyed += [(mark, chunk) for _, chunk in queue]
    story.drive.chunks.destroyed.update(chunk for _, chunk in queue)
    run(story.drive.service.released_done, queue[-1][0])


def _publish(story: Story) -> None:
    """A checkpoint with everything up to now is out."""
    run(story.drive.service.flush)
    story.all_durable()
    run(story.drive.service.published, story.drive.store.seq - 1)


def _move(story: Story) -> None:
    """What still lives in closed segments is written again."""
    for use in story.drive.stage.segments():
        if use.closed and use.live:
            list(story.drive.fs.overlay.move_out_of(use.number))


def _remount(story: Story) -> None:
    story.drive.unmount()
    story.all_durable()
    story.drive.open()


def _kill(story: Story) -> None:
    story.drive.kill()
    story.restart = True
    story.drive.open()


OPERATIONS: dict[str, Callable[[Story], Any]] = {
    "create": _create,
    "create-write": _create_and_write,
    "overwrite": lambda story: story.write("a", 100, 700),
    "write-chunk": lambda story: story.write("b", 500, 300),
    "write-span": lambda story: story.write("b", MIB - 150, 400),
    "append": _append,
    "cut": lambda story: story.resize("b", 70),
    "empty": lambda story: story.resize("a", 0),
    "grow": lambda story: story.resize("a", MIB + 10),
    "rename-over": _rename("a", "b"),
    "exchange": _rename("a", "b", 2),
    "rename-new": _rename("b", "z"),
    "link": _link,
    "unlink-staged": _unlink("a"),
    "unlink-placed": _unlink("b"),
    "unlink-open": _unlink("b", opened=True),
    "mkdir": _mkdir,
    "rmdir": _rmdir,
    "setxattr": _setxattr,
    "fsync": _fsync("a"),
    "fsync-dir": _fsync(""),
    "syncfs": _syncfs,
    "settle": _settle,
    "place": _place,
    "destroy": _destroy,
    "publish": _publish,
    "move": _move,
    "remount": _remount,
    "kill": _kill,
}

ASKING = (
    *("create-write", "overwrite", "write-chunk", "write-span", "append", "fsync", "fsync-dir", "syncfs", "settle"),
    *("place", "publish", "move", "remount", "kill"),
)
"""Operations that ask something of the disk themselves. The others change memory only: a power cut right after one of them
is the same as one before it, so as the last of a sequence they show nothing new.
"""


def make_base(story: Story) -> None:
    """See the head of the file. Everything is committed and durable."""
    drive = story.drive
    for name, length in ((b"a", 2000), (b"b", MIB + 300)):
        ino = drive.fs.create(ROOT_INO, name, 0o644, ROOT).ino
        story.contents[ino] = b""
        if name == b"a":
            story.write("a", 0, length)
        else:
            story.write("b", 0, 1000)
            story.resize("b", length)
            story.write("b", MIB + 7, 290)
            run(drive.service.flush)
            work = [item for item in run(drive.service.dirty, 100, 0, []) if item.ino == ino]
            run(
                drive.service.placed,
                [(w.ino, w.slot, w.generation, drive.sealed(w, f"base/{w.slot}")) for w in work],
            )
    story.write("b", 50, 100)
    directory = drive.fs.mkdir(ROOT_INO, b"d", 0o755, ROOT).ino
    child = drive.fs.create(directory, b"c", 0o644, ROOT).ino
    story.contents[child] = b""
    story.write("d/c", 0, 40)
    drive.settle()
