"""A noisy machine for the processes that tests start, too (``pytest --jitter``): now and then some stop for a moment.

    pytest                                          python stalls.py ROOT MARK SECONDS
      Stalls(0.3): MARK into the environment  --->    waits; SIGSTOP to one, some or all; waits; SIGCONT to each
      still(): "hold"                         --->    continues all, says "held", touches nothing until "go"
      end(), or pytest is gone: end of input  --->    continues all, says how often it stopped a process

It is a process of its own: pytest may wait for one that stands still while it holds the interpreter's lock (a page of a
mapped file of the drive), and may be killed. A process is one of the tests' when it stands below pytest, or stood there, or
was started with the mark in its environment: daemons get other parents. What stands still already, somebody else stopped.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MARK: Final = "HIVEFS_TESTS_MARK"
LOOK_S: Final = 0.25
"""How often it looks for new processes, so that it has seen a daemon before its parent is gone."""
_STOPPED: Final = "TtZXx"


class Stalls:
    """Stops the processes that this one starts from now on, for up to ``longest`` seconds, about a ninth of the time."""

    def __init__(self, longest: float) -> None:
        mark = os.environ[MARK] = os.urandom(8).hex()
        words = [sys.executable, "-IS", __file__, str(os.getpid()), mark, str(longest)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._ask("begin")

    def _ask(self, word: str) -> None:
        print(word, file=self._process.stdin, flush=True)
        self._process.stdout.readline()  # type: ignore[union-attr]  # there is a pipe

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Meanwhile nobody is stopped, for tests that stop processes themselves; somebody is, soon after."""
        self._ask("hold")
        try:
            yield
        finally:
            self._ask("go")

    def end(self) -> int:
        """How many processes it stopped; all of them run again."""
        said, _ = self._process.communicate(timeout=60)
        return int(said)


class Watch:
    """The processes below ``root``, by process id and start time, without this one."""

    def __init__(self, root: int, mark: str) -> None:
        self._root = root
        self._mark = f"{MARK}={mark}".encode()
        self._known: dict[tuple[int, str], bool] = {}

    def look(self) -> list[tuple[int, str]]:
        """Those that live, and are not stopped."""
        states, parents, starts = {}, {}, {}
        for name in os.listdir("/proc"):
            if name.isdigit() and (seen := _stat(int(name))):
                states[int(name)], parents[int(name)], starts[int(name)] = seen
        known = {}
        for pid, start in starts.items():
            if pid in (self._root, os.getpid()):
                continue
            before = self._known.get((pid, start))
            ours = before or (before is None and self._marked(pid)) or self._below(pid, parents)
            known[pid, start] = ours
        self._known = known
        return [(pid, start) for (pid, start), ours in known.items() if ours and states[pid] not in _STOPPED]

    def _below(self, pid: int, parents: dict[int, int]) -> bool:
        seen = 0
        while pid > 1 and seen < 100:
            pid, seen = parents.get(pid, 0), seen + 1
            if pid == self._root:
                return True
        return False

    def _marked(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False


def _stat(pid: int) -> tuple[str, int, str] | None:
    """State, parent and start time; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), fields[19].decode()


def _stop(pid: int, start: str) -> int | None:
    """A handle of the process, which was running and is stopped now; None when it is another one or cannot be stopped."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    seen = _stat(pid)
    try:
        if seen and seen[2] == start and seen[0] not in _STOPPED:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _some(processes: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """One of them, several, or all as on a machine that stands still."""
    return random.sample(processes, random.choice((1, random.randint(1, len(processes)), len(processes))))


def main(root: int, mark: str, longest: float) -> None:
    """Stop and continue until standard input ends; what it hears and says there is at the head of this file."""
    watch, count, held, following = Watch(root, mark), 0, False, 0.0

    def heard(seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], max(0.0, seconds))[0])

    while True:
        found = [] if held else watch.look()
        if heard(LOOK_S if held else min(LOOK_S, following - time.monotonic())):
            word = os.read(0, 100)
            if not word:
                break
            held, following = word == b"hold\n", 0.0
            os.write(1, b"yes\n")
        elif found and not held and time.monotonic() >= following:
            handles: list[int] = []
            try:
                handles += [handle for one in _some(found) if (handle := _stop(*one)) is not None]
                count += len(handles)
                heard(random.uniform(0, longest))
            finally:
                for handle in handles:
                    with contextlib.suppress(OSError):
                        signal.pidfd_send_signal(handle, signal.SIGCONT)
                    os.close(handle)
            following = time.monotonic() + random.expovariate(1 / (4 * longest))
    with contextlib.suppress(BrokenPipeError):
        os.write(1, b"%d\n" % count)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
