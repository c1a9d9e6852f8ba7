"""Asking a node on this machine, running or not: its settings, its counts. Imports nothing of the transport.

A running node answers on ``node.sock`` in its directory (control.py): ``status``, ``entry`` (its roster entry), and
``reload``: read node.json again; ``knows_node``: whether a key is that of a node of its hive.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from hivefs.daemon import control
from hivefs.daemon.node_process import running_node
from hivefs.formats import member
from hivefs.node.config import NodeConfig, change_settings, load_node
from hivefs.node.running import Running, stopped_status

SOCKET = "node"


def methods(running: Running) -> control.Methods:
    """What a running node answers to."""

    async def reload(_: Any) -> None:
        await running.reload()

    async def knows_node(key: Any) -> bool:
        return isinstance(key, bytes) and await running.knows_node(key)

    return control.Methods(
        {
            "status": lambda _: running.status(),
            "reload": reload,
            "knows_node": knows_node,
            "entry": lambda _: member.entry_to_bytes(running.entry),
        }
    )


def call(directory: Path, name: str) -> Any:
    """Ask the running node. Raises NodeProblem when it does not run or answer."""

    async def ask() -> Any:
        async with control.connect(directory, SOCKET) as client:
            return await client.call(name)

    return trio.run(ask)


def status(directory: Path) -> dict[str, Any]:
    """Of a node that runs or not. Raises NodeProblem, StoreDamaged, UnknownVersion."""
    load_node(directory)
    if running_node(directory) is not None:
        found: dict[str, Any] = call(directory, "status")
        return found
    return stopped_status(directory, time.time_ns())


def change(directory: Path, changed: Callable[[NodeConfig], NodeConfig]) -> tuple[NodeConfig, bool]:
    """Change the settings; (as they are now, whether a running node has taken them). Raises NodeProblem."""
    config = change_settings(directory, changed)
    running = running_node(directory) is not None
    if running:
        call(directory, "reload")
    return config, running


def leave(directory: Path, cancel: bool) -> bool:
    """Leave, or stay after all; whether a running node has taken it up. Leaving twice goes on from the first time."""

    def changed(config: NodeConfig) -> NodeConfig:
        return replace(config, leaving_ns=0 if cancel else config.leaving_ns or time.time_ns())

    return change(directory, changed)[1]
