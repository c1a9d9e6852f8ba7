"""The engine's policies: setting them, codes for automatic ones, who may keep the head, and what status says of it all."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

from hivefs.chunkstore.node_client import NodeClient
from hivefs.errors import BadPolicy, Corrupt, HivefsError, UnknownVersion
from hivefs.maintenance.codes import Codes
from hivefs.maintenance.turns import Turns
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.model.stripe import Level, Purpose, Stripe
from hivefs.placement import heads
from hivefs.placement.attributes import eligible
from hivefs.placement.code import LIKELY
from hivefs.placement.health import NodeState
from hivefs.placement.language import parse
from hivefs.placement.policies import Policies
from hivefs.placement.policy import Policy
from hivefs.placement.reputation import expected

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

log = logging.getLogger(__name__)

MEASURE_EVERY = 5.0
MEASURE_REST = 10.0
"""It rests for so many times as long as it took."""
QUICK = 0.05
"""What is counted within so many seconds is counted anew for each question."""
READ_AGAIN = 5.0


class EnginePolicies:
    """See the head of the file."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.codes = Codes(engine.store, self._staying, self._availability, trio.current_time, engine.thinker)
        self.codes.on_chosen = self._chosen
        engine.store.resolve = self.codes.resolve
        self._set = trio.Event()
        self._said = ""
        self._took = math.inf
        self.levels = {"remote": 0, "guaranteed": 0}
        self.out: dict[str, int] = {}
        """Bytes of data by the name of their policy, of stripes that are not as it says."""
        self.later = 0
        """Stripes that miss shares and are guaranteed all the same: their repair waits until fewer are left."""

    @property
    def now(self) -> Policies:
        """The policies in force."""
        return self._engine.store.policies

    def problem(self) -> str:
        """Why the text in force cannot be read, in words; "" when it can. Another version of HiveFS may have written it."""
        try:
            _ = self.now
        except (BadPolicy, Corrupt, UnknownVersion) as error:
            return str(error)
        return ""

    async def readable(self) -> None:
        """Wait until the text in force can be read: while what it asks for is not known, nothing is placed, published,
        moved or deleted. Reading goes on, and so does whatever keeps what is there.
        """
        while problem := self.problem():
            if problem != self._said:
                log.warning("the policies in force cannot be read, so nothing is placed or moved: %s", problem)
            self._said = problem
            with trio.move_on_after(READ_AGAIN):
                await self._set.wait()

    async def set(self, text: str) -> None:
        """Put a text into force, empty for none: after a crash the old one or this one is. Raises BadPolicy;
        then nothing was changed.
        """
        engine = self._engine
        await engine.hydration.done.wait()
        if text:
            await trio.to_thread.run_sync(parse, text, engine.store.default)
        before = [] if self.problem() else list(self.now.set.policies.values())
        with engine.store.writing():
            engine.store.save_policy_text(text)
            self._remember()
            self.codes.inherit(before, self.now.set.policies.values())
        self._set.set()
        self._set = trio.Event()
        self.codes.forget()
        engine.pool.touch()  # repair looks at all stripes again
        engine.moving.policies_set()
        engine.placing.poke()
        log.info("policies were set: %s", ", ".join(self.now.set.policies))

    def _remember(self) -> None:
        """Keep every definition: what is placed from now on names one of them."""
        written = self.now.set
        for policy in (*written.policies.values(), written.metadata()):
            self._engine.store.save_policy(policy)

    # ---- what is asked of nodes -------------------------------------------------------------------------------------

    def _staying(self, policy: Policy) -> Iterator[Candidate]:
        """All nodes that are not given up, as usable ones."""
        engine = self._engine
        for node_id in engine.pool.met.walk():
            member, candidate = engine.pool.members[node_id], engine.pool.candidate(node_id, policy)
            stays = member.state != NodeState.GONE and not member.leaving
            if stays and not engine.covers_keys(node_id, member.invited):
                yield replace(candidate, usable=True)

    def _availability(self, node_id: NodeId) -> float:
        return expected(self._engine.trust.row(node_id), LIKELY)

    def _chosen(self, other: bool) -> None:
        if other:
            self._engine.moving.look_again()
        self._engine.placing.poke()
        self._engine.checkpoint.poke()

    def keepers(self) -> Iterable[tuple[NodeId, NodeClient]]:
        """Nodes that can be asked now and that the policy of metadata lets keep the head."""
        for node_id, client in self._engine.online():
            if self.may_keep(node_id):
                yield node_id, client

    def may_keep(self, node_id: NodeId) -> bool:
        """Whether the policy of metadata lets this node keep the head."""
        if self.problem():
            return False
        policy = self.now.set.metadata()
        return not eligible(policy, self._engine.pool.members[node_id].under(policy.evidence))

    def survives(self, holders: Iterable[NodeId], times: int) -> bool:
        """Whether a replica of the head is left at one of these nodes when ``times`` as many authorities as may be lost are
        taken away.
        """
        policy = self.now.set.metadata()
        return heads.survives(policy, self._over(policy, holders), times)

    def _over(self, policy: Policy, holders: Iterable[NodeId]) -> list[dict[str, frozenset[str]]]:
        members = self._engine.pool.members
        return [members[node_id].under(policy.evidence) for node_id in holders if node_id in members]

    def freshness(self, holders: Iterable[NodeId]) -> dict[str, Any]:
        """Whether a device that remembers its last head, and one that is fresh, can know that a head is the newest."""
        policy = self.now.set.metadata()
        over = self._over(policy, holders)
        found = heads.freshness(policy, over)
        return {"nodes": len(over), "remembering_device": found["remembering"], "fresh_device": found["fresh"]}

    # ---- duties -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole book is here: keep definitions, and have metadata of another code written anew. Until cancelled."""
        seen: Policies | None = None
        while True:
            await self.readable()
            if seen is not self.now:
                seen = self.now
                with self._engine.store.writing():
                    self._remember()
            try:
                await self._recode()
            except HivefsError as error:
                log.debug("the code of metadata waits: %s", error)
            await trio.sleep(MEASURE_EVERY)

    async def _recode(self) -> None:
        policy = self.now.metadata()
        found, turns = set(), Turns()
        for stripe in self._engine.store.metadata_stripes():
            if (stripe.needed, stripe.total) != (policy.needed, policy.total):
                found.add(stripe.stripe_id)
            await turns.item()
        if found:
            self._engine.checkpoint.evacuate |= frozenset(found)

    async def measure(self) -> None:
        """Bytes of data (with padding) at each level and out of policy, for status: counted in slices, again and again."""
        while True:
            await self.readable()
            await self._measure()
            # Of a large book this takes a while, and is not to be all that the engine does.
            await trio.sleep(max(MEASURE_EVERY, MEASURE_REST * self._took))

    async def measured(self) -> None:
        """See that what status tells of a small book is so now, and not some seconds ago."""
        if self._took <= QUICK and not self.problem():
            await self._measure()

    async def _measure(self) -> None:
        levels, out, later = {"remote": 0, "guaranteed": 0}, dict[str, int](), 0
        begun, turns = trio.current_time(), Turns()
        for stripe in self._engine.store.stripes():
            later += self._count(stripe, levels, out)
            await turns.item()
        self.levels, self.out, self.later = levels, out, later
        self._took = trio.current_time() - begun

    def _count(self, stripe: Stripe, levels: dict[str, int], out: dict[str, int]) -> bool:
        """Whether its repair waits."""
        data, size = stripe.purpose == Purpose.DATA, stripe.needed * stripe.share_bytes
        # A file's data that has yet to move is judged by the file's policy.
        other = self._engine.moving.reassign.elsewhere.get(stripe.stripe_id, "")
        health = self._engine.store.health(stripe, other)
        if data and health.level > Level.LOCAL:
            levels[health.level.name.lower()] += size
        if not health.verdict.holds:
            name = other or (self.now.name_of(stripe) if data else "metadata")
            out[name] = out.get(name, 0) + size
        return health.waits

    def status(self) -> dict[str, Any]:
        """For ``hivefs status``: policies with their codes, bytes that are not as they say, the freshness of the head."""
        if problem := self.problem():
            unknown = {"nodes": 0, "remembering_device": "unknown", "fresh_device": "unknown"}
            return {"problem": problem, "codes": {}, "paths": {}, "out_of_policy": {}, "freshness": unknown}
        codes: dict[str, str] = {}
        for name, policy in self.now.set.policies.items():
            try:
                made = self.codes.resolve(policy)
                codes[name] = f"{made.needed}/{made.total}"
            except HivefsError as error:
                codes[name] = str(error)
        holders = [NodeId(n) for n in self._engine.store.info("head_holders") or []]
        return {
            "problem": "",
            "codes": codes,
            "paths": dict(self.now.set.paths),
            "out_of_policy": self.out,
            "freshness": self.freshness(holders),
        }
