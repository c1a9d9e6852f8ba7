"""The process that looks through the whole book for one question (looker.py): it reads the question, answers, and ends.

It reads the engine's and the mount's stores from committed snapshots, as other processes do, and writes nothing but a file
without a name (sorted_keys.py). The keys to read them come with the question: not the master secret, and none to sign with
or to log in at a node.

A frame is a length of 4 bytes and a pickle. The first one is GREETING and the release, which the engine compares with its
own (see thinking.py) before it says anything. Then comes a Question, then lists of nodes, an empty one last. What is
answered is (STEP, [what, done, total]) now and then, and last (DONE, CBOR of the answer) or (FAILED, the error as
launch.error_to_frame gives it). Both ends are the same program, and nobody else has the pipes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import cbor2

from hivefs.crypto.keys import ReadingKeys
from hivefs.daemon import policy_look
from hivefs.daemon.launch import error_to_frame, harden
from hivefs.daemon.memory import file_bytes, let_go
from hivefs.daemon.policy_nodes import Node
from hivefs.daemon.thinking import framed, packed, quiet_end, read_frame, release
from hivefs.errors import HivefsError
from hivefs.maintenance.old_copies import OldCopies
from hivefs.maintenance.placement_check import PlacementCheck
from hivefs.metadata.engine_look import SteadyReader
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.placement.policy import Policy

STEP, DONE, FAILED = range(3)
GREETING: Final = b"hivefs looking 1 "
SPOKEN_OF: Final = ("daemon/looking.py", "crypto/keys.py")
TELL_S: Final = 0.25
RENEW_S: Final = 2.0
MOST_MAPPED: Final = 32 << 20
"""Mapped pages of the stores that are kept; they are the page cache's, and count as this process's memory."""


@dataclass(frozen=True)
class Question:
    """``kind`` is a name in KINDS, ``given`` what its function takes by name. ``room`` is where a file may be made."""

    kind: str
    given: dict[str, Any]
    engine: Path
    metadata: Path
    room: Path
    default: Policy
    keys: ReadingKeys = field(repr=False)


class Steps:
    """Tells how far a look is, some times a second, however often it is told."""

    def __init__(self, write: Callable[[list[Any]], None], renew: Callable[[], object]) -> None:
        self._write = write
        self.renew = [renew]
        """What is called every RENEW_S seconds, between two files or stripes: from then on the newest commit is seen."""
        self._said = self._renewed = time.monotonic()
        self._last: list[Any] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        new = not self._last or self._last[0] != what
        if now - self._said < TELL_S and not new and done != total:
            return
        if now - self._renewed > RENEW_S:
            self._renewed = now
            for renew in self.renew:
                renew()
            if file_bytes() > MOST_MAPPED:
                let_go()
        step = [what, done, total]
        if step != self._last:
            self._said, self._last = now, step
            self._write(step)


def _files(
    what: Callable[..., Any], question: Question, book: SteadyReader, nodes: list[Node], tell: Steps
) -> dict[str, Any]:
    """A question about files, which the mount's store has. It takes minutes where there are very many, and what the
    snapshots show cannot be used again meanwhile: so they are taken anew, and the answer says from when to when it holds.
    """
    begun = time.time_ns()
    with closing(MetadataSnapshot(question.metadata, question.keys)) as snapshot:
        first = snapshot.seq
        tell.renew.append(snapshot.begin)  # after the book: what a file names is not forgotten there yet
        look = policy_look.Look(book, snapshot, question.keys.names_key, nodes, question.room, tell)
        found: dict[str, Any] = what(look, **question.given)
        return found | {"looked": {"from_ns": begun, "to_ns": time.time_ns(), "changed": snapshot.seq != first}}


def _check_placement(question: Question, book: SteadyReader, nodes: list[Node], tell: Steps) -> Any:
    del nodes  # what is recorded of them is looked at
    old = OldCopies(book, time.time_ns)
    check = PlacementCheck(book, old.as_read, old.together, question.given.get("elsewhere", {}))
    if not question.given["whole"]:
        check.found("hydrating", "a part of the certificates is still in the hive only", problem=False)
    if question.given.get("asking"):
        check.found("other-policy", "it is being looked which policies files have now; ask again", problem=False)
    check.run(tell, book.count("live"))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(check.counts.items()))
    check.found("certificates", f"{counts} (of stripes)", problem=False)
    return [asdict(finding) for finding in check.findings]


KINDS: Final[dict[str, Callable[..., Any]]] = {
    "explain": partial(_files, policy_look.explain),
    "simulate": partial(_files, policy_look.simulate),
    "there": partial(_files, policy_look.there),
    "check_placement": _check_placement,
}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer one question."""

    def write(kind: int, value: Any) -> None:
        sink.write(packed((kind, value)))
        sink.flush()

    sink.write(framed(GREETING + release(SPOKEN_OF)))
    sink.flush()
    question: Question = read_frame(source)
    nodes: list[Node] = []
    same: dict[Any, Any] = {}  # most attributes are those of many nodes
    while batch := read_frame(source):
        nodes += (Node(n, state, tuple(same.setdefault(a, a) for a in said), *more) for n, state, said, *more in batch)
    same.clear()
    gc.collect()
    gc.freeze()
    try:
        with closing(SteadyReader(question.engine, question.keys.engine_key, question.default)) as book:
            steps = Steps(lambda step: write(STEP, step), book.renew)
            answer = KINDS[question.kind](question, book, nodes, steps)
        write(DONE, cbor2.dumps(answer))
    except HivefsError as error:
        write(FAILED, error_to_frame(error))


if __name__ == "__main__":
    from hivefs.daemon import looking  # pickles name its classes so, not as __main__'s

    harden()
    quiet_end(looking.serve)
