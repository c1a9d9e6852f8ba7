"""The ledger with real nodes: receipts, listings, missing and unknown shares over the real conversation."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hive_tools import lease, make, running, share, talking, within

from hivefs.chunkstore.claims import Claims
from hivefs.content.merkle import merkle_root
from hivefs.formats.receipt import counter_valid
from hivefs.maintenance.accounts import DAY_NS, SEEN_NS, UNRENEWED_NS
from hivefs.maintenance.ledger import Ledger
from hivefs.metadata.engine_contents import Contents
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.node import receipts as receipts_module
from hivefs.placement.policy import Policy
from hivefs.testing.memory_net import MemoryNetwork


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receipt whenever one is asked for, not one in a second."""
    monkeypatch.setattr(receipts_module, "LEAST_NS", 0)


def stripe(number: int, node_id: NodeId, name: ShareId, data: bytes) -> Stripe:
    held = Share(name, merkle_root(data), node_id)
    return Stripe(StripeId(number.to_bytes(16, "big")), Purpose.DATA, 1, len(data), (held,))


def test_a_real_node_and_the_book_agree_differ_and_agree_again(tmp_path: Path) -> None:
    async def body() -> None:
        network = MemoryNetwork()
        node_id = NodeId(make(tmp_path / "node"))
        store = EngineStore(tmp_path / "engine", bytes(32), Policy(1, 1, ()))
        bad: list[ShareId] = []
        now = time.time_ns()
        ledger = Ledger(
            store,
            Contents(store),
            Claims(lambda pairs: None),
            list,
            lambda: "",
            lambda heads: None,
            lambda: now,
            os.urandom,
            lambda which, index, reason: bad.append(which.shares[index].share_id),
            lambda node, words: None,
        )
        async with running(network, tmp_path / "node"), talking(network, node_id) as client:
            shares = [share(3000 + i) for i in range(40)]
            for number, (name, data) in enumerate(shares):
                await client.put(name, data, lease())
                with store.writing():
                    store.save_stripe(stripe(number + 1, node_id, name, data))
            row = await ledger.account(node_id, client)
            assert row.balanced and row.leases == row.book == 40 and row.size == sum(len(d) for _, d in shares)
            kept = ledger.receipt(node_id)
            assert kept is not None and counter_valid(kept)
            assert (await client.get_receipt(bytes(32)))[1] == kept

            await client.delete([shares[7][0]])
            lost, data = share(5000)
            await client.put(lost, data, now + DAY_NS)
            row = await ledger.account(node_id, client)
            assert (row.leases, row.book, row.missing, row.unknown) == (40, 40, 1, 1)
            assert bad == [shares[7][0]] and not row.balanced

            # Its lease says that nobody renewed it for long; the node's clock is right, and ours is not far from it.
            now += SEEN_NS + 1
            assert (await ledger.account(node_id, client)).deleted == 0  # but two clocks that differ by three days are not
            assert UNRENEWED_NS > DAY_NS
            with store.writing():
                store.put("unknown", node_id + lost, (now - 2 * SEEN_NS).to_bytes(8, "big"))
            now = time.time_ns()
            row = await ledger.account(node_id, client)
            assert row.deleted == 1 and store.trash_of(node_id, 10) == [lost]
        store.close()

    within(body)
