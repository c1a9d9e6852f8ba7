"""What a try left at nodes counts for the next one, by share number, also when the same stripe is placed again."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import pytest
import trio

from hivefs.chunkstore.claims import Claims, Pair
from hivefs.chunkstore.writer import Writer
from hivefs.content.packing import Packed
from hivefs.errors import ConnectionLost, HivefsError
from hivefs.model.ids import NodeId, ShareId
from hivefs.model.node import Candidate
from hivefs.model.stripe import Purpose, Stripe
from hivefs.placement.policy import Policy

COUNTRIES = ("DE", "FR", "CH", "IS", "NL")


class Swallowing:
    """Sixty nodes that keep what they are sent, and whose answers are lost until ``answers``."""

    def __init__(self) -> None:
        self.all = [
            Candidate(NodeId(bytes([n]) * 32), {"jurisdiction": frozenset({COUNTRIES[n % 5]})}, 1 << 40) for n in range(60)
        ]
        self.kept: dict[str, set[bytes]] = {country: set() for country in COUNTRIES}
        self.answers = False

    async def listed(self, policy: Policy) -> Sequence[Candidate]:
        return self.all

    def client(self, node_id: NodeId) -> One:
        return One(self, node_id)

    def reserve(self, node_id: NodeId, size: int) -> None: ...

    def report(self, node_id: NodeId, problem: str) -> None: ...

    def answered_put(self, node_id: NodeId, busy: bool) -> None: ...


class One:
    def __init__(self, nodes: Swallowing, node_id: NodeId) -> None:
        self.nodes, self.country = nodes, COUNTRIES[node_id[0] % 5]

    async def put(self, share_id: bytes, data: bytes, lease_ns: int, *, timeout: float) -> int:
        self.nodes.kept[self.country].add(share_id)
        await trio.lowlevel.checkpoint()
        if not self.nodes.answers:
            raise ConnectionLost(peer="one", reason="the answer is lost")
        return lease_ns


def test_a_stripe_that_is_placed_again_and_again_gives_nobody_k_shares() -> None:
    async def test() -> None:
        nodes, trash = Swallowing(), set[Pair]()

        def copies(stripe: Stripe) -> Collection[tuple[int, NodeId]]:
            numbers: dict[ShareId, int] = {share.share_id: i for i, share in enumerate(stripe.shares)}
            return {(numbers[share_id], node) for node, share_id in trash if share_id in numbers}

        claims = Claims(trash.update)
        writer = Writer(nodes, Policy(2, 4), lambda: 1, os.urandom, claims, copies=copies)  # type: ignore[arg-type]
        packed = Packed(64, (os.urandom(64), os.urandom(64)), ())
        for number in range(8):
            nodes.answers = number > 5
            if nodes.answers:
                stripe = await writer.place(packed, Purpose.DATA, writer.new_id())
                assert all(share.node for share in stripe.shares)
            else:
                with pytest.raises(HivefsError):
                    await writer.place(packed, Purpose.DATA, writer.new_id())
            assert max(len(shares) for shares in nodes.kept.values()) == 1, "two shares rebuild it"

    trio.run(test)
