"""Spare shares on a disk that is full."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from hivefs.errors import DiskFull
from hivefs.maintenance.spares import Spares


def test_a_full_disk_is_waited_out() -> None:
    """It ended the engine."""
    looked: list[int] = []
    note = (bytes(32), bytes(16), 0, 1)

    async def look_at(*given: Any) -> None:
        looked.append(1)
        await trio.lowlevel.checkpoint()
        if len(looked) < 3:
            raise DiskFull(path=Path("engine"), free=0)

    state = SimpleNamespace(spares_of=lambda node_id, after, limit: [] if after else [note])
    nothing = cast(Any, None)
    online = cast(Any, lambda: [(bytes(32), None)])
    spares = Spares(cast(Any, state), nothing, nothing, nothing, online, nothing, nothing, nothing)
    spares._look_at = look_at  # type: ignore[method-assign]

    async def test() -> None:
        with trio.move_on_after(30):
            await spares.run()

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(looked) > 3
