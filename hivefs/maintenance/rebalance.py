"""Rebalancing: shares move from nodes that fill to nodes that are new, a little at a time.

Placing already prefers nodes with room, so this only has to mend what that cannot: a node that joined a full hive,
one whose capacity was changed. It begins when a node is far from the mean and ends when all are near it
(rebalance_plan.py, which also says why it does not go to and fro).

A share is read, put at the other node and recorded there; the old copy stays until a head that names the new holder is out
(EngineStore.doom_share), so that who recovers from the published head finds every share where it says. Killed anywhere, the
new copy is in the trash or recorded, and the old one named or doomed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Final

import trio

from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.steps import Moment, recording
from hivefs.chunkstore.writer import Writer, name_share
from hivefs.errors import DiskFull, HivefsError
from hivefs.maintenance.budget import Budget
from hivefs.maintenance.moving import Moving
from hivefs.maintenance.ports import State
from hivefs.maintenance.rebalance_plan import BEGIN, MOST_MOVES, WIDTH, Fill, Held, Move, bound, farthest, sources, steps
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import State as StripeState

log = logging.getLogger(__name__)

FIRST: Final = 120.0
EVERY: Final = 60.0
LONGEST: Final = 3600.0
"""After a plan without a move the next one, for the same nodes, is made twice as late as the last time, up to this."""
MOST_SOURCES: Final = 8
MOST_SHARES: Final = 256
"""Shares of a node that one plan looks at."""
MOST_TRIES: Final = 20_000
"""Pairs of a share and a node that one plan looks at: some seconds of work. The next one begins at other shares."""
COUNT_EVERY: Final = 900.0
REASON: Final = "filling nodes"


class Rebalance:
    """``nodes`` gives capacity and use of all nodes that answer and stay, with the bytes that are this vault's left
    0; ``takes`` says up to how many bytes of this vault a node may be given now (0: none); ``keeps`` whether a stripe as it
    would be, compared with how it is, keeps its policy.
    """

    def __init__(
        self,
        state: State,
        reader: Reader,
        writer: Writer,
        nodes: Callable[[], Sequence[Fill]],
        takes: Callable[[NodeId], float],
        keeps: Callable[[Stripe, Stripe], bool],
        budget: Budget,
    ) -> None:
        self._state = state
        self._reader = reader
        self._writer = writer
        self._nodes = nodes
        self._takes = takes
        self._keeps = keeps
        self._budget = budget
        self._reached: dict[NodeId, StripeId] = {}
        self._empty: tuple[frozenset[NodeId], float, float] = (frozenset(), 0.0, 0.0)
        """The nodes of the last plan when nothing moved by it, how long it is not made again for them, and since when."""
        self._leaving: dict[tuple[StripeId, ShareId, NodeId], int] = {}
        """Old copies of what moved, with their bytes, that are not deleted yet."""
        self._stuck: set[NodeId] = set()
        """Nodes that a plan had looked at and that gave nothing."""
        self._counted: Counter[NodeId] | None = None
        self._counted_at = 0.0
        self.active = False
        self.moving = Moving()
        self.held: Callable[[], str] = lambda: ""

    async def run(self) -> None:
        """Look now and then, and move, until cancelled."""
        await trio.sleep(FIRST)
        while True:
            await self.round()
            await trio.sleep(EVERY)

    async def round(self) -> int:
        """One look, and what it calls for; how many shares moved."""
        nodes = await self._as_they_will_be()
        away = farthest(nodes)
        if self.active and away <= WIDTH:
            log.info("the nodes are about equally full now")
            self.active = False
        if not self.active and away <= BEGIN:
            self.moving.plan([])
            return 0
        if words := self.held():
            self.moving.waiting_for = words
            return 0
        there = frozenset(node.node_id for node in nodes)
        same, pause, since = there == self._empty[0], self._empty[1], self._empty[2]
        if same and trio.current_time() - since < pause:
            return 0
        self.active = True
        nodes, shares = await self._shares(nodes)
        moves, turns = list[Move](), Turns()
        walk = steps(nodes, shares, self._allowed)
        await trio.to_thread.run_sync(next, walk, None)  # it sorts all nodes, and asks for no move yet
        for step in islice(walk, MOST_TRIES):
            if step is not None:
                moves.append(step)
            await turns.item()
        size = await trio.to_thread.run_sync(bound, nodes)
        self.moving.plan([(REASON, round(size))] if moves else [])
        if len(moves) < MOST_MOVES:
            self._stuck |= shares.keys() - {move.source for move in moves}
        if not moves:
            self.active = False  # nothing that may move helps: that is as near as it gets
        went = 0
        for move in moves:
            await turns.over()  # it looks at its stripe several times, and one that fails at once waits for nothing
            try:
                went += await self.move(move)
            except DiskFull:
                raise  # each would read its share first
            except HivefsError as error:
                if self.moving.waiting_for != str(error):
                    log.info("rebalancing waits: %s", error)
                self.moving.waiting_for = str(error)
        in_vain = there, min(LONGEST, max(EVERY, 2 * pause) if same else EVERY), trio.current_time()
        self._empty = (frozenset(), 0.0, 0.0) if went else in_vain
        return went

    async def _as_they_will_be(self) -> list[Fill]:
        """The nodes without the old copies of what moved. They are deleted when a head is out, which may take long: until
        then a node that gave enough still looks full, and would give more, which it had to be given back.
        """
        turns = Turns()
        for copy in self._state.moved_copies():
            if copy not in self._leaving:
                stripe = self._state.stripe(copy[0])
                self._leaving[copy] = 0 if stripe is None else stripe.share_bytes
            await turns.item()
        waiting, sizes = set(self._state.moved_copies()), Counter[NodeId]()
        for copy, size in list(self._leaving.items()):
            if copy not in waiting and not self._state.has_trash(copy[2], copy[1]):
                del self._leaving[copy]
            else:
                sizes[copy[2]] += size
            await turns.item()
        return [replace(node, used=max(0, node.used - sizes[node.node_id])) for node in self._nodes()]

    async def _shares(self, nodes: Sequence[Fill]) -> tuple[list[Fill], dict[NodeId, list[Held]]]:
        """The nodes with the bytes that are ours, and some shares of those that may have to give: each look goes on where
        the last one ended, so that what may not move is not looked at each time.
        """
        own = await self._own_bytes()
        counted, turns = list[Fill](), Turns()
        for node in nodes:
            counted.append(replace(node, own=min(own.get(node.node_id, 0), node.used)))
            await turns.item()
        shares: dict[NodeId, list[Held]] = {}
        for node_id in self._turn_of(await trio.to_thread.run_sync(sources, counted)):
            held: list[Held] = []
            after = self._reached.get(node_id)
            around = chain(self._state.each_on(node_id, after), () if after is None else self._state.each_on(node_id))
            for stripe_id in islice(around, MOST_SHARES):
                self._reached[node_id] = stripe_id
                stripe = self._state.stripe(stripe_id)
                if stripe is not None:
                    held += [
                        Held(stripe_id, i, stripe.share_bytes) for i, s in enumerate(stripe.shares) if s.node == node_id
                    ]
                await turns.item()
            shares[node_id] = held
        return counted, shares

    def _turn_of(self, givers: Sequence[NodeId]) -> list[NodeId]:
        """Those that the next plan looks at: the fullest, but for such as had nothing to give to anybody, until all had
        their turn. The fullest may be full just because nothing of theirs may go anywhere.
        """
        fresh = [node_id for node_id in givers if node_id not in self._stuck]
        if not fresh:
            self._stuck.clear()
            fresh = list(givers)
        return fresh[:MOST_SOURCES]

    async def _own_bytes(self) -> Counter[NodeId]:
        """This vault's bytes at each node: counted now and then, kept right by what moves in between."""
        now = trio.current_time()
        if self._counted is None or now - self._counted_at > COUNT_EVERY:
            found: Counter[NodeId] = Counter()
            turns = Turns()
            for stripe in self._state.stripes():
                for share in stripe.shares:
                    if share.node is not None:
                        found[share.node] += stripe.share_bytes
                await turns.item()
            self._counted, self._counted_at = found, now
        return self._counted

    def _allowed(self, held: Held, source: NodeId, target: NodeId) -> bool:
        own = 0 if self._counted is None else self._counted[target]
        if own + held.size > self._takes(target):
            return False
        stripe = self._state.stripe(held.stripe_id)
        if stripe is None or stripe.shares[held.index].node != source:
            return False
        if any(share.node == target for share in stripe.shares):
            return False
        if self._state.copies_left(held.stripe_id):
            return False  # an older copy of one of its shares is not deleted yet, and counts where it lies
        if self._state.has_trash(target, stripe.shares[held.index].share_id):
            return False
        # What misses shares is repair's; it would be less safe while one is on its way.
        return self._state.health(stripe).state == StripeState.HEALTHY and self._keeps(
            stripe, at(stripe, held.index, target)
        )

    async def move(self, move: Move) -> bool:
        """Move one share; False when it is not there to move any more, or may not go there now. HivefsError when a node
        fails.
        """
        held = move.held
        if not self._allowed(held, move.source, move.target):
            return False
        stripe = self._state.stripe(held.stripe_id)
        if stripe is None:
            return False
        await self._budget.take(2 * held.size)
        data = await self._reader.one(stripe, held.index)
        if data is None:
            return False
        coded = await trio.to_thread.run_sync(name_share, data)
        if coded.share_id != stripe.shares[held.index].share_id:
            return False  # its Merkle root holds and its name does not: the record is damaged, and a check will say so
        looked = Moment()  # repair may have put something of this stripe somewhere meanwhile
        if not self._allowed(held, move.source, move.target):
            return False
        if not await self._writer.put_at(coded, move.target, looked):
            return False
        if not self._record(held, move, stripe):
            return False
        if self._counted is not None:
            self._counted[move.source] -= held.size
            self._counted[move.target] += held.size
        self.moving.done(REASON, held.size)
        return True

    def _record(self, held: Held, move: Move, before: Stripe) -> bool:
        recording()
        with self._state.writing():
            now = self._state.stripe(held.stripe_id)
            if now is None or now.shares != before.shares or not self._keeps(now, at(now, held.index, move.target)):
                return False  # repair was faster, or the rules are others now: the new copy is in the trash
            self._state.save_stripe(at(now, held.index, move.target))
            self._state.doom_share(held.stripe_id, move.source, before.shares[held.index].share_id)
        return True


def at(stripe: Stripe, index: int, node_id: NodeId) -> Stripe:
    """The stripe with that share at that node; what was known of the node when it was placed is known no more."""
    shares = list(stripe.shares)
    shares[index] = replace(shares[index], node=node_id, standing=b"")
    return replace(stripe, shares=tuple(shares))
