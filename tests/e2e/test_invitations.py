"""A hive of strangers, with real processes: invited, joined, used as a drive, one of them revoked, the client revoked."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hivefs.testing.ports import free_port

from .live import Live, kill, until

COUNTRIES = ("DE", "FR", "CH", "IS", "NO")


class NodeProcess:
    """A node that runs from ``with`` on; ``address`` waits until it serves."""

    def __init__(self, hive: Live, directory: Path) -> None:
        self._log = directory / "node.log"
        with self._log.open("wb") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "hivefs", "node", "run", str(directory)],
                env=hive.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        kill(self._running.pid)
        self._running.wait(100)

    def address(self) -> str:
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert line.startswith("Serving at "), self._log.read_text()
        return line.split()[2].rstrip(",")


def join(hive: Live, invitation: str, directory: Path, country: str, **how: Any) -> subprocess.CompletedProcess[str]:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    operator = f"operator-{country.lower()}"
    return hive.run(
        *("node", "join", invitation, str(directory), "--listen", listen),
        *("--capacity", "1G", "--country", country, "--operator", operator),
        **how,
    )


@pytest.mark.fuse
@pytest.mark.timeout(900)
def test_from_the_first_invitation_to_the_last_revocation(tmp_path: Path) -> None:
    hive = Live(tmp_path)
    key, nodes = str(tmp_path / "hive.key"), [tmp_path / f"node{i}" for i in range(6)]
    with ExitStack() as stack:
        stack.callback(lambda: hive.run("umount", check=False, timeout=90))
        hive.run("hive", "create", key)
        first = hive.json("invite", "--hive", key, "--role", "node", "--country", "DE")
        join(hive, first["invitation"], nodes[0], "DE")
        address = stack.enter_context(NodeProcess(hive, nodes[0])).address()

        hive.run("invite", "--hive", key, "--node", address, "--role", "node", "--uses", "4", "--out", str(tmp_path / "i"))
        assert (tmp_path / "i").stat().st_mode & 0o777 == 0o600
        for number in range(1, 5):
            by_file = number % 2
            words = str(tmp_path / "i") if by_file else "-"
            join(hive, words, nodes[number], COUNTRIES[number], stdin="" if by_file else (tmp_path / "i").read_text())
            stack.enter_context(NodeProcess(hive, nodes[number]))
        late = join(hive, str(tmp_path / "i"), nodes[5], "SE", check=False)
        assert late.returncode == 36 and "used up" in late.stderr and not (nodes[5] / "node.json").exists()

        client = hive.json("invite", "--hive", key, "--node", address)
        hive.run("join", "-", "--no-password", "--phrase-out", str(hive.phrase), "--code", "2/4",
                 stdin=client["invitation"] + "\n")  # fmt: skip
        stack.callback(hive.stop_engine)
        hive.run("mount", str(hive.drive))
        until(lambda: hive.online() == 5, what="all nodes online")
        data = os.urandom(3 << 20)
        (hive.drive / "file").write_bytes(data)
        hive.wait(hive.drive)

        members: list[dict[str, Any]] = []

        def all_known() -> bool:
            """The node that is asked has heard of all."""
            members[:] = hive.json("hive", "members", "--hive", key, "--node", address)["members"]
            evidence = {(a["value"], a["evidence"]) for m in members for a in m["attributes"] if a["name"] == "country"}
            return evidence == {("DE", "attested"), *((country, "claimed") for country in COUNTRIES[1:])}

        until(all_known, what="all members known")
        assert sorted(m["roles"][0] for m in members) == ["client"] + ["node"] * 5
        assert {m["by"] for m in members} == {"invitation"} and not any(m["revoked"] for m in members)

        victim = next(m for m in members if any(a["value"] == "CH" for a in m["attributes"]))
        said = hive.json("hive", "revoke", victim["id"][:16], "--hive", key, "--node", address)
        # The victim is not told; who is busy for ten seconds hears it from the others.
        assert said["members"] == [victim["id"]] and 1 <= said["told"] <= 4
        assert Path(said["list"]).exists()
        until(lambda: _node(hive, victim["id"])["state"] == "gone", what="the revoked node given up")
        hive.wait(hive.drive)

        def elsewhere() -> bool:
            holders = os.getxattr(hive.drive / "file", "user.hivefs.placement").decode()
            return bool(holders) and victim["id"][:12] not in holders and "CH" not in holders

        until(elsewhere, what="repair")
        hive.drop_caches()
        assert (hive.drive / "file").read_bytes() == data

        hive.run("hive", "revoke", "--invitation", client["id"], "--hive", key, "--node", address)
        until(lambda: hive.online() == 0, what="the revoked client cut off")
        until(lambda: "revoked" in str(_node(hive, members[-1]["id"])["last_problem"]), what="a reason")
        (hive.drive / "local").write_text("the drive itself goes on")
        listed = hive.json("hive", "members", "--hive", key, "--node", address)
        assert listed["revocations"]["sequence"] == 2
        assert sorted(m["roles"][0] for m in listed["members"] if m["revoked"]) == ["client", "node"]
        again = hive.json("invite", "--hive", key, "--node", address)["invitation"]
        hive.run("umount", timeout=90)
        hive.stop_engine()
        hive.run("join", "-", "--again", stdin=again + "\n")
        hive.run("mount", str(hive.drive))
        until(lambda: hive.online() == 4, what="the client let in again")
        assert (hive.drive / "file").read_bytes() == data


def _node(hive: Live, node_id: str) -> dict[str, Any]:
    return next((n for n in hive.engine()["nodes"] if n["id"] == node_id), {"state": "", "last_problem": ""})
