"""A node at home, in a network namespace of its own where it listens on loopback only, is part of a drive by a relay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hivefs.testing.bench.wan import link
from hivefs.testing.bench.wan.emulator import NEAR

from .live import Live, kill, until

pytestmark = [pytest.mark.slow, pytest.mark.fuse]
SHAPE = link.Shape(0.02, 0.0, 200e6)
COUNTRIES = ("DE", "FR", "CH", "IS")


class Apart(Live):
    """A Live whose commands run on one side of a link."""

    def __init__(self, root: Path, side: Sequence[str]) -> None:
        super().__init__(root)
        self.side = side

    def run(
        self, *words: str, timeout: float = 120, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return self.run_at(self.side, *words, timeout=timeout, check=check, stdin=stdin)

    def run_at(
        self, side: Sequence[str], *words: str, timeout: float = 120, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*side, sys.executable, "-m", "hivefs", *words],
            env=self.environment, input=stdin, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert not (check and done.returncode), f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        assert "Traceback" not in done.stderr, done.stderr
        return done


class Running:
    """A hivefs command that serves: its first line is there when it does."""

    def __init__(self, hive: Apart, side: Sequence[str], log: Path, *words: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*side, sys.executable, "-m", "hivefs", *words],
                env=hive.environment, stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said, log.read_text()

    def end(self) -> None:
        """nsenter has become the command: it is one process."""
        kill(self.process.pid)
        self.process.wait(100)


def nodes_of(hive: Live) -> dict[str, Any]:
    engine = hive.status()["engine"]
    return {node["attributes"]["country"]: node for node in engine["nodes"]} if engine else {}


def test_a_drive_over_a_relay(tmp_path: Path) -> None:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(link.opened(SHAPE))
        except link.NoLink as problem:
            pytest.skip(str(problem))
        hive = Apart(tmp_path, made.near)
        key, invitation = str(tmp_path / "hive.key"), str(tmp_path / "i")
        directories = [tmp_path / f"node{country}" for country in COUNTRIES]
        running: dict[str, Running] = {}

        def start(name: str, side: Sequence[str], *words: str) -> Running:
            running[name] = Running(hive, side, tmp_path / f"{name}.log", *words)
            return running[name]

        stack.callback(lambda: [one.end() for one in running.values()])
        stack.callback(lambda: hive.run("umount", check=False, timeout=90))
        hive.run("hive", "create", key)
        first = hive.json("invite", "--hive", key, "--role", "node")["invitation"]
        address = ""
        for number, country in enumerate(COUNTRIES):
            home = country == COUNTRIES[-1]
            side = made.far if home else made.near
            listen = f"/ip4/{'127.0.0.1' if home else NEAR}/tcp/{4001 + number}"
            hive.run_at(
                side, "node", "join", invitation if number else first, str(directories[number]), "--listen", listen,
                "--capacity", "1G", "--country", country, "--operator", f"operator-{country}",
            )  # fmt: skip
            said = start(country, side, "node", "run", str(directories[number])).said
            if not number:
                address = said.split()[2].rstrip(",")
                hive.run("invite", "--hive", key, "--node", address, "--role", "node", "--uses", "4", "--out", invitation)
        relaying = ("relay", "serve", "--listen", f"/ip4/{NEAR}/tcp/4100", "--node", str(directories[0]))
        relay = start("relay", made.near, *relaying).said.split()[2].rstrip(",")
        start("accept", made.far, "relay", "accept", "--node", str(directories[-1]), "--relay", relay)

        client = hive.json("invite", "--hive", key, "--node", address)["invitation"]
        words = ("--no-password", "--phrase-out", str(hive.phrase), "--code", "2/4")
        hive.run("join", "-", *words, stdin=client + "\n")
        stack.callback(hive.stop_engine)
        hive.run("mount", str(hive.drive))
        until(lambda: hive.online() == 3, what="all nodes online but the one at home")
        assert hive.json("relay", "dial") == {"relays": True, "running": True}
        until(lambda: hive.online() == 4, what="the node at home online")
        assert {country: node["relayed"] for country, node in nodes_of(hive).items()} == {
            **dict.fromkeys(COUNTRIES[:-1], False), COUNTRIES[-1]: True,
        }  # fmt: skip
        assert not nodes_of(hive)[COUNTRIES[-1]]["addresses"], "others have nothing of an address on its own machine"
        assert "online, by relay" in hive.run("nodes").stdout and "online, by relay" in hive.run("status").stdout
        data = os.urandom(16 << 20)
        (hive.drive / "file").write_bytes(data)
        hive.wait(hive.drive)
        holders = os.getxattr(hive.drive / "file", "user.hivefs.placement").decode()
        assert COUNTRIES[-1] in holders

        def relayed(there: bool) -> bool:
            node = nodes_of(hive).get(COUNTRIES[-1], {})
            return node.get("relayed") is there and (node["state"] == "online") is there

        running["relay"].end()
        until(lambda: relayed(False), what="the node behind the relay away")
        start("relay", made.near, *relaying)
        until(lambda: relayed(True), what="the node behind the relay back")
        log = running["accept"].log.read_text()
        assert log.count("no reservation at the relay at") == 1 and "; it is tried again" in log, log
        assert log.count("is reached through") == 2, log

        assert "The running engine has taken it." in hive.run("relay", "dial", "--off").stdout
        until(lambda: relayed(False), what="the node behind the relay away")
        hive.run("umount", timeout=90)
        hive.stop_engine()
        assert "No engine runs" in hive.run("relay", "dial").stdout
        hive.run("mount", str(hive.drive))
        until(lambda: relayed(True), what="the node behind the relay back")

        for country in COUNTRIES[1:-1]:  # two shares of each stripe are needed, and two of four nodes are left
            running[country].end()
        hive.drop_caches()
        assert (hive.drive / "file").read_bytes() == data
