"""Automatic codes: whoever asks never waits, and looks at no node; what is chosen stays, also over a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.chunkstore.ports import at_once
from hivefs.errors import PolicyInfeasible
from hivefs.maintenance.codes import LOOK_SECONDS, Codes
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement import code
from hivefs.placement.policy import Policy

AUTO = Policy(0, 0, auto=True)
COUNTRIES = ("DE", "FR", "GB", "CH", "SE", "NO", "FI", "IS")


class Kept:
    """The store's small values."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def info(self, name: str) -> Any:
        return self.values.get(name)

    def save_info(self, name: str, value: Any) -> None:
        self.values[name] = value

    @contextmanager
    def writing(self) -> Iterator[None]:
        yield


class World:
    def __init__(self, kept: Kept, count: int = 16, think: Any = at_once) -> None:
        self.count, self.looked, self.chosen = count, 0, 0
        self.codes = Codes(cast("Any", kept), self.nodes, lambda node_id: 0.95, trio.current_time, think)
        self.codes.on_chosen = self.on_chosen

    def on_chosen(self, other: bool) -> None:
        self.chosen += other

    def nodes(self, policy: Policy) -> Iterable[Candidate]:
        for i in range(self.count):
            self.looked += 1
            over = {"jurisdiction": frozenset({COUNTRIES[i % len(COUNTRIES)]})}
            yield Candidate(NodeId(i.to_bytes(32, "big")), over, 1 << 30)


async def chosen(world: World) -> None:
    await trio.testing.wait_all_tasks_blocked()


def run(test: Any) -> None:
    trio.run(test, clock=trio.testing.MockClock())


def test_who_asks_looks_at_nothing_and_hears_later() -> None:
    async def test() -> None:
        kept = Kept()
        world = World(kept)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.codes.run)
            with pytest.raises(PolicyInfeasible, match="being chosen"):
                world.codes.resolve(AUTO)
            assert world.looked == 0
            await chosen(world)
            expected = code.auto(AUTO, list(world.nodes(AUTO)), 0.95)
            got = world.codes.resolve(AUTO)
            assert (got.needed, got.total) == expected and world.chosen == 1
            # A restart knows it at once.
            again = World(kept)
            assert again.codes.resolve(AUTO) == got and again.looked == 0
            nursery.cancel_scope.cancel()

    run(test)


def test_the_last_answer_stands_while_another_is_looked_for() -> None:
    async def test() -> None:
        gate = trio.Event()
        gate.set()

        async def think(question: Any, *given: Any, **more: Any) -> Any:
            await gate.wait()
            return question(*given, **more)

        world = World(Kept(), think=think)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.codes.run)
            with pytest.raises(PolicyInfeasible):
                world.codes.resolve(AUTO)
            await chosen(world)
            first = world.codes.resolve(AUTO)
            gate = trio.Event()
            world.count = 4  # so few that another code is chosen
            clock.jump(LOOK_SECONDS)
            for _ in range(3):
                assert world.codes.resolve(AUTO) == first
                await trio.testing.wait_all_tasks_blocked()
            gate.set()
            await chosen(world)
            second = world.codes.resolve(AUTO)
            assert second != first and second.total <= 4 and world.chosen == 2
            nursery.cancel_scope.cancel()

    run(test)


def test_what_can_not_be_is_said_until_it_can() -> None:
    async def test() -> None:
        world = World(Kept(), count=1)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.codes.run)
            for _ in range(2):
                with pytest.raises(PolicyInfeasible):
                    world.codes.resolve(AUTO)
                await chosen(world)
            with pytest.raises(PolicyInfeasible, match="no code suits"):
                world.codes.resolve(AUTO)
            world.count = 16
            world.codes.forget()
            with pytest.raises(PolicyInfeasible, match="no code suits"):
                world.codes.resolve(AUTO)
            await chosen(world)
            assert world.codes.resolve(AUTO).total > 1
            nursery.cancel_scope.cancel()

    run(test)
