"""Experimental: a DHT in which nodes that changed their address are found, in a process of its own (transport/dht.py).

What is kept is a node's roster entry (formats/member.py), so a record proves itself: the hive's owner signed who the node
is, the node where it is. Members of the DHT see both, and who asks for which node.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from hivefs.daemon import control, node_control
from hivefs.errors import Corrupt, HivefsError, NodeProblem, PeerUnreachable, UnknownVersion
from hivefs.formats import member
from hivefs.model.node import Role, RosterEntry

MOST_MEMORY: Final = 512 << 20
"""Bytes of data that the process may have: the library bounds little of what strangers make it hold."""
TELL_EVERY: Final = 1800.0
TRY_AGAIN: Final = 15.0
FIND_SECONDS: Final = 60.0


def judge(node_key: bytes, record: bytes) -> int:
    """The sequence of a record of that node's addresses; 0 when it is ahead of the clock: it gives way to any that is not,
    and a machine whose clock is years behind still finds its nodes. Raises ValueError for everything else. That the node
    belongs to a hive is not checked here: a DHT is of many hives, and whoever looks for a node knows its own.
    """
    try:
        entry = member.entry_from_bytes(record)
    except (Corrupt, UnknownVersion) as error:
        raise ValueError(str(error)) from None
    membership = entry.membership
    if entry.address.node_id != node_key or membership.subject != node_key or not membership.roles & Role.NODE:
        raise ValueError("it is another node's")
    if not member.address_valid(entry.address):
        raise ValueError("the node did not sign it")
    return 0 if member.ahead(entry.address, time.time_ns()) else entry.address.sequence


def bound_memory() -> None:
    """For a process that does nothing else."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def serve(listen: Sequence[str], peers: Sequence[str], nodes: Sequence[Path], told: Callable[[list[str]], None]) -> None:
    """Be a member until interrupted, and tell the addresses of the running nodes in ``nodes`` again and again. ``told`` is
    called with the member's addresses once it serves. Raises BadAddress, BadSetting, PeerUnreachable.
    """
    bound_memory()
    trio.run(_serve, listen, peers, nodes, told)


async def _serve(
    listen: Sequence[str], peers: Sequence[str], nodes: Sequence[Path], told: Callable[[list[str]], None]
) -> None:
    from hivefs.transport.dht import joined  # loads all of libp2p

    async with joined(os.urandom(32), listen, peers, judge) as dht:
        told(dht.addresses)
        while True:
            pause = TELL_EVERY
            for directory in nodes:
                try:
                    entry = await _entry_of(directory)
                    await dht.tell(entry.address.node_id, member.entry_to_bytes(entry))
                except (HivefsError, ValueError):  # it does not run now, or an older record is still the newest here
                    pause = TRY_AGAIN
            await trio.sleep(pause)


async def _entry_of(directory: Path) -> RosterEntry:
    """What a running node says of itself. Raises NodeProblem, Corrupt."""
    async with control.connect(directory, node_control.SOCKET) as client:
        data = await client.call("entry")
    if not isinstance(data, bytes):
        raise NodeProblem(path=directory, reason="it gives no entry")
    return member.entry_from_bytes(data)


def find(peers: Sequence[str], node_keys: Sequence[bytes], hive_key: bytes, now_ns: int) -> dict[bytes, RosterEntry]:
    """What members of the DHT have of nodes of one hive. Raises BadAddress, PeerUnreachable."""
    bound_memory()
    return trio.run(_find, peers, node_keys, hive_key, now_ns)


async def _find(peers: Sequence[str], node_keys: Sequence[bytes], hive_key: bytes, now_ns: int) -> dict[bytes, RosterEntry]:
    from hivefs.transport.dht import joined

    found: dict[bytes, RosterEntry] = {}
    problem: HivefsError | None = None
    answers = 0
    async with joined(os.urandom(32), (), peers, judge) as dht:
        with trio.move_on_after(FIND_SECONDS):
            for node_key in node_keys:
                try:
                    record = await dht.find(node_key)
                except PeerUnreachable as error:  # that of another node may still be found
                    problem = error
                    continue
                answers += 1
                entry = None if record is None else member.entry_from_bytes(record)
                if entry is not None and member.entry_valid(entry, hive_key, now_ns):
                    found[node_key] = entry
    if problem is not None and not answers:
        raise problem
    return found


def known(engine_nodes: Sequence[dict[str, Any]]) -> list[bytes]:
    """The keys of the nodes that an engine's status shows as not online."""
    return [bytes.fromhex(node["id"]) for node in engine_nodes if node["state"] != "online"]
