"""A week in minutes, with real processes: a jurisdiction is killed and returns, a node's shares rot, a disk shrinks, one
is filled to its last byte by somebody else, an operator is sold. Every file is readable at every step, all is guaranteed
again after each, and nobody does anything for it but what befalls (and 'hivefs up', which is how killed nodes come back).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hivefs.crypto.keys import public_key
from hivefs.testing.small_disk import fill, small_disk

from .live import Live, diff, live, until
from .trees import photos

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(900)]

NODES = 12
COUNTRIES = 4
PATIENCE = 240.0


class Week:
    """A mounted hive with a tree in it that is compared at every step."""

    def __init__(self, hive: Live, tree: Path) -> None:
        self.hive = hive
        self.tree = tree

    def readable(self, step: str) -> None:
        """Every byte of every file, from the nodes."""
        self.hive.drop_caches()
        try:
            diff(self.tree, self.hive.drive / "photos")
        except AssertionError as error:
            raise AssertionError(f"{step}: {error}\n{self.hive.logs()}") from None

    def guaranteed(self) -> None:
        self.hive.wait(self.hive.drive, timeout=PATIENCE)

    def kill_a_jurisdiction(self) -> None:
        for number in range(0, NODES, COUNTRIES):
            self.hive.kill_node(number)
        until(lambda: self.hive.online() == NODES - NODES // COUNTRIES, PATIENCE, "the engine noticing")
        self.readable("a jurisdiction is away")

    def return_it(self) -> None:
        self.hive.run("up", timeout=200)
        until(lambda: self.hive.online() == NODES, PATIENCE, "all nodes online")
        self.guaranteed()
        self.readable("it is back")

    def corrupt_a_node(self) -> None:
        """A byte of every share of the node that has most is altered on its disk, while it runs."""
        number = max(range(NODES), key=lambda n: len(shares(self.hive, n)))
        altered = {path: flip(path) for path in shares(self.hive, number)}
        assert altered
        self.readable("a node's shares rot")

        def mended() -> bool:
            return not any(path.exists() and path.read_bytes() == data for path, data in altered.items())

        until(mended, PATIENCE, "every rotten share leaving its node")
        self._heard(number)
        self.guaranteed()
        self.readable("its shares were made again")

    def _heard(self, number: int) -> None:
        """What the node found on its own disk before anybody asked for it, the engine learns by accounting with it."""
        now, directory = time.time_ns(), self.hive.node_directories()[number]
        if self.hive.json("node", "status", str(directory))["dropped"]:
            name = public_key((directory / "node.seed").read_bytes()).hex()

            def accounted() -> bool:
                return any(row["id"] == name and row["looked_ns"] > now for row in self.hive.json("ledger")["nodes"])

            until(accounted, PATIENCE, "the engine accounting with a node whose disk lost shares")

    def fill_a_disk(self, room: Path) -> None:
        """A node's directory is moved to a small disk of its own, which somebody else fills to the last byte: the node says
        that it has no room, keeps what it has, is killed and starts again there. Then the disk is free again.
        """
        number = max(range(NODES), key=lambda n: len(shares(self.hive, n)))
        directory = self.hive.node_directories()[number]
        with moved_to_small_disk(self.hive, number, room):
            filler = directory / "somebody else's"
            fill(filler)
            try:
                until(lambda: self._free(number) == 0, PATIENCE, "the engine hearing that a disk is full")
                before = len(shares(self.hive, number))
                self._late("full")
                self.guaranteed()
                self.readable("a disk is full")
                self.hive.kill_node(number)
                self.hive.run("up", timeout=200)
                until(lambda: self.hive.online() == NODES, PATIENCE, "the node starting again on its full disk")
                self.guaranteed()
                self.readable("a node started on a full disk")
                assert len(shares(self.hive, number)) <= before
            finally:
                filler.unlink()
            until(lambda: self._free(number) > 0, PATIENCE, "the engine hearing that there is room again")
            self._late("room again")
            self.guaranteed()
            self.readable("a disk has room again")
        self.guaranteed()
        self.readable("a node is where it was")

    def _free(self, number: int) -> int:
        name = public_key((self.hive.node_directories()[number] / "node.seed").read_bytes()).hex()
        return next(int(node["free"]) for node in self.hive.engine()["nodes"] if node["id"] == name)

    def _late(self, name: str) -> None:
        """Six more files."""
        for item in range(6):
            data = random.Random(f"{name} {item}").randbytes(1_500_000)
            (self.tree / f"{name} {item}").write_bytes(data)
            (self.hive.drive / "photos" / f"{name} {item}").write_bytes(data)

    def shrink_a_disk(self) -> None:
        """A node gives as little as a node can from now on; what is written then goes mostly elsewhere."""
        number = min(range(NODES), key=lambda n: len(shares(self.hive, n)))
        self.hive.run("node", "set", str(self.hive.node_directories()[number]), "--capacity", "64M")
        self._late("late")
        self.guaranteed()
        self.readable("a disk shrank")
        assert self.hive.json("node", "status", str(self.hive.node_directories()[number]))["used"] <= 64_000_000

    def sell_an_operator(self) -> None:
        """The nodes of one operator get a parent company in another country."""
        for number in (1, 1 + 2 * COUNTRIES):  # the two nodes of one operator (daemon/embedded.py labels)
            seed = (self.hive.node_directories()[number] / "node.seed").read_bytes()
            words = ["hive", "relabel", public_key(seed).hex(), "--parent", "Buyer", "--parent-country", "US"]
            self.hive.run(*words)
        until(lambda: self._sold() == 2, PATIENCE, "the engine hearing of the new parent")
        self.guaranteed()
        self.readable("an operator was sold")

    def _sold(self) -> int:
        nodes = self.hive.engine()["nodes"]
        return sum(1 for node in nodes if node["attributes"].get("parent_country") == "US")


def shares(hive: Live, number: int) -> list[Path]:
    return [path for path in hive.node_directories()[number].glob("shares/*/*") if path.is_file()]


def flip(path: Path) -> bytes:
    """Alter a byte in the middle, in place; returns the bytes as they are now."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    with path.open("r+b") as file:
        file.write(data)
    return bytes(data)


@contextmanager
def moved_to_small_disk(hive: Live, number: int, room: Path) -> Iterator[None]:
    """A node's directory is on a file system in memory that has 64 MB of room beside what the node has."""
    directory, away = hive.node_directories()[number], room / "moved"
    hive.kill_node(number)
    directory.rename(away)
    directory.mkdir(mode=0o700)
    size = 64_000_000 + sum(path.stat().st_blocks * 512 for path in away.rglob("*"))
    try:
        with small_disk(directory, size):
            copy(away, directory)
            hive.run("up", timeout=200)
            until(lambda: hive.online() == NODES, PATIENCE, "the node starting on its new disk")
            yield
            hive.kill_node(number)
            shutil.rmtree(away)
            away.mkdir(mode=0o700)
            copy(directory, away)
    finally:
        directory.rmdir()
        away.rename(directory)
        hive.run("up", timeout=200)
        until(lambda: hive.online() == NODES, PATIENCE, "the node starting where it was")


def copy(source: Path, target: Path) -> None:
    """All that is in a directory, holes as holes."""
    subprocess.run(["cp", "-a", "--sparse=always", f"{source}/.", str(target)], check=True, timeout=60)


@contextmanager
def week(root: Path, files: int) -> Iterator[Week]:
    tree = photos(root / "photos", files)
    with live(root, nodes=NODES, capacity="1G", settings={"node_gone_after_s": 3600}) as hive:
        subprocess.run(["cp", "-a", str(tree), str(hive.drive)], check=True, timeout=200)
        hive.wait(hive.drive, timeout=PATIENCE)
        yield Week(hive, tree)


def test_a_short_week(tmp_path: Path) -> None:
    """What the whole one begins with. Shares that rot are in test_journey.py, and all of it takes minutes."""
    with week(tmp_path, 4) as days:
        days.kill_a_jurisdiction()
        days.return_it()


@pytest.mark.slow
def test_the_whole_week(tmp_path: Path) -> None:
    with week(tmp_path, 16) as days:
        days.kill_a_jurisdiction()
        days.return_it()
        days.sell_an_operator()
        days.shrink_a_disk()
        if os.geteuid() == 0:  # others may not mount a small disk; a disk that is full is in tests/sim as well
            days.fill_a_disk(tmp_path)
        days.corrupt_a_node()
        assert days.hive.json("check", "--data", timeout=300)["problems"] == 0
