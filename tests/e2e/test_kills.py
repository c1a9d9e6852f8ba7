"""SIGKILL of the mount and of the engine at random moments of a copy: what was fsynced is there, the check is clean."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from .live import Live, kill, live, until

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]

WRITER = textwrap.dedent(
    """
    import hashlib, os, random, sys
    top, seed = sys.argv[1], int(sys.argv[2])
    dice = random.Random(seed)
    number = 0
    while True:
        folder = os.path.join(top, f"{seed}-{number % 7}")
        os.makedirs(folder, exist_ok=True)
        data = dice.randbytes(dice.choice([0, 100, 5000, 70_000, 1_200_000]))
        name = os.path.join(folder, f"f{number}")
        fd = os.open(name + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
        os.close(fd)
        os.rename(name + ".tmp", name)
        at = os.open(folder, os.O_RDONLY)
        os.fsync(at)
        os.close(at)
        # Only now it is promised: file, its name, and its folder are on disk.
        at = os.open(top, os.O_RDONLY)
        os.fsync(at)
        os.close(at)

        sys.stdout.write(f"{name}\\t{hashlib.sha256(data).hexdigest()}\\n")
        sys.stdout.flush()
        number += 1
    """
)


def _round(hive: Live, number: int, dice: random.Random, promised: dict[str, str]) -> None:
    top = hive.drive / "kills"
    top.mkdir(exist_ok=True)
    said = hive.root / f"said-{number}"
    victims = [hive.mount_pid(), hive.engine_pid()]
    which = number % 3  # the mount, the engine, both
    with said.open("wb") as output:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(top), str(number)], stdout=output, stderr=subprocess.DEVNULL
        )
    try:
        lines = dice.randint(1, 12)
        until(lambda: said.read_bytes().count(b"\n") >= lines, what="the first files")
        # The kill comes at any moment of what follows: writes, fsync, rename, commit, placing, checkpoint.
        time.sleep(dice.random() * 0.25)
        if which != 1:
            kill(victims[0])
        if which != 0:
            kill(victims[1])
        if which == 1:
            time.sleep(0.2)
    finally:
        kill(writer.pid)
        writer.wait(timeout=100)
    for line in said.read_text().split("\n")[:-1]:
        name, digest = line.split("\t")
        promised[name] = digest
    if which != 1:
        hive.run("mount", str(hive.drive))
    until(lambda: hive.status()["engine"] is not None, what="the engine")


def _verify(promised: dict[str, str]) -> None:
    import hashlib

    for name, digest in promised.items():
        assert hashlib.sha256(Path(name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_at_random_moments_of_a_copy(tmp_path: Path, rounds: int) -> None:
    """Issue item 6."""
    dice = random.Random(rounds)
    promised: dict[str, str] = {}
    with live(tmp_path, settings={"node_gone_after_s": 86_400}) as hive:
        for number in range(rounds):
            _round(hive, number, dice, promised)
            _verify(promised)
            found = hive.run("check", "--json", check=False, timeout=200)
            report = json.loads(found.stdout)
            assert found.returncode == 0, [f for f in report["findings"] if f["problem"]][:5]
        hive.wait(hive.drive, timeout=240)
        _verify(promised)
        assert hive.json("check", "--data", timeout=300)["problems"] == 0
        assert len(promised) >= rounds

        def none_leaked() -> bool:
            """What is deleted meanwhile counts in one of the two and not in the other; what was leaked stays."""
            engine = hive.engine()
            shares = sum(1 for d in hive.node_directories() for _ in d.glob("shares/*/*"))
            return engine["trash"] < 1000 and shares <= engine["stripes"] * 6 + engine["trash"] + 12

        until(none_leaked, what="no shares but those that somebody names")
        assert os.listdir(hive.drive / "kills")
