"""What an engine reads at its start it reads with turns for others, and answers meanwhile; what it says then is true."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from hivefs.daemon.control import Methods
from hivefs.daemon.engine import AT_ONCE, Process
from hivefs.daemon.engine_core import opening
from hivefs.daemon.home import Home
from hivefs.formats import reputation as reputation_format
from hivefs.maintenance import turns
from hivefs.maintenance.trust import FOUNDING_NS, Trust
from hivefs.metadata.engine_store import EngineStore
from hivefs.model.ids import NodeId
from hivefs.placement.reputation import Reputation
from hivefs.testing.memory_hive import MemoryHive

from .test_engine import SECRETS, make_home, run, until
from .test_long_looks import Passes

NOW = 1_800_000_000 * 10**9
OTHERS = 400


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def rows(first_seen: int = NOW) -> dict[NodeId, Reputation]:
    """The last one by its id was the first one that was met; one of them is out of trust."""
    made = {node(i): Reputation(first_seen + (OTHERS - i) * FOUNDING_NS, NOW, good=i) for i in range(OTHERS)}
    made[node(7)] = Reputation(first_seen + OTHERS * FOUNDING_NS, NOW, bad=20_000, suspended=True)
    return made


def filled(path: Path) -> Home:
    home = make_home(path)
    store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
    store.save_reputations(rows())
    store.save_distrusted([node(7)])
    store.close()
    return home


def test_it_answers_while_it_reads_and_begins_when_it_has_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, hive, passes = filled(tmp_path / "home"), MemoryHive(), Passes()
    monkeypatch.setattr(turns, "SLICE_S", inf)
    gate = trio.Event()
    decode = reputation_format.from_bytes

    def decoded(data: bytes) -> Reputation:
        passes.one()
        return decode(data)

    async def test() -> None:
        load = Trust.load

        async def held(self: Trust) -> None:
            await gate.wait()
            await load(self)

        monkeypatch.setattr(Trust, "load", held)
        async with opening(home, SECRETS, hive.dial) as engine:  # type: ignore[arg-type]
            methods = Process(engine, cast("Any", None), home).methods()
            told: list[Any] = []

            async def nobody(step: Any) -> None:
                raise AssertionError(step)

            async def ask() -> None:
                told.append(await methods.answer("nodes", None, nobody))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                status = await methods.answer("status", None, nobody)
                assert status["starting"] and not status["nodes"] and not engine.pool.members
                assert not told, "who asks for more waits"
                # A row is read when it is asked for, and nothing is made up of the others.
                assert engine.trust.suspended(node(7)) and engine.trust.row(node(9)).good == 9
                assert not engine.trust.vetted(node(0)) and not engine.trust.vetted(node(OTHERS - 1))
                engine.trust.passed(node(7))
                assert engine.store.info("distrusted") == [node(7)]
                monkeypatch.setattr(reputation_format, "from_bytes", decoded)
                gate.set()
                await engine.ready.wait()
                await until(lambda: told)
            assert passes.total + passes._counted >= OTHERS - 2
            assert not (await engine.told())["starting"]
            assert set(engine.trust.rows) == set(rows()) and engine.trust.suspended(node(7))
            assert engine.trust.vetted(node(OTHERS - 1)) and not engine.trust.vetted(node(0)), "the founder is known now"
            assert engine.trust.row(node(7)).audits == 1, "what happened meanwhile is not read over"

    async def counted() -> None:
        trio.lowlevel.add_instrument(passes)
        await test()

    run(counted)
    assert 0 < passes.most <= turns.MOST + 1


def test_reading_later_comes_to_the_same_as_reading_at_once(tmp_path: Path) -> None:
    home = filled(tmp_path / "home")
    store = EngineStore(home.engine, SECRETS.keys().engine_key, home.policy())
    at_once, later = Trust(store, lambda: NOW, 86_400.0), Trust(store, lambda: NOW, 86_400.0, later=True)
    trio.run(later.load)
    assert dict(at_once.rows) == dict(later.rows) == rows()
    for node_id in rows():
        assert at_once.vetted(node_id) == later.vetted(node_id)
        assert at_once.suspended(node_id) == later.suspended(node_id) == (node_id == node(7))
    store.close()


def test_an_engine_that_is_asked_to_stop_while_it_reads_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(self: Trust) -> None:
        await trio.sleep_forever()

    async def test() -> None:
        monkeypatch.setattr(Trust, "load", never)
        home = make_home(tmp_path / "home")
        async with opening(home, SECRETS, MemoryHive().dial) as engine:  # type: ignore[arg-type]
            process = Process(engine, cast("Any", None), home)
            await process.methods().answer("shutdown", None, cast("Any", None))
            assert not await process.begun()

    run(test)


def test_calls_are_held_but_for_some() -> None:
    async def go() -> None:
        begun, done = trio.Event(), list[str]()
        methods = Methods({name: lambda value: done.append(value) for name in (*AT_ONCE, "fetch")})
        methods.hold(begun.wait, AT_ONCE)
        async with trio.open_nursery() as nursery:
            for name in ("fetch", *AT_ONCE):
                nursery.start_soon(methods.answer, name, name, cast("Any", None))
            await until(lambda: set(done) == set(AT_ONCE))
            begun.set()
        assert done[-1] == "fetch"

    run(go)
