"""What is measured: something that is started, mounted, left in peace between workloads, and stopped whatever happened."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hivefs.testing.bench.processes import descendants, end, wait_idle
from hivefs.testing.bench.tools import sync_filesystem

START_SECONDS = 60.0
STOP_SECONDS = 60.0
PACKAGE_ROOT = Path(__file__).resolve().parents[3]


class CannotStart(Exception):
    """The target did not come up; the message says why."""


class Target:
    """A directory to work in. ``root`` is the target's own place on the disk, ``directory`` where workloads work."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.directory = root / "drive"
        self.device: int | None = None

    def start(self) -> None:
        """Bring it up. Raises CannotStart."""
        self.directory.mkdir(parents=True)

    def fresh(self) -> None:
        """Called before each workload; the directory is empty then."""

    def settle(self, limit: float) -> None:
        """Wait until nothing goes on in the background any more, at most ``limit`` seconds."""
        wait_idle(self.pids(), limit)

    def pids(self) -> list[int]:
        """Its processes."""
        return []

    def stop(self) -> None:
        """Take it down. Raises nothing, and ends in bounded time."""


class Mounted(Target):
    """A target that one program in the foreground mounts at ``directory``."""

    process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """The program and its arguments; it must stay in the foreground."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Once, before the first mount."""

    def environment(self) -> dict[str, str]:
        """Its environment."""
        return dict(os.environ)

    def start(self) -> None:
        """Prepare and mount."""
        super().start()
        self.prepare()
        self.mount()

    def mount(self) -> None:
        """Start the program and wait until its file system is there. Raises CannotStart."""
        log = self.root / "log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.root,
                env=self.environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not os.path.ismount(self.directory):
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip()[-300:]
                raise CannotStart(f"{self.name} does not mount: {said or 'it said nothing'}")
            time.sleep(0.05)
        self.device = self.directory.stat().st_dev

    def pids(self) -> list[int]:
        """The program and what it started."""
        return [] if self.process is None else descendants(self.process.pid)

    def settle(self, limit: float) -> None:
        """Everything written out, then idle."""
        sync_filesystem(self.directory)
        super().settle(limit)

    def stop(self) -> None:
        """Unmount and end the program."""
        unmount(self.directory, self.device)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            end(self.process)
            self.process = None


class Ceiling(Mounted):
    """An in-memory pyfuse3 file system; a new one for each workload, because it forgets nothing."""

    def __init__(self, name: str, root: Path, *options: str) -> None:
        super().__init__(name, root)
        self._options = options

    def command(self) -> Sequence[str]:
        """testing/memory_drive.py"""
        return [sys.executable, "-P", "-m", "hivefs.testing.memory_drive", *self._options, str(self.directory)]

    def environment(self) -> dict[str, str]:
        """Of this checkout."""
        return with_package(super().environment())

    def fresh(self) -> None:
        """Another one."""
        self.stop()
        self.mount()

    def settle(self, limit: float) -> None:
        """It does nothing in the background."""
        sync_filesystem(self.directory)


class Disk(Target):
    """A plain directory on the same disk."""

    def settle(self, limit: float) -> None:
        """Written out."""
        sync_filesystem(self.directory)


def with_package(environment: dict[str, str], checkout: Path = PACKAGE_ROOT) -> dict[str, str]:
    """The environment in which ``python -P -m hivefs`` is that checkout's (this one)."""
    paths = [str(checkout), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def unmount(directory: Path, device: int | None) -> None:
    """Unmount by every means in turn, each bounded: politely, then lazily with the connection to its program cut."""
    for words in (["fusermount3", "-u"], ["umount"]):
        for _ in range(3):
            if not _is_mounted(directory):
                return
            if _run([*words, "--", str(directory)], STOP_SECONDS):
                break
            time.sleep(0.5)
    if not _is_mounted(directory):
        return
    if device is not None:
        with contextlib.suppress(OSError):
            Path(f"/sys/fs/fuse/connections/{os.minor(device)}/abort").write_text("1")
    for words in (["fusermount3", "-u", "-z"], ["umount", "-l"]):
        if _is_mounted(directory):
            _run([*words, "--", str(directory)], STOP_SECONDS)


def _is_mounted(directory: Path) -> bool:
    """From the kernel's table: asking a file system that hangs would hang."""
    wanted = str(directory.absolute()).encode()
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return any(line.split()[4] == wanted for line in lines)


def _run(words: list[str], seconds: float) -> bool:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
