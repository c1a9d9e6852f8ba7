"""Old copies of shares that were made again because their node was gone, when the node comes back with them.

Repair notes such a copy as a *spare* instead of having it deleted. Before a share is made again, and when its holder is
away for half of its time-out, leaves or is out of trust, a spare is taken back: the node must say that it has it (HAVE) and
give a random piece of it with its proof, as in an audit, renew its lease (which may be about to end: nobody renewed it
while it was a spare), and the placement must keep its rules. Moving no byte, the stripe then names the old node, and the
other holder's copy becomes the spare if that one is away. Repair looks at the stripe then: one that may wait with shares
missing may wait no more, when the copy lies under an authority that has others of them. What waits to be deleted there is
not taken back, and while one is asked for, it is not deleted (chunkstore/claims.py). A spare that nobody needs is deleted
KEEP_S after the share was made again or the node came back, at the latest after LONGEST_S.

Notes are written in the transaction that changes the stripe, so a crash forgets none; what is done about them can be done
again at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

import trio

from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.reader import Answer, Reader
from hivefs.chunkstore.writer import LEASE_NS
from hivefs.errors import HivefsError
from hivefs.maintenance.audit import where
from hivefs.maintenance.ports import State
from hivefs.maintenance.trust import Trust
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.stripe import Stripe
from hivefs.placement.health import NodeRow, NodeState, NodeView

log = logging.getLogger(__name__)

KEEP_S: Final = 7 * 86_400
LONGEST_S: Final = 60 * 86_400
EVERY: Final = 5.0
BATCH: Final = 64


class Haver(Protocol):
    """One conversation: sizes of shares by position, 0 where the node has none; for each whether it holds it for us."""

    async def have(self, share_ids: list[ShareId]) -> list[int]: ...
    async def renew(self, share_ids: list[ShareId], lease_ns: int) -> list[bool]: ...


class SpareState(State, Protocol):
    """The store with its table of spares (metadata/engine_trust.py)."""

    def spare_share(self, node_id: NodeId, share_id: ShareId, stripe_id: StripeId, index: int, now_s: int) -> None: ...
    def spares_of(self, node_id: NodeId, after: ShareId | None, limit: int) -> list[tuple[ShareId, StripeId, int, int]]: ...
    def spare_done(self, node_id: NodeId, share_id: ShareId) -> None: ...
    def has_spare(self, node_id: NodeId, share_id: ShareId) -> bool: ...
    def node_row(self, node_id: NodeId) -> NodeRow | None: ...


class Spares:
    """``look`` is how repair sees nodes; ``clock`` gives nanoseconds since 1970."""

    def __init__(
        self,
        state: SpareState,
        reader: Reader,
        trust: Trust,
        look: Callable[[NodeId], NodeView | None],
        online: Callable[[], Iterable[tuple[NodeId, Haver]]],
        clock: Callable[[], int],
        random: Callable[[int], bytes],
        claims: Claims,
    ) -> None:
        self._claims = claims
        self._state = state
        self._reader = reader
        self._trust = trust
        self._look = look
        self._online = online
        self._clock = clock
        self._random = random
        self.taken_back = 0
        self.given_up = 0
        self.on_taken_back: Callable[[StripeId], None] = lambda stripe_id: None
        """Hears of a stripe of which a spare is a share now, unless repair asked for that."""

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``."""
        return {"waiting": self._state.count("spare"), "taken_back": self.taken_back, "given_up": self.given_up}

    def leave(self, node_id: NodeId, share_id: ShareId, stripe_id: StripeId, index: int) -> None:
        """Inside a transaction: another node holds this share now. It may be worth something if this one is only away; one
        that is there, or unknown, shall delete it.
        """
        view = self._look(node_id)
        if view is not None and view.state == NodeState.GONE and not view.leaving:
            self._state.spare_share(node_id, share_id, stripe_id, index, max(0, self._clock() // 10**9))
        else:
            # Deleted once a head names the other: were this machine lost before, its recovery would ask this node.
            self._state.doom_share(stripe_id, node_id, share_id)

    async def run(self) -> None:
        """Take back what is needed and give up what is not, until cancelled."""
        while True:
            await self._once()
            await trio.sleep(EVERY)

    async def _once(self) -> None:
        for node_id, _ in list(self._online()):
            after: ShareId | None = None
            while batch := self._state.spares_of(node_id, after, BATCH):
                for share_id, stripe_id, index, since in batch:
                    await self._look_at(node_id, share_id, stripe_id, index, since)
                after = batch[-1][0]
                await trio.sleep(0.01)

    async def _look_at(self, node_id: NodeId, share_id: ShareId, stripe_id: StripeId, index: int, since: int) -> None:
        stripe = self._state.stripe(stripe_id)
        if stripe is None or stripe.shares[index].share_id != share_id or self._is_old(node_id, since):
            self._give_up(node_id, share_id)
        elif self._is_needed(stripe, index) and await self.take_back(stripe, [index]):
            self.on_taken_back(stripe_id)

    def _is_old(self, node_id: NodeId, since: int) -> bool:
        row = self._state.node_row(node_id)
        now = self._clock() // 10**9
        back = since if row is None else max(since, row.since_ns // 10**9)
        return now - back > KEEP_S or now - since > LONGEST_S

    def _is_needed(self, stripe: Stripe, index: int) -> bool:
        holder = stripe.shares[index].node
        view = None if holder is None else self._look(holder)
        if holder is None or view is None or view.state == NodeState.GONE or view.leaving:
            return True
        late = self._trust.away(holder, 0.0) > self._trust.gone_after(holder) / 2
        return view.state == NodeState.OFFLINE and late

    def _give_up(self, node_id: NodeId, share_id: ShareId) -> None:
        with self._state.writing():
            self._state.spare_done(node_id, share_id)
            self._state.trash_share(node_id, share_id)
        self.given_up += 1

    async def take_back(self, stripe: Stripe, indices: Collection[int]) -> bool:
        """Name nodes that are back with spares of these shares as their holders; whether one was."""
        done = False
        for index in indices:
            for node_id, client in list(self._online()):
                now = self._state.stripe(stripe.stripe_id)
                if now is None or not self._fits(now, index, node_id):
                    continue
                share_id = now.shares[index].share_id
                if not self._claims.hold(node_id, share_id):
                    continue
                try:
                    back = await self._has_it(now, index, node_id, client) and self._record(now, index, node_id)
                finally:
                    self._claims.release([(node_id, share_id)])
                if back:
                    done = True
                    break
        return done

    def _fits(self, stripe: Stripe, index: int, node_id: NodeId) -> bool:
        """Whether this node has a spare of that share, is fit to hold it, and the placement is no worse for it."""
        share = stripe.shares[index]
        view = self._look(node_id)
        if not self._state.has_spare(node_id, share.share_id) or view is None or view.leaving:
            return False
        if self._state.has_trash(node_id, share.share_id):
            return False
        if any(other.node == node_id for other in stripe.shares):
            return False
        before = self._state.health(stripe).verdict
        after = self._state.health(_held(stripe, index, node_id)).verdict
        if after.holds:
            return True
        # While shares are missing G2 fails for want of them; what may never be is that somebody could reassemble.
        return not before.holds and index not in after.out and all(proof.no_reassembly for proof in after.proofs)

    async def _has_it(self, stripe: Stripe, index: int, node_id: NodeId, client: Haver) -> bool:
        share_id = stripe.shares[index].share_id
        try:
            if await client.have([share_id]) == [stripe.share_bytes]:
                offset, length = where(stripe.share_bytes, lambda n: int.from_bytes(self._random(8), "big") % n)
                answer, _ = await self._reader.ask(_held(stripe, index, node_id), index, offset, length)
                if answer not in (Answer.RIGHT, Answer.WRONG):
                    return False
                if answer is Answer.RIGHT and await client.renew([share_id], self._clock() + LEASE_NS) == [True]:
                    return True
        except HivefsError:
            return False
        self._give_up(node_id, share_id)
        return False

    def _record(self, before: Stripe, index: int, node_id: NodeId) -> bool:
        with self._state.writing():
            if self._state.stripe(before.stripe_id) != before or not self._fits(before, index, node_id):
                return False
            share = before.shares[index]
            self._state.save_stripe(_held(before, index, node_id))  # takes it out of the spares
            if share.node is not None:
                view = self._look(share.node)
                if view is not None and view.state != NodeState.ONLINE and not view.leaving:
                    self._state.spare_share(
                        share.node, share.share_id, before.stripe_id, index, max(0, self._clock() // 10**9)
                    )
                else:  # once a head names the other: were this machine lost before, its recovery would ask this node
                    self._state.doom_share(before.stripe_id, share.node, share.share_id)
        self.taken_back += 1
        return True


def _held(stripe: Stripe, index: int, node_id: NodeId) -> Stripe:
    shares = list(stripe.shares)
    shares[index] = replace(shares[index], node=node_id, standing=b"")
    return replace(stripe, shares=tuple(shares))
