"""The mount's side of the engine: its book (read-only), its control socket, and keeping its process alive.

The drive never waits for any of this but where it must: reading a chunk, or after a recovery a page of the metadata,
that is not on this machine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio
import trio.lowlevel

from hivefs.chunkstore.source import Piece
from hivefs.crypto.keys import VaultKeys
from hivefs.daemon import control, launch
from hivefs.daemon.home import Home
from hivefs.errors import BadPolicy, Corrupt, EngineUnavailable, HivefsError, StoreDamaged, UnknownVersion
from hivefs.metadata.engine_store import EngineReader
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import ChunkPlace, Level, Stripe

log = logging.getLogger(__name__)

ENGINE_MODULE = "hivefs.daemon.engine"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_SECONDS = 60.0
"""An engine that lived this long died of something new: it is restarted at once again."""
START_SECONDS = 60.0
GRACE_SECONDS = 5.0
HYDRATE_RETRY = 2.0


UNREADABLE = BadPolicy, Corrupt, UnknownVersion
"""What a text of policies raises that another version of HiveFS wrote. The engine, which says so, places nothing then."""


class LazyBook:
    """EngineReader that may not be there yet: the engine makes its store when it runs for the first time."""

    def __init__(self, home: Home, keys: VaultKeys) -> None:
        self._home = home
        self._key = keys.engine_key
        self._reader: EngineReader | None = None

    def _open(self) -> EngineReader | None:
        if self._reader is None and (self._home.engine / "data.mdb").exists():
            try:
                self._reader = EngineReader(self._home.engine, self._key, self._home.policy())
            except StoreDamaged as error:  # being made this moment, or really damaged: the engine will say
                log.warning("the engine's store cannot be read: %s", error)
        return self._reader

    def place(self, chunk_id: ChunkId) -> ChunkPlace | None:
        """Where a chunk lies."""
        reader = self._open()
        return None if reader is None else reader.place(chunk_id)

    def stripe(self, stripe_id: StripeId) -> Stripe | None:
        """A stripe."""
        reader = self._open()
        return None if reader is None else reader.stripe(stripe_id)

    def stripe_level(self, stripe_id: StripeId, policy: str = "") -> Level:
        """Its level now; LOCAL while that cannot be known."""
        reader = self._open()
        try:
            return Level.LOCAL if reader is None else reader.stripe_level(stripe_id, policy)
        except UNREADABLE:
            return Level.LOCAL

    def paths(self) -> Mapping[str, str]:
        """Places in the drive with the names of their policies; none while the text cannot be read."""
        reader = self._open()
        try:
            return {} if reader is None else reader.paths()
        except UNREADABLE:
            return {}

    def explained(self, stripe_id: StripeId) -> dict[str, Any]:
        """See EngineReader."""
        reader = self._open()
        try:
            return {} if reader is None else reader.explained(stripe_id)
        except UNREADABLE:
            return {}

    def metadata_level(self) -> Level:
        """The level of the last checkpoint."""
        reader = self._open()
        return Level.LOCAL if reader is None else reader.metadata_level()

    def close(self) -> None:
        """Close it if it was opened."""
        if self._reader is not None:
            self._reader.close()


class PageStore(Protocol):
    """Where a page of the metadata tree goes (metadata/store.py)."""

    def load_page(self, low: bytes, high: bytes | None, records: Iterable[tuple[bytes, bytes]]) -> int: ...
    def unloaded(self) -> tuple[bytes, bytes | None] | None: ...


class EngineLink:
    """A connection that is there whenever the engine is. ``deadline`` seconds bound each question of a reader."""

    def __init__(self, home: Home, deadline: float) -> None:
        self._home = home
        self._deadline = deadline
        self._client: control.Client | None = None
        self._arrived = trio.Event()
        self._starting = False
        self._loading: dict[bytes, trio.Event] = {}

    @property
    def connected(self) -> bool:
        """Whether the engine answers."""
        return self._client is not None

    async def call(self, name: str, value: Any = None) -> Any:
        """Ask the engine. One that is just (re)starting is waited for: some seconds until it is started, and then as long
        as that takes, within the deadline of a question. Raises HivefsError.
        """
        if self._client is None:
            await self._arrival()
        if self._client is None:
            raise EngineUnavailable(reason="it is not running", log=self._home.engine_log)
        return await self._client.call(name, value, timeout=self._deadline)

    async def _arrival(self) -> None:
        with trio.move_on_after(self._deadline):
            while True:
                starting = self._starting
                with trio.move_on_after(GRACE_SECONDS):
                    await self._arrived.wait()
                if self._client is not None or not (starting or self._starting):
                    return

    async def fetch(
        self, chunk_id: ChunkId, following: Sequence[ChunkId], span: tuple[int, int] | None = None
    ) -> Piece | None:
        """See chunkstore.source.Fetch."""
        asked = {"chunk": chunk_id, "next": list(following), "span": None if span is None else list(span)}
        match await self.call("fetch", asked):
            case bytes(sealed):
                return Piece(0, sealed)
            case [int(offset), bytes(data)]:
                return Piece(offset, data)
        return None

    async def ahead(self, following: Sequence[ChunkId]) -> None:
        """These chunks are likely to be read next."""
        await self.call("ahead", list(following))

    def loader(self, store: PageStore) -> Callable[[bytes], Coroutine[Any, Any, None]]:
        """A fuse Loader that asks the engine for pages of the metadata and puts them into ``store``."""

        async def load(key: bytes) -> None:
            flight = self._loading.get(key)
            if flight is not None:
                await flight.wait()
                return
            self._loading[key] = trio.Event()
            try:
                low, high, records = _page(await self.call("load_page", key))
                store.load_page(low, high, records)
            finally:
                self._loading.pop(key).set()

        return load

    async def hydrate(self, store: PageStore, load: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        """After a recovery: bring the rest of the metadata to this machine in the background, page after page."""
        while (gap := store.unloaded()) is not None:
            try:
                await load(gap[0])
            except HivefsError as error:
                log.info("loading the metadata waits: %s", error)
                await trio.sleep(HYDRATE_RETRY)
            await trio.lowlevel.checkpoint()

    # ---- keeping it alive -------------------------------------------------------------------------------------------

    async def supervise(self, secrets: bytes, *, start: bool = True) -> None:
        """Stay connected, starting the engine when nobody answers, with growing pauses. Until cancelled."""
        pause = FIRST_PAUSE
        while True:
            begun = trio.current_time()
            try:
                async with control.connect(self._home.run, "engine") as client:
                    self._client = client
                    self._arrived.set()
                    await client.lost.wait()
                log.warning("the engine is gone")
            except HivefsError:
                if start and await self._start(secrets):
                    continue
            finally:
                self._client = None
                if self._arrived.is_set():
                    self._arrived = trio.Event()
            if trio.current_time() - begun > STEADY_SECONDS:
                pause = FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _start(self, secrets: bytes) -> bool:
        frame = {"home": str(self._home.path), "secrets": secrets}

        def failure(reason: str) -> HivefsError:
            return EngineUnavailable(reason=reason, log=self._home.engine_log)

        self._starting = True
        try:
            await trio.to_thread.run_sync(
                lambda: launch.start(ENGINE_MODULE, frame, self._home.engine_log, failure, timeout=START_SECONDS),
                abandon_on_cancel=True,
            )
        except HivefsError as error:
            log.warning("%s", error)
            return False
        finally:
            self._starting = False
        return True


def _page(value: Any) -> tuple[bytes, bytes | None, list[tuple[bytes, bytes]]]:
    try:
        low, high, records = value
        pairs = [(key, record) for key, record in records]
    except (TypeError, ValueError):
        raise Corrupt(what="a page from the engine", reason="its form is wrong") from None
    if not (isinstance(low, bytes) and (high is None or isinstance(high, bytes))):
        raise Corrupt(what="a page from the engine", reason="its bounds are wrong")
    if not all(isinstance(key, bytes) and isinstance(record, bytes) for key, record in pairs):
        raise Corrupt(what="a page from the engine", reason="its records are wrong")
    return low, high, pairs
