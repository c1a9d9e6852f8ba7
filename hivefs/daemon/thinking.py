"""The process that thinker.py asks about placement: it reads questions, answers them, and ends with its standard input.

A frame is a length of 4 bytes and a pickle. A question is (function, arguments, arguments by name); a long list of
candidates among them is a Follows, and comes in frames of its own. The answer is (True, it) or (False, (class of the
error, its data)). Both ends are the same program, and nobody else has the pipes. Only the rooms of placement are loaded.

Pickles name classes and functions, so both ends must be of the very same release: the engine may be an old one, and this be
started from what an upgrade has put in its place. Its first frame is GREETING and ``release()``, which the engine compares
with its own; before that it reads nothing.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import hivefs
from hivefs.errors import HivefsError
from hivefs.model.node import Candidate
from hivefs.placement.field import Part

LENGTH: Final = 4
GREETING: Final = b"hivefs thinking 1 "
_SPOKEN_OF: Final = ("errors.py", "daemon/thinking.py", "model/*.py", "placement/*.py")
"""Where classes and functions that go over the pipes are defined."""


def release(more: tuple[str, ...] = ()) -> bytes:
    """What both ends must have the same: the version of HiveFS and of Python, and SHA-256 over the text of all that goes
    over the pipes (so that it also tells two states of a checkout apart). ``more`` are
    other files that belong to that. Reads some 200 KiB.
    """
    root, digest = Path(hivefs.__file__).parent, hashlib.sha256()
    for pattern in (*_SPOKEN_OF, *more):
        for path in sorted(root.glob(pattern)):
            text = path.read_bytes()
            digest.update(f"{path.name} {len(text)} ".encode() + text)
    return f"{hivefs.__version__} {sys.hexversion:x} {digest.hexdigest()}".encode()


class Follows:
    """Stands for a list of candidates that follows in ``frames`` more frames; ``part``: of a field."""

    def __init__(self, frames: int, part: bool) -> None:
        self.frames = frames
        self.part = part


def packed(value: Any) -> bytes:
    """A frame."""
    return framed(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def framed(data: bytes) -> bytes:
    """A frame of these bytes."""
    return len(data).to_bytes(LENGTH, "big") + data


def read_frame(source: BinaryIO) -> Any:
    """Raises EOFError when the source ends, also in the middle of a frame: who writes may be killed there."""
    head = source.read(LENGTH)
    length = int.from_bytes(head, "big")
    data = source.read(length) if len(head) == LENGTH else b""
    if len(head) < LENGTH or len(data) < length:
        raise EOFError
    return pickle.loads(data)  # noqa: S301


def quiet_end(serving: Callable[[BinaryIO, BinaryIO], None]) -> None:
    """Serve on standard input and output. When the engine is killed nobody asks and nobody reads any more: that is no
    error, and nothing is to be flushed to it at the end.
    """
    try:
        serving(sys.stdin.buffer, sys.stdout.buffer)
    except (EOFError, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _whole(one: Any, source: BinaryIO) -> Any:
    if not isinstance(one, Follows):
        return one
    found: list[Candidate] = [candidate for _ in range(one.frames) for candidate in read_frame(source)]
    return Part(found) if one.part else found


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Say which release this is, and answer questions until the source ends."""
    sink.write(framed(GREETING + release()))
    sink.flush()
    while True:
        try:
            question, given, more = read_frame(source)
            given = [_whole(one, source) for one in given]
            more = {name: _whole(one, source) for name, one in more.items()}
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = True, question(*given, **more)
        except HivefsError as error:
            answer = False, (type(error), error.data)
        sink.write(packed(answer))
        sink.flush()


if __name__ == "__main__":
    from hivefs.daemon import thinking  # pickles name its classes so, not as __main__'s

    quiet_end(thinking.serve)
