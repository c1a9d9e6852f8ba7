"""A function in a process of its own with a hard end: what hangs in a file system must not hang the benchmark."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

_KILL_SECONDS = 10.0
_PIECE = 1 << 16


class Overrun(Exception):
    """The function did not end in time and was killed."""


class Stuck(Overrun):
    """It could not even be killed: it hangs in the kernel, in a request that nobody answers."""


class Failed(Exception):
    """The function raised; the message is its class and text."""


def run_bounded(function: Callable[[], Any], limit: float) -> Any:
    """The function's result (JSON values), run in a forked child that leads a session of its own.

    ``limit`` in seconds. Raises Overrun, Stuck or Failed. Processes that the child started are killed with it.
    """
    receive, send = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _child(function, send)
    os.close(send)
    try:
        data = _until_end(receive, time.monotonic() + limit)
    finally:
        os.close(receive)
        late = not _wait(pid, 1.0)
        if late:
            _kill(pid)
    if data is None:
        raise Overrun(f"not done after {limit:g} s")
    if not data:
        raise Failed("it ended without a result")
    value = json.loads(data)
    if "error" in value:
        raise Failed(value["error"])
    return value["result"]


def _child(function: Callable[[], Any], send: int) -> None:
    """Never returns."""
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        try:
            value = {"result": function()}
        except BaseException as error:  # noqa: BLE001 - told to the parent
            value = {"error": f"{type(error).__name__}: {error}"[:600]}
        view = memoryview(json.dumps(value).encode())
        while view:
            view = view[os.write(send, view) :]
    finally:
        os._exit(0)


def _until_end(fd: int, deadline: float) -> bytes | None:
    """All bytes until the other end is closed; None when that takes too long."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        piece = os.read(fd, _PIECE)
        if not piece:
            return b"".join(parts)
        parts.append(piece)


def _wait(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.01)


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)
    if not _wait(pid, _KILL_SECONDS):
        raise Stuck("it hangs in the kernel and cannot be killed")
