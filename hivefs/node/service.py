"""A running node: store, answers, upkeep and gossip over the transport that the daemon passes in."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from hivefs.crypto import keys
from hivefs.errors import HivefsError, NodeProblem
from hivefs.formats import member
from hivefs.model.ids import NodeId
from hivefs.model.node import RosterEntry
from hivefs.node.addresses import announced
from hivefs.node.answering import Answerer
from hivefs.node.config import NodeConfig, load_node
from hivefs.node.events import Events
from hivefs.node.gossip import Gossip
from hivefs.node.ports import Host, Lan, Serve
from hivefs.node.session import Bounds, Streams
from hivefs.node.store import ShareStore
from hivefs.node.upkeep import Upkeep, open_lease_clock
from hivefs.protocol.client_side import credentials
from hivefs.protocol.failures import Refusal
from hivefs.protocol.frames import PROTOCOL


@dataclass(frozen=True, slots=True)
class Serving:
    """What is known once a node serves: its id, and the addresses that it tells others."""

    node_id: NodeId
    addresses: tuple[str, ...]


def _some(count: int, below: int) -> Sequence[int]:
    return random.sample(range(below), min(count, below))


async def run_node(
    directory: Path,
    serve: Serve,
    *,
    lan: Lan | None = None,
    clock: Callable[[], int] = time.time_ns,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    task_status: Any = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the node in ``directory`` until cancelled; ``task_status`` is started with a Serving. ``lan`` is used when the
    node's settings say so.

    Raises NodeProblem (no node there, no valid certificate, already running), BadAddress, StoreDamaged, DiskFull.
    """
    config, seed = load_node(directory)
    membership = config.membership
    if membership is None:
        raise NodeProblem(path=directory, reason="the hive's owner has not signed its membership yet")
    if not member.member_valid(membership, membership.hive_key, clock()):
        raise NodeProblem(path=directory, reason="its membership certificate has expired")
    events = Events(trio.current_time)
    store = await trio.to_thread.run_sync(ShareStore, directory)
    problems: list[Exception] = []
    try:
        swept = await trio.to_thread.run_sync(store.sweep)
        if swept.orphans or swept.lost:
            events.say("sweep", f"{swept.orphans} files without entry removed, {swept.lost} shares without file dropped")
        lease_clock = open_lease_clock(store, clock())
        answerer = Answerer(store, membership, config.capacity, config.vault_quota, lease_clock, clock)
        streams = Streams(answerer, events, bounds)
        async with trio.open_nursery() as nursery:

            async def watched(task: Callable[[], Awaitable[None]]) -> None:
                """The first failure ends the node, and leaves it as it is and not in a group."""
                try:
                    await task()
                except (HivefsError, OSError) as error:
                    problems.append(error)
                    nursery.cancel_scope.cancel()

            async def serving() -> None:
                async with serve(seed, listen=config.listen, handlers={PROTOCOL: streams.serve}) as host:
                    own = await trio.to_thread.run_sync(_own_entry, store, config, seed, host.addresses, clock())
                    await _own_membership(answerer, events)
                    host.announce(own.address.addresses)
                    await trio.to_thread.run_sync(answerer.roster.take, [member.entry_to_bytes(own)], clock())
                    gossip = _gossip(host, seed, config, answerer, own, events, clock)
                    nursery.start_soon(watched, gossip.run)
                    if config.lan and lan is not None:
                        # What it listens on, not what it tells the world: that may be a router's address.
                        told = announced(host.addresses, ())
                        nursery.start_soon(lan, membership.hive_key, told, gossip.hear)
                    nursery.start_soon(watched, Upkeep(store, lease_clock, clock, events).run)
                    said = Serving(NodeId(keys.public_key(seed)), own.address.addresses)
                    events.say("serving", f"{store.index.count} shares, at {', '.join(said.addresses)}")
                    task_status.started(said)
                    await trio.sleep_forever()

            nursery.start_soon(watched, answerer.run)
            nursery.start_soon(watched, serving)
    except OSError as error:
        problems.append(error)
    finally:
        store.close()
    if problems:
        first = problems[0]
        if isinstance(first, OSError):
            raise NodeProblem(path=directory, reason=first.strerror or str(first)) from first
        raise first


def _gossip(
    host: Host,
    seed: bytes,
    config: NodeConfig,
    answerer: Answerer,
    own: RosterEntry,
    events: Events,
    clock: Callable[[], int],
) -> Gossip:
    membership = answerer.membership
    me = credentials(seed, host.peer_key, membership.hive_key, membership, answerer.members.covers)
    return Gossip(host, me, answerer, own, config.bootstrap, events, clock, _some)


async def _own_membership(answerer: Answerer, events: Events) -> None:
    """Say when we are revoked, and count ourselves among those who joined by invitation. When our invitation is not good
    any more the others know that we used it in time.
    """
    blob = member.member_to_bytes(answerer.membership)
    if answerer.members.covers(answerer.membership):
        events.say("revoked", "the hive's owner revoked this node's membership; nobody will use it", logging.ERROR)
    else:
        try:
            await answerer.take_members([blob])
        except Refusal as refusal:  # a full disk: the others tell us later
            events.say("disk full", refusal.text, logging.ERROR)


def _own_entry(store: ShareStore, config: NodeConfig, seed: bytes, listening: list[str], now_ns: int) -> RosterEntry:
    """Our roster entry. It changes only with the addresses; its sequence is the time in seconds when that was, so that it
    grows also when the store was lost.
    """
    if config.membership is None:
        raise AssertionError("checked by the caller")
    addresses = announced(listening, config.announce)
    kept = store.index.entry(NodeId(keys.public_key(seed)))
    sequence = now_ns // 10**9
    if kept is not None:
        before = member.entry_from_bytes(kept).address
        if before.addresses == addresses:
            return RosterEntry(config.membership, before)
        sequence = max(sequence, before.sequence + 1)
    return RosterEntry(config.membership, member.sign_address(seed, addresses, sequence))
