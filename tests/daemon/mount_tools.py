"""A vault and its real mount process for tests. Everything is bounded, and what was started is ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from hivefs.daemon import control, launch
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.errors import HivefsError, MountFailed

LIMIT = 120.0


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Output of a program that must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


class Mounted:
    """One vault with its mount process; ``path`` is where the drive is."""

    def __init__(self, root: Path) -> None:
        self.secrets = Secrets(os.urandom(32), os.urandom(32))
        self.home = Home.create(root / "home", self.secrets, Lock("none"), os.urandom(32), (), 2, 3)
        self.path = root / "drive"
        self.path.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def mount(self, where: Path | None = None, **options: Any) -> launch.Started:
        """Start the mount process (without an engine) and wait until the drive is there."""
        frame: Mapping[str, Any] = {
            "home": str(self.home.path),
            "mountpoint": str(where or self.path),
            "secrets": self.secrets.to_bytes(),
            "engine": False,
            **options,
        }

        def failure(reason: str) -> HivefsError:
            return MountFailed(reason=reason, log=self.home.mount_log)

        started = launch.start("hivefs.daemon.mount", frame, self.home.mount_log, failure, timeout=LIMIT)
        if where is None:
            self.process = started.process
        return started

    def call(self, name: str, value: Any = None) -> Any:
        """One control call to the mount process."""

        async def main() -> Any:
            async with control.connect(self.home.run, "mount") as client:
                return await client.call(name, value, timeout=LIMIT)

        return trio.run(main)

    def unmount(self) -> None:
        """As the command line does; the process must end with 0."""
        self.call("unmount")
        assert self.process is not None
        assert self.process.wait(LIMIT) == 0
        self.process = None

    def end(self, sign: signal.Signals) -> int:
        """Send a signal and wait; the exit status."""
        assert self.process is not None
        self.process.send_signal(sign)
        status = self.process.wait(LIMIT)
        self.process = None
        return status

    def log(self) -> str:
        """What the mount process has logged."""
        return self.home.mount_log.read_text()

    def clean(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT)
        if os.path.ismount(self.path) or _dead(self.path):
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], timeout=LIMIT, check=False)


def _dead(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def mounted(root: Path, **options: Any) -> Iterator[Mounted]:
    """A fresh vault, mounted; taken away at the end."""
    drive = Mounted(root)
    try:
        drive.mount(**options)
        yield drive
    finally:
        drive.clean()


@contextlib.contextmanager
def open_to_others() -> Iterator[Path]:
    """A directory that every user can reach. Not below pytest's own: each pytest that starts closes that one to others."""
    with tempfile.TemporaryDirectory(prefix="hivefs-trial-") as name:
        top = Path(name)
        top.chmod(0o755)
        for directory in top.parents:
            if directory not in (Path("/"), Path("/tmp")):
                directory.chmod(directory.stat().st_mode | 0o111)
        yield top


def tree(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that copying must keep of everything below ``top``: kind, mode, owner, times, link counts, contents."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory) / name
            status = path.lstat()
            content: Any = None
            if path.is_symlink():
                content = os.readlink(path)
            elif path.is_file():
                content = path.read_bytes()
            owner = (status.st_uid, status.st_gid)
            found[str(path.relative_to(top))] = (status.st_mode, owner, status.st_mtime_ns, content)
    return found
