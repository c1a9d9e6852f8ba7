"""The embedded hive with real node processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivefs.daemon.embedded import EmbeddedHive
from hivefs.daemon.launch import start_time, wait_gone
from hivefs.daemon.node_process import RUN_FILE, running_node
from hivefs.errors import BadSetting, Corrupt, HiveMissing, NodeProblem


@pytest.fixture
def hive(tmp_path: Path) -> Iterator[EmbeddedHive]:
    made = EmbeddedHive.create(tmp_path / "hive", 3, 64 << 20)
    yield made
    made.stop()


def pids(hive: EmbeddedHive) -> list[int | None]:
    return [member.pid for member in hive.members()]


def test_start_and_stop_can_be_repeated(hive: EmbeddedHive) -> None:
    assert pids(hive) == [None] * 3
    heard: list[int] = []
    assert len(hive.start(lambda m: heard.append(m.number))) == 3 and heard == [0, 1, 2]
    first = pids(hive)
    assert None not in first and len(set(first)) == 3
    for member in hive.members():
        port = int(member.address.split("/")[4])
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        assert (member.directory / "node.log").stat().st_mode & 0o777 == 0o600
    assert EmbeddedHive.load(hive.path).start() == [] and pids(hive) == first
    assert hive.stop() == 3 and pids(hive) == [None] * 3 and hive.stop() == 0
    assert not list(hive.path.rglob(RUN_FILE)), "a node that ends takes its run.json away"


def test_a_killed_node_comes_back_with_its_name(hive: EmbeddedHive) -> None:
    hive.start()
    victim = hive.members()[1]
    assert victim.pid is not None
    born = start_time(victim.pid)
    os.kill(victim.pid, signal.SIGKILL)
    assert born is not None and wait_gone(victim.pid, born, 30)
    assert pids(hive)[1] is None and (victim.directory / RUN_FILE).exists()
    assert [m.number for m in hive.start()] == [1]
    assert hive.members()[1].address == victim.address and None not in pids(hive)


def test_two_at_once_start_each_node_once(hive: EmbeddedHive) -> None:
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(EmbeddedHive.load(hive.path).start()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(counts) == [0, 3]


def test_a_node_cannot_run_twice(hive: EmbeddedHive) -> None:
    hive.start()
    command = [sys.executable, "-m", "hivefs", "node", "run", str(hive.path / "nodes" / "0")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == NodeProblem.exit_code and "runs already" in done.stderr and None not in pids(hive)


def test_a_port_that_is_taken(hive: EmbeddedHive) -> None:
    port = int(hive.addresses[2].split("/")[4])
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(NodeProblem, match=f"port {port}"):
            hive.start()
        assert [p is None for p in pids(hive)] == [False, False, True], "the others serve all the same"
    assert [m.number for m in hive.start()] == [2]


def test_only_own_processes_are_ended(hive: EmbeddedHive) -> None:
    """A stale run.json whose pid another program has now, or from before a reboot, names nobody."""
    bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        directory = hive.path / "nodes" / "0"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        born = start_time(bystander.pid)
        assert born is not None
        for value in (
            {"pid": bystander.pid, "started": born - 1, "boot": boot},
            {"pid": bystander.pid, "started": born, "boot": "another"},
            {"pid": "x"},
            [],
        ):
            (directory / RUN_FILE).write_text(json.dumps(value))
            assert running_node(directory) is None and hive.stop() == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_making_it(tmp_path: Path) -> None:
    path = tmp_path / "hive"
    with pytest.raises(HiveMissing):
        EmbeddedHive.load(path)
    (path / "nodes" / "0").mkdir(parents=True)
    (path / "nodes" / "0" / "node.json").write_text("left by a run that was killed")
    hive = EmbeddedHive.create(path, 4, 64 << 20)
    assert (hive.needed, hive.total) == (2, 3) and len(set(hive.addresses)) == 4
    assert EmbeddedHive.create(path, 4).addresses == hive.addresses, "an existing one is kept"
    assert hive.key().public == EmbeddedHive.load(path).key().public
    for file in (*path.rglob("*.key"), *path.rglob("*.seed"), *path.rglob("*.json")):
        assert file.stat().st_mode & 0o077 == 0, file
    with pytest.raises(BadSetting):
        EmbeddedHive.create(tmp_path / "two", 2)
    assert not (tmp_path / "two").exists()
    (path / "hive.json").write_text("{}")
    with pytest.raises(Corrupt):
        EmbeddedHive.load(path)
