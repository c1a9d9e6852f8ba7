"""Copysets: stripes share a bounded number of sets of nodes, so that few sets of failures can lose one. Pure.

With every stripe on a set of its own, in a large hive whichever nodes fail together hold enough shares of some stripe. With
few sets it is most often none; when it does happen more is lost at once, and the mean stays (Cidon et al., "Copysets:
reducing the frequency of data loss in cloud storage", USENIX ATC 2013, whose permutations are replaced here as follows).

A set is what choose() answers to one seed, and there are only so many seeds: a stripe's id, hashed with a secret of the
vault, gives the numbers of two of G seeds, and the set whose fullest node has more room is taken (the power of two choices,
Mitzenmacher 2001). G is the power of two from N * PER_NODE / n on, so that a node is in PER_NODE to twice as many sets of n
of the N nodes; its scatter width, the number of nodes it shares stripes with, is at most n-1 times that. Lots do not depend
on other nodes, so when one leaves, its place in each of its sets goes to the node with the next lot, for all stripes of the
set alike: repair keeps the bound. Who does not know the secret can tell neither the sets nor the set of a stripe. When the
number of nodes doubles there are twice as many sets, the old ones among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import blake3

from hivefs.errors import PolicyInfeasible, TooFewNodes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.field import Field
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose

PER_NODE = 8
"""In how many sets a node is at least: more spreads repair over more nodes and lets more failures meet a set."""

SMALLEST = 4
"""Below so many nodes for each share of a stripe every stripe has a set of its own: there are few in any case."""


def groups(nodes: int, total: int) -> int:
    """G, for stripes of ``total`` shares on so many nodes; 0 when the number of sets is not bounded."""
    if nodes < SMALLEST * total:
        return 0
    return 1 << (nodes * PER_NODE // total - 1).bit_length()


def seeds(secret: bytes, policy: Policy, stripe_id: bytes, nodes: int) -> tuple[int, int]:
    """The two seeds of a stripe. ``secret`` are 32 bytes that do not change."""
    count = groups(nodes, policy.total)
    said = f"{policy.name} {policy.needed}/{policy.total} ".encode()
    digest = blake3.blake3(said + stripe_id, key=secret).digest(length=32)
    numbers = (int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big"))
    if count:
        numbers = (numbers[0] % count, numbers[1] % count)
    first, second = (blake3.blake3(said + n.to_bytes(16, "big") + b"set", key=secret).digest(length=16) for n in numbers)
    return int.from_bytes(first, "big"), int.from_bytes(second, "big")


def choose_set(
    policy: Policy,
    candidates: Sequence[Candidate] | Field,
    both: tuple[int, int],
    *,
    share_bytes: int = 0,
    avoid: Collection[NodeId] = (),
) -> list[NodeId]:
    """The nodes of a new stripe: of its two sets the one whose fullest node has more room. Raises as choose() does."""
    found = [choose(policy, candidates, seed, share_bytes=share_bytes, avoid=avoid) for seed in dict.fromkeys(both)]
    if len(found) == 1:
        return found[0]
    look = candidates.get if isinstance(candidates, Field) else {c.node_id: c for c in candidates}.get
    return max(found, key=lambda nodes: _least_room(look(n) for n in nodes))


def seed_of(
    policy: Policy,
    candidates: Sequence[Candidate] | Field,
    both: tuple[int, int],
    kept: Collection[NodeId],
    *,
    share_bytes: int = 0,
) -> int:
    """Which of its two seeds a stripe was placed by, as far as its nodes show: by that one it is repaired."""

    def shared(seed: int) -> int:
        try:
            return len(set(choose(policy, candidates, seed, share_bytes=share_bytes)) & set(kept))
        except (TooFewNodes, PolicyInfeasible):
            return 0

    return max(both, key=shared)


def _least_room(nodes: Iterable[Candidate | None]) -> int:
    return min((node.free_bytes for node in nodes if node is not None), default=0)
