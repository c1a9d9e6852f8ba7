"""A whole HiveFS with a link in the middle: node processes in the far namespace, engine and mount in the near one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from hivefs.daemon.launch import start_time, stop_process
from hivefs.daemon.node_process import running_node
from hivefs.testing.bench.drive import NODES, Drive
from hivefs.testing.bench.processes import end
from hivefs.testing.bench.targets import STOP_SECONDS, CannotStart, Target, unmount, with_package
from hivefs.testing.bench.wan.emulator import FAR
from hivefs.testing.bench.wan.link import Link

COUNTRIES: Final = ("DE", "FR", "CH", "IS")
CODE: Final = (4, 6)
FIRST_PORT: Final = 4001
NODE_SECONDS: Final = 60.0


class FarHive(Drive):
    """The nodes are started by ``hivefs node run`` each, as their operators would do it."""

    def __init__(self, name: str, root: Path, link: Link) -> None:
        super().__init__(name, root)
        self.link = link
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """A new hive of eight nodes and a vault in it, mounted; returns when all nodes are online. Raises CannotStart."""
        Target.start(self)
        self.code = CODE
        key = self.root / "hive.key"
        try:
            self.hivefs("hive", "create", str(key))
            addresses = [self._node(number, key) for number in range(NODES)]
            self.before = self.link.near
            needed, total = CODE
            words = ["init", "--no-password", "--hive", str(key), "--node", addresses[0], "--code", f"{needed}/{total}"]
            self.hivefs(*words, "--phrase-out", str(self.root / "phrase"))
        except RuntimeError as error:
            raise CannotStart(str(error)) from error
        self.up()

    def _node(self, number: int, key: Path) -> str:
        """Make and start a node; its address. All of them are ended by ``stop``."""
        directory = self.root / "nodes" / str(number)
        directory.parent.mkdir(exist_ok=True)
        address = f"/ip4/{FAR}/tcp/{FIRST_PORT + number}"
        country = COUNTRIES[number % len(COUNTRIES)]
        first = running = None
        if number:
            first = (self.root / "first").read_text()
        words = ["--hive", str(key), "--listen", address, "--country", country, "--operator", f"operator-{number}"]
        made = self.hivefs("node", "init", str(directory), *words, *(["--bootstrap", first] if first else []))
        full = made.split()[1]
        if not number:
            (self.root / "first").write_text(full)
        with (directory / "node.log").open("wb") as log:
            process = subprocess.Popen(
                [*self.link.far, sys.executable, "-P", "-m", "hivefs", "node", "run", str(directory)],
                env=with_package(dict(os.environ)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        deadline = time.monotonic() + NODE_SECONDS
        while running is None:
            running = running_node(directory)
            if process.poll() is not None or time.monotonic() > deadline:
                raise CannotStart(f"node {number} does not start; see {directory / 'node.log'}")
            time.sleep(0.05)
        self._nodes.append(process.pid)
        return full

    def up(self, *options: str) -> None:
        """Mount, and wait for the nodes. Raises CannotStart."""
        try:
            self.hivefs("mount", str(self.directory))
        except RuntimeError as error:
            raise CannotStart(str(error)) from error
        self._until_online()

    def stop(self) -> None:
        """Unmount, end engine and nodes."""
        with contextlib.suppress(RuntimeError):
            self.umount()
        unmount(self.directory, self.device)
        for pid, started in self._seen.items():
            if pid not in self._nodes and started and start_time(pid) == started:
                stop_process(pid, started)
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            end(process, STOP_SECONDS / 6)
        self._processes.clear()
