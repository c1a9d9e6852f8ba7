"""A fake disk in use: mounts it, takes its record, lets it fail."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hivefs.testing.fake_disk.events import Event, Kind, events_from_bytes

_WAIT_SECONDS = 20.0


class Recorder:
    """A fake disk at ``mountpoint`` (an empty directory), until ``close``.

    ``events`` is what was recorded and taken since ``forget``; ``mark`` takes the rest and says how many there are: what a
    call did that has returned is among them.
    """

    def __init__(self, mountpoint: Path) -> None:
        self.path = mountpoint
        self.events: list[Event] = []
        ours, theirs = socket.socketpair()
        ours.settimeout(_WAIT_SECONDS)
        with theirs:
            command = [sys.executable, "-m", "hivefs.testing.fake_disk.server", str(mountpoint), str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._socket = ours
        self._buffer = b""
        self.changes = 0
        """How many changes could have failed since the last ``fail``."""
        self.failures = 0
        """How many did."""
        if self._line() != b"mounted":
            self.close()
            raise RuntimeError("the fake disk could not be mounted")

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if not (more := self._socket.recv(1 << 16)):
                return b""
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ask(self, **request: Any) -> None:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._line())
        parts, left = [self._buffer], answer["bytes"] - len(self._buffer)
        while left > 0:
            if not (more := self._socket.recv(min(left, 1 << 20))):
                raise RuntimeError("the fake disk ended")
            parts.append(more)
            left -= len(more)
        self._buffer = b""
        self.changes, self.failures = answer["changes"], answer["failures"]
        self.events += events_from_bytes(b"".join(parts))

    def mark(self) -> int:
        """How many events there are by now."""
        self._ask()
        return len(self.events)

    def forget(self) -> None:
        """Begin a new record."""
        self._ask()
        self.events = []

    def fail(
        self,
        code: int,
        after: int = 0,
        *,
        lasting: bool = True,
        only: Collection[Kind] | None = None,
        free: int | None = None,
        dead: bool = False,
    ) -> None:
        """From the ``after``-th change from now on (the first is 0), that one, or with ``lasting`` every one, fails with
        errno ``code``; with ``only``, just changes of these kinds count and fail. ``free`` is what statvfs(2) says. With
        ``dead`` the process that asks counts as killed: a sync that fails was never asked for.
        """
        kinds = None if only is None else [int(kind) for kind in only]
        self._ask(fail=code, after=after, lasting=lasting, only=kinds, free=free, dead=dead)

    def heal(self) -> None:
        """Nothing fails any more; counting begins anew."""
        self.fail(0)

    def close(self) -> None:
        """Unmount, whoever uses it still: the server does it at the end of the socket."""
        self._socket.close()
        try:
            self._process.wait(_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
