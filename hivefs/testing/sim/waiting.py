"""When a stripe of a simulated hive may wait for its repair, by plain counts; without placement/lazy.py and the judge.

A stripe that misses shares may wait while more than ``Kept.repair_at`` are left, no_hostage holds with one share
more than it asks for, and no_reassembly holds. Whatever waits on other terms is a violation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import trio

from hivefs.model.ids import NodeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeState
from hivefs.testing.sim.files import breach, over
from hivefs.testing.sim.nodes import DAY
from hivefs.testing.sim.truth import Kept, Violation

if TYPE_CHECKING:
    from hivefs.placement.policy import Policy
    from hivefs.testing.sim.nodes import SimNode
    from hivefs.testing.sim.world import World


def counted(world: World, stripe: Stripe) -> dict[int, NodeId]:
    """Shares with a holder that the engine has not given up."""
    members = world.life.pool.members
    named = ((i, share.node) for i, share in enumerate(stripe.shares))
    return {i: n for i, n in named if n is not None and n in members and members[n].row.state != NodeState.GONE}


def remaining(policy: Policy, nodes: Sequence[SimNode]) -> int:
    """How many shares above what no_hostage asks for are left at these nodes when the worst authorities of each rule that
    may be lost are.
    """
    least = len(nodes)
    for rule in policy.rules:
        sets = [over(node, rule.family) for node in nodes]
        names = sorted(frozenset[str]().union(*sets))
        for members in combinations(names, min(rule.lose, len(names))):
            if members:
                left = sum(1 for s in sets if s.isdisjoint(members))
                least = min(least, left - policy.needed - rule.slack)
    return least


def _why_not(world: World, kept: Kept, nodes: Sequence[SimNode]) -> str:
    """Why a stripe with just these shares left must not wait; empty when it may."""
    if len(nodes) <= kept.repair_at:
        return f"{len(nodes)} shares are left, and repair begins at {kept.repair_at}"
    policy = world.files.rules_for(kept)
    if remaining(policy, nodes) < 1:
        return "with one share less a jurisdiction could withhold it"
    return breach(policy, list(nodes))


def forbidden(world: World, kept: Kept, late: Sequence[int]) -> str:
    """Why a stripe of which the engine must know by now that it misses the shares ``late`` should be repaired; empty when
    it may wait.
    """
    nodes = []
    stripe = None if kept.stripe_id is None else world.life.store.stripe(kept.stripe_id)
    for index in range(len(kept.share_ids)):
        if index in late:
            continue
        holders = kept.intact[index] or {number for number, i in kept.broken if i == index}
        named = None if stripe is None else stripe.shares[index].node
        number = world.by_id[named].number if named is not None else 0
        if number in holders or holders:
            nodes.append(world.nodes[number if number in holders else min(holders)])
    return _why_not(world, kept, nodes)


def for_copies(world: World, kept: Kept, late: Sequence[int]) -> bool:
    """Whether the engine says that a stripe waits for nothing but the end of old copies, and they may still be there."""
    since = min(kept.due[index] for index in late)
    patient = trio.current_time() - since < world.scenario.patience_days * DAY
    mine = kept.stripe_id
    return patient and mine is not None and world.life.repair.waits_for_copies(mine) and kept.left > kept.needed


def of_what_is_left(world: World, kept: Kept, stripe: Stripe) -> str:
    """Why a stripe should be repaired, with the shares of which the engine thinks that they are there; empty when it may
    wait.
    """
    return _why_not(world, kept, [world.by_id[n] for n in counted(world, stripe).values()])


def next_loss(world: World, kept: Kept, stripe: Stripe) -> None:
    """A stripe that waits and is called guaranteed: one more share was destroyed, and nobody can know it yet. No hostage
    holds all the same. Raises Violation.
    """
    holders = counted(world, stripe)
    if len(holders) == stripe.total:
        return
    world.result.waiting += 1
    there = [world.by_id[n] for i, n in holders.items() if world.by_id[n].number in kept.intact[i]]
    if len(holders) - len(there) == 1:
        world.result.next_losses += 1
        if remaining(world.files.rules_for(kept), there) < 0:
            raise Violation(f"stripe {kept.name} waits as guaranteed, and one loss more broke no hostage")
