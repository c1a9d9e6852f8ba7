"""What must be done in one step of a task: the guard notices a checkpoint in between, and an engine with one is caught."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from hivefs.chunkstore import steps
from hivefs.chunkstore.claims import Claims
from hivefs.chunkstore.steps import Counting, Interrupted, Moment
from hivefs.model.ids import NodeId, ShareId

PAIR = NodeId(bytes(32)), ShareId(bytes(32))


def counted(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, instruments=[Counting()])


def test_within_a_step_nothing_is_said_and_after_it_something_is() -> None:
    async def test() -> None:
        claims, moment = Claims(lambda pairs: None), Moment()
        moment.still()
        assert claims.claim([PAIR], moment) == {PAIR}
        claims.release([PAIR])
        steps.recording()
        await trio.lowlevel.checkpoint()
        with pytest.raises(Interrupted):
            moment.still()
        with pytest.raises(Interrupted):
            claims.claim([PAIR], moment)
        with pytest.raises(Interrupted):
            steps.recording()
        assert not claims.claimed(*PAIR)

    counted(test)


def test_a_step_of_another_task_counts_too() -> None:
    async def test() -> None:
        moment = Moment()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
        with pytest.raises(Interrupted):
            moment.still()

    counted(test)


def test_where_nobody_counts_it_says_nothing() -> None:
    async def test() -> None:
        moment = Moment()
        await trio.lowlevel.checkpoint()
        moment.still()
        steps.recording()

    trio.run.__wrapped__(test)  # type: ignore[attr-defined]
    Moment().still()  # outside of any loop
    steps.recording()
