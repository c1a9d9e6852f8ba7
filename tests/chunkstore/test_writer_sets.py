"""Stripes of a large hive share sets of nodes, also after a node failed and was replaced."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.writer import Writer
from hivefs.content.packing import Packed
from hivefs.errors import NodeFull
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.node import Candidate
from hivefs.model.stripe import Purpose
from hivefs.placement import copysets
from hivefs.placement.policy import Policy

COUNTRIES = ("DE", "FR", "CH", "IS", "NL")


class FakeNodes:
    """Sixty nodes; what is put at ``bad`` ones fails."""

    def __init__(self) -> None:
        self.bad: set[NodeId] = set()
        self.all = [
            Candidate(NodeId(bytes([n]) * 32), {"jurisdiction": frozenset({COUNTRIES[n % 5]})}, 1 << 40) for n in range(60)
        ]

    async def listed(self, policy: Policy) -> Sequence[Candidate]:
        return self.all

    def client(self, node_id: NodeId) -> FakeNodes:
        self._asked = node_id
        return self

    async def put(self, share_id: bytes, data: bytes, lease_ns: int, *, timeout: float) -> int:
        if self._asked in self.bad:
            raise NodeFull(peer="one", reason="full")
        return lease_ns

    def reserve(self, node_id: NodeId, size: int) -> None: ...

    def report(self, node_id: NodeId, problem: str) -> None: ...

    def answered_put(self, node_id: NodeId, busy: bool) -> None: ...


def test_sets_are_shared() -> None:
    async def test() -> None:
        nodes = FakeNodes()
        policy = Policy(2, 4)
        numbers = iter(range(1 << 30))

        def random(size: int) -> bytes:
            return next(numbers).to_bytes(size, "big")

        def sets_of(secret: bytes) -> Writer:
            return Writer(nodes, policy, lambda: 1, random, Claims(lambda pairs: None), secret)  # type: ignore[arg-type]

        async def placed(writer: Writer, count: int) -> set[frozenset[NodeId | None]]:
            found = set()
            for number in range(count):
                packed = Packed(64, (bytes(64), bytes([1]) * 64), ())
                stripe = await writer.place(packed, Purpose.DATA, StripeId(number.to_bytes(16, "big")))
                assert len({s.node for s in stripe.shares}) == 4 and None not in {s.node for s in stripe.shares}
                found.add(frozenset(s.node for s in stripe.shares))
            return found

        shared = await placed(sets_of(bytes([7]) * 32), 400)
        assert len(shared) <= copysets.groups(60, 4) == 128
        assert len(await placed(sets_of(b""), 400)) > 350, "without a secret each stripe has its own"
        nodes.bad = {nodes.all[0].node_id}
        writer = sets_of(bytes([7]) * 32)
        after = await placed(writer, 400)
        assert len(after | shared) <= 2 * len(shared) and not any(nodes.all[0].node_id in s for s in after)

    trio.run(test)
