"""A node leaves a real hive: its shares move while it serves, and nothing is missed when it is switched off."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .live import Live, diff, kill, live, until
from .trees import photos

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def shares(directory: Path) -> int:
    return sum(1 for _ in directory.glob("shares/*/*"))


def leaving(hive: Live, number: int) -> bool:
    node = next(n for n in hive.engine()["nodes"] if n["id"] == node_id(hive, number))
    return bool(node["leaving_s"])


def node_id(hive: Live, number: int) -> str:
    from hivefs.crypto.keys import public_key

    return public_key((hive.node_directories()[number] / "node.seed").read_bytes()).hex()


def test_a_node_leaves_and_is_switched_off(tmp_path: Path) -> None:
    tree = photos(tmp_path / "photos", 12)
    with live(tmp_path, settings={"node_gone_after_s": 86_400}) as hive:
        subprocess.run(["cp", "-a", str(tree), str(hive.drive)], check=True, timeout=120)
        hive.wait(hive.drive)
        # One that holds something; it is switched off in the end.
        number = max(range(8), key=lambda n: shares(hive.node_directories()[n]))
        directory = hive.node_directories()[number]
        assert shares(directory)
        words = [sys.executable, "-m", "hivefs", "node", "leave", str(directory), "--wait", "--json"]
        with subprocess.Popen(
            words, env=hive.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                until(lambda: leaving(hive, number), what="the engine hearing of it")
                # New data goes elsewhere, old data is read meanwhile.
                (hive.drive / "new").write_bytes(b"new" * 100_000)
                diff(tree, hive.drive / "photos")
                said, err = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode == 0, err
        report = json.loads(said)["leaving"]
        assert report["done"] and report["leases"] == 0 and report["leases_at_start"] > 0
        assert "leases are left" in err
        hive.wait(hive.drive)
        assert shares(directory) == 0
        kill(hive.node_pid(number), signal.SIGTERM)
        status = hive.json("node", "status", str(directory))
        assert not status["running"] and status["leaving"]["done"] and status["shares"] == 0
        traffic = status["days"][0]["vault"]
        assert traffic["requests"]["delete"] and traffic["out"] > 0
        hive.drop_caches()
        diff(tree, hive.drive / "photos")
        hive.becomes(hive.drive / "new", "guaranteed")
        assert hive.json("check", "--data", timeout=300)["problems"] == 0


def test_a_node_that_leaves_goes_on_after_a_kill_and_can_stay_after_all(tmp_path: Path) -> None:
    with live(tmp_path, nodes=6, settings={"node_gone_after_s": 86_400}) as hive:
        (hive.drive / "file").write_bytes(b"x" * 2_000_000)
        hive.wait(hive.drive)
        number = max(range(6), key=lambda n: shares(hive.node_directories()[n]))
        directory = hive.node_directories()[number]
        hive.json("node", "leave", str(directory))
        hive.kill_node(number)
        assert hive.json("node", "status", str(directory))["leaving"] is not None
        stopped = hive.run("node", "leave", str(directory), "--wait", check=False)
        assert stopped.returncode == 39 and "does not run" in stopped.stderr
        hive.run("up", timeout=200)
        until(lambda: leaving(hive, number), what="the engine hearing of it after a restart")
        assert hive.json("node", "leave", str(directory), "--cancel") == {"leaving": None, "running": True}
        until(lambda: not leaving(hive, number), what="the engine hearing that it stays")
        assert hive.json("node", "status", str(directory))["free"] > 0
