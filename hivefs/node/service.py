"""A running node: store, answers, upkeep and gossip over the transport that the daemon passes in."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hivefs.crypto import keys
from hivefs.errors import HivefsError, NodeProblem
from hivefs.formats import member
from hivefs.model.ids import NodeId
from hivefs.node.addresses import announced
from hivefs.node.answering import Answerer
from hivefs.node.config import load_node
from hivefs.node.events import Events
from hivefs.node.gossip import Gossip
from hivefs.node.meter import Meter
from hivefs.node.pacing import Line
from hivefs.node.ports import Lan, Serve
from hivefs.node.receipts import Receipts
from hivefs.node.running import Running
from hivefs.node.session import Bounds, Streams
from hivefs.node.store import ShareStore
from hivefs.node.threads import in_thread
from hivefs.node.upkeep import Upkeep, open_lease_clock
from hivefs.protocol.client_side import credentials
from hivefs.protocol.failures import Refusal
from hivefs.protocol.frames import PROTOCOL


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
    """Serve the node in ``directory`` until cancelled; ``task_status`` is started with a Running. ``lan`` is used when the
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
    store = await in_thread(ShareStore, directory)
    problems: list[Exception] = []
    meter = Meter(store, clock, events)
    try:
        await in_thread(store.clear_tmp)
        lease_clock = open_lease_clock(store, clock())
        answerer = Answerer(store, membership, config.capacity, config.vault_quota, lease_clock, clock)
        own_id = NodeId(keys.public_key(seed))
        answerer.receipts = Receipts(store, own_id, partial(keys.sign, seed), clock)
        upkeep = Upkeep(store, lease_clock, clock, events)
        streams = Streams(answerer, events, Line(config.caps, clock), meter, bounds)
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
                    told = announced(host.addresses, config.announce)
                    host.announce(told)
                    running = Running(
                        directory, config, seed, own_id, told, answerer, streams, meter, upkeep, events, clock
                    )
                    await _own_membership(answerer, events)
                    await running.begin()
                    me = credentials(seed, host.peer_key, membership.hive_key, membership, answerer.members.covers)
                    gossip = running.gossip = Gossip(
                        host, me, answerer, lambda: running.entry, config.bootstrap, events, clock, _some
                    )
                    nursery.start_soon(watched, gossip.run)
                    if config.lan and lan is not None:
                        # What it listens on, not what it tells the world: that may be a router's address.
                        nursery.start_soon(lan, membership.hive_key, announced(host.addresses, ()), gossip.hear)
                    nursery.start_soon(watched, running.run)
                    nursery.start_soon(watched, running.adopt)
                    nursery.start_soon(watched, upkeep.run)
                    nursery.start_soon(watched, meter.run)
                    events.say("serving", f"{store.index.count} shares, at {', '.join(told)}")
                    task_status.started(running)
                    await trio.sleep_forever()

            nursery.start_soon(watched, answerer.run)
            nursery.start_soon(watched, serving)
    except OSError as error:
        problems.append(error)
    finally:
        with trio.CancelScope(shield=True):
            await meter.save()
        store.close()
    if problems:
        first = problems[0]
        if isinstance(first, OSError):
            raise NodeProblem(path=directory, reason=first.strerror or str(first)) from first
        raise first


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
