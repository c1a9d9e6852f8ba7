"""From what a disk was asked to do to the states in which a power cut may leave it. Pure.

**What is certain**: a write or truncation of a file after a sync of that file; a name after a sync of its directory (the
weak promise of POSIX: a sync of the file does not make its name last; ext4 promises more, our code does not count on it).

**What is not**: everything else, each for itself. A write that is not certain is there, or not, or some of its sectors of
512 bytes are (a sector is never torn); a later one may be there while an earlier one is not; the size of a file may have
grown without the bytes, or not have grown although the bytes were written. A name may be made or removed, or not.
After a sync that failed, what was written before it stays uncertain for ever: a kernel may have dropped those pages and
answer the next sync with success.

``Disk`` follows the events. ``states`` gives images ({path: bytes}) for the power cut at this moment: always nothing of
what is uncertain, all of it, all but each single one, and what seeded choice adds. The same seed gives the same states.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hivefs.testing.fake_disk.events import Event, Kind

SECTOR = 512
Image = dict[str, bytes]
Choice = bool | frozenset[int]
"""Whether an operation is there; of a write also which of its sectors."""


@dataclass(slots=True, eq=False)
class _Operation:
    event: Event
    number: int
    certain: bool = False
    failed: bool = False
    """A sync of it failed: it never becomes certain."""

    @property
    def sectors(self) -> int:
        """How many sectors a write touches."""
        event = self.event
        return (event.offset + len(event.data) - 1) // SECTOR - event.offset // SECTOR + 1


@dataclass(slots=True)
class _Object:
    """A file (``base`` is its contents) or a directory (``names``), as certain, and what was done since."""

    base: bytes = b""
    names: dict[bytes, int] | None = None
    operations: list[_Operation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class State:
    """One outcome of a power cut. ``label`` says which, for a person; ``digest`` is the same for the same image."""

    label: str
    image: Image
    digest: bytes


class Disk:
    """See the head of the file. The root directory is inode 1."""

    def __init__(self) -> None:
        self._objects: dict[int, _Object] = {1: _Object(names={})}
        self._count = 0

    # ---- following --------------------------------------------------------------------------------------------------

    def follow(self, events: Iterable[Event]) -> None:
        """These things were done next."""
        for event in events:
            self._follow(event)

    def _follow(self, event: Event) -> None:
        self._count += 1
        if event.kind in (Kind.SYNC, Kind.FAILED_SYNC):
            found = self._objects[event.ino]
            for operation in found.operations:
                if event.kind == Kind.FAILED_SYNC:
                    operation.failed = operation.failed or not operation.certain
                elif not operation.failed:
                    operation.certain = True
            self._fold(found)
            return
        if event.kind == Kind.CREATE:
            self._objects[event.other] = _Object()
        elif event.kind == Kind.MKDIR:
            self._objects[event.other] = _Object(names={})
        elif event.kind == Kind.RENAME and event.ino != event.other:
            raise ValueError("a rename between directories is not modelled")
        self._objects[event.ino].operations.append(_Operation(event, self._count))

    def settle(self) -> None:
        """All that was done is certain."""
        for found in self._objects.values():
            for operation in found.operations:
                operation.certain = True
            self._fold(found)

    @staticmethod
    def _fold(found: _Object) -> None:
        count = 0
        for operation in found.operations:
            if not operation.certain:
                break
            count += 1
        done, found.operations = found.operations[:count], found.operations[count:]
        if found.names is not None:
            found.names = _names_after(found.names, done, {})
        elif done:
            found.base = _bytes_after(found.base, done, {})

    # ---- outcomes ---------------------------------------------------------------------------------------------------

    def uncertain(self) -> list[_Operation]:
        """What a power cut now may take, in order."""
        found = [o for thing in self._objects.values() for o in thing.operations if not o.certain]
        return sorted(found, key=lambda operation: operation.number)

    def image(self, root: str, choices: Mapping[int, Choice], *, short: bool = False) -> Image:
        """All files below the directory ``root`` ("": all) when the uncertain operations are there as chosen by number (not
        at all when not named); with ``short``, files end where they end for certain.
        """
        at = 1
        for part in filter(None, root.encode().split(b"/")):
            names = self._names_of(at, choices)
            if part not in names:
                return {}
            at = names[part]
        image: Image = {}
        self._collect(at, "", choices, short, image)
        return image

    def _names_of(self, ino: int, choices: Mapping[int, Choice]) -> dict[bytes, int]:
        found = self._objects[ino]
        return _names_after(found.names or {}, found.operations, choices)

    def _collect(self, ino: int, path: str, choices: Mapping[int, Choice], short: bool, image: Image) -> None:
        for name, child in sorted(self._names_of(ino, choices).items()):
            here = f"{path}/{name.decode()}" if path else name.decode()
            found = self._objects[child]
            if found.names is not None:
                self._collect(child, here, choices, short, image)
                continue
            data = _bytes_after(found.base, found.operations, choices)
            if short:
                data = data[: len(_bytes_after(found.base, found.operations, {}))]
            image[here] = data

    def states(self, root: str, seed: str, *, deep: bool = False) -> Iterator[State]:
        """Outcomes of a power cut now; without ``deep`` fewer torn and random ones. Each image once."""
        told: set[bytes] = set()
        for label, choices, short in self._choices(random.Random(seed), deep):
            image = self.image(root, choices, short=short)
            digest = digest_of(image)
            if digest not in told:
                told.add(digest)
                yield State(label, image, digest)

    def _choices(self, choose: random.Random, deep: bool) -> Iterator[tuple[str, dict[int, Choice], bool]]:
        operations = self.uncertain()
        everything: dict[int, Choice] = {o.number: True for o in operations}
        yield "nothing", {}, False
        if not operations:
            return
        yield "everything", everything, False
        if len(operations) > 1:
            for one in operations:
                yield f"all but [{one.event}]", {**everything, one.number: False}, False
        yield "everything, files short", everything, True
        yield "sizes only", {o.number: frozenset() if o.event.kind == Kind.WRITE else True for o in operations}, False
        writes = [o for o in operations if o.event.kind == Kind.WRITE and o.sectors > 1]
        for one in writes if deep else writes[-2:]:
            half = choose.randrange(1, one.sectors)
            before: dict[int, Choice] = {o.number: True for o in operations if o.number < one.number}
            yield f"up to sector {half} of [{one.event}]", {**before, one.number: frozenset(range(half))}, False
            some = frozenset(s for s in range(one.sectors) if choose.random() < 0.5)
            yield f"sectors {sorted(some)} of [{one.event}]", {**everything, one.number: some}, False
        if len(operations) > 2:
            if deep:
                for one in operations:
                    yield f"only [{one.event}]", {one.number: True}, False
            for number in range(8 if deep else 2):
                yield f"random {number}", {o.number: _any(o, choose) for o in operations}, choose.random() < 0.2


def _any(operation: _Operation, choose: random.Random) -> Choice:
    if operation.event.kind == Kind.WRITE and operation.sectors > 1 and choose.random() < 0.4:
        return frozenset(s for s in range(operation.sectors) if choose.random() < 0.5)
    return choose.random() < 0.5


def _chosen(operation: _Operation, choices: Mapping[int, Choice]) -> Choice:
    return True if operation.certain else choices.get(operation.number, False)


def _names_after(
    names: Mapping[bytes, int], operations: Iterable[_Operation], choices: Mapping[int, Choice]
) -> dict[bytes, int]:
    after = dict(names)
    for operation in operations:
        event = operation.event
        if _chosen(operation, choices) is False:
            continue
        if event.kind in (Kind.CREATE, Kind.MKDIR):
            after[event.name] = event.other
        elif event.kind == Kind.UNLINK:
            after.pop(event.name, None)
        elif event.kind == Kind.RENAME and (moved := after.pop(event.name, None)) is not None:
            after[event.data] = moved
    return after


def _bytes_after(base: bytes, operations: Iterable[_Operation], choices: Mapping[int, Choice]) -> bytes:
    data: bytearray | None = None
    for operation in operations:
        chosen, event = _chosen(operation, choices), operation.event
        if chosen is False:
            continue
        data = bytearray(base) if data is None else data
        end = event.offset + len(event.data)  # of a truncation: the new size
        if event.kind == Kind.TRUNCATE:
            del data[end:]
        if len(data) < end:
            data.extend(bytes(end - len(data)))
        if event.kind == Kind.WRITE and chosen is True:
            data[event.offset : end] = event.data
        elif event.kind == Kind.WRITE and not isinstance(chosen, bool):
            first = event.offset // SECTOR
            for sector in chosen:
                low = max(event.offset, (first + sector) * SECTOR)
                high = min(end, (first + sector + 1) * SECTOR)
                data[low:high] = event.data[low - event.offset : high - event.offset]
    return base if data is None else bytes(data)


def digest_of(image: Image) -> bytes:
    """The same for the same image only."""
    summary = hashlib.blake2b(digest_size=16)
    for path, data in sorted(image.items()):
        summary.update(b"%d %d " % (len(path), len(data)) + path.encode())
        summary.update(data)
    return summary.digest()
