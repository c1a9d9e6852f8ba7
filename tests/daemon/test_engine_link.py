"""The mount's link to its engine: waiting for it, asking it, and getting it back when it dies."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from hivefs.daemon import control, engine_link
from hivefs.daemon.engine_link import EngineLink, LazyBook
from hivefs.daemon.home import Home, Lock, Secrets
from hivefs.errors import Corrupt, EngineUnavailable
from hivefs.model.ids import ChunkId, StripeId
from hivefs.model.stripe import Level

LIMIT = 90.0
SECRETS = Secrets(b"m" * 32, b"d" * 32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.create(tmp_path / "home", SECRETS, Lock("none"), os.urandom(32), (), 2, 3)


class Pages:
    """Takes pages as the metadata store does."""

    def __init__(self) -> None:
        self.loaded: list[tuple[bytes, bytes | None, list[tuple[bytes, bytes]]]] = []

    def load_page(self, low: bytes, high: bytes | None, records: Iterable[tuple[bytes, bytes]]) -> int:
        self.loaded.append((low, high, list(records)))
        return len(self.loaded[-1][2])


def with_engine(home: Home, answers: dict[str, Any], talk: Callable[[EngineLink], Awaitable[None]]) -> None:
    async def main() -> None:
        link = EngineLink(home, 30.0)
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, home.run, "engine", control.Methods(answers))
                nursery.start_soon(lambda: link.supervise(b"", start=False))
                await talk(link)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_fetching_tells_chunk_and_what_comes_next(home: Home) -> None:
    asked: list[Any] = []

    async def talk(link: EngineLink) -> None:
        await link.fetch(ChunkId(b"c" * 16), [ChunkId(b"n" * 16)], (5, 9))
        await link.ahead([ChunkId(b"a" * 16)])
        assert link.connected

    with_engine(home, {"fetch": asked.append, "ahead": asked.append}, talk)
    assert asked == [{"chunk": b"c" * 16, "next": [b"n" * 16], "span": [5, 9]}, [b"a" * 16]]


def test_pages_go_into_the_store_and_one_key_is_asked_for_once(home: Home) -> None:
    asked: list[bytes] = []
    pages = Pages()

    async def load_page(key: bytes) -> Any:
        asked.append(key)
        await trio.lowlevel.checkpoint()
        return [b"i0", None, [[b"i1", b"value"], [b"i2", b"other"]]]

    async def talk(link: EngineLink) -> None:
        load = link.loader(pages)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(load, b"i1")

    with_engine(home, {"load_page": load_page}, talk)
    assert asked == [b"i1"]
    assert pages.loaded == [(b"i0", None, [(b"i1", b"value"), (b"i2", b"other")])]


@pytest.mark.parametrize(
    "page", [None, [], [b"a", b"b"], ["a", None, []], [b"a", 5, []], [b"a", None, [[b"k"]]], [b"a", None, [[1, 2]]]]
)
def test_a_page_of_a_wrong_form_is_refused(home: Home, page: Any) -> None:
    pages = Pages()

    async def talk(link: EngineLink) -> None:
        with pytest.raises(Corrupt):
            await link.loader(pages)(b"i1")

    with_engine(home, {"load_page": lambda key: page}, talk)
    assert not pages.loaded


def test_a_question_waits_for_an_engine_that_is_just_coming(home: Home) -> None:
    async def main() -> None:
        link = EngineLink(home, 30.0)
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await link.call("echo", 1))

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: link.supervise(b"", start=False))
                async with trio.open_nursery() as asking:
                    asking.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked()
                    assert not link.connected
                    await nursery.start(control.serve, home.run, "engine", control.Methods({"echo": lambda v: v}))
                nursery.cancel_scope.cancel()
        assert answers == [1]

    trio.run(main)


def test_an_engine_that_dies_is_found_again(home: Home) -> None:
    async def main() -> None:
        link = EngineLink(home, 30.0)

        async def one_engine(number: int) -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as serving:
                    methods = control.Methods({"which": lambda v: number})
                    await serving.start(control.serve, home.run, "engine", methods)
                    assert await link.call("which") == number
                    scope.cancel()

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: link.supervise(b"", start=False))
                for number in range(3):
                    await one_engine(number)
                    while link.connected:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_without_an_engine_a_question_ends_soon(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_link, "GRACE_SECONDS", 0.05)
    with pytest.raises(EngineUnavailable, match="not running"):
        trio.run(EngineLink(home, 30.0).call, "fetch")


def test_an_engine_that_cannot_start_is_tried_again_and_nobody_waits_for_it(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_link, "ENGINE_MODULE", "hivefs.no_such_engine")
    monkeypatch.setattr(engine_link, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(engine_link, "GRACE_SECONDS", 0.01)

    async def main() -> None:
        link = EngineLink(home, 30.0)
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: link.supervise(SECRETS.to_bytes()))
                while len(caplog.records) < 2:
                    with pytest.raises(EngineUnavailable):
                        await link.call("fetch")
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert all("ended with exit status 1" in record.getMessage() for record in caplog.records)


def test_before_the_engine_has_a_store_nothing_is_placed(home: Home) -> None:
    book = LazyBook(home, SECRETS.keys())
    assert book.place(ChunkId(b"c" * 16)) is None
    assert book.stripe(StripeId(b"s" * 16)) is None
    assert book.stripe_level(StripeId(b"s" * 16)) == Level.LOCAL
    assert book.metadata_level() == Level.LOCAL
    book.close()


def test_an_engine_that_takes_long_to_start_is_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine after a recovery, when the first thing that anybody asks for has to come from the hive."""
    monkeypatch.setattr(engine_link, "GRACE_SECONDS", 0.05)

    async def main() -> None:
        link = EngineLink(home, 60.0)

        async def started_late() -> None:
            await trio.sleep(0.5)
            await nursery.start(control.serve, home.run, "engine", control.Methods({"ahead": lambda value: None}))
            nursery.start_soon(lambda: link.supervise(b"", start=False))
            while not link.connected:
                await trio.sleep(0.01)
            link._starting = False

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                with pytest.raises(EngineUnavailable):
                    await link.ahead([])
                link._starting = True
                nursery.start_soon(started_late)
                await link.ahead([])
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_one_that_never_comes_up_is_waited_for_as_long_as_a_question_may_take(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_link, "GRACE_SECONDS", 0.05)

    async def main() -> None:
        link = EngineLink(home, 0.5)
        link._starting = True
        with trio.fail_after(LIMIT), pytest.raises(EngineUnavailable):
            await link.ahead([])

    trio.run(main)
