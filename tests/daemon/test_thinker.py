"""Questions of placement that take long are answered beside the loop, and as they would be in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import trio

import hivefs
from hivefs.daemon import thinker as thinker_module
from hivefs.daemon.thinker import Thinker
from hivefs.errors import HivefsError, PolicyInfeasible
from hivefs.model.ids import NodeId
from hivefs.model.node import Candidate
from hivefs.placement.beside import settle
from hivefs.placement.effort import TakesLong, spend, within
from hivefs.placement.field import SAMPLE, Field, Part
from hivefs.placement.picking import Missing, pick
from hivefs.placement.policy import Policy
from hivefs.placement.selector import choose
from hivefs.placement.verifier import Rules

COUNTRIES = ("DE", "FR", "GB", "NL", "CH", "SE", "NO", "FI")
HARD = Policy(4, 12, (Rules("jurisdiction", 2, 2), Rules("operator", 2, 2), Rules("hoster", 1, 1)))


@pytest.fixture(autouse=True)
def _child_finds_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def nodes(count: int, countries: int = 8) -> list[Candidate]:
    """Under two countries each, so that the exact search has to branch."""
    pairs = [frozenset(pair) for pair in product(COUNTRIES[:countries], repeat=2)]
    return [
        Candidate(
            NodeId(i.to_bytes(32, "big")),
            {
                "jurisdiction": pairs[i * 7 % len(pairs)],
                "operator": frozenset({f"o{i % 5}", f"o{i % 3}"}),
                "hoster": frozenset({f"h{i % 6}"}),
            },
            1 << 40,
        )
        for i in range(count)
    ]


def missing(policy: Policy) -> Missing:
    return Missing(tuple(range(policy.total)), {}, (), (), frozenset(), 1000, 7)


def answer(thinker: Any, question: Any, *given: Any, **more: Any) -> Any:
    """What is answered, an error as its class, words and data."""

    async def go() -> Any:
        async with thinker.running():
            try:
                return await thinker(question, *given, **more)
            except HivefsError as error:
                return type(error), str(error), error.data

    return trio.run(go)


def here(question: Any, *given: Any, **more: Any) -> Any:
    try:
        return question(*given, **more)
    except HivefsError as error:
        return type(error), str(error), error.data


@pytest.mark.parametrize("count", [20, 100])
def test_the_child_answers_what_would_be_answered_here(count: int) -> None:
    some, thinker = nodes(count, 3), Thinker()
    holders = [None, *some[1 : HARD.total]]
    for question, given in (
        (choose, (HARD, some, 5)),
        (pick, (HARD, some, missing(HARD))),
        (settle, (HARD, holders, some, 5, ())),
    ):
        with pytest.raises(TakesLong), within(800):
            question(*given)  # type: ignore[operator]
        assert answer(thinker, question, *given) == here(question, *given)
    assert thinker.sent == 3


def test_what_is_quick_is_answered_here(monkeypatch: pytest.MonkeyPatch) -> None:
    thinker = Thinker()
    monkeypatch.setattr(thinker, "_ask", None)
    easy = Policy(2, 4, (Rules("jurisdiction", 1, 0),))
    assert answer(thinker, pick, easy, nodes(60), missing(easy)) == pick(easy, nodes(60), missing(easy))
    assert thinker.sent == 0


def test_of_a_field_a_part_is_asked_for_which_proves_nothing_of_the_rest() -> None:
    thinker = Thinker()
    never = replace(HARD, deny=("hoster:h0", "hoster:h1", "hoster:h2", "hoster:h3"))
    kind, words, data = answer(thinker, choose, never, Field(nodes(SAMPLE + 200)), 5)
    assert kind is PolicyInfeasible and "no placement was found" in words and data["proved"] is False
    kind, words, data = answer(thinker, choose, never, Field(nodes(120)), 5)
    assert kind is PolicyInfeasible and "no placement was found" not in words and thinker.sent == 2
    assert isinstance(Field(nodes(SAMPLE + 1)).part(HARD, bytes(32), 0, ()), Part)
    assert not isinstance(Field(nodes(SAMPLE)).part(HARD, bytes(32), 0, ()), Part)


def slow(work: int) -> int:
    """More than the bound, and then some half a second for each unit of work; the process that did it."""
    spend(1000)
    number = 0
    while number < work * 10_000_000:
        number += 1
    return os.getpid()


def until_told(path: Path) -> int:
    """More than the bound, and then until there is such a file, a minute at most; the process that did it, or 0."""
    spend(1000)
    end = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > end:
            return 0
        time.sleep(0.01)
    return os.getpid()


def test_others_have_their_turn_while_the_child_works(tmp_path: Path) -> None:
    async def go() -> int:
        async with Thinker().running() as thinker, trio.open_nursery() as nursery:

            async def turns() -> None:
                for _ in range(20):
                    await trio.sleep(0.001)
                (tmp_path / "told").touch()

            nursery.start_soon(turns)
            return await thinker(until_told, tmp_path / "told")

    assert trio.run(go) not in (0, os.getpid())


def test_a_child_that_is_killed_is_replaced_and_one_that_always_dies_done_without(tmp_path: Path) -> None:
    async def go(times: int) -> int:
        told = tmp_path / str(times)
        async with Thinker().running() as thinker, trio.open_nursery() as nursery:

            async def kill() -> None:
                seen: set[int] = set()
                while len(seen) < times:
                    await trio.sleep(0.01)
                    child = thinker._child
                    if child is not None and child.pid not in seen:
                        seen.add(child.pid)
                        os.kill(child.pid, signal.SIGKILL)
                told.touch()

            nursery.start_soon(kill)
            return await thinker(until_told, told)

    assert trio.run(go, 1) not in (0, os.getpid())
    assert trio.run(go, 2) == os.getpid()


def test_a_question_that_is_cancelled_leaves_no_child_with_its_answer() -> None:
    async def go() -> tuple[int | None, Any]:
        async with Thinker().running() as thinker:
            with trio.move_on_after(0.5) as scope:
                await thinker(slow, 1000)
            assert scope.cancelled_caught
            left = thinker._child
            return left, await thinker(slow, 0)  # type: ignore[return-value]

    left, pid = trio.run(go)
    assert left is None and pid != os.getpid()


@pytest.mark.stops
def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of placement waits for it, one question after the other."""

    async def go() -> tuple[bool, int]:
        async with Thinker().running() as thinker:
            await thinker(slow, 0)
            child = thinker._child
            assert child is not None
            os.kill(child.pid, signal.SIGSTOP)
            monkeypatch.setattr(thinker_module, "PATIENCE_S", 1.0)
            with trio.fail_after(60):
                pid = await thinker(slow, 0)
            return child.returncode == -signal.SIGKILL, pid

    killed, pid = trio.run(go)
    assert killed and pid


def test_no_child_is_started_for_a_question_that_is_open_at_the_end(tmp_path: Path) -> None:
    """It is answered in a thread: a child would be left, as nobody looks after it any more."""

    async def go() -> tuple[object, int]:
        pids: list[int] = []
        async with trio.open_nursery() as nursery, Thinker().running() as thinker:

            async def ask() -> None:
                pids.append(await thinker(until_told, tmp_path / "told"))

            async def tell() -> None:
                while thinker._open or thinker._child is not None:
                    await trio.sleep(0.01)
                (tmp_path / "told").touch()

            await thinker(slow, 0)
            nursery.start_soon(ask)
            while not thinker._lock.locked():
                await trio.sleep(0.01)
            await trio.sleep(0.1)
            nursery.start_soon(tell)
        return thinker._child, pids[0]

    child, pid = trio.run(go)
    assert child is None and pid == os.getpid()


def test_without_a_bound_nothing_is_counted_and_with_one_exactly() -> None:
    spend(1 << 60)
    with within(10):
        spend(4)
        spend(6)
        with pytest.raises(TakesLong):
            spend(1)
    spend(1 << 60)


def upgraded(path: Path, edit: str) -> Path:
    """The package as another release: ``edit`` is a file of it and text that is put in its place ("+": at its end)."""
    shutil.copytree(Path(hivefs.__file__).parent, path / "hivefs", ignore=shutil.ignore_patterns("__pycache__"))
    name, _, text = edit.partition(":")
    file = path / "hivefs" / name
    file.write_text(file.read_text() + text[1:] if text.startswith("+") else text)
    return path


@pytest.mark.parametrize(
    "edit",
    ["placement/picking.py:+\nclass Other: pass\n", "__init__.py:__version__ = '9.9'\n", "model/node.py:+\n"],
)
def test_after_an_upgrade_in_place_the_old_engine_answers_itself_and_says_so_once(
    edit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> list[int]:
        async with Thinker().running() as thinker:
            first = await thinker(slow, 0)
            await thinker._end()  # it rested
            monkeypatch.setattr(thinker_module, "environment", lambda: {**os.environ, "PYTHONPATH": str(new)})
            started.clear()
            return [first, *[await thinker(slow, 0) for _ in range(3)]]

    new, started = upgraded(tmp_path, edit), []
    start = trio.lowlevel.open_process

    async def noted(*given: Any, **more: Any) -> Any:
        started.append(given)
        return await start(*given, **more)

    monkeypatch.setattr(trio.lowlevel, "open_process", noted)
    first, *then = trio.run(go)
    assert first != os.getpid() and then == [os.getpid()] * 3
    assert len(started) == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "was upgraded while this engine runs" in said[0]


def test_a_child_of_before_there_was_a_greeting_is_not_waited_for_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> list[int]:
        monkeypatch.setattr(thinker_module, "environment", lambda: {**os.environ, "PYTHONPATH": str(old)})
        async with Thinker().running() as thinker:
            pids = [await thinker(slow, 0) for _ in range(3)]
            assert thinker._child is None
        return pids

    old = upgraded(tmp_path, "daemon/thinking.py:import sys\nsys.stdin.buffer.read(4)\n")
    monkeypatch.setattr(thinker_module, "GREETING_S", 0.5)
    assert trio.run(go) == [os.getpid()] * 3
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "does not say its release" in said[0]


def test_a_child_whose_engine_was_killed_ends_without_a_word() -> None:
    """It says its release first, to a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    child = subprocess.run(
        [sys.executable, "-P", "-m", "hivefs.daemon.thinking"],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        env=thinker_module.environment(),
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (child.returncode, child.stderr) == (0, b"")
