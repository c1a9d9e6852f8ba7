"""A storage node, wired: its share store and service (node/) behind a libp2p host (transport/)."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from hivefs.daemon import control, node_control
from hivefs.daemon.hive import HiveKey
from hivefs.daemon.joining import ask_in
from hivefs.daemon.launch import Report
from hivefs.daemon.memory import keep_buffers, keep_maps_small
from hivefs.daemon.node_process import Labels, recorded, running_node
from hivefs.daemon.service_manager import notify
from hivefs.errors import BadInvitation, BadSetting, HivefsError, NodeProblem
from hivefs.formats.member import accept
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import Attribute, Evidence, Role, Ticket
from hivefs.node.caps import Caps
from hivefs.node.config import CONFIG, create_node, forget_node, load_node, set_membership
from hivefs.node.running import Running
from hivefs.node.service import run_node
from hivefs.transport import open_host
from hivefs.transport.addresses import peer_id_from_key, split_address, split_listen_address

log = logging.getLogger("hivefs.node")

KEPT_BYTES = 8 << 20
"""Free memory that malloc keeps for the next shares."""


def make_node(
    directory: Path,
    key: HiveKey,
    listen: str,
    capacity: int,
    labels: Labels,
    bootstrap: tuple[str, ...],
    announce: str = "",
    lan: bool = False,
    caps: Caps = Caps(),  # noqa: B008 - frozen
    evidence: Evidence = Evidence.CLAIMED,
) -> str:
    """Make a node's directory with its certificate; returns the address that others dial. ``evidence`` is how well the
    hive's owner knows the labels.

    ``listen`` is an address without peer id, ``announce`` one that others use instead where it differs. Raises
    BadAddress, BadSetting, NodeProblem.
    """
    _check_reachable(announce or listen, listen, bootstrap)
    node_id = create_node(
        directory,
        listen=(listen,),
        capacity=capacity,
        attributes=tuple(replace(a, evidence=evidence) for a in labels.attributes()),
        hive_seed=key.seed,
        bootstrap=bootstrap,
        announce=(announce,) if announce else (),
        lan=lan,
        caps=caps,
        now_ns=time.time_ns(),
    )
    return _full(announce or listen, node_id)


def _check_reachable(told: str, listen: str, bootstrap: tuple[str, ...]) -> None:
    kind, host, port = split_listen_address(told)
    split_listen_address(listen)
    if port == 0 or (kind != "dns4" and ipaddress.ip_address(host).is_unspecified):
        raise BadSetting(name="--announce", reason=f"others cannot reach {told}; say the address and port that they can")
    for address in bootstrap:
        split_address(address)


def _full(told: str, node_id: bytes) -> str:
    return f"{told}/p2p/{peer_id_from_key(node_id)}"


def join_node(
    directory: Path,
    ticket: Ticket,
    listen: str,
    capacity: int,
    attributes: tuple[Attribute, ...],
    announce: str = "",
    lan: bool = False,
    caps: Caps = Caps(),  # noqa: B008 - frozen
) -> tuple[str, str]:
    """Make a node's directory with a certificate by invitation, and ask a node of the hive whether it holds. Returns the
    address that others dial, and that of the node that was asked ("" when the invitation names none).

    Raises what make_node does, BadInvitation, Refused, PeerUnreachable; then there is no node in the directory.
    """
    _check_reachable(announce or listen, listen, ticket.addresses)
    if (directory / CONFIG).exists():
        raise NodeProblem(path=directory, reason="there is a node in it already")
    seed = os.urandom(KEY_BYTES)
    membership = accept(ticket, seed, Role.NODE, attributes, time.time_ns())
    # First the directory: a node that was asked and forgets its key would have used up the invitation for nothing.
    node_id = create_node(
        directory,
        listen=(listen,),
        capacity=capacity,
        membership=membership,
        seed=seed,
        bootstrap=ticket.addresses,
        announce=(announce,) if announce else (),
        lan=lan,
        caps=caps,
    )
    try:
        asked = trio.run(ask_in, membership, seed, seed, ticket.addresses)
    except BaseException:  # Ctrl-C too: a node that nobody let in must not stay; raised again
        forget_node(directory)
        raise
    return _full(announce or listen, node_id), asked


def rejoin_node(directory: Path, ticket: Ticket, attributes: tuple[Attribute, ...]) -> str:
    """Give the node in ``directory``, whose membership was revoked or ends, a new certificate by invitation; key and shares
    stay. Without ``attributes`` it claims what it claimed. Returns the address of the node that let it in. Raises what
    join_node does; then nothing has changed.
    """
    config, seed = load_node(directory)
    before = config.membership
    if before is not None and before.hive_key != ticket.invitation.hive_key:
        raise BadInvitation(reason="it is from another hive than this node")
    fixed = {a.name for a in ticket.invitation.attributes}
    if not attributes and before is not None:
        attributes = tuple(a for a in before.attributes if a.name not in fixed)
    membership = accept(ticket, seed, Role.NODE, attributes, time.time_ns())
    asked = trio.run(ask_in, membership, seed, seed, ticket.addresses)
    set_membership(directory, membership, ticket.addresses)
    return asked


def run(
    directory: Path,
    report: Report,
    told: Callable[[tuple[str, ...]], None] = lambda addresses: None,
    metrics: str = "",
) -> None:
    """Run the node in ``directory`` until SIGTERM or SIGINT; SIGHUP makes it read its settings again. ``report`` and
    ``told`` hear when it serves. ``metrics`` is where it tells its counts, [ADDRESS:]PORT, or empty.

    Raises NodeProblem, BadAddress, BadSetting, StoreDamaged, DiskFull.
    """
    at = None
    if metrics:
        from hivefs.daemon.metrics import listen_address

        at = listen_address(metrics)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    other = running_node(directory)
    if other is not None:
        raise NodeProblem(path=directory, reason=f"it runs already (pid {other.pid})")
    keep_buffers(KEPT_BYTES, arenas=1)
    trio.run(_run, directory, report, told, at)


async def _run(
    directory: Path, report: Report, told: Callable[[tuple[str, ...]], None], metrics: tuple[str, int] | None
) -> None:
    failure: Exception | None = None
    # The receiver is the outermost: a second signal while the node ends must not kill it half-way.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            handler = _Signals(signals, nursery.cancel_scope)
            nursery.start_soon(handler.run)
            nursery.start_soon(keep_maps_small)
            try:
                running: Running = await nursery.start(partial(run_node, directory, open_host, lan=_lan))
                handler.running = running
                await nursery.start(control.serve, directory, node_control.SOCKET, node_control.methods(running))
                if metrics is not None:
                    await _serve_metrics(nursery, metrics, running)
            except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
                failure = error
                nursery.cancel_scope.cancel()
            else:
                with recorded(directory):
                    report.ready({"addresses": list(running.addresses), "pid": os.getpid()})
                    notify("READY=1", f"STATUS=serving at {', '.join(running.addresses)}")
                    told(running.addresses)
                    await trio.sleep_forever()
    if failure is not None:
        raise failure


async def _lan(hive_key: bytes, addresses: Sequence[str], found: Callable[[str], None]) -> None:
    from hivefs.daemon.lan import announce  # loads zeroconf: only where it is wanted

    await announce(hive_key, addresses, found)


async def _serve_metrics(nursery: trio.Nursery, at: tuple[str, int], running: Running) -> None:
    from hivefs.daemon.metrics import serve  # prometheus_client: only who wants it loads it

    port = await nursery.start(serve, *at, running.status)
    log.info("metrics at http://%s:%d/metrics", at[0], port)


class _Signals:
    """SIGHUP: read the settings again; the others: end."""

    def __init__(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        self._signals = signals
        self._scope = scope
        self.running: Running | None = None

    async def run(self) -> None:
        async for number in self._signals:
            if number != signal.SIGHUP:
                notify("STOPPING=1")
                self._scope.cancel()
                return
            if self.running is not None:
                try:
                    await self.running.reload()
                except HivefsError as error:
                    log.error("the settings stay as they were: %s", error)
