"""What is known of a node from outside its process: what it says of itself, and whether it runs. Imports nothing heavy.

A running node keeps ``run.json`` in its directory: pid, start time and boot id name exactly one process, so that a pid
that was given to another program later is never taken for the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hivefs.daemon.home import write_file
from hivefs.daemon.launch import start_time, stop_process
from hivefs.errors import NO_ROOM, BadSetting, NodeProblem
from hivefs.model.node import Attribute
from hivefs.model.words import shown
from hivefs.node.reserve import Reserve
from hivefs.placement.countries import no_country

RUN_FILE = "run.json"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Labels:
    """What a node's owner claims of it; empty means that nothing is said. Countries are codes of ISO 3166-1; raises
    BadSetting for others.
    """

    country: str = ""
    operator: str = ""
    operator_country: str = ""
    parent: str = ""
    parent_country: str = ""
    hoster: str = ""

    def __post_init__(self) -> None:
        for name in ("country", "operator_country", "parent_country"):
            value = getattr(self, name)
            wrong = value and no_country(value)
            if wrong:
                raise BadSetting(name="--" + name.replace("_", "-"), reason=f"'{shown(value[:40])}' is {wrong}")
        for name in ("operator", "parent", "hoster"):
            if len(getattr(self, name)) > 256:
                raise BadSetting(name=name, reason="it is longer than 256 characters")

    def attributes(self) -> tuple[Attribute, ...]:
        """For the membership certificate. What was not said is left out, which counts against the node."""
        said = {name: getattr(self, name) for name in self.__slots__}
        return tuple(
            Attribute(name, value.upper() if name.endswith("country") else value) for name, value in said.items() if value
        )


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """One running node process."""

    pid: int
    started: int

    def terminate(self) -> None:
        """Ask it to end; stop() waits for that."""
        if start_time(self.pid) == self.started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> bool:
        """End it: SIGTERM, SIGKILL after 10 s. True when it is gone."""
        return stop_process(self.pid, self.started) or start_time(self.pid) != self.started


def running_node(directory: Path) -> NodeProcess | None:
    """The process that runs the node in ``directory``, if there is one."""
    try:
        value = json.loads((directory / RUN_FILE).read_bytes())
        pid, started, boot = int(value["pid"]), int(value["started"]), value["boot"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return NodeProcess(pid, started) if boot == _boot_id() and start_time(pid) == started else None


@contextlib.contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """While this process runs the node in ``directory``, say so there. Raises NodeProblem when the disk is full and nothing
    of it was reserved.
    """
    value = {"pid": os.getpid(), "started": start_time(os.getpid()), "boot": _boot_id()}
    path = directory / RUN_FILE
    data = json.dumps(value).encode()
    try:
        try:
            write_file(path, data)
        except OSError as error:
            if error.errno not in NO_ROOM or not Reserve(directory).give():
                raise
            write_file(path, data)
    except OSError as error:
        raise NodeProblem(path=directory, reason=error.strerror or str(error)) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _boot_id() -> str:
    return _BOOT.read_text().strip()
