"""What a node does by itself: rereading its shares, forgetting what nobody leased any more, keeping its lease clock."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from hivefs.errors import DiskFull
from hivefs.model.ids import ShareId
from hivefs.node.events import Events
from hivefs.node.leases import GRACE_NS, SKEW_NS, LeaseClock
from hivefs.node.store import FANOUT, ShareStore
from hivefs.node.threads import in_thread

SCRUB_BYTES_PER_SECOND = 1 << 20
"""Slow enough to be unnoticed; a terabyte takes twelve days."""

SCRUB_SHARES_PER_SECOND = 20.0
"""However small they are: each costs a seek and a thread. A million take fourteen hours."""

SCRUB_PAGE = 64
SWEPT = "all shares were looked for"
"""Said when a node has gone through its files after a start; a million take it a minute or more."""

COLLECT_SECONDS = 600.0
CLOCK_SECONDS = 60.0
SECOND_NS = 10**9


def _running_ns() -> int:
    return int(trio.current_time() * SECOND_NS)


class Upkeep:
    """Loops over one store. ``clock`` gives ns since 1970; while ``leaving`` is true, shares whose leases ended go after a
    day, not after a month.
    """

    def __init__(
        self,
        store: ShareStore,
        lease_clock: LeaseClock,
        clock: Callable[[], int],
        events: Events,
        scrub_rate: float = SCRUB_BYTES_PER_SECOND,
    ) -> None:
        self._store = store
        self._lease_clock = lease_clock
        self._clock = clock
        self._events = events
        self._rate = scrub_rate
        self.leaving = False

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_and_scrub)
            nursery.start_soon(self._collect)
            nursery.start_soon(self._keep_time)

    async def _sweep_and_scrub(self) -> None:
        """What a killed process left behind goes first; it harms nobody meanwhile, so the node serves already. All is
        looked at again when the scrub finds that directories are gone: share after share that would take days.
        """
        while True:
            await self._sweep()
            await self._scrub()

    async def _sweep(self) -> None:
        orphans = lost = 0
        for number in range(FANOUT):
            began = trio.current_time()
            try:
                swept = await in_thread(self._store.sweep_some, number)
            except (DiskFull, OSError) as error:
                self._events.say("sweep", str(error), logging.ERROR)
                continue
            orphans += swept.orphans
            lost += swept.lost
            await trio.sleep(trio.current_time() - began)  # at most half of the disk's time
        found = f"{orphans} files without entry removed, {lost} shares without file dropped"
        self._events.say("sweep", f"{SWEPT}: {found}" if orphans or lost else SWEPT)

    async def _scrub(self) -> None:
        """Reread one share after the other; returns when the directories of shares are not there."""
        after = (await in_thread(self._store.index.info, "scrubbed")) or b""
        while True:
            page = self._store.index.shares(after, SCRUB_PAGE)
            for share_id, size in page:
                try:
                    intact = await in_thread(self._store.scrub, share_id, size)
                except DiskFull as error:
                    self._events.say("disk full", str(error), logging.ERROR)
                    intact = True
                if not intact:
                    self._events.say("damaged share", "a share was damaged on disk and dropped", logging.ERROR)
                    if not self._store.has_place(share_id):
                        return
                await trio.sleep(max(size / self._rate, 1 / SCRUB_SHARES_PER_SECOND))
            after = page[-1][0] if page else b""
            await self._save("scrubbed", after)
            if len(page) < SCRUB_PAGE:
                await trio.sleep(CLOCK_SECONDS)
                after = ShareId(b"")

    async def _save(self, name: str, value: bytes) -> None:
        try:
            await in_thread(self._write, name, value)
        except DiskFull as error:
            self._events.say("disk full", str(error), logging.ERROR)

    def _write(self, name: str, value: bytes) -> None:
        with self._store.lock, self._store.index.writing() as change:
            change.save_info(name, value)

    def _keep_reserve(self) -> None:
        self._store.reserve.keep(self._store.free_on_disk())

    async def _collect(self) -> None:
        while True:
            before = self._lease_clock.now_ns - (SKEW_NS if self.leaving else GRACE_NS)
            try:
                freed = await in_thread(self._store.collect, before, 1 << 60)
            except DiskFull as error:
                self._events.say("disk full", str(error), logging.ERROR)
                freed = 0
            if freed:
                self._events.say("leases", f"{freed} bytes are free again, their leases ended long ago")
            await trio.sleep(COLLECT_SECONDS)

    async def _keep_time(self) -> None:
        while True:
            now = self._lease_clock.observe(self._clock(), _running_ns())
            if self._lease_clock.doubtful:
                self._events.say("clock", "the clock has jumped ahead; leases do not follow it yet", logging.WARNING)
            await self._save("clock", now.to_bytes(8, "big"))
            await in_thread(self._keep_reserve)
            await trio.sleep(CLOCK_SECONDS)


def open_lease_clock(store: ShareStore, now_ns: int) -> LeaseClock:
    """The lease clock as it was saved; to be called inside trio."""
    saved = store.index.info("clock")
    return LeaseClock(int.from_bytes(saved or b"", "big"), now_ns, _running_ns())
