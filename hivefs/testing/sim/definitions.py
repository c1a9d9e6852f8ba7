"""Definitions of policies and standings of nodes in a simulated hive: what a stripe names is there, and in the end nothing
else is. And metadata obeys all policies in use, or the one that the text names for it. By plain counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hivefs.formats import policy as policy_format
from hivefs.formats import records
from hivefs.placement.language import parse
from hivefs.testing.sim.files import breach
from hivefs.testing.sim.truth import Violation

if TYPE_CHECKING:
    from hivefs.model.stripe import Stripe
    from hivefs.placement.policy import Policy
    from hivefs.testing.sim.world import World


def _named(world: World) -> tuple[set[bytes], set[bytes]]:
    """(keys that stripes name, keys that are there)."""
    store, wanted = world.life.store, set[bytes]()
    for stripe in store.stripes():
        if stripe.policy_hash:
            wanted.add(records.policy_key(stripe.policy_hash))
        wanted.update(records.standing_key(share.standing) for share in stripe.shares if share.standing)
    return wanted, {*store.keys("tree", b"p"), *store.keys("tree", b"a")}


def check(world: World) -> None:
    """At any time. Raises Violation."""
    wanted, there = _named(world)
    if missing := wanted - there:
        raise Violation(f"stripes name {len(missing)} definitions or standings that are in the book no more")
    world.result.definitions = max(world.result.definitions, len(there))


def check_settled(world: World) -> None:
    """In the end. Raises Violation."""
    wanted, there = _named(world)
    written = world.life.store.policies.set
    kept = {records.policy_key(policy_format.digest(p)) for p in (*written.policies.values(), written.metadata())}
    if left := there - wanted - kept - {policy_format.TEXT_KEY, records.policy_key(policy_format.TEXT_KEY)}:
        raise Violation(f"{len(left)} definitions or standings are in the book that nothing names any more")
    for stripe_id in world.heads.pages:
        stripe, page = world.life.store.stripe(stripe_id), world.truth.by_id[stripe_id]
        if stripe is not None and not page.lost and (words := metadata_breach(world, stripe)):
            raise Violation(f"metadata is not as the policies say: {words}")


def metadata_breach(world: World, stripe: Stripe) -> str:
    """Why a stripe of metadata is not as each policy says that it has to obey; empty when it is."""
    nodes = [world.by_id[share.node] for share in stripe.shares if share.node is not None]
    for policy in _over_metadata(world):
        rules = replace(policy, needed=stripe.needed, total=stripe.total)
        if words := breach(rules, nodes):
            return f"{words} (policy {policy.name})"
    return ""


def _over_metadata(world: World) -> list[Policy]:
    if not world.files.text:
        return [world.policy]
    written = parse(world.files.text, world.policy)
    names = [written.metadata_name] if written.metadata_name else sorted({"default", *written.paths.values()})
    return [written.policies[name] for name in names]
