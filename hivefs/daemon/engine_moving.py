"""The engine's duties that move data and keep accounts, wired: one budget for all of them, and what status shows."""

from __future__ import annotations

import os
import time
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from hivefs.chunkstore.writer import named
from hivefs.content.packing import Packed
from hivefs.errors import HivefsError, PolicyInfeasible, TooFewNodes
from hivefs.maintenance.accounts import Contribution, entitlement
from hivefs.maintenance.budget import Budget
from hivefs.maintenance.evacuate import Evacuation
from hivefs.maintenance.ledger import Ledger
from hivefs.maintenance.moving import Moving
from hivefs.maintenance.reassign import Reassign
from hivefs.maintenance.rebalance import Rebalance
from hivefs.maintenance.rebalance_plan import Fill
from hivefs.maintenance.repack import Repack
from hivefs.maintenance.repack_plan import Target
from hivefs.maintenance.turns import Turns
from hivefs.metadata.engine_contents import Contents
from hivefs.model.ids import NodeId, StripeId
from hivefs.model.node import Candidate
from hivefs.model.stripe import Purpose, Stripe
from hivefs.placement.health import NodeState
from hivefs.placement.limits import Load, wishes
from hivefs.placement.policies import Policies
from hivefs.placement.reputation import availability

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

POLICIES_EVERY = 5.0
TRIAL_BYTES = 64 << 20
"""Most of this vault that rebalancing brings to a node which is not vetted: some 64 shares, for 100 audits in a week."""
NEARLY_FULL = 0.1
"""Below this part of the hive's room free, moving data to free some is worth more traffic."""


class EngineMoving:
    """See the head of the file. Made at the end of the engine's own construction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen: Policies | None = None
        self.budget = Budget(engine.home.vault.setting("maintenance_bytes_s"), self.calm, lambda: engine.reader.waiting)
        self.contents = Contents(engine.store)
        self.repack = Repack(
            engine.store,
            self.contents,
            engine.reader,
            engine.cache,
            self._place,
            self._belongs,
            self.budget,
            time.time_ns,
            os.urandom,
            engine.writer.new_id,
        )
        self.repack.held = self.held
        self.repack.on_recorded = engine.repair.add
        self.reassign = Reassign(engine.store, self.repack.wish, self.repack.poke)
        self.repack.on_full = self.reassign.ask
        self.repack.on_wished = self.reassign.ask_again
        self.repack.full = self._nearly_full
        self.rebalance = Rebalance(
            engine.store, engine.reader, engine.writer, self._fills, self._takes, self._keeps, self.budget
        )
        self.rebalance.held = self.held
        self.evacuation = Evacuation(
            lambda: engine.checkpoint.tree.leveled(engine.checkpoint.root()),
            self._give_to_checkpoint,
            engine.checkpoint.root,
        )
        self.ledger = Ledger(
            engine.store,
            self.contents,
            engine.claims,
            engine.online,
            self._unsettled,
            engine.checkpoint.compare,
            time.time_ns,
            os.urandom,
            engine.bad_shares.take,
            engine.pool.report,
        )
        engine.pool.on_dropped = self.ledger.hurry
        engine.leases.lists = lambda node_id: self.ledger.row(node_id).number > 0
        self.ledger.needed.append(engine.store.has_spare)
        engine.repair.admit = self.budget.take
        engine.audit.admit = self.budget.take
        engine.reader.current = self._current

    async def run(self) -> None:
        """All of them until cancelled; the whole book must be here."""
        keep = self._engine.disk.keep
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "repack", self.repack.run)
            nursery.start_soon(self._follow_policies)
            nursery.start_soon(keep, "evacuate", self.evacuation.run)
            nursery.start_soon(keep, "rebalance", self.rebalance.run)
            nursery.start_soon(keep, "ledger", self.ledger.run)

    async def _follow_policies(self) -> None:
        """The text may come otherwise than by ``policies_set``: from the hive, after a recovery."""
        self._seen = self._seen or self._engine.store.policies
        while True:
            await trio.sleep(POLICIES_EVERY)
            self.policies_set()

    def policies_set(self) -> None:
        """Whether there is another text is seen now: what moves because of it is not to wait for the next look."""
        if self._engine.store.policies is self._seen:
            return
        self._seen = self._engine.store.policies
        self.look_again()

    def look_again(self) -> None:
        """Policies or their codes are others: see what must move because of it."""
        # First which policy each file has now: else data would move to the new code of its old policy, and again.
        self.reassign.ask()
        if self._engine.vault is None:
            self.repack.poke()

    async def calm(self) -> bool:
        """Whether nobody uses the drive now."""
        vault = self._engine.vault
        try:
            return vault is None or await vault.calm()
        except HivefsError:
            return True  # it went this moment

    def held(self) -> str:
        """Why nothing may be moved or deleted now."""
        forked = self._engine.checkpoint.forked
        return "" if forked is None else str(forked)

    @property
    def busy(self) -> bool:
        """Whether there is data to move that may be moved now."""
        return not self.held() and self.status()["queue"] > 0

    def _unsettled(self) -> str:
        """Why a share that our book does not name may be somebody's all the same."""
        engine = self._engine
        if words := self.held():
            return words
        if not engine.hydration.done.is_set():
            return "the book is not here yet"
        if engine.store.info("head_out") is not True:
            return "the newest head is not out yet"
        there = engine.pool.by_state
        if 2 * len(engine.pool.online()) < len(there[NodeState.ONLINE]) + len(there[NodeState.OFFLINE]):
            return "fewer than half of the nodes answer, and another may have a newer head"
        return ""

    # ---- accounts ---------------------------------------------------------------------------------------------------

    def entitlement(self) -> int:
        """Bytes of data that the vault may keep for what nodes that credit it contribute."""
        mine = self._engine.keys.vault_id.hex()
        given = [
            Contribution(m.capacity, availability(self._engine.trust.row(m.node_id)))
            for m in self._engine.pool.crediting(mine)
            if not m.leaving and m.state != NodeState.GONE
        ]
        return entitlement(given, self._engine.policy.expansion)

    def limited(self, total: int, free: int) -> tuple[int, int]:
        """Total and free bytes for the drive, under the entitlement when that is enforced."""
        if not self._engine.home.vault.setting("enforce_entitlement"):
            return total, free
        most = self.entitlement()
        return min(total, most), min(free, max(0, most - self._data_bytes()))

    def _data_bytes(self) -> int:
        """Bytes of data with padding, as the engine measured last."""
        return sum(self._engine.levels.values())

    def account(self, node_id: NodeId) -> dict[str, Any]:
        """One known node, for ``hivefs ledger``."""
        member = self._engine.pool.members[node_id]
        return self.ledger.told(node_id) | {
            "online": member.client is not None,
            "state": member.state.name.lower(),
            "revoked": self._engine.covers_keys(node_id, member.invited),
            "credits": member.credits or None,
            "capacity": member.capacity,
            "availability": round(availability(self._engine.trust.row(node_id)), 4),
        }

    async def accounts(self, nodes: bool = True) -> dict[str, Any]:
        """For ``hivefs ledger``: the sums, and ``nodes`` one by one (else None), with turns for others between them."""
        engine, ledger = self._engine, self.ledger
        await engine.pool.all_read()  # so that it is known whom they credit
        told: list[dict[str, Any]] = []
        leases = book = missing = unknown = 0
        seen, balanced, turns = False, True, Turns()
        for node_id in engine.pool.met.walk():
            row = ledger.row(node_id)
            missing += row.missing
            unknown += row.unknown
            if row.number:
                seen, balanced = True, balanced and row.balanced
                leases += row.leases
                book += row.book
            if nodes:
                told.append(self.account(node_id))
            await turns.item()
        return {
            "vault_id": engine.keys.vault_id.hex(),
            "expansion": round(engine.policy.expansion, 4),
            "data_bytes": self._data_bytes(),
            "entitlement": self.entitlement(),
            "enforced": bool(engine.home.vault.setting("enforce_entitlement")),
            "leases": leases,
            "book_shares": book,
            "missing": missing,
            "unknown": unknown,
            "balanced": seen and balanced,
            "nodes": told if nodes else None,
        }

    async def accounts_of(self, after: NodeId | None, most: int) -> list[dict[str, Any]]:
        """The next nodes in the order of their ids, as ``account`` has them."""
        found, turns = [], Turns()
        for node_id in self._engine.store.each_node(after):
            if node_id in self._engine.pool.members:
                found.append(self.account(node_id))
                if len(found) >= most:
                    break
            await turns.item()
        return found

    # ---- what the duties ask ----------------------------------------------------------------------------------------

    def _current(self, stripe: Stripe) -> Stripe | None:
        now = self._engine.store.stripe(stripe.stripe_id)
        # Pages of a tree that is being recovered lie in stripes that the book does not have yet.
        return now if now is not None or stripe.purpose == Purpose.DATA else stripe

    async def _place(self, packed: Packed, stripe_id: StripeId, target: Target) -> Stripe:
        engine = self._engine
        policy = engine.store.policies.named(target.policy)
        if (policy.needed, policy.total) != (target.needed, target.total):
            raise HivefsError(detail=f"policy {target.policy} has another code by now; what is to move is looked for anew")
        with engine.store.writing():
            engine.store.save_policy(policy)  # so that the stripe's certificate is known for this policy's
        return await engine.writer.place(packed, Purpose.DATA, stripe_id, policy)

    def _belongs(self, stripe: Stripe) -> tuple[Target | None, str, int]:
        """By the name of the policy that the stripe was placed by, as that is written now. It stays while it is not known
        whether its files have that policy, when they have another one, and when that name is gone (reassign.py).
        """
        policies = self._engine.store.policies
        name = policies.name_of(stripe)
        asking = self._engine.vault is not None and not self._known()
        if asking or policies.gone(stripe) or stripe.stripe_id in self.reassign.elsewhere:
            return None, "", 0
        try:
            policy = policies.named(name)
        except (PolicyInfeasible, TooFewNodes):
            return Target(name, stripe.needed, stripe.total), "", 0  # no code can be placed now: as it is, it stays
        target = Target(name, policy.needed, policy.total)
        if (stripe.needed, stripe.total) != (policy.needed, policy.total):
            return target, f"the code of policy {name} is {policy.needed}/{policy.total} now", 0
        return target, "", 0

    def _nearly_full(self) -> bool:
        capacity = self._engine.capacity()
        return capacity is not None and capacity[1] < capacity[0] * NEARLY_FULL

    def _fills(self) -> list[Fill]:
        """Nodes that answer and stay. What a node cannot take counts as used, whoever uses it."""
        return [
            Fill(m.node_id, m.capacity, max(0, m.capacity - m.free_bytes), 0)
            for m in self._engine.pool.online()
            if m.capacity and not m.leaving
        ]

    def _takes(self, node_id: NodeId) -> float:
        """How much rebalancing may bring to a node. One that is not vetted gets enough to be looked at: where nobody writes
        it would stay empty else, and never be vetted.
        """
        pool = self._engine.pool
        if pool.takes(node_id):
            return inf
        known = node_id in pool.members and pool.candidate(node_id, self._engine.policy).usable
        return TRIAL_BYTES if known else 0

    def _keeps(self, before: Stripe, after: Stripe) -> bool:
        """Whether the policy is proved of the stripe as it would be, and its level is what it was, and nobody could bring
        too much together while the old copies are there. What placing wishes (nodes that fail together, nodes that are not
        vetted) is heeded too: a move is never so needed that it is to give that up.
        """
        store = self._engine.store
        then = store.health(after)
        good = then.verdict.holds and then.level >= store.health(before).level
        return good and self._wished(before, after) and self._engine.old_copies.apart(before, named(after))

    def _wished(self, before: Stripe, after: Stripe) -> bool:
        pool, policy = self._engine.pool, self._engine.store.policies.of(after)
        there = {share.node for share in before.shares}
        load, new = Load(wishes(policy)), list[Candidate]()
        for node_id in (share.node for share in after.shares):
            if node_id is not None and node_id in pool.members:
                found = pool.candidate(node_id, policy)
                new.append(found) if node_id not in there else load.add(found)
        return all(load.accepts(found) for found in new)

    def _give_to_checkpoint(self, stripe_ids: frozenset[StripeId]) -> None:
        self._engine.checkpoint.evacuate = stripe_ids

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``."""
        waiting = self.held() or self.budget.waiting_for
        both = Moving.together(self.repack.moving.status(waiting), self.rebalance.moving.status(waiting))
        return both | {
            "rebalancing": self.rebalance.active,
            "metadata_stripes_evacuated": self.evacuation.evacuated,
            "elsewhere": self.elsewhere(),
        }

    def elsewhere(self) -> dict[str, Any]:
        """How many stripes hold data of files that have another policy, by its name; ``asking`` while that is not known;
        why none can be moved to some of them.
        """
        asking = self._engine.vault is not None and not self._engine.rules.problem() and not self._known()
        problems = "; ".join(f"policy {name}: {words}" for name, words in self.reassign.problems.items())
        return {"stripes": dict(Counter(self.reassign.elsewhere.values())), "asking": asking, "problems": problems}

    def _known(self) -> bool:
        return self.reassign.known or not self._engine.store.policies.set.text
