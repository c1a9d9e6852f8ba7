"""``python -m hivefs.daemon.engine``: the engine process. Started by the mount (or by 'hivefs check') with the secrets in
one frame on standard input; says ready or why not on a pipe (daemon/launch.py).

With a mount it serves that; when the mount goes it drains (engine_core.py); when there is nothing left to do and nobody
asked for anything for a while, it ends.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.crypto.keys import VaultKeys
from hivefs.daemon import control, evidence_control, priority
from hivefs.daemon.control_frames import Encoded
from hivefs.daemon.draining import opened_unmounted
from hivefs.daemon.engine_core import Engine, opening
from hivefs.daemon.first_use import never_used
from hivefs.daemon.home import Home, Secrets
from hivefs.daemon.launch import Report, harden, problem_of, take_frame
from hivefs.daemon.looker import Looker
from hivefs.daemon.memory import (
    collect_nothing,
    collect_often,
    keep_buffers,
    keep_small,
    settled,
    switch_often,
)
from hivefs.daemon.network import Conversations
from hivefs.daemon.policy_book import EngineBook
from hivefs.daemon.policy_control import PolicyControl
from hivefs.daemon.policy_nodes import Node
from hivefs.daemon.vault_link import RemoteVault
from hivefs.errors import HivefsError, StoreDamaged, VaultInUse
from hivefs.filesystem import check as metadata_check
from hivefs.formats.member import entry_from_bytes
from hivefs.formats.records import extent_from_bytes
from hivefs.formats.vault import VaultFile
from hivefs.maintenance.check import HiveCheck
from hivefs.maintenance.check import Report as CheckReport
from hivefs.maintenance.checkpoint import SnapshotSource
from hivefs.metadata.snapshot import MetadataSnapshot
from hivefs.model.ids import ChunkId, NodeId
from hivefs.model.node import RosterEntry

log = logging.getLogger("hivefs.daemon.engine")

LINGER_SECONDS = 15.0
BOOTSTRAP_EVERY = 30.0
REVOKED_EVERY = 5.0
MOST_HEARD = 64
SNAPSHOT_SECONDS = 10.0
MEET_SECONDS = 10.0
"""Who asks whether nodes can keep a policy waits so long after a start for nodes to be heard of."""
MOST_NODES = 128
"""Nodes that one answer tells of: to encode it takes half a millisecond."""
AT_ONCE = ("status", "shutdown", "release_metadata")
"""What is answered before the engine has read what it knows of nodes; who asks for more waits for that."""
KEPT_BYTES = 64 << 20
"""Free memory that malloc keeps for the next shares: three stripes on their way are some 30 MiB."""


class Process:
    """The engine with its control socket and its following of the mount."""

    def __init__(self, engine: Engine, conversations: Conversations, home: Home) -> None:
        self._engine = engine
        self._conversations = conversations
        self._home = home
        self._drain: trio.CancelScope | None = None
        self._begun = trio.current_time()
        self._met = False
        self._released = trio.Event()
        self._calls = 0
        self._idle_since = trio.current_time()
        self._metadata: MetadataSnapshot | None = None
        self._heard: set[str] = set()
        self._news = trio.Event()
        self._looker = Looker(home, engine.keys.reading())
        self._looker.on_end = self._looked
        self.stop = trio.Event()

    # ---- control ----------------------------------------------------------------------------------------------------

    def methods(self) -> control.Methods:
        """What this process answers to."""
        engine = self._engine
        methods = control.Methods(
            {
                "status": lambda _: engine.told(),
                "ledger": self._ledger,
                "ledger_nodes": self._ledger_nodes,
                "nodes": self._nodes,
                "hurry": lambda _: engine.hurry(),
                "relays": self._use_relays,
                "learn": lambda value: engine.hear(map(entry_from_bytes, value)),
                "fetch": self._fetch,
                "ahead": self._ahead,
                "load_page": self._load_page,
                "release_metadata": self._release_metadata,
                "shutdown": lambda _: self.stop.set(),
            }
        )
        methods.hold(engine.ready.wait, AT_ONCE)
        methods.add_stream("check", self._check)
        evidence_control.add(methods, engine)
        rules = PolicyControl(EngineBook(engine), self._look, engine.hydration.done.wait, self._asked, self.meeting)
        rules.add_to(methods)
        return methods

    async def begun(self) -> bool:
        """Wait until the engine is ready; False when it was asked to stop before."""
        async with trio.open_nursery() as nursery:

            async def stopped() -> None:
                await self.stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stopped)
            await self._engine.ready.wait()
            nursery.cancel_scope.cancel()
        return not self.stop.is_set()

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Somebody waits for an answer: the engine stays."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._idle_since = trio.current_time()

    async def _nodes(self, value: Any) -> list[dict[str, Any]]:
        """{after, most}: the next nodes in the order of their ids. (null, of a command of an older release: the first.)"""
        return await self._engine.told_nodes(*_page(value))

    async def _ledger(self, value: Any) -> dict[str, Any]:
        """{nodes: false}: the sums alone. (null, of a command of an older release: with all nodes.)"""
        return await self._engine.moving.accounts(value is None)

    async def _ledger_nodes(self, value: Any) -> list[dict[str, Any]]:
        return await self._engine.moving.accounts_of(*_page(value))

    async def _fetch(self, value: Any) -> bytes | list[Any] | None:
        span = value.get("span")
        following = [ChunkId(c) for c in value["next"]]
        piece = await self._engine.fetch(ChunkId(value["chunk"]), following, None if span is None else (span[0], span[1]))
        if piece is None:
            return None
        return piece.data if span is None else [piece.offset, piece.data]

    def _use_relays(self, value: Any) -> bool:
        """Reach nodes through relays or not, from now on."""
        self._conversations.relays = value is True
        if value is not True:
            self._engine.pool.leave_relays()
        return self._conversations.relays

    def _ahead(self, value: Any) -> None:
        self._engine.ahead.want([ChunkId(c) for c in value])

    async def _load_page(self, key: bytes) -> list[Any]:
        low, high, records = await self._engine.load_page(key)
        return [low, high, [[k, v] for k, v in records if k[:1] in b"idmx"]]

    async def _release_metadata(self, _: Any) -> None:
        """A mount wants the metadata: stop draining; answers when the lock is free."""
        if self._drain is not None:
            self._drain.cancel()
            await self._released.wait()

    async def _look(self, kind: str, given: dict[str, Any], nodes: Iterable[Node], report: control.Report) -> Encoded:
        """A question for which files are looked through: all that was written up to now is committed first."""
        (await self._snapshot()).close()
        return await self._looker.ask(kind, given, nodes, report)

    def _looked(self) -> None:
        self._engine.store.drop_dead_readers()
        if self._metadata is not None:  # else the next to open it does that
            self._metadata.drop_dead_readers()

    async def _check(self, value: Any, report: control.Report) -> list[dict[str, Any]] | Encoded:
        with self._asked():
            if value and value.get("placement"):
                # No node is asked, and nothing is waited for: after a recovery what is here already is looked at.
                whole = self._engine.hydration.done.is_set()
                moving = self._engine.moving
                given = {"whole": whole, "elsewhere": moving.reassign.elsewhere, "asking": moving.elsewhere()["asking"]}
                return await self._looker.ask("check_placement", given, (), report)
            return await self._run_check(bool(value and value.get("data")), report)

    async def _run_check(self, data: bool, report: control.Report) -> list[dict[str, Any]]:
        engine = self._engine
        await engine.hydration.done.wait()
        steps: list[tuple[str, int, int]] = []
        check = HiveCheck(engine.store, engine.reader, engine.online, engine.bad_shares.take)
        finished = trio.Event()

        async def tell() -> None:
            while not finished.is_set():
                if steps:
                    await report(list(steps[-1]))
                    steps.clear()
                with trio.move_on_after(0.2):
                    await finished.wait()

        def step(what: str, done: int, total: int) -> None:
            steps.append((what, done, total))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            snapshot = await self._snapshot()
            try:
                named = await trio.to_thread.run_sync(self._check_metadata, snapshot, check, step)
            finally:
                snapshot.close()
            await check.nodes(engine.store.each_node(), len(engine.pool.members), engine.store.damaged_of, step)
            await check.chunks(named, step, self._named_now)
            await check.stripes(step)
            if data:
                await check.data(step)
            finished.set()
        return [{"kind": f.kind, "detail": f.detail, "problem": f.problem} for f in check.findings]

    def _check_metadata(self, snapshot: MetadataSnapshot, check: HiveCheck, step: CheckReport) -> list[ChunkId]:
        """In a worker thread: names, inodes and maps; returns the chunks that files name."""
        snapshot.begin()
        for finding in metadata_check.check(snapshot, lambda count: step("metadata", count, 0)):
            check.found(finding.kind, finding.text, problem=finding.kind != "hydrating")
        return self._named(snapshot, step)

    async def _named_now(self) -> list[ChunkId]:
        snapshot = await self._snapshot()
        try:
            snapshot.begin()
            return await trio.to_thread.run_sync(self._named, snapshot, lambda what, done, total: None)
        finally:
            snapshot.close()

    @staticmethod
    def _named(snapshot: MetadataSnapshot, step: CheckReport) -> list[ChunkId]:
        """In a worker thread: the chunks that files name."""
        named: dict[ChunkId, None] = {}
        for number, (key, value) in enumerate(snapshot.scan(b"m")):
            chunk = None if value is None else extent_from_bytes(int.from_bytes(key[9:], "big"), value).chunk
            if chunk is not None:
                named[chunk.chunk_id] = None
            if number % 5000 == 0:
                step("maps", number, 0)
        return list(named)

    async def _snapshot(self) -> MetadataSnapshot:
        """One for a check, of everything up to now; waits until a mount is served or its absence is noticed."""
        if self._engine.vault is not None:
            with suppress(HivefsError):  # it is being unmounted: then all is committed
                await self._engine.vault.flush()
        with trio.move_on_after(SNAPSHOT_SECONDS):
            while self._metadata is None and not self._lost():  # noqa: ASYNC110 - a mount comes and goes; this waits seldom and briefly
                await trio.sleep(0.05)
        if self._metadata is None:
            reason = "it is not there" if self._lost() else "it cannot be opened now"
            raise StoreDamaged(path=self._home.metadata, reason=reason)
        return self._metadata.another()

    def _lost(self) -> bool:
        """Whether the metadata is gone although the vault was used."""
        there = (self._home.metadata / "data.mdb").exists()
        return not there and not never_used(self._home, self._engine.keys, self._engine.store)

    # ---- following the mount ----------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Serve mounts as they come; drain when there is none; return when there is nothing left to do."""
        while not self.stop.is_set():
            try:
                async with control.connect(self._home.run, "mount") as client:
                    log.info("working for the mount")
                    await self._serve_remote(client)
            except* HivefsError as group:
                log.debug("no mount: %s", group.exceptions[0])
            if await self._engine.disk.keep("drain", self._drain_or_done):
                return
            await trio.sleep(0.3)

    async def _serve_remote(self, client: control.Client) -> None:
        snapshot = MetadataSnapshot(self._home.metadata, self._engine.keys)
        self._metadata = snapshot
        try:
            await self._engine.serve_vault(RemoteVault(client), _fresh(snapshot))
        finally:
            self._metadata = None
            snapshot.close()
            self._idle_since = trio.current_time()

    async def _drain_or_done(self) -> bool:
        """Without a mount: place what is left. True when the engine may end."""
        if self._lost():
            return False  # it is lost: who asks for it hears that, and the nodes can be asked all the same
        try:
            with opened_unmounted(self._home, self._engine.keys, self._engine.store) as drive:
                log.info("no mount: placing what is left")
                self._released = trio.Event()
                with trio.CancelScope() as self._drain:
                    snapshot = MetadataSnapshot(self._home.metadata, self._engine.keys, store=drive.store)
                    self._metadata = snapshot
                    try:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._engine.serve_vault, drive.service, _fresh(snapshot))
                            await self._engine.drained(drive.service)
                            await self._wait_idle()
                            nursery.cancel_scope.cancel()
                    finally:
                        self._metadata = None
                        snapshot.close()
                done = not self._drain.cancelled_caught
        except VaultInUse:
            return False
        finally:
            self._drain = None
            self._released.set()
        return done

    async def _wait_idle(self) -> None:
        """Everything is placed; stay while somebody asks, repair goes on, or data moves to where its policy says."""
        while True:
            quiet = trio.current_time() - self._idle_since
            at_work = self._calls or self._engine.repair.busy or self._engine.moving.busy
            if not at_work and quiet > LINGER_SECONDS:
                return
            if self.stop.is_set():
                return
            await trio.sleep(0.5)

    def meeting(self) -> bool:
        """Whether this process has just started and did not hear of its nodes from those of the vault file yet."""
        return not self._met and trio.current_time() - self._begun < MEET_SECONDS

    async def bootstrap(self) -> None:
        """Learn nodes: every address of the vault file is asked once, then some node that is online now and then."""
        unasked = set(self._home.vault.nodes)
        while True:
            for address in sorted(unasked):
                try:
                    async with self._conversations.with_address(address) as client:
                        await self._engine.hear(await client.get_roster())
                    unasked.discard(address)
                except HivefsError as error:
                    log.debug("bootstrap: %s", error)
            self._met = self._met or len(unasked) < len(self._home.vault.nodes)
            with trio.move_on_after(BOOTSTRAP_EVERY if self._engine.pool.members else 1.0):
                await self.stop.wait()
            if self._engine.store.damaged and not self._engine.pool.online():
                unasked = set(self._home.vault.nodes)  # nobody else can tell where the nodes are
            await self._ask_one(self._learn_from)

    def hear(self, address: str) -> None:
        """The local network says that a node of this hive is there."""
        if len(self._heard) < MOST_HEARD:
            self._heard.add(address)
            self._news.set()

    async def listen(self) -> None:
        """Look for nodes on the local network, and ask those found for the roster until they gave it."""
        from hivefs.daemon.lan import search  # loads zeroconf: only where it is wanted

        async with trio.open_nursery() as nursery:
            nursery.start_soon(search, self._home.vault.hive_key, self.hear)
            while True:
                with trio.move_on_after(BOOTSTRAP_EVERY):
                    await self._news.wait()
                self._news = trio.Event()
                for address in sorted(self._heard):
                    try:
                        async with self._conversations.with_address(address) as client:
                            await self._engine.hear(_told_by_itself(await client.get_roster(), client.node_id))
                        self._heard.discard(address)
                    except HivefsError as error:
                        log.debug("local network: %s", error)
                await trio.sleep(1.0)

    async def watch_revoked(self) -> None:
        """Ask now and then for a newer revocation list and for news of nodes, each time another node: one alone could hide
        them.
        """
        while True:
            await trio.sleep(REVOKED_EVERY)
            await self._ask_one(self._engine.compare_revoked)
            await self._ask_one(self._engine.news.compare)

    async def _learn_from(self, client: NodeClient) -> None:
        await self._engine.hear(await client.get_roster())

    async def _ask_one(self, ask: Callable[[NodeClient], Awaitable[object]]) -> None:
        """Some node that is online, if there is one."""
        clients = [client for _, client in self._engine.online()]
        if clients:
            try:
                await ask(random.choice(clients))
            except HivefsError as error:
                log.debug("a question for who belongs: %s", error)


def _page(value: Any) -> tuple[NodeId | None, int]:
    """After which node, and how many at most, an answer is to tell of."""
    if value is None:
        return None, MOST_NODES
    return None if value["after"] is None else NodeId(value["after"]), min(MOST_NODES, int(value["most"]))


def _told_by_itself(entries: list[RosterEntry], node_id: NodeId) -> list[RosterEntry]:
    """A roster without the node that gave it, when its invitation has ended: whoever found an old invitation may announce
    itself on a network. That it joined in time is what other nodes know.
    """
    now = time.time_ns()

    def late(entry: RosterEntry) -> bool:
        invitation = entry.membership.invitation
        return entry.membership.subject == node_id and invitation is not None and now > invitation.expires_ns

    return [entry for entry in entries if not late(entry)]


def _fresh(snapshot: MetadataSnapshot) -> SnapshotSource:
    """Each is a transaction of its own: what reads it may take its time."""

    @contextmanager
    def begun() -> Iterator[MetadataSnapshot]:
        made = snapshot.another()
        made.begin()
        try:
            yield made
        finally:
            made.close()

    return begun


async def serve(home: Home, secrets: Secrets, report: Report) -> None:
    """Run until there is nothing left to do, or asked to stop."""
    vault = home.vault
    keys = secrets.keys()
    # The signal receiver is the outermost: a second signal while the engine ends must not kill it half-way.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        await _serve(home, secrets, vault, keys, report, signals)
    log.info("engine ended")


async def _serve(
    home: Home, secrets: Secrets, vault: VaultFile, keys: VaultKeys, report: Report, signals: AsyncIterator[int]
) -> None:
    collect_nothing()
    async with (
        Conversations.open(secrets.device_seed, keys, vault.hive_key, vault.membership) as conversations,
        opening(home, secrets, conversations.with_node) as engine,
        trio.open_nursery() as nursery,
    ):
        process = Process(engine, conversations, home)
        conversations.revoked = engine.covers
        conversations.relays = bool(vault.setting("relays"))
        await nursery.start(control.serve, home.run, "engine", process.methods())
        nursery.start_soon(_signals, process, signals)
        if not await process.begun():
            nursery.cancel_scope.cancel()
            return
        nursery.start_soon(process.bootstrap)
        nursery.start_soon(process.watch_revoked)
        if vault.setting("lan"):
            nursery.start_soon(process.listen)
        if port := vault.setting("metrics_port"):
            from hivefs.daemon import engine_metrics  # loads prometheus_client: only where it is wanted

            nursery.start_soon(engine_metrics.serve, port, engine.told)
        settled()
        collect_often()
        switch_often()
        nursery.start_soon(keep_small)
        report.ready({})
        log.info("engine ready")
        await _until_stopped(process)
        nursery.cancel_scope.cancel()


async def _until_stopped(process: Process) -> None:
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            await process.follow()
            nursery.cancel_scope.cancel()

        nursery.start_soon(follow)
        await process.stop.wait()
        nursery.cancel_scope.cancel()


async def _signals(process: Process, signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        process.stop.set()


def main() -> int:
    """The process. Returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    priority.give_way(priority.ENGINE)
    keep_buffers(KEPT_BYTES, arenas=1)
    harden()
    frame, report = take_frame()
    try:
        home = Home.load(Path(frame["home"]))
        secrets = Secrets.from_bytes(frame["secrets"])
        trio.run(serve, home, secrets, report)
    except (HivefsError, BaseExceptionGroup) as problem:
        error = problem_of(problem)
        if error is None:
            raise
        log.error("%s", error)
        report.failed(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
