"""The writer: one packed stripe becomes n acknowledged shares on n nodes.

It encodes and hashes in a worker thread, asks the selector for nodes, sends all shares at once, and replaces a node that
fails or is late by another one that keeps the rules. When the hive cannot take all n now, it places as many as the rules
allow, at least k (then the data is ``remote``), and leaves the rest to repair.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import trio

from hivefs.chunkstore.claims import Claims, Pair
from hivefs.chunkstore.ports import Nodes, Random
from hivefs.content import coding
from hivefs.content.merkle import merkle_root
from hivefs.content.packing import Packed
from hivefs.errors import HivefsError, HiveFull, NodeBusy, NotEnoughShares, PolicyInfeasible, TooFewNodes
from hivefs.formats import policy as policy_format
from hivefs.model.ids import NodeId, ShareId, StripeId, sortable_id
from hivefs.model.node import Candidate
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose

log = logging.getLogger(__name__)

PUT_TIMEOUT = 30.0
LEASE_NS = 120 * 86_400 * 10**9
"""How long a node promises to keep a share; maintenance/leases.py renews long before."""

ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Coded:
    """A share with its names."""

    share_id: ShareId
    merkle_root: bytes
    data: bytes


def code(needed: int, total: int, data: tuple[bytes, ...]) -> list[Coded]:
    """All n shares of k data shares, with SHA-256 name and Merkle root. Takes milliseconds: for a worker thread."""
    return [name_share(share) for share in (*data, *coding.encode(needed, total, data))]


def name_share(share: bytes) -> Coded:
    """The names of one share."""
    return Coded(ShareId(hashlib.sha256(share).digest()), merkle_root(share), share)


class Writer:
    """Places stripes. Whoever calls records the result before the next checkpoint of trio (see claims.py)."""

    def __init__(
        self,
        nodes: Nodes,
        policy: Policy,
        clock: Callable[[], int],
        random: Random,
        claims: Claims,
    ) -> None:
        self._nodes = nodes
        self.policy = policy
        self._clock = clock
        self._random = random
        self._claims = claims

    def new_id(self) -> StripeId:
        """A name for a stripe that is being made."""
        return StripeId(sortable_id(self._clock(), self._random(10)))

    async def place(self, packed: Packed, purpose: Purpose, stripe_id: StripeId, policy: Policy | None = None) -> Stripe:
        """Encode and place by a policy whose code is chosen (default: the vault's own). Raises TooFewNodes,
        PolicyInfeasible or HiveFull when not even k shares can go anywhere.
        """
        policy = policy or self.policy
        coded = await trio.to_thread.run_sync(code, policy.needed, policy.total, packed.data)
        holders = await self.spread(dict(enumerate(coded)), {}, policy.needed, policy=policy)
        return Stripe(
            stripe_id,
            purpose,
            policy.needed,
            packed.share_bytes,
            tuple(Share(c.share_id, c.merkle_root, holders.get(i)) for i, c in enumerate(coded)),
            policy_format.digest(policy),
            self._clock(),
        )

    async def spread(
        self,
        coded: Mapping[int, Coded],
        kept: Mapping[int, NodeId],
        least: int,
        avoid: Collection[NodeId] = (),
        policy: Policy | None = None,
    ) -> dict[int, NodeId]:
        """Put shares (by number) on nodes that are not in ``avoid`` and keep the rules together with the holders in
        ``kept``; returns who holds what, kept ones included. Raises when fewer than ``least`` are held in the end; what
        was put then is deleted again.
        """
        claimed: set[Pair] = set()
        try:
            return await self._spread(coded, kept, least, avoid, claimed, policy or self.policy)
        finally:
            self._claims.release(claimed)

    async def _spread(
        self,
        coded: Mapping[int, Coded],
        kept: Mapping[int, NodeId],
        least: int,
        avoid: Collection[NodeId],
        claimed: set[Pair],
        policy: Policy,
    ) -> dict[int, NodeId]:
        holders = dict(kept)
        failed: set[NodeId] = set(avoid)
        wanted = sorted(coded)
        problem: HivefsError | None = None
        for _ in range(ROUNDS):
            missing = [i for i in wanted if i not in holders]
            if not missing:
                return holders
            try:
                chosen = self._choose(policy, holders, missing, failed, len(coded[missing[0]].data))
            except (TooFewNodes, PolicyInfeasible) as error:
                problem = error
                break
            jobs = list(zip(missing, chosen, strict=False))
            pairs = self._claims.claim([(node, coded[index].share_id) for index, node in jobs])
            claimed |= pairs
            problem = await self._put_all(coded, jobs, pairs, holders, failed) or problem
        if len(holders) < least:
            raise problem or NotEnoughShares(have=len(holders), needed=least, stripe="(new)", reason="nodes failed")
        return holders

    async def put_at(self, coded: Coded, node_id: NodeId) -> bool:
        """Put one share at this very node; False when it cannot be put there now because it is being deleted there. Raises
        what the node says.
        """
        holders: dict[int, NodeId] = {}
        pairs = self._claims.claim([(node_id, coded.share_id)])
        try:
            problem = await self._put_all({0: coded}, [(0, node_id)], pairs, holders, set())
        finally:
            self._claims.release(pairs)
        if problem is not None:
            raise problem
        return bool(holders)

    def candidates(self, policy: Policy) -> Sequence[Candidate]:
        """All nodes as that policy sees them."""
        return self._nodes.candidates(policy)

    def look_for_place(
        self, kept: Mapping[int, NodeId], missing: Collection[int], avoid: Collection[NodeId], size: int, policy: Policy
    ) -> None:
        """Raises TooFewNodes, PolicyInfeasible or HiveFull when not one of the missing shares could go anywhere now."""
        self._choose(policy, dict(kept), list(missing), set(avoid), size)

    def _choose(
        self, policy: Policy, holders: dict[int, NodeId], missing: list[int], failed: set[NodeId], size: int
    ) -> list[NodeId]:
        """Nodes for the missing shares; fewer when the rules or the hive do not allow all. Raises when it is none."""
        candidates = self._nodes.candidates(policy)
        known = {c.node_id: c for c in candidates}
        kept = [known.get(n, Candidate(n, {})) for n in holders.values()]
        seed = int.from_bytes(self._random(8), "big")
        problem: HivefsError | None = None
        count = len(missing)
        while count > 0:
            try:
                return choose(
                    policy,
                    candidates,
                    seed,
                    kept=kept,
                    count=count,
                    share_bytes=size,
                    avoid=failed,
                )
            except (TooFewNodes, PolicyInfeasible) as error:
                problem = problem or error
                count = min(count - 1, int(error.data["most"]))
        if any(c.usable for c in candidates) and not any(c.usable and c.free_bytes >= size for c in candidates):
            raise HiveFull(reason=f"no node has {size} bytes free")
        if problem is None:
            raise AssertionError("nothing was missing")
        raise problem

    async def _put_all(
        self,
        coded: Mapping[int, Coded],
        jobs: list[tuple[int, NodeId]],
        pairs: set[Pair],
        holders: dict[int, NodeId],
        failed: set[NodeId],
    ) -> HivefsError | None:
        problems: list[HivefsError] = []

        async def put(index: int, node_id: NodeId) -> None:
            share = coded[index]
            client = self._nodes.client(node_id)
            if client is None or (node_id, share.share_id) not in pairs:
                failed.add(node_id)
                return
            self._nodes.reserve(node_id, len(share.data))
            try:
                await client.put(share.share_id, share.data, self._clock() + LEASE_NS, timeout=PUT_TIMEOUT)
                holders[index] = node_id
                self._nodes.answered_put(node_id, busy=False)
            except HivefsError as error:
                failed.add(node_id)
                problems.append(error)
                if isinstance(error, NodeBusy):
                    self._nodes.answered_put(node_id, busy=True)

        async with trio.open_nursery() as nursery:
            for index, node_id in jobs:
                nursery.start_soon(put, index, node_id)
        return problems[0] if problems else None
