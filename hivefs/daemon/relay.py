"""Experimental: a relay for nodes that nobody reaches (transport/relay.py), and the waiting beside such a node.

Each is a process of its own beside a running node, and holds no share and no key of a vault. The relay asks its node who
is a node of the hive. Who waits uses the key of its node, since that is what the relay and those who dial prove; it opens
nothing but connections to the relay, and for each circuit one to the node's own port (decisions/0032).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from hivefs.daemon import control, node_control
from hivefs.daemon.dht import bound_memory
from hivefs.daemon.home import read_private, write_file
from hivefs.errors import BadSetting, HivefsError, KeyFileProblem, NodeProblem, Refused
from hivefs.model.ids import KEY_BYTES
from hivefs.model.node import MOST_RELAYS
from hivefs.node.addresses import announced
from hivefs.node.config import MOST_RELAY_TEXT, NodeConfig, load_node
from hivefs.transport import Host, Limits, open_host, split_address
from hivefs.transport.addresses import split_listen_address
from hivefs.transport.circuit import reserve, waiting
from hivefs.transport.circuit_messages import HOP, STOP
from hivefs.transport.lines import Lines
from hivefs.transport.relay import Bounds, Relay

log = logging.getLogger("hivefs.relay")

SEED: Final = "relay.seed"
LOCK: Final = "relay.lock"
ASK_SECONDS: Final = 5.0
ASKING: Final = 4
"""Questions to the node at once, whoever makes us ask."""
DIAL_SECONDS: Final = 15.0
NEAR_SECONDS: Final = 5.0
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
STEADY_SECONDS: Final = 60.0
CIRCUITS: Final = 48
"""At once, of all relays together: the 32 of one relay, and such as are about to end. A node serves 64 connections from one
address, and these come from its own machine.
"""

SERVE_LIMITS: Final = Limits(max_streams=8, max_streams_in_total=1024)
ACCEPT_LIMITS: Final = Limits(max_streams=CIRCUITS, max_streams_in_total=CIRCUITS)


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


async def _until_told(body: Callable[[], Awaitable[None]]) -> None:
    """Run it until SIGINT or SIGTERM; its first HivefsError passes out as it is."""
    failure: HivefsError | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                nonlocal failure
                try:
                    await body()
                except HivefsError as error:
                    failure = error
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
    if failure is not None:
        raise failure


# ---- the relay ------------------------------------------------------------------------------------------------------


def serve(directory: Path, listen: Sequence[str], bounds: Bounds, told: Callable[[list[str]], None]) -> None:
    """Relay for the nodes that the node in ``directory`` knows, until interrupted. ``told`` hears the relay's addresses.
    Raises NodeProblem, BadAddress, KeyFileProblem.
    """
    load_node(directory)
    for address in listen:
        split_listen_address(address)
    seed = _seed(directory / SEED)
    _log()
    bound_memory()
    trio.run(_until_told, partial(_serve, directory, seed, listen, bounds, told))


def _seed(path: Path) -> bytes:
    """The relay's own: its address stays the same when it starts again."""
    try:
        write_file(path, os.urandom(KEY_BYTES), new=True)
    except FileExistsError:
        pass
    except OSError as error:
        raise KeyFileProblem(path=path, reason=error.strerror or str(error)) from error
    seed = read_private(path, KEY_BYTES + 1)
    if len(seed) != KEY_BYTES:
        raise KeyFileProblem(path=path, reason=f"it has {len(seed)} bytes and not {KEY_BYTES}")
    return seed


async def _serve(
    directory: Path, seed: bytes, listen: Sequence[str], bounds: Bounds, told: Callable[[list[str]], None]
) -> None:
    relay = Relay(partial(_is_node, directory, Lines(trio.current_time), trio.CapacityLimiter(ASKING)), bounds)
    async with open_host(seed, listen=listen, handlers={HOP: relay.serve}, limits=SERVE_LIMITS) as host:
        relay.host = host
        addresses = list(announced(host.addresses, ()))
        host.announce(addresses)
        told(addresses)
        await trio.sleep_forever()


async def _is_node(directory: Path, lines: Lines, slots: trio.CapacityLimiter, key: bytes) -> bool:
    """What the running node says; no while it does not run."""
    try:
        async with slots, control.connect(directory, node_control.SOCKET) as client:
            return bool(await client.call("knows_node", key, timeout=ASK_SECONDS) is True)
    except HivefsError as error:
        lines.say("nobody can reserve", str(error))
        return False


# ---- beside a node --------------------------------------------------------------------------------------------------


def accept(directory: Path, relays: Sequence[str], told: Callable[[str], None]) -> None:
    """Keep reservations for the node in ``directory`` at relays (full addresses), and tell them with the node's own
    addresses, until interrupted; then they are told no more. ``told`` hears of each relay through which it is reached.
    Raises NodeProblem, BadAddress, BadSetting.
    """
    config, seed = load_node(directory)
    for relay in relays:
        split_address(relay)
        if len(relay) > MOST_RELAY_TEXT:
            raise BadSetting(name="--relay", reason=f"the address is longer than {MOST_RELAY_TEXT} characters")
    if not 0 < len(relays) <= MOST_RELAYS:
        raise BadSetting(name="--relay", reason=f"a node has at most {MOST_RELAYS}")
    near = own_place(config)
    with _alone(directory):
        _log()
        bound_memory()
        trio.run(_until_told, partial(_accept, directory, seed, near, relays, told))


def own_place(config: NodeConfig) -> tuple[str, int]:
    """IP address and port where the node of these settings is reached from its own machine. Raises BadSetting."""
    for address in config.listen:
        _, host, port = split_listen_address(address)
        if port:
            return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 - compared, not bound
    raise BadSetting(name="listen", reason="the node listens at a port that changes with each start: give it a fixed one")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Two at once would take the reservation from each other."""
    try:
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NodeProblem(path=directory, reason=error.strerror or str(error)) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise NodeProblem(path=directory, reason="another 'hivefs relay accept' runs for this node") from None
        yield
    finally:
        os.close(handle)


class _Told:
    """The relays that the node tells, in its settings: they are there after a crash too."""

    def __init__(self, directory: Path, relays: Sequence[str]) -> None:
        self._directory = directory
        self._relays = relays
        self._good: set[str] = set()
        self._lock = trio.Lock()

    async def begin(self) -> None:
        """Relays of an earlier time that are not named now are told no more."""
        await self._change(lambda config: replace(config, relays=tuple(r for r in config.relays if r in self._relays)))

    async def add(self, relay: str) -> None:
        """The node has a reservation there."""
        self._good.add(relay)

        def changed(config: NodeConfig) -> NodeConfig:
            return replace(config, relays=tuple(r for r in self._relays if r in self._good or r in config.relays))

        await self._change(changed)

    async def end(self) -> None:
        """There is none any more."""
        await self._change(lambda config: replace(config, relays=()))

    async def _change(self, change: Callable[[NodeConfig], NodeConfig]) -> None:
        async with self._lock:
            await trio.to_thread.run_sync(node_control.change, self._directory, change)


async def _accept(
    directory: Path, seed: bytes, near: tuple[str, int], relays: Sequence[str], told: Callable[[str], None]
) -> None:
    async def connect() -> trio.SocketStream:
        with trio.move_on_after(NEAR_SECONDS):
            return await trio.open_tcp_stream(*near)
        raise OSError("the node does not answer")

    kept = _Told(directory, relays)
    await kept.begin()
    failure: HivefsError | None = None
    try:
        async with (
            open_host(seed, handlers={STOP: waiting(connect)}, limits=ACCEPT_LIMITS) as host,
            trio.open_nursery() as nursery,
        ):

            async def keep(relay: str) -> None:
                nonlocal failure

                async def good() -> None:
                    await kept.add(relay)
                    told(relay)

                try:
                    await _keep(host, relay, good)
                except HivefsError as error:  # the node's directory is gone, or its settings are damaged
                    failure = error
                    nursery.cancel_scope.cancel()

            for relay in relays:
                nursery.start_soon(keep, relay)
    finally:
        with trio.CancelScope(shield=True), contextlib.suppress(NodeProblem):
            await kept.end()
    if failure is not None:
        raise failure


async def _keep(host: Host, relay: str, good: Callable[[], Awaitable[None]]) -> None:
    """Hold a reservation at a relay until cancelled; ``good`` is called when there is one again."""
    pause, since, said = FIRST_PAUSE, 0.0, set[bool]()
    while True:
        connection = None
        reserved = refused = False
        try:
            connection = await host.dial(relay, timeout=DIAL_SECONDS)
            while True:
                again = await reserve(connection)
                if not reserved:
                    reserved, said, since = True, set(), trio.current_time()
                    log.info("the node is reached through the relay at %s", relay)
                    await good()
                with trio.move_on_after(again):
                    await connection.wait_closed()
                    break
            reason = "the connection ended"
        except NodeProblem:
            raise
        except HivefsError as error:
            reason, refused = str(error).removesuffix("."), isinstance(error, Refused)
        finally:
            if connection is not None:
                with trio.CancelScope(shield=True):
                    await connection.aclose()
        if refused not in said:  # one line of an outage, and one when it is there and does not want us
            said.add(refused)
            log.warning("no reservation at the relay at %s (%s); it is tried again", relay, reason)
        if reserved and trio.current_time() > since + STEADY_SECONDS:  # else it may take us and drop us without end
            pause = FIRST_PAUSE
        await trio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)
