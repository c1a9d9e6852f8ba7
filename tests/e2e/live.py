"""A whole HiveFS on this machine for a test: real node processes, engine and mount, driven by the hivefs command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hivefs.cli.status import gather
from hivefs.daemon.home import Home
from hivefs.daemon.node_process import running_node


class Live:
    """HIVEFS_HOME, HIVEFS_HIVE and a mount point below one directory; or with the nodes of another hive."""

    def __init__(self, root: Path, home: str = "home", hive: Path | None = None) -> None:
        self.root = root
        self.home = root / home
        self.hive = hive or root / "hive"
        self.drive = root / "drive"
        self.phrase = root / "phrase"
        self.drive.mkdir(exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "HIVEFS_HOME": str(self.home), "HIVEFS_HIVE": str(self.hive)}

    def run(
        self, *words: str, timeout: float = 120, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The hivefs command; fails the test with all that it said unless it exits with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "hivefs", *words],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"hivefs {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
            )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *words: str, timeout: float = 120) -> Any:
        return json.loads(self.run(*words, "--json", timeout=timeout).stdout)

    def status(self) -> dict[str, Any]:
        """What 'hivefs status' shows, without a process for it: it is asked again and again while the nodes need the
        processors. A process that does not answer in time is None there, as one that does not run.
        """
        return gather(Home.load(self.home))

    def logs(self) -> str:
        texts = []
        for log in (self.home / "run").glob("*.log"):
            texts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    # ---- parts ------------------------------------------------------------------------------------------------------

    def node_directories(self) -> list[Path]:
        return sorted((self.hive / "nodes").iterdir(), key=lambda p: int(p.name))

    def node_pid(self, number: int) -> int:
        process = running_node(self.node_directories()[number])
        assert process is not None, f"node {number} does not run"
        return process.pid

    def kill_node(self, number: int) -> None:
        kill(self.node_pid(number))

    def kill_all_nodes(self) -> None:
        for directory in self.node_directories():
            process = running_node(directory)
            if process is not None:
                kill(process.pid)

    def engine(self) -> dict[str, Any]:
        """What the engine says; waits for one that answers."""
        said: dict[str, Any] = {}

        def answers() -> bool:
            said.update(self.status()["engine"] or {})
            return bool(said)

        until(answers, what="an answer of the engine")
        return said

    def mount_pid(self) -> int:
        said: dict[str, Any] = {}

        def answers() -> bool:
            said.update(self.status()["mount"] or {})
            return bool(said)

        until(answers, what="an answer of the mount")
        return int(said["pid"])

    def engine_pid(self) -> int:
        return int(self.engine()["pid"])

    def online(self) -> int:
        """Nodes that the engine speaks with, by what it says: no answer does not mean none."""
        return sum(1 for node in self.engine()["nodes"] if node["state"] == "online")

    def wait(self, *paths: Path, level: str = "guaranteed", timeout: float = 120) -> None:
        self.run("wait", "--level", level, "--timeout", str(timeout), *map(str, paths), timeout=timeout + 30)

    def level(self, path: Path) -> str:
        return os.getxattr(path, "user.hivefs.durability").decode()

    def becomes(self, path: Path, level: str) -> None:
        """Wait for a level. Not at once: on a busy machine few nodes may have taken the newest head at first, and what a
        checkpoint holds is as safe as its head.
        """
        until(lambda: self.level(path) == level, what=f"{path.name} {level}")

    def drop_caches(self) -> None:
        """Every placed byte must come from the nodes again: our cache and the kernel's."""
        for file in (self.home / "cache").glob("*/*"):
            file.unlink(missing_ok=True)
        drop_kernel_cache()

    def umount(self) -> None:
        self.run("umount", timeout=90)

    def stop_engine(self) -> None:
        """End the engine, whatever it is doing, and wait for it: one that does not answer, too."""
        home = f"HIVEFS_HOME={self.home}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    ours = home in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue  # it ended meanwhile, or is somebody else's
                if ours and b"hivefs.daemon.engine" in words:
                    kill(int(name))


def drop_kernel_cache() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        return  # not root: what follows reads through the kernel's cache


def kill(pid: int, sign: int = signal.SIGKILL) -> None:
    """Kill one process and wait until it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, sign)
        import select

        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(60_000), f"process {pid} does not end"
    except ProcessLookupError:
        return
    finally:
        os.close(handle)


def until(condition: Callable[[], object], seconds: float = 120.0, what: str = "it") -> None:
    """Wait for a condition; fails the test after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.2)


def diff(first: Path, second: Path) -> None:
    """``diff -r`` says identical, links not followed."""
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", str(first), str(second)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[:2000] + done.stderr[:2000]


def attributes(top: Path) -> dict[str, tuple[Any, ...]]:
    """Mode, times to the nanosecond, links, owners, targets and xattrs of everything below a directory."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(top):
        for name in [".", *names, *files]:
            path = os.path.join(directory, name)
            s = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else ""
            attrs = tuple(
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in sorted(os.listxattr(path, follow_symlinks=False))
                if not key.startswith("security.")
            )
            size = s.st_size if not os.path.isdir(path) else 0
            links = s.st_nlink if not os.path.isdir(path) else 0
            found[os.path.relpath(path, top)] = (
                s.st_mode, s.st_mtime_ns, links, size, s.st_uid, s.st_gid, target, attrs,
            )  # fmt: skip
    return found


@contextmanager
def live(
    root: Path,
    *,
    nodes: int = 8,
    capacity: str = "4G",
    settings: dict[str, int] | None = None,
    mount: bool = True,
    shared: Path | None = None,
) -> Iterator[Live]:
    """A hive, a vault without password, mounted; everything is stopped at the end, whatever happened. In a ``shared`` hive
    of so many nodes those that were killed run again, and go on running.
    """
    made = Live(root, hive=shared)
    try:
        made.run("up", "--nodes", str(nodes), "--capacity", capacity, timeout=200)
        pairs = [word for name, value in (settings or {}).items() for word in ("--set", f"{name}={value}")]
        made.run("init", "--no-password", "--phrase-out", str(made.phrase), *pairs)
        if mount:
            made.run("mount", str(made.drive))
            until(lambda: made.online() == nodes, what="all nodes online")
        yield made
    finally:
        made.run("umount", check=False, timeout=90)
        made.stop_engine()
        if shared is None:
            made.run("down", check=False, timeout=120)
        subprocess.run(["fusermount3", "-u", "-z", str(made.drive)], capture_output=True, timeout=60, check=False)
