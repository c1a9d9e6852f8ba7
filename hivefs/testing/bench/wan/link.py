"""A link between two network namespaces, for as long as a block runs (emulator.py does the work)."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Final

from hivefs.testing.bench.targets import with_package
from hivefs.testing.bench.wan.emulator import TELL, WATCH, NoLink
from hivefs.testing.bench.wan.lane import Shape
from hivefs.testing.bench.wan.packets import Seen

__all__ = ["Link", "NoLink", "Shape", "opened"]

_MODULE: Final = "hivefs.testing.bench.wan.emulator"
_READY_SECONDS: Final = 30.0
_END_SECONDS: Final = 10.0


class Link:
    """``kind`` is "netem" or "TUN". ``near`` and ``far`` are words before a command that is to run on that side: only its
    network is another one, files and mounts are those of everybody.
    """

    def __init__(self, shape: Shape, kind: str, process: subprocess.Popen[bytes], near: int, far: int) -> None:
        self.shape = shape
        self.kind = kind
        self.near = _inside(process.pid, near)
        self.far = _inside(process.pid, far)
        self._process = process

    def watch(self) -> None:
        """From now on the packets of the link are remembered, the last 100 000 of them."""
        self._tell(WATCH)

    def seen(self) -> list[Seen]:
        """The packets since ``watch``; none where the kernel carries them. Raises RuntimeError."""
        self._tell(TELL)
        told = _line(self._process, _READY_SECONDS)
        return [Seen(at, lane, out, bytes.fromhex(head)) for at, lane, out, head in told["seen"]]

    def _tell(self, word: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(word)
            self._process.stdin.flush()
        except OSError as error:
            raise RuntimeError(f"the process that carries the link is gone: {error.strerror}") from None


def _inside(pid: int, descriptor: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{pid}/fd/{descriptor}", "--")


def _line(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    words = process.stdout.readline() if ready else b""
    if not words:
        raise RuntimeError("the process that carries the link ended or hangs")  # our mistake, and nothing that is missing
    value = json.loads(words)
    if "problem" in value:
        raise NoLink(value["problem"])
    return dict(value)


@contextmanager
def opened(shape: Shape, *, congestion: str = "", seed: int = 1, netem: bool = True) -> Iterator[Link]:
    """A new link with two new namespaces. ``congestion`` names the congestion control that sockets there begin with, ""
    for the machine's; ``netem`` False uses the TUN devices although the kernel may have netem. Raises NoLink, and
    RuntimeError when our own process fails.
    """
    packages = {"nsenter": "util-linux", "ip": "iproute2"}
    missing = [name for name in packages if shutil.which(name) is None]
    if os.geteuid():
        raise NoLink("root (uid 0) is missing: network namespaces and TUN devices are made")
    if missing:
        raise NoLink(f"the program {missing[0]} is missing (package {packages[missing[0]]})")
    asked = {"shape": asdict(shape), "congestion": congestion, "seed": seed, "netem": netem}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, json.dumps(asked)],
        env=with_package(dict(os.environ)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        said = _line(process, _READY_SECONDS)
        yield Link(shape, said["kind"], process, said["near"], said["far"])
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close its input, and kill it when that does not end it."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def run(side: Sequence[str], words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """A command on one side of a link; its output and how it ended. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        [*side, *words],
        env=with_package(dict(os.environ)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
