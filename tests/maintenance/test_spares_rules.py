"""Taking an old copy back: never what waits to be deleted or is on its way; always with a lease; nothing goes early."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.reader import Answer
from hivefs.chunkstore.steps import Moment
from hivefs.chunkstore.writer import LEASE_NS
from hivefs.errors import ConnectionLost
from hivefs.maintenance.repair import Repair
from hivefs.maintenance.spares import Spares
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import Attribute
from hivefs.model.stripe import Level, Purpose, Share, Stripe
from hivefs.placement.health import NodeState, NodeView
from hivefs.placement.policy import Policy
from hivefs.placement.verifier import Rules

FREE = Policy(1, 2, (Rules(coalition=0, lose=0),))
NOW = 1_800_000_000 * 10**9
OLD, OTHER, THIRD = (NodeId(bytes([i]) * 32) for i in (1, 2, 3))
SHARES = tuple(ShareId(bytes([9, i]) * 16) for i in range(2))
STRIPE = Stripe(
    StripeId(b"s" * 16),
    Purpose.DATA,
    1,
    100,
    (Share(SHARES[0], bytes(32), OTHER), Share(SHARES[1], bytes(32), THIRD)),
)


class Node:
    """A node with the old copy. ``before`` runs while it is asked for each of HAVE, the piece, RENEW."""

    def __init__(self, leased: bool = True) -> None:
        self.leased = leased
        self.leases: list[int] = []
        self.before: Callable[[str], Awaitable[None]] = self._nothing

    async def _nothing(self, what: str) -> None:
        await trio.lowlevel.checkpoint()

    async def have(self, share_ids: list[ShareId]) -> list[int]:
        await self.before("have")
        return [100] * len(share_ids)

    async def ask(self, stripe: Stripe, index: int, offset: int, length: int) -> tuple[Answer, None]:
        await self.before("piece")
        return Answer.RIGHT, None

    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]:
        await self.before("renew")
        self.leases.append(lease_ns)
        return [self.leased] * len(share_ids)


class World:
    def __init__(self, path: Path) -> None:
        self.store = EngineStore(path / "engine", bytes(32), FREE)
        self.node = Node()
        self.claims = Claims(lambda pairs: None)
        self.views = dict.fromkeys((OLD, OTHER, THIRD), NodeView(NodeState.ONLINE, ()))
        self.views[OTHER] = NodeView(NodeState.GONE, ())
        self.store.node_view = self.views.get  # type: ignore[method-assign, assignment]
        with self.store.writing():
            self.store.save_stripe(STRIPE)
            self.store.spare_share(OLD, SHARES[0], STRIPE.stripe_id, 0, NOW // 10**9)
        self.spares = Spares(
            self.store,
            cast("Any", self.node),
            cast("Any", None),
            self.views.get,
            lambda: [(OLD, self.node)],
            lambda: NOW,
            bytes,
            self.claims,
        )

    def take_back(self) -> bool:
        async def body() -> bool:
            with trio.fail_after(90):
                return await self.spares.take_back(STRIPE, [0])

        return trio.run(body)

    @property
    def holder(self) -> NodeId | None:
        stripe = self.store.stripe(STRIPE.stripe_id)
        assert stripe is not None
        return stripe.shares[0].node


@pytest.fixture
def world(tmp_path: Path) -> Any:
    made = World(tmp_path)
    yield made
    made.store.close()


def test_what_is_taken_back_has_a_whole_lease_again(world: World) -> None:
    assert world.take_back() and world.holder == OLD
    assert world.node.leases == [NOW + LEASE_NS] and not world.store.has_spare(OLD, SHARES[0])
    assert not world.claims.claimed(OLD, SHARES[0])


def test_a_copy_without_a_lease_of_ours_is_given_up(world: World) -> None:
    world.node.leased = False
    assert not world.take_back() and world.holder == OTHER
    assert not world.store.has_spare(OLD, SHARES[0]) and world.store.has_trash(OLD, SHARES[0])


def test_a_node_that_cannot_renew_now_keeps_its_copy_for_later(world: World) -> None:
    async def lost(what: str) -> None:
        await trio.lowlevel.checkpoint()
        if what == "renew":
            raise ConnectionLost(peer="it", reason="gone")

    world.node.before = lost
    assert not world.take_back() and world.store.has_spare(OLD, SHARES[0])


@pytest.mark.parametrize("moment", ["before", "have", "piece", "renew"])
def test_what_waits_to_be_deleted_is_not_taken_back(world: World, moment: str) -> None:
    def trash() -> None:
        with world.store.writing():
            world.store.trash_share(OLD, SHARES[0])

    async def meanwhile(what: str) -> None:
        await trio.lowlevel.checkpoint()
        if what == moment:
            trash()
            assert not world.claims.begin_delete(OLD, [SHARES[0]]), "it is not deleted while it is asked for"

    if moment == "before":
        trash()
    world.node.before = meanwhile
    assert not world.take_back() and world.holder == OTHER
    assert world.store.has_trash(OLD, SHARES[0]) and world.claims.begin_delete(OLD, [SHARES[0]]) == [SHARES[0]]


@pytest.mark.parametrize("by", ["a put", "a deletion"])
def test_what_is_being_put_or_deleted_is_not_taken_back(world: World, by: str) -> None:
    if by == "a put":
        world.claims.claim([(OLD, SHARES[0])], Moment())
    else:
        world.claims.begin_delete(OLD, [SHARES[0]])
    assert not world.take_back() and world.holder == OTHER and not world.node.leases
    if by == "a put":
        assert world.claims.claimed(OLD, SHARES[0]), "the claim of another stays"
        world.claims.release([(OLD, SHARES[0])])
    else:
        world.claims.end_delete(OLD, [SHARES[0]])
    assert world.take_back()


def test_the_other_copy_goes_only_when_a_head_names_the_one_that_was_taken_back(world: World) -> None:
    world.views[OTHER] = NodeView(NodeState.ONLINE, (), leaving=True)
    assert world.take_back()
    assert not world.store.has_trash(OTHER, SHARES[0]), "a recovery from the published head would ask for it there"
    with world.store.writing():
        world.store.reap(world.store.next_sequence(), 10)
    assert world.store.has_trash(OTHER, SHARES[0])


# ---- the right to wait ----------------------------------------------------------------------------------------------

RULES = (Rules(coalition=0, lose=1),)
WAITING = Policy(2, 5, RULES, repair_at=3)
"""Under the loss of one jurisdiction two shares must be left, and one more while repair waits for another one."""


def test_repair_hears_of_a_stripe_that_may_wait_no_more_for_what_was_taken_back(tmp_path: Path) -> None:
    """Four of five shares are left, one in each country: that may wait. The one in NO is away for long, and its old copy in
    DE is taken back instead: under DE are two now, the guarantees hold still, and nothing more may be missing.
    """
    places = dict(zip(map(_node, range(1, 6)), ("DE", "FR", "CH", "NO", "DE"), strict=True))
    views = {node: NodeView(NodeState.ONLINE, _under(country)) for node, country in places.items()}
    away, old = _node(4), _node(5)
    views[away] = replace(views[away], state=NodeState.OFFLINE)
    shares = [Share(ShareId(bytes([9, i]) * 16), bytes(32), _node(i + 1) if i < 4 else None) for i in range(5)]
    stripe = Stripe(StripeId(b"w" * 16), Purpose.DATA, 2, 100, tuple(shares))
    store = EngineStore(tmp_path / "engine", bytes(32), WAITING)
    store.node_view = views.get  # type: ignore[method-assign, assignment]
    with store.writing():
        store.save_stripe(stripe)
        store.spare_share(old, shares[3].share_id, stripe.stripe_id, 3, NOW // 10**9)
    trust = SimpleNamespace(away=lambda node_id, since_s: 5.0, gone_after=lambda node_id: 8.0)
    node = Node()
    spares = Spares(
        store,
        cast("Any", node),
        cast("Any", trust),
        views.get,
        lambda: [(old, node)],
        lambda: NOW,
        bytes,
        Claims(lambda pairs: None),
    )
    nothing = cast("Any", None)
    repair = Repair(store, nothing, nothing, views.get, nothing)
    spares.on_taken_back = repair.add
    repair.add(stripe.stripe_id)
    assert store.health(stripe).waits and repair.queue == 0

    async def body() -> None:
        with trio.fail_after(90):
            await spares._once()

    trio.run(body)
    now = store.stripe(stripe.stripe_id)
    assert now is not None and now.shares[3].node == old and spares.taken_back == 1
    health = store.health(now)
    assert health.verdict.holds and not health.waits and health.level == Level.REMOTE
    assert repair.queue == 1, "nobody else would tell it: no node was given up, left or came"
    store.close()


def _under(country: str) -> tuple[Attribute, ...]:
    return Attribute("country", country), Attribute("operator", country), Attribute("operator_country", country)


def _node(number: int) -> NodeId:
    return NodeId(bytes([number]) * 32)
