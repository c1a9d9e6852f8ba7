"""Repair: stripes that miss shares get them back, most endangered first; shares on nodes that leave move elsewhere, and so
do those that are not as the stripe's policy says (the policy is stricter now, or more is known of a node).

The queue is derived, not stored: a scan of all stripes at the start and when policies change, then what changes (a node
given up, leaving or known better, a share found damaged, a stripe placed with less than all its shares) adds to it. What
to do with one stripe is a pure decision (``plan``, and ``settle`` of placement/selector.py for what is out of policy);
doing it is reading any k shares, or those that move, making the missing ones again, checking them against their names,
and putting them on nodes that keep the rules together with those that stay. An old share stays until the stripe is
recorded with the new one.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import trio
import trio.lowlevel

from hivefs.chunkstore import steps
from hivefs.chunkstore.reader import Reader
from hivefs.chunkstore.writer import Writer, name_share
from hivefs.content import coding
from hivefs.errors import DiskFull, HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.maintenance.certify import Certify
from hivefs.maintenance.full_disk import Keep, unkept
from hivefs.maintenance.ports import State
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId, ShareId, StripeId
from hivefs.model.node import Attribute, Candidate
from hivefs.model.stripe import Level, Stripe
from hivefs.placement.beside import settle
from hivefs.placement.health import Health, NodeState, NodeView
from hivefs.placement.health import State as StripeState
from hivefs.placement.policies import Policies
from hivefs.placement.policy import Policy

log = logging.getLogger(__name__)

WORKERS = 2
RETRY = 5.0
LONGEST_RETRY = 120.0
"""What was read and no node took is read again after RETRY seconds, and each time twice as late, up to this."""
LEAVING_AGAIN = 30.0
HOPELESS_LOOKS = 3
"""After so many looks, or when a node comes or goes, what had no place is tried again: room may have come."""

MANY = 1000
"""More such stripes than this are tried again twelve times as seldom."""

AT_ONCE = 20
"""Of them are looked at again in one step, when their shares were deleted somewhere."""

LAST = 1
"""A stripe that may lose fewer shares than this more is not to wait for old copies that may be destroyed."""

OUT_OF_POLICY = 1
"""As urgent as a stripe that may lose this many more shares is one that is not as its policy says."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Share numbers to make again, and the holders that stay. ``moving`` are shares that are there, on nodes that leave.
    ``urgency`` is how many more shares may be lost.
    """

    missing: tuple[int, ...]
    kept: dict[int, NodeId]
    urgency: int
    moving: tuple[int, ...] = ()

    @property
    def wanted(self) -> tuple[int, ...]:
        """Shares that need a node."""
        return tuple(sorted(self.missing + self.moving))


def plan(stripe: Stripe, look: Callable[[NodeId], NodeView | None]) -> Plan:
    """A share is missing when no node is named for it, or the node is gone or unknown. One share a node: of two on the
    same node the second is missing.
    """
    kept: dict[int, NodeId] = {}
    moving: dict[int, NodeId] = {}
    for index, share in enumerate(stripe.shares):
        view = None if share.node is None else look(share.node)
        if share.node is None or view is None or view.state == NodeState.GONE:
            continue
        if share.node not in kept.values() and share.node not in moving.values():
            (moving if view.leaving else kept)[index] = share.node
    missing = tuple(i for i in range(stripe.total) if i not in kept and i not in moving)
    return Plan(missing, kept, len(kept) + len(moving) - stripe.needed, tuple(moving))


def _to_do(decision: Plan, health: Health) -> bool:
    """Whether a stripe is to be repaired, moved or mended now."""
    if not health.verdict.holds and health.state != StripeState.LOST:
        return True
    return bool(decision.moving) or (bool(decision.missing) and not health.waits)


async def _at_once(size: int, urgent: bool) -> None:
    await trio.lowlevel.checkpoint()


async def _nothing(stripe: Stripe, indices: Collection[int]) -> bool:
    await trio.lowlevel.checkpoint()
    return False


class Repair:
    """See the head of the file. ``look`` is how nodes are seen now."""

    def __init__(
        self,
        state: State,
        reader: Reader,
        writer: Writer,
        look: Callable[[NodeId], NodeView | None],
        changed: Callable[[], trio.Event],
    ) -> None:
        self._state = state
        self._reader = reader
        self._writer = writer
        self._look = look
        self._changed = changed
        self._heap: list[tuple[int, StripeId]] = []
        self._queued: set[StripeId] = set()
        self._working: set[StripeId] = set()
        self._parked: dict[StripeId, None] = {}
        self._stuck: dict[StripeId, None] = {}
        """Parked for want of a place: looked at less often, or when one of its shares was deleted somewhere."""
        self._again: dict[StripeId, None] = {}
        """Those of the two whose turn to be looked at again has come. None is in two of these four."""
        self._stuck_shares: dict[ShareId, StripeId] = {}
        """The shares of those, of some MANY at most."""
        self.unproved = Certify(state)
        self._urgency: dict[StripeId, int] = {}
        self._vain: dict[StripeId, tuple[int, float]] = {}
        """How often the shares of a stripe were read, and none was put, since one was; and when that was last."""
        self._hopeless: dict[tuple[Policy, frozenset[NodeId], int], HivefsError] = {}
        """What had no place, by the policy, the nodes that keep their shares, and how many shares have none."""
        self._wake = trio.Event()
        self._away: set[tuple[NodeId, bool]] = set()
        self.repaired = 0
        self.cancelled = 0
        """Stripes that left the queue because their nodes came back."""
        self.risked = 0
        """Stripes that were about to be lost and were repaired without regard to old copies at nodes given up."""
        self._why: dict[StripeId, str] = {}
        """Why a stripe had to wait when it was tried last, in the order of those tries."""
        self._beside: set[StripeId] = set()
        """Those of them that wait for nothing but the deletion of old copies."""
        self.keep: Keep = unkept
        """Starts the workers, and starts them again when there is room (maintenance/full_disk.py)."""
        self.admit: Callable[[int, bool], Awaitable[None]] = _at_once
        """Waits until so many bytes may be fetched or sent; urgent ones wait less (maintenance/budget.py)."""
        self.on_repaired: Callable[[Stripe], None] = lambda stripe: None
        self.take_back: Callable[[Stripe, Collection[int]], Awaitable[bool]] = _nothing
        """Finds missing shares at nodes that came back with old copies; whether it did (maintenance/spares.py)."""
        self.leave: Callable[[NodeId, ShareId, StripeId, int], None] = lambda node, share, *_: state.trash_share(
            node, share
        )
        """Inside a transaction: a share has another holder now."""
        self.on_bad: Callable[[NodeId], None] = lambda node_id: None
        """Hears of a node that does not hold what it should, once for each share."""

    @property
    def queue(self) -> int:
        """Stripes waiting for repair."""
        return len(self._queued) + len(self._parked) + len(self._stuck) + len(self._again)

    @property
    def waiting_for_copies(self) -> int:
        """Those that wait for nothing but the deletion of old copies."""
        return len(self._beside)

    def waits_for_copies(self, stripe_id: StripeId) -> bool:
        """Whether this stripe waits for nothing but the deletion of old copies."""
        return stripe_id in self._beside

    @property
    def waiting_for(self) -> str:
        """Why the stripe that was tried last among those that still wait must wait; empty when none does."""
        return next((why for stripe_id, why in reversed(self._why.items()) if self._waits(stripe_id)), "")

    def _waits(self, stripe_id: StripeId) -> bool:
        return any(stripe_id in there for there in (self._queued, self._parked, self._stuck, self._again))

    def _must_wait(self, stripe_id: StripeId, why: str, copies: bool) -> None:
        self._may_go(stripe_id)  # so that the newest is the last
        self._why[stripe_id] = why
        if copies:
            self._beside.add(stripe_id)

    def _may_go(self, stripe_id: StripeId) -> None:
        self._why.pop(stripe_id, None)
        self._beside.discard(stripe_id)

    def _forget(self, stripe_id: StripeId) -> None:
        """It is repaired, or nothing names it any more: what was tried with it does not count."""
        self._may_go(stripe_id)
        self._vain.pop(stripe_id, None)

    @property
    def busy(self) -> bool:
        """Whether there is a stripe that may be repaired now (not only such as wait for nodes)."""
        return bool(self._queued)

    def add(self, stripe_id: StripeId) -> None:
        """Look at this stripe soon."""
        stripe = self._state.stripe(stripe_id)
        if stripe is None:
            self._forget(stripe_id)
        else:
            self._add(stripe)

    def _add(self, stripe: Stripe) -> None:
        stripe_id = stripe.stripe_id
        decision = plan(stripe, self._look)
        health = self._state.health(stripe)
        urgency = decision.urgency
        if not _to_do(decision, health):
            self._may_go(stripe_id)
            if not decision.wanted and health.level == Level.GUARANTEED and not self._state.certified(stripe):
                self.unproved.note(stripe_id)  # it is proved as it lies, by the policy that it has now
            return
        if not health.verdict.holds and health.state != StripeState.LOST:
            urgency = min(urgency, OUT_OF_POLICY)
        if stripe_id in self._queued and urgency >= self._urgency.get(stripe_id, urgency):
            return
        self._queued.add(stripe_id)
        self._parked.pop(stripe_id, None)
        self._stuck.pop(stripe_id, None)
        self._again.pop(stripe_id, None)
        self._urgency[stripe_id] = urgency
        heapq.heappush(self._heap, (urgency, stripe_id))  # an older entry of it is passed over when its turn comes
        self._wake.set()

    def bad_share(self, stripe: Stripe, index: int, reason: str) -> None:
        """A node does not hold this share any more, or holds something else: forget that it does, and repair."""
        with self._state.writing():
            now = self._state.stripe(stripe.stripe_id)
            # Not its standing: another bad share of the stripe, reported a moment ago, took the certificate away.
            if now is None or now.shares[index].node is None or now.shares[index].node != stripe.shares[index].node:
                return
            node = now.shares[index].node
            shares = list(now.shares)
            shares[index] = replace(shares[index], node=None)
            self._state.save_stripe(replace(now, shares=tuple(shares)))
            if node is not None:
                self._state.trash_share(node, shares[index].share_id)
        if node is not None:
            self.on_bad(node)
        self.add(stripe.stripe_id)

    async def run(self) -> None:
        """Scan, watch and repair until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._retry)
            nursery.start_soon(self.keep, "certificates", self.unproved.run)
            for _ in range(WORKERS):
                nursery.start_soon(self.keep, "repair", self._work)

    async def _watch(self) -> None:
        scanned: Policies | None = None
        known: dict[NodeId, tuple[Attribute, ...]] = {}
        while True:
            changed = self._changed()
            before = known
            now, known, differ = await self._nodes(before)
            if scanned is not self._state.policies:
                scanned = self._state.policies
                await self._scan(self._state.stripes())
            for node_id in (*differ, *(node_id for node_id, _ in sorted(now - self._away))):
                await self._scan(self._stripes_on(node_id))
            # A stripe that was on its way while its node announced that it leaves is found by looking again.
            leaving = {entry for entry in now if not entry[1]}
            returned = self._away - now
            self._away = now - leaving
            if returned:
                await self._cancel()
            with trio.move_on_after(LEAVING_AGAIN if leaving else math.inf):
                await changed.wait()

    async def _scan(self, stripes: Iterable[Stripe]) -> None:
        """Look at all of these. They are read one by one: what is looked at is as it is then."""
        turns = Turns()
        for stripe in stripes:
            self._add(stripe)
            await turns.item()
            await self.unproved.room()

    def _stripes_on(self, node_id: NodeId) -> Iterator[Stripe]:
        for stripe_id in self._state.each_on(node_id):
            stripe = self._state.stripe(stripe_id)
            if stripe is not None:
                yield stripe

    async def _cancel(self) -> None:
        """A node is back: what waits for nothing else, or may wait longer now, leaves the queue."""
        turns = Turns()
        for stripe_id in list(self._queued):
            stripe = self._state.stripe(stripe_id)
            if stripe is None or not _to_do(plan(stripe, self._look), self._state.health(stripe)):
                self._queued.discard(stripe_id)
                self.cancelled += 1
                (self._may_go if stripe is not None else self._forget)(stripe_id)
            await turns.item()

    async def _nodes(
        self, before: Mapping[NodeId, tuple[Attribute, ...]]
    ) -> tuple[set[tuple[NodeId, bool]], dict[NodeId, tuple[Attribute, ...]], list[NodeId]]:
        """Nodes whose shares need another home: those given up (True) and those that leave (False). What is known of each
        node, and of which that is another thing than before: their shares may be out of policy.
        """
        away, known, differ, turns = set(), {}, [], Turns()
        for node_id in self._state.each_node():
            view = self._look(node_id)
            gone = view is None or view.state == NodeState.GONE
            if gone or (view is not None and view.leaving):
                away.add((node_id, gone))
            if view is not None:
                known[node_id] = view.attributes
                if before.get(node_id, view.attributes) != view.attributes:
                    differ.append(node_id)
            await turns.item()
        return away, known, differ

    async def _work(self) -> None:
        while True:
            if not self._heap:
                if self._wake.is_set():
                    self._wake = trio.Event()
                await self._wake.wait()
                continue
            _, stripe_id = heapq.heappop(self._heap)
            if stripe_id not in self._queued or stripe_id in self._working:
                continue  # it is not needed any more, was done already, or is being done
            self._working.add(stripe_id)
            self._urgency.pop(stripe_id, None)
            done = stuck = False
            why, copies = "nodes for the missing shares", False
            try:
                done = await self.repair(stripe_id)
            except DiskFull as error:
                self._must_wait(stripe_id, str(error), False)
                self._parked[stripe_id] = None
                raise
            except HivefsError as error:
                why, copies = str(error), bool(error.data.get("old_copies"))
                if why != self.waiting_for:
                    log.info("repair waits: %s", why)
                stuck = isinstance(error, PolicyInfeasible | TooFewNodes)
            finally:
                self._queued.discard(stripe_id)
                self._working.discard(stripe_id)
            if done:
                self._forget(stripe_id)
            # What cannot be repaired now is put aside: as the most endangered it would keep all workers from the rest.
            if not done:
                self._must_wait(stripe_id, why, copies)
                (self._stuck if stuck else self._parked)[stripe_id] = None
                stripe = self._state.stripe(stripe_id)
                if stripe is not None and stuck and len(self._stuck) <= MANY:
                    self._stuck_shares.update((share.share_id, stripe_id) for share in stripe.shares)

    def deleted(self, share_ids: Collection[ShareId]) -> None:
        """These shares have left a node where they waited to be deleted: it may take what had no place because of them."""
        freed = {s for share_id in share_ids if (s := self._stuck_shares.get(share_id)) in self._stuck and s is not None}
        for stripe_id in sorted(freed)[:AT_ONCE]:  # more than that at once is left to the next look at all
            self._hopeless.clear()
            self._stuck.pop(stripe_id)
            if self._later(stripe_id, True):
                self._parked[stripe_id] = None
            else:
                self.add(stripe_id)

    async def _retry(self) -> None:
        """Look again at what was put aside, when a node comes or goes and every RETRY seconds."""
        looks = 0
        while True:
            changed = self._changed()
            with trio.move_on_after(RETRY):
                await changed.wait()
            looks += 1
            # Usually nothing is left there; what an interrupted look left waits for the next one.
            self._again, self._parked = self._parked, self._again
            if changed.is_set() or looks % (HOPELESS_LOOKS if len(self._stuck) < MANY else 12 * HOPELESS_LOOKS) == 0:
                self._hopeless.clear()
                self._again |= self._stuck
                self._stuck = {}
                self._stuck_shares.clear()
            turns = Turns()
            while self._again:
                stripe_id, _ = self._again.popitem()
                if self._later(stripe_id, changed.is_set()):
                    self._parked[stripe_id] = None
                else:
                    self.add(stripe_id)
                await turns.item()

    def _later(self, stripe_id: StripeId, changed: bool) -> bool:
        """Whether to read its shares once more is for later. Not while it may lose none and another node is there now."""
        times, last = self._vain.get(stripe_id, (0, 0.0))
        if not times or trio.current_time() - last >= min(LONGEST_RETRY, RETRY * 2.0 ** (times - 1)):
            return False
        stripe = self._state.stripe(stripe_id)
        return stripe is not None and not (changed and plan(stripe, self._look).urgency <= 0)

    async def repair(self, stripe_id: StripeId) -> bool:
        """Make the missing shares of one stripe and move those on nodes that leave; True when nothing is left to do.
        HivefsError when it must wait.
        """
        stripe = self._state.stripe(stripe_id)
        if stripe is None:
            return True
        policy = self._state.policies.of(stripe)
        planned = plan(stripe, self._look)
        key = policy, frozenset(planned.kept.values()), len(planned.wanted)
        if key in self._hopeless:
            raise self._hopeless[key]
        try:
            return await self._repair(stripe, policy, planned)
        except (PolicyInfeasible, TooFewNodes) as error:
            # To find that out may take a tenth of a second, and all stripes on these nodes have the same answer.
            if not error.data.get("old_copies"):
                self._hopeless[key] = error
            raise

    async def _repair(self, stripe: Stripe, policy: Policy, planned: Plan) -> bool:
        stripe_id = stripe.stripe_id
        try:
            decision, discount = await self._settled(stripe, policy, planned, ()), frozenset[NodeId]()
        except (PolicyInfeasible, TooFewNodes) as error:
            # The best that can become of an old copy: it is the share again, and nobody gets anything by it.
            if await self.take_back(stripe, planned.wanted):
                return await self.repair(stripe_id)
            decision, discount = await self._settled_at_risk(stripe, policy, planned, error)
        wanted = decision.wanted
        if not wanted:
            return self._state.health(stripe).verdict.holds
        if await self.take_back(stripe, wanted):
            return await self.repair(stripe_id)
        # What has no other place is looked at again and again: that must not read shares each time.
        await self._writer.look_for_place(stripe, decision.kept, wanted, (), policy, discount)
        await self.admit((stripe.needed + len(wanted)) * stripe.share_bytes, decision.urgency <= 0)
        now = self._state.stripe(stripe_id)
        if now != stripe or plan(now, self._look) != planned:  # a node came back while we waited
            return await self.repair(stripe_id)
        self._vain[stripe_id] = self._vain.get(stripe_id, (0, 0.0))[0] + 1, trio.current_time()
        made = {} if decision.missing else await self._copies(stripe, decision.moving)
        if len(made) < len(wanted):
            made = await self._remade(stripe, decision, planned.missing)
        coded = {index: name_share(share) for index, share in made.items()}
        for index in wanted:
            if coded[index].share_id != stripe.shares[index].share_id:
                raise HivefsError(detail=f"stripe {stripe_id.hex()[:12]} decodes to other shares than it had")
        if self._moved(stripe):  # while we read: to put a share where it is named by now would note it for deletion there
            return await self.repair(stripe_id)
        holders = await self._writer.spread(stripe, coded, decision.kept, 0, policy=policy, discount=discount)
        self.risked += bool(discount)
        if holders.keys() > decision.kept.keys():
            self._vain.pop(stripe_id, None)
        else:
            self._vain[stripe_id] = self._vain.get(stripe_id, (1, 0.0))[0], trio.current_time()
        return self._record(stripe, holders)

    def _moved(self, stripe: Stripe) -> bool:
        """Whether other holders are recorded of it now, or it was forgotten."""
        now = self._state.stripe(stripe.stripe_id)
        return now is None or [share.node for share in now.shares] != [share.node for share in stripe.shares]

    async def _settled_at_risk(
        self, stripe: Stripe, policy: Policy, planned: Plan, error: HivefsError
    ) -> tuple[Plan, frozenset[NodeId]]:
        """What to do where nothing can be done for ``error``: wait (it is raised), but for a stripe that would be lost with
        LAST more shares. Waiting for its old copies could cost it; so those at nodes that were given up, which may well be
        destroyed, are passed over then. Gives these nodes too.
        """
        if not error.data.get("old_copies") or planned.urgency >= LAST:
            raise error
        views = {node: self._look(node) for _, node in self._writer.copies(stripe)}
        gone = frozenset(node for node, view in views.items() if view is None or view.state == NodeState.GONE)
        if not gone:
            raise error
        decision = await self._settled(stripe, policy, planned, gone)
        log.warning("stripe %s is repaired without regard to old copies at nodes given up", stripe.stripe_id.hex()[:12])
        return decision, gone

    async def _settled(self, stripe: Stripe, policy: Policy, decision: Plan, discount: Collection[NodeId]) -> Plan:
        """The plan with the fewest moves after which the policy holds. When it cannot hold with the nodes that are there,
        the part of it that can be done. Raises PolicyInfeasible, TooFewNodes when that is none.
        """
        if self._state.health(stripe).verdict.holds and not decision.moving and not decision.missing:
            return decision
        candidates = await self._writer.candidates(policy)
        copied = self._writer.copies(stripe, discount)
        known = self._writer.known(candidates, [*decision.kept.values(), *(node for _, node in copied)])
        holders = [known.get(decision.kept[i]) if i in decision.kept else None for i in range(stripe.total)]
        staying = {(i, decision.kept[i]) for i, holder in enumerate(holders) if holder is not None}
        pairs = sorted(copied - staying)
        copies = [(i, known.get(node, Candidate(node, {}))) for i, node in pairs]
        avoid = {n for s in stripe.shares if (n := s.node) is not None}
        seed = int.from_bytes(stripe.stripe_id, "big")
        try:
            made = await self._writer.think(
                settle,
                policy,
                holders,
                candidates,
                seed,
                copies,
                share_bytes=stripe.share_bytes,
                avoid=avoid,
                refused=pairs,
            )
        except (PolicyInfeasible, TooFewNodes) as error:
            made = error.data["partial"]
            if not made.nodes:
                raise
            # As much as can be done now: the shares that have a place get it, the rest stays where it is.
            out = [i for i in made.nodes if i in decision.kept]
            return replace(
                decision,
                kept={i: decision.kept[i] for i in made.keep},
                missing=tuple(i for i in decision.missing if i in made.nodes),
                moving=tuple(sorted((*(i for i in decision.moving if i in made.nodes), *out))),
            )
        out = [i for i in made.move if i in decision.kept]
        kept = {i: node for i, node in decision.kept.items() if i not in out}
        return replace(decision, kept=kept, moving=tuple(sorted((*decision.moving, *out))))

    async def _copies(self, stripe: Stripe, moving: tuple[int, ...]) -> dict[int, bytes]:
        """Shares as the nodes that leave give them; one read each instead of k. What does not come is left out."""
        found: dict[int, bytes] = {}
        for index in moving:
            data = await self._reader.one(stripe, index)
            if data is not None:
                found[index] = data
        return found

    async def _remade(self, stripe: Stripe, decision: Plan, missing: Collection[int]) -> dict[int, bytes]:
        """Shares made again from any k that are there. Raises NotEnoughShares."""
        shares = await self._reader.some(stripe, stripe.needed, without=set(missing))
        if len(shares) < stripe.needed:
            shares |= await self._reader.some(stripe, stripe.needed - len(shares), without=set(shares))
        return await trio.to_thread.run_sync(coding.remake, stripe.needed, stripe.total, shares, list(decision.wanted))

    def _record(self, before: Stripe, holders: dict[int, NodeId]) -> bool:
        steps.recording()
        with self._state.writing():
            now = self._state.stripe(before.stripe_id)
            if now is None:
                for index, node in holders.items():
                    if before.shares[index].node != node:
                        self._state.trash_share(node, before.shares[index].share_id)
                return True
            shares = []
            for index, (old, share) in enumerate(zip(before.shares, now.shares, strict=True)):
                holder = holders.get(index)
                if holder is not None and holder != old.node:
                    if share.node not in (old.node, None):
                        self._state.trash_share(holder, old.share_id)  # somebody else found a holder meanwhile
                    else:
                        if old.node is not None:
                            self.leave(old.node, old.share_id, now.stripe_id, index)
                        share = replace(share, node=holder)
                shares.append(share)
            stripe = replace(now, shares=tuple(shares))
            self._state.save_stripe(stripe)
        if [share.node for share in stripe.shares] != [share.node for share in now.shares]:
            self.repaired += 1
            self.on_repaired(stripe)
        return not plan(stripe, self._look).wanted and self._state.health(stripe).verdict.holds
