"""Reading a stripe whose nodes give different amounts of their lines: real nodes, conversations over TLS on loopback, and
the real reader. A node at its cap delays nobody for longer than its silence is borne, and is asked no more than before.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import trio
from hive_tools import HIVE, HIVE_KEY, client_certificate, lease, seed_of, within

from hivefs.chunkstore.cache import Cache
from hivefs.chunkstore.node_client import PROTOCOL, NodeClient, converse, credentials
from hivefs.chunkstore.patience import FLOOR, Patience
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import code
from hivefs.model.ids import StripeId
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.node.caps import Caps
from hivefs.node.config import create_node
from hivefs.node.running import Running
from hivefs.node.service import run_node
from hivefs.protocol.frames import Kind
from hivefs.transport import open_host

NEEDED, TOTAL = 4, 6
SHARE_BYTES = 300_000
STRIPES = 4


class World:
    """Six nodes with four stripes: share i of each is on node i."""

    def __init__(self, root: Path, nodes: list[Running], clients: list[NodeClient]) -> None:
        self.root = root
        self.nodes = nodes
        self.clients = clients
        self.stripes: list[Stripe] = []
        self.data: list[tuple[bytes, ...]] = []
        self.bad: list[str] = []

    async def fill(self) -> None:
        for number in range(STRIPES):
            data = tuple(os.urandom(SHARE_BYTES) for _ in range(NEEDED))
            coded = code(NEEDED, TOTAL, data)
            for share, client in zip(coded, self.clients, strict=True):
                await client.put(share.share_id, share.data, lease())
            holders = [client.node_id for client in self.clients]
            shares = tuple(Share(c.share_id, c.merkle_root, n) for c, n in zip(coded, holders, strict=True))
            stripe_id = StripeId(bytes([number]) * 16)
            self.stripes.append(Stripe(stripe_id, Purpose.DATA, NEEDED, SHARE_BYTES, shares, b"p" * 32, 0))
            self.data.append(data)

    def reader(self) -> Reader:
        """With an empty cache."""
        known = {client.node_id: client for client in self.clients}
        pool = SimpleNamespace(client=known.get, change=trio.Event, report=lambda node, problem: self.bad.append(problem))
        cache = Cache(self.root / os.urandom(4).hex(), 1 << 30)
        return Reader(pool, cache, lambda stripe, index, why: self.bad.append(why))  # type: ignore[arg-type]

    def bear(self, seconds: float) -> None:
        """Silence of so long is borne of every node: this machine may stop for longer than a node may be silent."""
        for client in self.clients:
            client._conversation.patience = Patience(seconds)

    def asked(self) -> list[int]:
        """GETs that each node has had so far."""
        return [sum(n.requests.get(Kind.GET, 0) for n in node.meter.days(1)[0][1].values()) for node in self.nodes]


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        nodes: list[Running] = []
        for number in range(TOTAL):
            folder = root / f"node-{number}"
            seed = seed_of(f"node-{number}")
            listen = ("/ip4/127.0.0.1/tcp/0",)
            create_node(folder, listen=listen, capacity=1 << 30, hive_seed=HIVE, seed=seed, now_ns=1)
            nodes.append(await nursery.start(run_node, folder, open_host))
        owner = seed_of("owner")
        host = await stack.enter_async_context(open_host(seed_of("device")))
        who = credentials(owner, host.peer_key, HIVE_KEY, client_certificate(owner))
        clients: list[NodeClient] = []
        for node in nodes:
            connection = await host.dial(node.addresses[0])
            stream = await connection.open_stream(PROTOCOL)
            clients.append(await stack.enter_async_context(converse(stream, who, time.time_ns())))
        made = World(root, nodes, clients)
        await made.fill()
        yield made
        nursery.cancel_scope.cancel()


def test_a_capped_node_delays_nobody_and_is_not_asked_for_more(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as made:
            made.bear(60.0)
            reader = made.reader()
            for number, stripe in enumerate(made.stripes):
                for index in range(NEEDED):
                    assert await reader.data_share(stripe, index) == made.data[number][index]
            assert made.asked() == [STRIPES] * NEEDED + [0, 0], "all are quick: one request for each share, no hedge"

            # One share of it takes six seconds; the first goes at once (an idle line), what comes then waits or is refused.
            made.nodes[0].streams.line.caps = Caps(upload=50_000)
            before, reader = made.asked(), made.reader()
            times = []
            for number, stripe in enumerate(made.stripes):
                if number:
                    made.clients[0]._conversation.patience = Patience()
                began = trio.current_time()
                assert await reader.data_share(stripe, 0) == made.data[number][0]
                times.append(trio.current_time() - began)
            asked = [now - then for now, then in zip(made.asked(), before, strict=True)]
            assert asked[0] == STRIPES, "each share once from its own node, however late it was"
            others = asked[1:]
            assert max(others) <= STRIPES - 1, "the first came without anybody's help"
            assert sum(others) == NEEDED * (STRIPES - 1), "k others for each that was late, and no more"
            for took in times[1:]:
                assert took < 6.0 - 1.0, "sooner than the node would have given it"
            assert made.clients[0].patience.limit < 2 * FLOOR, "its own silence taught no patience"
            assert made.bad == [], "being capped is no fault"
            for number, stripe in enumerate(made.stripes):
                assert await reader.data_share(stripe, 1) == made.data[number][1], "the conversations are whole"

    within(body)


def test_a_node_that_gives_nothing_now_costs_a_round_trip(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as made:
            made.bear(60.0)
            made.nodes[2].streams.line.caps = Caps(upload=0)
            reader = made.reader()
            before = made.asked()
            assert await reader.data_share(made.stripes[0], 2) == made.data[0][2]
            asked = [now - then for now, then in zip(made.asked(), before, strict=True)]
            assert asked[2] == 1 and sum(asked) == 1 + NEEDED
            assert await reader.part(made.stripes[1], 2, 1000, 50) is None
            assert made.bad == []

    within(body)


def test_too_many_capped_nodes_still_give_everything(tmp_path: Path) -> None:
    """Three of six at their cap: k others cannot all be quick, so the read waits for one of the slow ones."""

    async def body() -> None:
        async with world(tmp_path) as made:
            for node in made.nodes[:3]:
                node.streams.line.caps = Caps(upload=250_000)
            reader = made.reader()
            async with trio.open_nursery() as nursery:

                async def read(number: int, index: int) -> None:
                    assert await reader.data_share(made.stripes[number], index) == made.data[number][index]

                for number in range(2):
                    for index in range(NEEDED):
                        nursery.start_soon(read, number, index)
            assert made.bad == []

    within(body)
