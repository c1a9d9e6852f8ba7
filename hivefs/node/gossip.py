"""How nodes learn of each other: at the start and every minute each asks a few for their roster and gives its own entry.

Entries are signed by the hive's owner and by the node they speak of, so they may be taken from anyone. Asking three
nodes a minute spreads a new entry through a hive of n nodes within some log2(n) minutes. A newer revocation list and the
use of an invitation do not wait for the minute: who hears of one passes it on at once, so they take some log2(n) seconds.

The roster is kept in the store, so after a restart others are asked too, not only the bootstrap addresses of node.json;
and a node whose address changed tells it in its first round, and is found by all who ask those it told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import trio

from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse
from hivefs.errors import ConnectionLost, HivefsError, Refused
from hivefs.formats import attestation, member
from hivefs.model.attestation import Statement
from hivefs.model.node import Membership, RosterEntry
from hivefs.node.answering import Answerer
from hivefs.node.events import Events
from hivefs.node.ports import Host
from hivefs.node.sums import digest_of
from hivefs.node.threads import in_thread
from hivefs.protocol.client_side import Credentials
from hivefs.protocol.failures import Refusal

EVERY_SECONDS = 60.0
LEAST_SECONDS = 1.0
"""Between two rounds, whatever is news: what many hear at once must not make a storm."""

PEERS = 3
MOST_HEARD = 8
"""Addresses found on the LAN that are asked beside the others."""

ASK_SECONDS = 20.0
MOST_OLD = 1024
"""Addresses of nodes that did not know a question for news, which are remembered."""

OLD_SECONDS = 600.0
"""For so long they are not asked it again. (It may have been the line.)"""


@dataclass(frozen=True)
class _Fresh:
    """What is news and goes to all who are asked in a round: uses of invitations, entries of nodes, their statements."""

    members: list[bytes]
    entries: list[bytes]
    statements: list[bytes]


class Gossip:
    """``choose(count, n)`` gives up to ``count`` different numbers below n (random ones in production)."""

    def __init__(
        self,
        host: Host,
        credentials: Credentials,
        answerer: Answerer,
        own: Callable[[], RosterEntry],
        bootstrap: Sequence[str],
        events: Events,
        clock: Callable[[], int],
        choose: Callable[[int, int], Sequence[int]],
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._answerer = answerer
        self._roster = answerer.roster
        self._members = answerer.members
        self._own = own
        self._bootstrap = list(bootstrap)
        self._heard: list[str] = []
        self._events = events
        self._clock = clock
        self._choose = choose
        self._hurry = trio.Event()
        self._push = trio.Event()
        self._old: dict[str, float] = {}

    def renew(self, membership: Membership) -> None:
        """Our own certificate is another now."""
        self._credentials = replace(self._credentials, membership=membership)

    def hear(self, address: str) -> None:
        """An address at which a node of this hive seems to be (found on the LAN): it is asked soon."""
        if address not in self._heard and address not in self._bootstrap:
            self._heard = [address, *self._heard][:MOST_HEARD]
            self._hurry.set()

    def tell(self) -> None:
        """Our entry has changed: exchange with some nodes now, and not when it is time."""
        self._hurry.set()

    def push(self) -> None:
        """Others have news of nodes: pass them on now, without comparing all that is known."""
        self._push.set()

    async def run(self) -> None:
        """Exchange until cancelled: first with all bootstrap addresses and some others, then with others in turn."""
        targets = [[address] for address in self._bootstrap]
        targets += [t for t in self._targets() if t not in targets]
        whole_at = -EVERY_SECONDS
        while True:
            news, self._hurry, self._push = self._members.news, trio.Event(), trio.Event()
            whole = trio.current_time() >= whole_at
            if whole:
                whole_at = trio.current_time() + EVERY_SECONDS
            await self._round(targets, whole)
            await trio.sleep(min(LEAST_SECONDS, EVERY_SECONDS))
            with trio.move_on_after(max(0.0, whole_at - trio.current_time())):
                await _first_of(news, self._hurry, self._push)
                if news.is_set() or self._hurry.is_set():
                    whole_at = trio.current_time()
            targets = self._targets()

    async def _round(self, targets: list[list[str]], whole: bool) -> None:
        answerer = self._answerer
        fresh = _Fresh(self._members.fresh(), self._roster.fresh.take(), answerer.statements.fresh.take())
        async with trio.open_nursery() as nursery:
            for addresses in targets:
                nursery.start_soon(self._exchange, addresses, fresh, whole)

    def _targets(self) -> list[list[str]]:
        me = self._own().address.node_id
        others = [list(e.address.reachable) for e in self._roster.entries() if e.address.node_id != me]
        others = [addresses for addresses in others if addresses]
        chosen = [others[i] for i in self._choose(PEERS, len(others))]
        if len(others) < PEERS:
            chosen += [[address] for address in self._bootstrap]
        return chosen + [[address] for address in self._heard]

    async def _exchange(self, addresses: list[str], fresh: _Fresh, whole: bool) -> None:
        with trio.move_on_after(ASK_SECONDS) as scope:
            for address in addresses:
                try:
                    await self._ask(address, fresh, whole)
                    return
                except HivefsError as error:
                    self._events.say("no roster", str(error))
                except Refusal as refusal:
                    self._events.say("no roster", refusal.text)
                    return
        if scope.cancelled_caught:
            self._events.say("no roster", f"the node at {addresses[0]} was too slow")

    async def _ask(self, address: str, fresh: _Fresh, whole: bool) -> None:
        connection = await self._host.dial(address, timeout=ASK_SECONDS)
        try:
            stream = await connection.open_stream(PROTOCOL)
            async with converse(stream, self._credentials, self._clock()) as client:
                await self._compare(client, fresh.members)
                others = [member.entry_from_bytes(blob) for blob in fresh.entries]
                await client.put_roster([self._own(), *others])
                if whole:
                    blobs = [member.entry_to_bytes(entry) for entry in await client.get_roster()]
                    news = await self._answerer.take_roster(blobs)
                    if news:
                        self._events.say("roster", f"{news} entries were news")
                if self._old.get(address, 0.0) <= trio.current_time() and (whole or fresh.statements):
                    await self._statements(client, address, fresh.statements, whole)
        finally:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def _statements(self, client: NodeClient, address: str, fresh: list[bytes], whole: bool) -> None:
        """Last in an exchange: a node of before there were statements ends the conversation at this question."""
        try:
            theirs = await client.news()
        except (ConnectionLost, Refused) as error:
            if len(self._old) < MOST_OLD or address in self._old:
                self._old[address] = trio.current_time() + OLD_SECONDS
            self._events.say("no news", str(error))
            return
        if fresh:
            await client.put_statements(fresh)
            theirs = await client.news()
        own = (await in_thread(self._answerer.statements.sums)).whole
        if whole and theirs.statements != own:
            known: set[int] = set()

            async def take(page: list[Statement]) -> None:
                blobs = [attestation.statement_to_bytes(made) for made in page]
                known.update(map(digest_of, blobs))
                await self._answerer.take_statements(blobs)

            await client.get_statements(take)
            rest = await in_thread(self._answerer.statements.others, known)
            if rest:
                await client.put_statements(rest)

    async def _compare(self, client: NodeClient, fresh: list[bytes]) -> None:
        """First who does not belong any more, then who joined: entries of the roster count by that."""
        theirs = await client.hive_state()
        if theirs.revoked > self._members.sequence:
            revoked = await client.get_revoked()
            if revoked is not None and await self._answerer.take_revoked(revoked):
                self._events.say("revoked", f"revocation list {self._members.sequence} was taken")
        elif theirs.revoked < self._members.sequence:
            for blob in self._members.revoked_page():
                await client.put_revoked(blob)
        if theirs.members == self._members.digest:
            return
        if fresh:
            await client.put_members(fresh)
            theirs = await client.hive_state()
        if theirs.members != self._members.digest:
            blobs = [member.member_to_bytes(made) for made in await client.get_members()]
            await self._answerer.take_members(blobs)


async def _first_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
