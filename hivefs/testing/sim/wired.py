"""What daemon/engine_core.py gives the duties that move data and follow policies, so that the same wiring
(daemon/engine_moving.py, daemon/engine_policies.py) runs in the simulator.

There is no metadata tree here, and so no head of its own: heads are ticks of ``Life``. The user's side is ``files.Files``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio

from hivefs.chunkstore.ports import at_once
from hivefs.daemon import engine_moving
from hivefs.daemon.engine_moving import EngineMoving
from hivefs.daemon.engine_policies import EnginePolicies
from hivefs.maintenance.definitions import Definitions
from hivefs.model.stripe import Stripe
from hivefs.testing.sim.determinism import patched

if TYPE_CHECKING:
    from hivefs.content.packing import Packed
    from hivefs.maintenance.repack_plan import Target
    from hivefs.model.ids import StripeId
    from hivefs.testing.sim.engine import Life


class Wired:
    """The duties of one life. ``made`` is told of each stripe that the engine makes of its own accord before it puts any
    share of it, and ``recorded`` when the book names it.
    """

    def __init__(
        self,
        life: Life,
        chance: random.Random,
        vault: Any,
        made: Callable[[Packed, StripeId, Target], None],
        recorded: Callable[[StripeId], None],
    ) -> None:
        self._life = life
        self._vault = vault
        self.heads: Callable[[], Any] | None = None
        """Makes checkpoints, where there are any."""
        self.made = made
        done = trio.Event()
        done.set()
        checkpoint = SimpleNamespace(
            forked=None,
            evacuate=frozenset(),
            compare=lambda heads: None,
            root=lambda: None,
            tree=SimpleNamespace(leveled=None),
        )
        self.engine = SimpleNamespace(
            home=SimpleNamespace(vault=SimpleNamespace(setting=lambda name: 0)),
            store=life.store,
            reader=life.reader,
            cache=life.cache,
            writer=life.writer,
            old_copies=life.old_copies,
            thinker=at_once,
            repair=life.repair,
            bad_shares=SimpleNamespace(take=life.repair.bad_share),
            pool=life.pool,
            claims=life.claims,
            trust=life.trust,
            audit=life.audit,
            leases=life.leases,
            online=life.online,
            node_view=life.store.node_view,
            policy=life.policy,
            checkpoint=checkpoint,
            hydration=SimpleNamespace(done=done),
            placing=SimpleNamespace(poke=lambda: None),
            keys=SimpleNamespace(vault_id=bytes(16)),
            vault=vault,
            levels={},
            capacity=lambda: None,
            covers_keys=lambda subject, invitation: False,
        )
        with life.store.writing():
            life.store.save_info("head_out", True)
        self.definitions = Definitions(life.store)
        self.policies = EnginePolicies(cast("Any", self.engine))
        # The engine's own clock and dice: the module takes them from the machine.
        times, dice = SimpleNamespace(time_ns=life.clock), SimpleNamespace(urandom=chance.randbytes)
        with patched([(engine_moving, "time", times), (engine_moving, "os", dice)]):
            self.moving = self.engine.moving = EngineMoving(cast("Any", self.engine))
        repack = self.moving.repack
        self._place, repack._place = repack._place, self._announced
        add = repack.on_recorded

        def told(stripe_id: StripeId) -> None:
            recorded(stripe_id)
            add(stripe_id)

        repack.on_recorded = told

    async def _announced(self, packed: Packed, stripe_id: StripeId, target: Target) -> Stripe:
        self.made(packed, stripe_id, target)
        return await self._place(packed, stripe_id, target)

    def duties(self) -> list[Callable[[], Any]]:
        """Repacking, what follows from a change of policies, what the user gave up, and the accounts."""

        async def reassign() -> None:
            await self.moving.reassign.run(self._vault)

        async def take_released() -> None:
            await self._life.garbage.take_released(self._vault)

        moving = self.moving
        return [
            moving.repack.run,
            moving._follow_policies,
            reassign,
            take_released,
            moving.ledger.run,
            moving.rebalance.run,
            self.definitions.run,
            self.policies.run,
        ]
