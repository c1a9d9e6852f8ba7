"""A drive, wired: stores, file system, FUSE session and the control methods of the mount process."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from hivefs.chunkstore.cache import CacheReader
from hivefs.chunkstore.source import CachedChunks
from hivefs.crypto.keys import VaultKeys
from hivefs.daemon import control
from hivefs.daemon.control_values import level_of
from hivefs.daemon.engine_link import EngineLink, LazyBook
from hivefs.daemon.first_use import open_or_make
from hivefs.daemon.home import Home
from hivefs.daemon.memory import keep_small
from hivefs.daemon.warming import Warming
from hivefs.errors import EngineUnavailable, NotMounted, StoreDamaged, VaultInUse
from hivefs.filesystem.courtesy import Courtesy
from hivefs.filesystem.filesystem import Filesystem
from hivefs.filesystem.service import VaultService
from hivefs.fuse.mounting import MountOptions
from hivefs.fuse.operations import DriveOperations
from hivefs.fuse.session import Session
from hivefs.metadata.store import MetadataStore
from hivefs.stage.log import StageLog

log = logging.getLogger(__name__)

_CLOCK_REALTIME_COARSE = 5
DRAIN_SECONDS = 30.0
"""How long a draining engine may take to let the metadata go."""
LAST_ANSWERS_SECONDS = 2.0
TRIES = 10
"""An engine that let the metadata go takes it again when this process is slow."""
TRY_AGAIN_SECONDS = 0.2


def kernel_clock() -> int:
    """Nanoseconds since 1970 by the clock that the kernel itself stamps files with (ticks of 1 to 10 ms).

    With it a file that is made and written within one tick has the times the kernel expects, and the write-back cache
    needs no request to correct them.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


@dataclass(frozen=True, slots=True)
class DriveOptions:
    """``mount`` as for fusermount3; ``engine``: whether the mount starts and restarts the engine."""

    mount: MountOptions = field(default_factory=MountOptions)
    engine: bool = True


async def open_metadata(home: Home, keys: VaultKeys, holder: str) -> MetadataStore:
    """The metadata of the vault, with its lock. An engine that drains it is asked to let go. Raises VaultInUse when
    another mount has it, StoreDamaged when it is gone although the vault was used before.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return open_or_make(home, keys, holder)
        except VaultInUse as problem:
            if attempt == TRIES or not await _drained(home):
                raise
            log.info("the engine lets the metadata go (%s)", problem.mountpoint)
        except StoreDamaged as problem:
            if attempt == TRIES or problem.path != home.engine:
                raise
            await trio.sleep(TRY_AGAIN_SECONDS)  # an engine that runs for the first time makes its store this moment
    raise StoreDamaged(path=home.metadata, reason="its lock is taken again and again")


async def _drained(home: Home) -> bool:
    """Whether an engine (and not another mount) held the metadata and let it go."""
    try:
        async with control.connect(home.run, "mount", timeout=1):
            return False
    except NotMounted:
        pass
    try:
        async with control.connect(home.run, "engine") as engine:
            await engine.call("release_metadata", timeout=DRAIN_SECONDS)
    except EngineUnavailable:
        return False
    return True


class Drive:
    """One open vault at one mount point. ``open`` takes the stores, ``run`` mounts and serves, ``close`` gives back."""

    def __init__(self, home: Home, keys: VaultKeys, store: MetadataStore, options: DriveOptions, where: Path) -> None:
        setting = home.vault.setting
        self.home = home
        self.mountpoint = where
        self._options = options
        self._store = store
        self._stage = StageLog(
            home.stage, keys.stage_key, os.urandom, reserve_bytes=setting("reserve_bytes"), restore=store.take_pieces()
        )
        self._book = LazyBook(home, keys)
        self._shares = CacheReader(home.cache)
        self.engine = EngineLink(home, float(setting("read_deadline_s")) + 5.0)
        chunks = CachedChunks(keys.vault_id, self._book, self._shares, self.engine.fetch, self.engine.ahead)
        self._give_hints = chunks.give_hints
        self.filesystem = Filesystem(
            store,
            self._stage,
            chunks,
            clock=kernel_clock,
            placements=self._book,
            owner=(os.getuid(), os.getgid()),
        )
        self._load = self.engine.loader(store)
        self._warming = Warming(home.metadata / "data.mdb")
        store.on_cold = self._warming.met
        self._operations = DriveOperations(self.filesystem, self._load)
        self._session = Session(self._operations, where, options.mount)
        courtesy = Courtesy(self._session.load, kernel_clock)
        self.service = VaultService(self.filesystem, os.urandom(16), courtesy)
        self._ending = False
        self._committed = trio.Event()

    @staticmethod
    async def open(home: Home, keys: VaultKeys, options: DriveOptions, where: Path) -> Drive:
        """Take the metadata (see open_metadata) and the stage."""
        store = await open_metadata(home, keys, str(where))
        try:
            return Drive(home, keys, store, options, where)
        except BaseException:  # whatever it is, the lock of the metadata must be let go; raised again
            store.close(commit=False)
            raise

    async def run(self, secrets: bytes, ready: Callable[[], None]) -> None:
        """Mount, call ``ready``, and serve until the drive is unmounted; everything is committed on return."""
        self._session.open()
        self.mountpoint = self._session.mountpoint
        async with trio.open_nursery() as nursery:
            methods = self._methods()
            await nursery.start(control.serve, self.home.run, "mount", methods)
            async with trio.open_nursery() as working:
                await working.start(self.filesystem.maintain)
                working.start_soon(lambda: self.engine.supervise(secrets, start=self._options.engine))
                working.start_soon(self.engine.hydrate, self._store, self._load)
                working.start_soon(self._give_hints)
                working.start_soon(keep_small)
                working.start_soon(self._warming.run)
                await working.start(self._session_until_end, working.cancel_scope)
                ready()
            self._ending = True
            with trio.CancelScope(shield=True):
                await self.filesystem.syncfs()
            self._committed.set()
            with trio.move_on_after(LAST_ANSWERS_SECONDS):  # whoever asked for the unmount gets an answer
                await methods.quiet()
            nursery.cancel_scope.cancel()

    async def _session_until_end(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            await self._session.run(task_status)
        finally:
            log.info("unmounted")
            scope.cancel()

    async def unmount(self, *, lazy: bool = False) -> None:
        """Take the drive away and return when all is committed. Raises MountBusy unless ``lazy``."""
        await self._session.unmount(lazy=lazy)
        if not lazy:
            await self._committed.wait()

    def abort(self) -> None:
        """Stop answering, whoever still uses the drive: ``run`` ends and commits."""
        self._session.abort()

    def close(self) -> None:
        """Commit and close the stores."""
        self.filesystem.close()
        self._store.close()
        self._stage.close()
        self._shares.close()
        self._book.close()

    # ---- control ----------------------------------------------------------------------------------------------------

    def _methods(self) -> control.Methods:
        service = self.service
        calls: dict[str, control.Method] = {
            "attach": lambda v: service.attach(),
            "dirty": self._dirty,
            "placed": self._placed,
            "released": lambda v: service.released(v["after"], v["limit"]),
            "released_done": service.released_done,
            "published": service.published,
            "flush": lambda v: service.flush(),
            "policies_of_chunks": lambda v: service.policies_of_chunks(v["after"], v["limit"]),
            "policy_moves": lambda v: service.policy_moves(),
            "calm": lambda v: service.calm(),
            "set_capacity": lambda v: service.set_capacity(v["total"], v["free"]),
            "durability": self._durability,
            "durability_below": lambda v: service.durability_below(v["ino"], level_of(v["level"]), v["budget"]),
            "placement": lambda v: service.placement(v["ino"]),
            "status": self._status,
            "unmount": lambda v: self.unmount(lazy=bool((v or {}).get("lazy"))),
        }
        methods = control.Methods({name: self._while_mounted(call) for name, call in calls.items()})
        methods.add_stream("wait", self._wait)
        return methods

    def _while_mounted(self, call: control.Method) -> control.Method:
        def checked(value: Any) -> Any:
            if self._ending:
                raise NotMounted(home=self.home.path)
            return call(value)

        return checked

    async def _dirty(self, value: Any) -> Any:
        skip = {(ino, slot) for ino, slot in value["skip"]}
        slots = await self.service.dirty(value["limit"], value["quiet_ns"], skip)
        return [control.dirty_slot_to_value(slot) for slot in slots]

    async def _placed(self, value: Any) -> Any:
        results = [(ino, slot, number, control.chunk_ref_from_value(ref)) for ino, slot, number, ref in value["results"]]
        return await self.service.placed(results, value["attached"])

    async def _durability(self, value: Any) -> str:
        return (await self.service.durability(value["ino"])).name.lower()

    async def _status(self, value: Any) -> dict[str, Any]:
        return {
            **await self.service.status(),
            "mountpoint": str(self.mountpoint),
            "pid": os.getpid(),
            "engine_connected": self.engine.connected,
            "session": self.service.session,
        }

    async def _wait(self, value: Any, report: control.Report) -> Any:
        """{"ino", "level"} -> [total, done] when all below ``ino`` has the level; each step is reported the same way.

        The caller sets the limit, by its time-out and by going away.
        """
        level = level_of(value["level"])
        pause = 0.05
        while True:
            if self._ending:
                raise NotMounted(home=self.home.path)
            began = trio.current_time()
            total, done = await self.service.durability_below(value["ino"], level, report=report)
            took = trio.current_time() - began
            if done >= total:
                return [total, done]
            await report([total, done])
            await trio.sleep(pause)
            pause = min(pause * 1.5, max(0.15, min(1.0, 20 * took)))  # looking at many files is work too
