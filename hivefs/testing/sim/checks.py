"""What is looked at every day of a simulated hive. Each look raises Violation."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import trio

from hivefs.metadata.engine_reader import EngineReader
from hivefs.model.ids import NodeId
from hivefs.model.stripe import Level, Stripe
from hivefs.placement.field import Field
from hivefs.testing.sim import accounts, definitions, waiting
from hivefs.testing.sim.files import breach
from hivefs.testing.sim.nodes import DAY
from hivefs.testing.sim.truth import Kept, Violation

if TYPE_CHECKING:
    from hivefs.testing.sim.world import World

FEW = 250
"""So many nodes are looked at every day; of more, each in its turn."""


def check(world: World) -> None:
    """All looks, and what is counted on the way."""
    if world.life.store.dead:
        return
    _nodes_are_as_remembered(world)
    _damage_is_repaired(world)
    _leases_last(world)
    world.files.check()
    accounts.check(world)
    if world.scenario.groups:
        world.groups.check()
    if world.scenario.paths:
        definitions.check(world)
    for kept in world.truth.stripes.values():
        if kept.lost or kept.stripe_id is None:
            continue
        stripe = world.life.store.stripe(kept.stripe_id)
        if stripe is None:
            if world.truth.given_up(kept):
                continue
            raise Violation(f"the engine forgot stripe {kept.name}")
        if not world.quiet:
            world.result.looks += 1
            world.result.missing += len(kept.share_ids) - kept.left
            world.result.unreachable += world.truth.reachable(kept) < kept.needed
        if world.files.in_force and world.life.store.health(stripe).level == Level.GUARANTEED:
            _is_guaranteed(world, kept, stripe)
            waiting.next_loss(world, kept, stripe)
        _nobody_can_read(world, kept, stripe)


def gone_is_gone(world: World, gone: list[NodeId]) -> None:
    """The engine gave nodes up just now: nothing with a share there is guaranteed any more, if it may not wait."""
    store = world.life.store
    for node_id in gone:
        for stripe_id in store.each_on(node_id):
            stripe = store.stripe(stripe_id)
            if stripe is not None and store.health(stripe).level == Level.GUARANTEED:
                kept = world.truth.by_id.get(stripe_id)
                name, words = (
                    ("?", "no book") if kept is None else (kept.name, waiting.of_what_is_left(world, kept, stripe))
                )
                if words:
                    raise Violation(f"stripe {name} is called guaranteed with a share at a node that was given up: {words}")


def _damage_is_repaired(world: World) -> None:
    if world.impaired_until > trio.current_time():
        return
    for kept, late in world.truth.overdue():
        if waiting.for_copies(world, kept, late):
            world.result.beside += 1
        elif words := waiting.forbidden(world, kept, late):
            raise Violation(
                f"share {late[0]} of stripe {kept.name} was not made again in time: {words}"
                f" ({world.life.repair.waiting_for})"
            )


def _nodes_are_as_remembered(world: World) -> None:
    """What pool and store remember of nodes is what they would make of them now. The weight of a node that cannot be chosen
    does not matter, and whether one is vetted, which time alone may change, is looked at again now and then (listing.py).
    Of thousands of nodes a part is looked at each day: that took a fifth of a run.
    """
    life = world.life
    field = life.pool.candidates(life.policy)
    if not isinstance(field, Field):
        raise AssertionError("the engine's pool lists nodes in a field")
    there = {candidate.node_id: candidate for candidate in field}
    if more := there.keys() - life.pool.members.keys():
        raise Violation(f"{len(more)} nodes are listed that are not known any more")
    parts = 1 + len(life.pool.members) // FEW
    for node_id in islice(life.pool.members, int(trio.current_time() // DAY) % parts, None, parts):
        name = node_id.hex()[:12]
        if EngineReader.node_view(life.store, node_id) != life.store.node_view(node_id):
            raise Violation(f"node {name} is remembered otherwise than the store has it")
        made, listed = life.pool.candidate(node_id, life.policy), there.get(node_id)
        if listed is None:
            if life.pool.client(node_id) is not None:
                raise Violation(f"node {name} answers, and is not listed")
            continue
        weight = made.weight if listed.usable else listed.weight
        if listed != replace(made, weight=weight, vetted=listed.vetted):
            raise Violation(f"node {name} is listed as {listed}, and is {made}")


def _leases_last(world: World) -> None:
    """No node may forget a share that is named, and is honest for that."""
    running = round(trio.current_time() * 1e9)
    for node in world.nodes.values():
        if not node.reachable:
            continue
        for share_id in node.collectable(world.true_ns(), running):
            kept, index = world.truth.find(share_id)
            stripe = None if kept.stripe_id is None else world.life.store.stripe(kept.stripe_id)
            if not kept.lost and stripe is not None and stripe.shares[index].node == node.node_id:
                raise Violation(f"the lease of share {index} of stripe {kept.name} at node {node.number} ended")


def _is_guaranteed(world: World, kept: Kept, stripe: Stripe) -> None:
    """The engine says guaranteed: each share is at a node of its own that has it (or lost it a moment ago), or repair may
    wait; and both guarantees hold by a plain count over what the nodes truly are.
    """
    holders = waiting.counted(world, stripe)
    if len(set(holders.values())) != len(holders):
        raise Violation(f"stripe {kept.name} is called guaranteed with two shares at one node")
    if len(holders) < stripe.total and (words := waiting.of_what_is_left(world, kept, stripe)):
        raise Violation(f"stripe {kept.name} is called guaranteed, and {words}")
    for index, node_id in holders.items():
        node = world.by_id[node_id]
        if node.number in kept.intact[index]:
            continue
        due = kept.broken.get((node.number, index))
        if due is None:
            raise Violation(f"share {index} of stripe {kept.name} never was at node {node.number}, and is counted")
        if due < trio.current_time() and world.impaired_until < trio.current_time():
            raise Violation(f"share {index} of stripe {kept.name} is at node {node.number} no more, and is still counted")
    nodes = [world.by_id[h] for h in holders.values()]
    policy = replace(world.files.rules_for(kept), needed=stripe.needed, total=stripe.total)
    if words := definitions.metadata_breach(world, stripe) if kept.meta else breach(policy, nodes):
        raise Violation(f"stripe {kept.name} is called guaranteed, and {words}")


def _nobody_can_read(world: World, kept: Kept, stripe: Stripe) -> None:
    """Seize each operator: all that its nodes ever took and were not asked to forget does not make the stripe."""
    seen: dict[str, int] = {}
    for holders in kept.exposed:
        for name in {world.nodes[n].operator for n in holders}:
            seen[name] = seen.get(name, 0) + 1
    for name, count in seen.items():
        if count >= kept.needed:
            raise Violation(f"{name} has {count} shares of stripe {kept.name}")
