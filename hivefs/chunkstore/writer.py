"""The writer: one packed stripe becomes n acknowledged shares on n nodes.

It encodes and hashes in a worker thread, asks the selector for nodes, sends all shares at once, and replaces a node that
fails or is late by another one that keeps the rules. When the hive cannot take all n now, it places as many as the rules
allow, at least k (then the data is ``remote``), and leaves the rest to repair.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from hivefs.chunkstore.claims import Claims, Pair
from hivefs.chunkstore.ports import Nodes, Random, Think, at_once
from hivefs.chunkstore.steps import Moment
from hivefs.content import coding
from hivefs.content.merkle import merkle_root
from hivefs.content.packing import Packed
from hivefs.errors import HivefsError, HiveFull, NodeBusy, NotEnoughShares, PolicyInfeasible, TooFewNodes
from hivefs.formats import policy as policy_format
from hivefs.model.ids import NodeId, ShareId, StripeId, sortable_id
from hivefs.model.node import Candidate
from hivefs.model.stripe import Purpose, Share, Stripe
from hivefs.placement import copysets
from hivefs.placement.field import Field
from hivefs.placement.picking import Missing, pick
from hivefs.placement.policy import Policy

log = logging.getLogger(__name__)

PUT_TIMEOUT = 30.0
HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
LEASE_NS = 120 * DAY_NS
"""How long a node promises to keep a share; maintenance/leases.py renews long before."""
LEAST_LEASE_NS = LEASE_NS // 4
"""A node that keeps shares for less than this is of no use: an engine may not run for weeks. (An honest one gives up to two
years, so one that gives less than what is asked for has a clock that is years behind, or does not want to keep it.)
"""

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


def named(stripe: Stripe) -> set[tuple[int, NodeId]]:
    """The holders that a stripe names, by share number."""
    return {(i, share.node) for i, share in enumerate(stripe.shares) if share.node is not None}


def too_short(granted_ns: int) -> str:
    """What is wrong with a node that keeps shares for so long, in words."""
    if granted_ns <= 0:
        return "it says that it keeps a share until a time in the past: is its clock wrong?"
    long = f"{granted_ns // HOUR_NS} hours" if granted_ns < DAY_NS else f"{granted_ns / DAY_NS:.1f} days"
    return f"it keeps a share for {long} only, {LEASE_NS // DAY_NS} days were asked for"


class Writer:
    """Places stripes. Whoever calls records the result before the next checkpoint of trio (see claims.py)."""

    def __init__(
        self,
        nodes: Nodes,
        policy: Policy,
        clock: Callable[[], int],
        random: Random,
        claims: Claims,
        secret: bytes = b"",
        copies: Callable[[Stripe], Collection[tuple[int, NodeId]]] = named,
    ) -> None:
        """``copies`` says where shares of a stripe may lie, by share number: at those it names, whatever became of them,
        and where old copies may be (maintenance/old_copies.py).

        ``secret``: 32 bytes of the vault, the same for ever, by which stripes of a large hive share sets of nodes
        (placement/copysets.py); without, each has its own.
        """
        self._nodes = nodes
        self._secret = secret
        self.policy = policy
        self._clock = clock
        self._random = random
        self._claims = claims
        self._copies = copies
        self.think: Think = at_once
        """Answers what may take long (daemon/thinker.py)."""
        self.on_short: Callable[[NodeId, int], None] = lambda node_id, granted_ns: None
        """Hears that a node keeps a share for so long only, and not for LEASE_NS."""

    def new_id(self) -> StripeId:
        """A name for a stripe that is being made."""
        return StripeId(sortable_id(self._clock(), self._random(10)))

    async def place(self, packed: Packed, purpose: Purpose, stripe_id: StripeId, policy: Policy | None = None) -> Stripe:
        """Encode and place by a policy whose code is chosen (default: the vault's own). Raises TooFewNodes,
        PolicyInfeasible or HiveFull when not even k shares can go anywhere.
        """
        policy = policy or self.policy
        coded = await trio.to_thread.run_sync(code, policy.needed, policy.total, packed.data)
        shares = tuple(Share(c.share_id, c.merkle_root, None) for c in coded)
        digest = policy_format.digest(policy)
        bare = Stripe(stripe_id, purpose, policy.needed, packed.share_bytes, shares, digest, self._clock())
        holders = await self.spread(bare, dict(enumerate(coded)), {}, policy.needed, policy=policy)
        shares = tuple(replace(share, node=holders.get(i)) for i, share in enumerate(shares))
        return replace(bare, shares=shares, placed_ns=self._clock())

    async def spread(
        self,
        stripe: Stripe,
        coded: Mapping[int, Coded],
        kept: Mapping[int, NodeId],
        least: int,
        avoid: Collection[NodeId] = (),
        policy: Policy | None = None,
        discount: Collection[NodeId] = (),
    ) -> dict[int, NodeId]:
        """Put shares (by number) on nodes that are not in ``avoid`` and keep the rules together with the holders in
        ``kept``; returns who holds what, kept ones included. Whoever the stripe names, and its old copies, count for what a
        coalition could bring together (except at nodes in ``discount``). Raises when fewer than ``least`` are held in the
        end; what was put then is deleted again.
        """
        claimed: set[Pair] = set()
        try:
            used = policy or self.policy
            return await self._spread(stripe, coded, kept, least, set(avoid), claimed, used, discount)
        finally:
            self._claims.release(claimed)

    async def _spread(
        self,
        stripe: Stripe,
        coded: Mapping[int, Coded],
        kept: Mapping[int, NodeId],
        least: int,
        failed: set[NodeId],
        claimed: set[Pair],
        policy: Policy,
        discount: Collection[NodeId],
    ) -> dict[int, NodeId]:
        holders = dict(kept)
        tried: set[tuple[int, NodeId]] = set()
        wanted = sorted(coded)
        problem: HivefsError | None = None
        for _ in range(ROUNDS):
            missing = [i for i in wanted if i not in holders]
            if not missing:
                return holders
            try:
                chosen, looked = await self._choose(stripe, policy, holders, missing, failed, tried, discount)
            except (TooFewNodes, PolicyInfeasible) as error:
                problem = error
                break
            jobs = list(chosen.items())
            pairs = self._claims.claim([(node, coded[index].share_id) for index, node in jobs], looked)
            claimed |= pairs
            problem = await self._put_all(coded, jobs, pairs, holders, failed) or problem
            # Who did not answer may have the share all the same.
            tried |= set(jobs)
        if len(holders) < least:
            raise problem or NotEnoughShares(have=len(holders), needed=least, stripe="(new)", reason="nodes failed")
        return holders

    async def put_at(self, coded: Coded, node_id: NodeId, looked: Moment) -> bool:
        """Put one share at this very node; False when it cannot be put there now because it is being deleted there.
        ``looked`` is when it was seen that it may go there. Raises what the node says.
        """
        holders: dict[int, NodeId] = {}
        pairs = self._claims.claim([(node_id, coded.share_id)], looked)
        try:
            problem = await self._put_all({0: coded}, [(0, node_id)], pairs, holders, set())
        finally:
            self._claims.release(pairs)
        if problem is not None:
            raise problem
        return bool(holders)

    async def candidates(self, policy: Policy) -> Sequence[Candidate] | Field:
        """All nodes as that policy sees them."""
        return await self._nodes.listed(policy)

    async def look_for_place(
        self,
        stripe: Stripe,
        kept: Mapping[int, NodeId],
        missing: Collection[int],
        avoid: Collection[NodeId],
        policy: Policy,
        discount: Collection[NodeId] = (),
    ) -> None:
        """Raises TooFewNodes, PolicyInfeasible or HiveFull when not one of the missing shares could go anywhere now."""
        await self.choose(stripe, policy, kept, missing, avoid, discount)

    async def choose(
        self,
        stripe: Stripe,
        policy: Policy,
        kept: Mapping[int, NodeId],
        missing: Collection[int],
        avoid: Collection[NodeId] = (),
        discount: Collection[NodeId] = (),
    ) -> dict[int, NodeId]:
        """Nodes for the missing shares; fewer when rules or hive do not allow all. Raises as look_for_place() does."""
        chosen, _ = await self._choose(stripe, policy, dict(kept), sorted(missing), set(avoid), (), discount)
        return chosen

    def copies(
        self, stripe: Stripe, discount: Collection[NodeId] = (), more: Collection[tuple[int, NodeId]] = ()
    ) -> set[tuple[int, NodeId]]:
        """Where shares of a stripe may lie, and those pairs in ``more``; not at the nodes in ``discount``."""
        return {pair for pair in {*self._copies(stripe), *more} if pair[1] not in discount}

    async def _choose(
        self,
        stripe: Stripe,
        policy: Policy,
        holders: dict[int, NodeId],
        missing: list[int],
        failed: set[NodeId],
        tried: Collection[tuple[int, NodeId]],
        discount: Collection[NodeId],
    ) -> tuple[dict[int, NodeId], Moment]:
        """Nodes for the missing shares, fewer when the rules or the hive do not allow all, and when it was looked last
        where copies are. Raises when it is none.
        """
        size = stripe.share_bytes
        candidates = await self._nodes.listed(policy)
        pairs = sorted(self.copies(stripe, discount, tried) - set(holders.items()))
        known = self.known(candidates, [*holders.values(), *(node for _, node in pairs)])
        kept = {number: known.get(node, Candidate(node, {})) for number, node in holders.items()}
        away = failed | {share.node for share in stripe.shares if share.node is not None}  # one share a node
        # A copy that a recorded stripe does not name may be damaged, or its node lost it: the same does not go there again.
        refused = pairs if any(share.node is not None for share in stripe.shares) else []
        copies = [(number, known.get(node, Candidate(node, {}))) for number, node in pairs]
        seed = int.from_bytes(self._random(8), "big")
        both = None
        count = candidates.known if isinstance(candidates, Field) else len(candidates)
        if self._secret and copysets.groups(count, policy.total):
            both = copysets.seeds(self._secret, policy, stripe.stripe_id, count)
        question = Missing(tuple(missing), kept, copies, refused, away, size, seed, both)
        try:
            found = await self.think(pick, policy, candidates, question)
            looked = Moment()
            if set(pairs) != self.copies(stripe, discount, tried) - set(holders.items()):
                # While the answer was looked for an old copy came, or went: it is to count.
                return await self._choose(stripe, policy, holders, missing, failed, tried, discount)
            return found, looked
        except (TooFewNodes, PolicyInfeasible):
            if any(c.usable for c in candidates) and not any(c.usable and c.free_bytes >= size for c in candidates):
                raise HiveFull(reason=f"no node has {size} bytes free") from None
            raise

    @staticmethod
    def known(candidates: Sequence[Candidate] | Field, node_ids: Iterable[NodeId]) -> dict[NodeId, Candidate]:
        """What is known of some nodes, by id."""
        if isinstance(candidates, Field):
            return {n: found for n in node_ids if (found := candidates.get(n)) is not None}
        wanted = set(node_ids)
        return {c.node_id: c for c in candidates if c.node_id in wanted}

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
                asked = self._clock() + LEASE_NS
                until = await client.put(share.share_id, share.data, asked, timeout=PUT_TIMEOUT)
                if asked - until > LEASE_NS - LEAST_LEASE_NS:
                    reason = too_short(LEASE_NS - (asked - until))
                    self._nodes.report(node_id, reason)
                    raise NodeBusy(peer=node_id.hex()[:12], reason=reason)
                if until < asked:
                    self.on_short(node_id, LEASE_NS - (asked - until))
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
