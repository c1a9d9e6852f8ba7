"""How much data the hive can take, for ``df`` and ``hivefs status``: counted again and again beside everything else.

All nodes are looked at for it, with turns for others, and with many of them the arithmetic is the thinker's (thinker.py).
So what is told may be some seconds old: with 100 000 nodes some minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from hivefs.errors import HivefsError
from hivefs.maintenance.turns import Turns
from hivefs.placement.capacity import Rooms, total_and_free
from hivefs.placement.policy import DEFAULT

if TYPE_CHECKING:
    from hivefs.daemon.engine_core import Engine

EVERY: Final = 2.0
UNKNOWN_EVERY: Final = 0.25
REST: Final = 20.0
"""It rests for so many times as long as it took."""
KEPT_BYTES: Final = 16 << 20


class HiveCapacity:
    """``counted`` is (total, free) in bytes of user data, what is kept for checkpoints and repair taken off: in a hive
    full to the brim not even a deletion could be published. None while too few nodes were ever seen to say.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.counted: tuple[int, int] | None = None

    def now(self) -> tuple[int, int] | None:
        """The same under what the vault is entitled to, where that is enforced."""
        return None if self.counted is None else self._engine.moving.limited(*self.counted)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            begun = trio.current_time()
            self.counted = await self.count()
            least = UNKNOWN_EVERY if self.counted is None else EVERY
            await trio.sleep(max(least, REST * (trio.current_time() - begun)))

    async def count(self) -> tuple[int, int] | None:
        """Look at all nodes."""
        engine = self._engine
        if engine.rules.problem():
            return None
        try:
            policy = engine.policies.named(DEFAULT)
        except HivefsError:
            return None
        if engine.home.vault.setting("enforce_entitlement"):
            await engine.pool.all_read()  # whoever asks for what was counted wants to know at once who credits this vault
        rooms, turns = Rooms(policy), Turns()
        for node_id in engine.pool.met.walk():
            member = engine.pool.members[node_id]
            if member.capacity and not member.leaving and not engine.covers_keys(node_id, member.invited):
                free = max(0, member.free_bytes - member.reserved)
                rooms.add(node_id, member.under(policy.evidence), free, member.capacity)
            await turns.item()
        if rooms.seen < policy.total:
            return None
        total, free = await engine.thinker(total_and_free, policy, rooms.blocks)
        kept = min(total // 8, max(total // 50, KEPT_BYTES))
        return total - kept, max(0, free - kept)
