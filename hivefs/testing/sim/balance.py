"""Rebalancing in a simulated hive, by plain counts over what lies on disks.

Each share that rebalancing moves is looked at the moment it is recorded: the policy holds, the old copy and the new one
are both there, and the share does not go where it went away from since something else happened to the hive. When nothing
has happened for long, nodes are about equally full, and not much more was moved than had to be. While the policy leaves no
place, or the nodes that are empty may not be given anything, that cannot be: scenarios are made so that it can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING

from hivefs.maintenance.rebalance_plan import Move
from hivefs.model.stripe import Level
from hivefs.testing.sim.files import breach
from hivefs.testing.sim.nodes import SimNode
from hivefs.testing.sim.truth import Violation

if TYPE_CHECKING:
    from hivefs.testing.sim.engine import Life
    from hivefs.testing.sim.world import World

BEGINS = 0.2
"""No node is left farther than this from the mean."""
NEAR = 0.1
"""Where moving ends."""
WASTE = 1.5
"""So many times the bytes that must move at least may be moved."""


class Balance:
    """Of one world. ``moved`` are bytes since the last event, ``must`` how many have to; ``moves`` counts all ever."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.moves = 0
        self.moved = 0
        self.must = inf
        self._left: set[tuple[int, int, int]] = set()
        """(stripe, share, node that it went away from)."""

    def wire(self, life: Life) -> None:
        """Look at each move of this life of the engine; its pool knows how full disks are, as the real one."""
        rebalance = life.wired.moving.rebalance
        fills, move = rebalance._nodes, rebalance.move

        def fresh() -> object:
            life.measure(self._world.nodes.values())
            return fills()

        rebalance._nodes = fresh  # type: ignore[assignment]
        rebalance.move = self._watched(move)  # type: ignore[method-assign,assignment]

    def _watched(self, move: Callable[[Move], Awaitable[bool]]) -> Callable[[Move], Awaitable[bool]]:
        async def watched(one: Move) -> bool:
            done = await move(one)
            if done and not self._world.life.store.dead:
                self._look(one)
            return done

        return watched

    def _look(self, move: Move) -> None:
        world, index = self._world, move.held.index
        kept = world.truth.by_id[move.held.stripe_id]
        source, target = world.by_id[move.source], world.by_id[move.target]
        world.say("balance", kept.name, index, source.number, target.number)
        self.moves += 1
        self.moved += move.held.size
        stripe = world.life.store.stripe(move.held.stripe_id)
        if stripe is None or stripe.shares[index].node != move.target:
            raise Violation(f"share {index} of stripe {kept.name} was moved to node {target.number}, and no book says so")
        for node in (source, target):
            if node.number not in kept.intact[index] and (node.number, index) not in kept.broken:
                raise Violation(f"share {index} of stripe {kept.name} is on its way and not at node {node.number} any more")
        if words := breach(world.files.rules_for(kept), [world.by_id[s.node] for s in stripe.shares if s.node is not None]):
            raise Violation(f"rebalancing broke the policy of stripe {kept.name}: {words}")
        if world.life.store.health(stripe).level != Level.GUARANTEED:
            raise Violation(f"rebalancing took its level from stripe {kept.name}")
        if (kept.name, index, target.number) in self._left:
            raise Violation(f"share {index} of stripe {kept.name} goes to and fro: node {target.number} had it before")
        self._left.add((kept.name, index, source.number))

    # ---- over time --------------------------------------------------------------------------------------------------

    def nodes(self) -> list[SimNode]:
        """Disks that count."""
        return [node for node in self._world.nodes.values() if node.reachable]

    def farthest(self) -> float:
        """How far from the mean the farthest node is, beyond one share more or less."""
        nodes, size = self.nodes(), self._largest()
        middle = sum(n.used for n in nodes) / sum(n.capacity for n in nodes)
        return max(abs(n.used / n.capacity - middle) - size / n.capacity for n in nodes)

    def happened(self, at_once: bool = True) -> None:
        """Something else happened to disks: from now on other bytes must move. How many is known if it happened at once."""
        self._count()
        self.moved, self._left, self.must = 0, set(), inf
        if not at_once:
            return
        nodes = self.nodes()
        middle = sum(n.used for n in nodes) / sum(n.capacity for n in nodes)
        over = sum(max(0.0, n.used - (middle + NEAR) * n.capacity) for n in nodes)
        under = sum(max(0.0, (middle - NEAR) * n.capacity - n.used) for n in nodes)
        self.must = max(over, under)

    def _count(self) -> None:
        most = WASTE * self.must + len(self.nodes()) * self._largest()
        if self.moved > most:
            raise Violation(f"rebalancing moved {self.moved} bytes where {self.must:.0f} had to move")

    def _largest(self) -> int:
        return max((len(k.data[0]) for k in self._world.truth.stripes.values()), default=0)

    def check_settled(self) -> None:
        """Nothing happened for long. Raises Violation."""
        self._count()
        if (far := self.farthest()) > BEGINS:
            raise Violation(f"a node is {far:.0%} fuller or emptier than the mean, and stays so")
