"""The sum of leases is the sum of shares: what lies on the disks of a simulated hive, counted against the engine's book.

Counted node by node over what truly lies there, not over what the ledger (maintenance/ledger.py) says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from hivefs.model.ids import NodeId, ShareId
from hivefs.testing.sim.truth import Violation

if TYPE_CHECKING:
    from hivefs.testing.sim.world import World


def check(world: World) -> None:
    """At any time: on a disk lies nothing but what the book names there, what waits to be deleted there (also for a head),
    what is being placed, and copies that may be taken back. What the book names and no disk has, was destroyed. Raises
    Violation.
    """
    life = world.life
    book = _book(world)
    waiting = life.store.doomed_shares()
    for node in world.nodes.values():
        if node.dead:
            continue
        named = book.get(node.node_id, set())
        for share_id in node.shares.keys() - named:
            kept, index = world.truth.find(share_id)
            known = (
                life.store.has_trash(node.node_id, share_id)
                or life.store.has_spare(node.node_id, share_id)
                or (node.node_id, share_id) in waiting
                or life.claims.claimed(node.node_id, share_id)
            )
            if not known and not kept.stray:
                raise Violation(f"node {node.number} keeps share {index} of stripe {kept.name}, and no book knows of it")
        for share_id in named - node.shares.keys():
            kept, index = world.truth.find(share_id)
            if (node.number, index) not in kept.broken:
                raise Violation(
                    f"the book names share {index} of stripe {kept.name} at node {node.number}: it never was there"
                )


def _book(world: World) -> dict[NodeId, set[ShareId]]:
    found: dict[NodeId, set[ShareId]] = {}
    for stripe in world.life.store.stripes():
        for share in stripe.shares:
            if share.node is not None:
                found.setdefault(share.node, set()).add(share.share_id)
    return found


def check_balanced(world: World) -> None:
    """In the end the engine's own accounts say so too, by receipts that both have signed: leases, and what lies on the
    disks of all nodes that are there, are what the book names. Raises Violation.
    """
    book = _book(world)
    for node in world.nodes.values():
        if not node.reachable or node.drops or node.flips or trio.current_time() - node.began < 5 * 86_400:
            continue
        row, disk = world.life.wired.moving.account(node.node_id), len(node.shares)
        named = len(book.get(node.node_id, ()))
        if not (row["balanced"] and row["countersigned"] and row["leases"] == named == disk):
            raise Violation(
                f"the accounts of node {node.number} do not balance: {row['leases']} leases, {named} shares named,"
                f" {disk} on its disk, {row['missing']} missing, {row['unknown']} unknown {row['problem']}"
            )
