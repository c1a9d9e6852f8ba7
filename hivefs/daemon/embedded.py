"""The embedded hive: real node processes of one machine, for trying HiveFS out (docs/embedded-hive.md).

In ``HIVEFS_HIVE``: ``hive.key`` (the owner's key), ``hive.json`` (what was chosen when it was made), ``nodes/0`` and on
(each an ordinary node directory with its log), ``lock``. The nodes are labelled as if they stood under several
jurisdictions; on one machine that proves the placement, not the protection, and every text says so.

Ports are chosen once, below the range that the system hands out by itself, and kept: they are in every vault's list of
nodes. A process is ended only when its pid, start time and boot are those that it wrote into its own directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivefs.daemon import hive, launch
from hivefs.daemon.home import data_home, write_file
from hivefs.daemon.node_process import Labels, running_node
from hivefs.errors import NO_ROOM, BadSetting, Corrupt, DiskFull, HivefsError, HiveMissing, HiveProblem, NodeProblem
from hivefs.placement.code import for_counts, spare_nodes

FORMAT, VERSION = "hivefs-embedded-hive", 1
COUNTRIES = ("DE", "FR", "CH", "IS")
DEFAULT_NODES = 8
MOST_NODES = 40
PORTS = range(20_000, 32_000)
READY_SECONDS = 120.0
NODE_GONE_AFTER_S = 60
"""On one machine a node does not come back by itself, so a minute is long enough to wait before repairing."""


def default_hive() -> Path:
    """HIVEFS_HIVE, by default the XDG directory; always absolute."""
    said = os.environ.get("HIVEFS_HIVE", "")
    return Path(said).expanduser().absolute() if said else data_home() / "hive"


def labels(number: int, count: int) -> Labels:
    """Where node ``number`` of ``count`` says it stands: the countries in turn, two operators in each."""
    country = COUNTRIES[number % min(count, len(COUNTRIES))]
    operator = f"{country.lower()}-{'ab'[number // len(COUNTRIES) % 2]}"
    return Labels(country=country, operator=operator, operator_country=country, hoster=operator)


def code_for(count: int) -> tuple[int, int]:
    """The code k, n for so many nodes; raises BadSetting where no code keeps the guarantees."""
    if count > MOST_NODES:
        raise BadSetting(name="--nodes", reason=f"an embedded hive has at most {MOST_NODES}, each is a process of its own")
    counts = [0] * len(COUNTRIES)
    for number in range(count):
        counts[COUNTRIES.index(labels(number, count).country)] += 1
    code = for_counts([c for c in counts if c], spare_nodes(count)) if count > 0 else None
    if code is None:
        raise BadSetting(
            name="--nodes",
            reason=f"with {count} nodes one alone could always rebuild or withhold the data; 3 are the least",
        )
    return code


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the hive. ``pid`` is None while it does not run."""

    number: int
    directory: Path
    address: str
    country: str
    operator: str
    pid: int | None


class EmbeddedHive:
    """The hive in ``path``; made by create() or load()."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path = path
        self._nodes: list[dict[str, Any]] = plan["nodes"]
        self.needed, self.total = int(plan["needed"]), int(plan["total"])

    @staticmethod
    def load(path: Path) -> EmbeddedHive:
        """Raises HiveMissing, or HiveProblem when it cannot be used."""
        try:
            plan = json.loads((path / "hive.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise HiveMissing(path=path) from None
        except OSError as error:
            raise HiveProblem(path=path, reason=error.strerror) from error
        except ValueError:
            raise Corrupt(what=f"the hive file {path / 'hive.json'}", reason="it is not JSON") from None
        try:
            if plan["format"] != FORMAT or plan["version"] != VERSION:
                raise HiveProblem(path=path, reason="another version of HiveFS made it")
            return EmbeddedHive(path, plan)
        except (KeyError, TypeError, ValueError):
            raise Corrupt(what=f"the hive file {path / 'hive.json'}", reason="its form is wrong") from None

    @staticmethod
    def create(path: Path, count: int = DEFAULT_NODES, capacity: int | None = None) -> EmbeddedHive:
        """A new hive of ``count`` nodes with ``capacity`` bytes each (default: 70 % of the free disk, shared out)."""
        needed, total = code_for(count)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            with _locked(path):
                return EmbeddedHive._create(path, count, capacity, needed, total)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(path=path, free=0) from error
            raise HiveProblem(path=path, reason=error.strerror or str(error)) from error

    @staticmethod
    def _create(path: Path, count: int, capacity: int | None, needed: int, total: int) -> EmbeddedHive:
        from hivefs.daemon.node import make_node  # loads libp2p, a second: only when a hive is made

        if (path / "hive.json").exists():
            return EmbeddedHive.load(path)
        if (path / "nodes").exists():  # hive.json is written last, so nobody can have used these
            shutil.rmtree(path / "nodes")
            (path / "hive.key").unlink(missing_ok=True)
        capacity = capacity or max(1 << 30, shutil.disk_usage(path).free * 7 // 10 // count)
        (path / "nodes").mkdir(mode=0o700)
        key = hive.create(path / "hive.key")
        nodes: list[dict[str, Any]] = []
        for number, port in enumerate(_free_ports(count)):
            said = labels(number, count)
            address = make_node(
                path / "nodes" / str(number),
                key,
                f"/ip4/127.0.0.1/tcp/{port}",
                capacity,
                said,
                tuple(node["address"] for node in nodes),
            )
            nodes.append({"address": address, "country": said.country, "operator": said.operator})
        plan = {"format": FORMAT, "version": VERSION, "needed": needed, "total": total, "nodes": nodes}
        write_file(path / "hive.json", (json.dumps(plan, indent=2) + "\n").encode())
        return EmbeddedHive(path, plan)

    # ---- running --------------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of all nodes, with their peer ids."""
        return tuple(str(node["address"]) for node in self._nodes)

    def key(self) -> hive.HiveKey:
        """The owner's key, to let a client in."""
        return hive.load(self.path / "hive.key")

    def members(self) -> list[Member]:
        """Every node, and whether it runs."""
        found = []
        for number, node in enumerate(self._nodes):
            directory = self.path / "nodes" / str(number)
            process = running_node(directory)
            found.append(
                Member(
                    number,
                    directory,
                    node["address"],
                    node["country"],
                    node["operator"],
                    None if process is None else process.pid,
                )
            )
        return found

    def start(self, told: Callable[[Member], None] = lambda member: None) -> list[Member]:
        """Start every node that does not run and wait until all serve (at most two minutes). Returns those started.

        Raises the first node's HivefsError; nodes that did come up stay up, so that calling again finishes the work.
        """
        with _locked(self.path):
            begun = [(m, self._begin(m)) for m in self.members() if m.pid is None]
            deadline = time.monotonic() + READY_SECONDS
            failed: list[HivefsError] = []
            for member, starting in begun:
                try:
                    starting.wait(deadline)
                    told(member)
                except HivefsError as error:
                    failed.append(error)
            if failed:
                raise failed[0]
            return [member for member, _ in begun]

    def _begin(self, member: Member) -> launch.Starting:
        log = member.directory / "node.log"

        def failure(reason: str) -> HivefsError:
            return NodeProblem(path=member.directory, reason=f"{reason}; see {log}")

        arguments = ["-m", "hivefs", "node", "run", str(member.directory), "--started"]
        return launch.begin(arguments, {"background": True}, log, failure)

    def stop(self) -> int:
        """End every node that runs; returns how many did. Raises HiveProblem when one cannot be ended."""
        with _locked(self.path):
            stopped = 0
            processes = [(m, running_node(m.directory)) for m in self.members()]
            for _, process in processes:
                if process is not None:
                    process.terminate()
            for member, process in processes:
                if process is not None:
                    if not process.stop():
                        raise HiveProblem(path=self.path, reason=f"node {member.number} (pid {process.pid}) does not end")
                    stopped += 1
            return stopped


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time; a second one waits (the work inside is bounded)."""
    try:
        handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HiveProblem(path=path, reason=error.strerror or str(error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _free_ports(count: int) -> list[int]:
    """``count`` ports on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(errno.EADDRINUSE, "no free ports")
