"""A small hive for tests: owner, vault owners, nodes over the network in memory."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.crypto import keys
from hivefs.formats.member import sign_member
from hivefs.model.ids import ShareId
from hivefs.model.node import Attribute, Membership, Role
from hivefs.node.config import create_node
from hivefs.node.running import Running
from hivefs.node.service import run_node
from hivefs.node.session import Bounds
from hivefs.testing.memory_net import MemoryNetwork

DAY = 86_400 * 10**9
DEADLINE = 120.0
DEFAULTS = Bounds()


def seed_of(name: str) -> bytes:
    """A seed for a named actor."""
    return hashlib.sha256(name.encode()).digest()


HIVE = seed_of("hive")
HIVE_KEY = keys.public_key(HIVE)


def client_certificate(owner_seed: bytes, hive_seed: bytes = HIVE, **changes: int) -> Membership:
    """Membership of a vault's owner."""
    bare = Membership(b"", keys.public_key(owner_seed), Role.CLIENT, (), issued_ns=1, **changes)
    return sign_member(hive_seed, bare)


def share(size: int = 1000, fill: bytes | None = None) -> tuple[ShareId, bytes]:
    """A random share."""
    data = os.urandom(size) if fill is None else (fill * (size // len(fill) + 1))[:size]
    return ShareId(hashlib.sha256(data).digest()), data


def lease() -> int:
    """A hundred days from now."""
    return time.time_ns() + 100 * DAY


def make(directory: Path, name: str = "node", capacity: int = 1 << 30, **more: object) -> bytes:
    """Create a node of the hive."""
    return create_node(
        directory,
        listen=("/memory",),
        capacity=capacity,
        attributes=(Attribute("country", "DE"),),
        hive_seed=HIVE,
        seed=seed_of(name),
        now_ns=1,
        **more,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(network: MemoryNetwork, directory: Path, bounds: Bounds = DEFAULTS) -> AsyncIterator[Running]:
    """The node in ``directory``, serving."""
    async with trio.open_nursery() as nursery:
        serving: Running = await nursery.start(partial(run_node, directory, network.open_host, bounds=bounds))
        yield serving
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking(
    network: MemoryNetwork,
    node_id: bytes,
    owner: str = "owner",
    *,
    recover: bool = False,
    hive_seed: bytes = HIVE,
) -> AsyncIterator[NodeClient]:
    """A conversation of a vault's owner with a node."""
    seed = seed_of(owner)
    async with network.open_host(seed_of(owner + "/device")) as host:
        connection = await host.dial(network.address(node_id))
        stream = await connection.open_stream(PROTOCOL)
        if recover:
            who = credentials(seed, host.peer_key)
        else:
            who = credentials(seed, host.peer_key, keys.public_key(hive_seed), client_certificate(seed, hive_seed))
        async with converse(stream, who, time.time_ns()) as client:
            yield client


def within(body, *arguments):  # type: ignore[no-untyped-def]
    """Run an async test body with a deadline far above what it needs."""

    async def bounded() -> object:
        with trio.fail_after(DEADLINE):
            return await body(*arguments)

    return trio.run(bounded)
