"""The HiveFS drive as a target: a real ``hivefs up`` hive of its own, driven through the command line like a user does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio

from hivefs.daemon import control
from hivefs.daemon.home import Home
from hivefs.daemon.launch import start_time, stop_process
from hivefs.errors import HivefsError
from hivefs.testing.bench.processes import wait_idle
from hivefs.testing.bench.targets import PACKAGE_ROOT, STOP_SECONDS, CannotStart, Target, unmount, with_package
from hivefs.testing.bench.tools import sync_filesystem

NODES = 8
COMMAND_SECONDS = 200.0
ASK_SECONDS = 10.0


class Drive(Target):
    """Nodes, engine and mount below ``root``; HIVEFS_HOME and HIVEFS_HIVE point there and nowhere else."""

    def __init__(self, name: str, root: Path, checkout: Path = PACKAGE_ROOT) -> None:
        """``checkout`` holds the hivefs that runs."""
        super().__init__(name, root)
        self._checkout = checkout
        self.home = root / "home"
        self.code = (0, 0)
        self.before: tuple[str, ...] = ()
        """Words before every command of ours: how it is started elsewhere (wan/hive.py)."""
        self._seen: dict[int, int] = {}
        self._nodes: list[int] = []

    # ---- up and down ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new hive, a vault without password in it, mounted; returns when all nodes are online."""
        super().start()
        phrase = [] if self.home.exists() else ["--phrase-out", str(self.root / "phrase")]
        self.up("--nodes", str(NODES), "--no-password", *phrase)

    def up(self, *options: str) -> None:
        """``hivefs up``: start and mount what does not run. Raises CannotStart."""
        try:
            said = json.loads(self.hivefs("up", *options, str(self.directory), "--json"))
        except RuntimeError as error:
            raise CannotStart(str(error)) from error
        needed, _, total = said["code"].partition("/")
        self.code = (int(needed), int(total))
        self._nodes = [node["pid"] for node in said["nodes"]]
        self._until_online()

    def _until_online(self) -> None:
        self.device = self.directory.stat().st_dev
        deadline = time.monotonic() + COMMAND_SECONDS
        while self._online() < NODES:
            if time.monotonic() > deadline:
                raise CannotStart(f"{self.name}: only {self._online()} of {NODES} nodes are online")
            time.sleep(0.2)
        for pid in self.pids():
            self._seen[pid] = start_time(pid) or 0

    def umount(self) -> None:
        """``hivefs umount``, and the engine ended too."""
        self.hivefs("umount")
        with contextlib.suppress(HivefsError):
            self._ask("engine", "shutdown")
        deadline = time.monotonic() + STOP_SECONDS
        while self.status("engine") is not None and time.monotonic() < deadline:
            time.sleep(0.1)

    def stop(self) -> None:
        """Unmount, end the engine and the nodes; those that do not end are killed."""
        for words in (["umount"], ["down"]):
            with contextlib.suppress(RuntimeError):
                self.hivefs(*words)
        unmount(self.directory, self.device)
        for pid, started in self._seen.items():
            if started and start_time(pid) == started:
                stop_process(pid, started)

    def hivefs(self, *words: str, timeout: float = COMMAND_SECONDS) -> str:
        """Run the command line; its output. Raises RuntimeError with what it said."""
        environment = {**os.environ, "HIVEFS_HOME": str(self.home), "HIVEFS_HIVE": str(self.root / "hive")}
        try:
            done = subprocess.run(
                [*self.before, sys.executable, "-P", "-m", "hivefs", *words],
                env=with_package(environment, self._checkout),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                cwd=self.root,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"hivefs {words[0]} did not end within {timeout:g} s") from None
        if done.returncode:
            raise RuntimeError(f"hivefs {words[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    # ---- what it says -----------------------------------------------------------------------------------------------

    def status(self, process: str) -> dict[str, Any] | None:
        """What the "mount" or the "engine" says of itself; None when it does not run or answer."""
        try:
            answer = self._ask(process, "status")
        except HivefsError:
            return None
        return answer if isinstance(answer, dict) else None

    def _ask(self, process: str, name: str) -> Any:
        async def ask() -> Any:
            async with control.connect(Home(self.home).run, process) as client:
                return await client.call(name, timeout=ASK_SECONDS)

        return trio.run(ask)

    def _online(self) -> int:
        engine = self.status("engine")
        return sum(node["state"] == "online" for node in engine["nodes"]) if engine else 0

    def processes(self) -> dict[str, list[int]]:
        """Pids by part: mount, engine, nodes."""
        found = {"nodes": self._nodes}
        for part in ("mount", "engine"):
            status = self.status(part)
            found[part] = [int(status["pid"])] if status else []
        return found

    def pids(self) -> list[int]:
        """All of them."""
        return [pid for pids in self.processes().values() for pid in pids]

    # ---- between workloads ------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Let the engine place now instead of waiting for more."""
        with contextlib.suppress(HivefsError):
            self._ask("engine", "hurry")

    def backlog(self) -> int:
        """Bytes that are not placed yet."""
        status = self.status("mount")
        return int(status["dirty_bytes"]) if status else 0

    def settle(self, limit: float) -> None:
        """Everything placed, then all processes idle."""
        sync_filesystem(self.directory)
        end = time.monotonic() + limit
        while self.backlog() and time.monotonic() < end:
            self.hurry()
            time.sleep(0.3)
        wait_idle(self.pids(), max(1.0, end - time.monotonic()))

    def wait(self, path: Path, level: str, timeout: float = COMMAND_SECONDS) -> None:
        """``hivefs wait --level LEVEL PATH``; raises RuntimeError."""
        self.hivefs("wait", "--level", level, "--timeout", f"{timeout:g}", str(path), timeout=timeout + 30)

    def drop_cache(self) -> None:
        """Unmount, delete every cached share, mount again: what is placed can only be read from the nodes then."""
        self.umount()
        for share in (self.home / "cache").glob("*/*"):
            share.unlink(missing_ok=True)
        self.up()
