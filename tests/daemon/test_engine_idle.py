"""Without a mount the engine stays while there is something to do, and ends a while after that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.daemon.engine import LINGER_SECONDS, Process


def an_engine() -> SimpleNamespace:
    return SimpleNamespace(
        repair=SimpleNamespace(busy=False), moving=SimpleNamespace(busy=False), keys=SimpleNamespace(reading=lambda: None)
    )


@pytest.mark.parametrize("duty", ["repair", "moving"])
def test_the_engine_ends_only_when_nothing_is_repaired_or_moved(duty: str) -> None:
    engine = an_engine()

    async def test() -> float:
        process = Process(cast("Any", engine), cast("Any", None), cast("Any", None))
        getattr(engine, duty).busy = True
        with trio.move_on_after(600) as long:
            await process._wait_idle()
        assert long.cancelled_caught, "it ended although there was work"
        getattr(engine, duty).busy = False
        began = trio.current_time()
        await process._wait_idle()
        return trio.current_time() - began

    assert trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0)) < 1


def test_the_engine_stays_a_while_for_who_asks_next() -> None:
    engine = an_engine()

    async def test() -> float:
        process = Process(cast("Any", engine), cast("Any", None), cast("Any", None))
        began = trio.current_time()
        await process._wait_idle()
        return trio.current_time() - began

    took = trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))
    assert LINGER_SECONDS < took <= LINGER_SECONDS + 1
