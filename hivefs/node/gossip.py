"""How nodes learn of each other: at the start and every minute each asks a few for their roster and gives its own entry.

Entries are signed by the hive's owner and by the node they speak of, so they may be taken from anyone. Asking three
nodes a minute spreads a new entry through a hive of n nodes within some log2(n) minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from hivefs.chunkstore.node_client import PROTOCOL, converse
from hivefs.errors import HivefsError
from hivefs.formats import member
from hivefs.model.node import RosterEntry
from hivefs.node.events import Events
from hivefs.node.ports import Host
from hivefs.node.roster import Roster
from hivefs.protocol.client_side import Credentials

EVERY_SECONDS = 60.0
PEERS = 3
ASK_SECONDS = 20.0


class Gossip:
    """``choose(count, n)`` gives up to ``count`` different numbers below n (random ones in production)."""

    def __init__(
        self,
        host: Host,
        credentials: Credentials,
        roster: Roster,
        own: Callable[[], RosterEntry],
        bootstrap: Sequence[str],
        events: Events,
        clock: Callable[[], int],
        choose: Callable[[int, int], Sequence[int]],
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._roster = roster
        self._own = own
        self._bootstrap = bootstrap
        self._events = events
        self._clock = clock
        self._choose = choose
        self._news = trio.Event()

    def tell(self) -> None:
        """Our entry has changed: exchange with some nodes now, and not when it is time."""
        self._news.set()

    async def run(self) -> None:
        """Exchange until cancelled: first with all bootstrap addresses, then with them and others in turn."""
        targets = [[address] for address in self._bootstrap]
        while True:
            async with trio.open_nursery() as nursery:
                for addresses in targets:
                    nursery.start_soon(self._exchange, addresses)
            self._news = trio.Event()
            with trio.move_on_after(EVERY_SECONDS):
                await self._news.wait()
            targets = self._targets()

    def _targets(self) -> list[list[str]]:
        me = self._own().address.node_id
        others = [list(e.address.reachable) for e in self._roster.entries() if e.address.node_id != me]
        others = [addresses for addresses in others if addresses]
        chosen = [others[i] for i in self._choose(PEERS, len(others))]
        if len(others) < PEERS:
            chosen += [[address] for address in self._bootstrap]
        return chosen

    async def _exchange(self, addresses: list[str]) -> None:
        with trio.move_on_after(ASK_SECONDS) as scope:
            for address in addresses:
                try:
                    await self._ask(address)
                    return
                except HivefsError as error:
                    self._events.say("no roster", str(error))
        if scope.cancelled_caught:
            self._events.say("no roster", f"the node at {addresses[0]} was too slow")

    async def _ask(self, address: str) -> None:
        connection = await self._host.dial(address, timeout=ASK_SECONDS)
        try:
            stream = await connection.open_stream(PROTOCOL)
            async with converse(stream, self._credentials, self._clock()) as client:
                await client.put_roster([self._own()])
                blobs = [member.entry_to_bytes(entry) for entry in await client.get_roster()]
            news = await trio.to_thread.run_sync(self._roster.take, blobs, self._clock())
            if news:
                self._events.say("roster", f"{news} entries were news")
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()
