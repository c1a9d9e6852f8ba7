"""When it is looked which policy files have: at once when something says so, seldom else, and not all the time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from hivefs.errors import HivefsError, PolicyInfeasible
from hivefs.maintenance.reassign import AGAIN, ASK, EVERY, SHARE, Reassign
from hivefs.model.ids import ChunkId


class Mount:
    """Tells nothing, and when it was asked. ``took`` seconds for each look."""

    def __init__(self, took: float = 0.0) -> None:
        self.moves = 0
        self.took = took
        self.looks: list[float] = []
        self.handed_over = 0
        self.problem: HivefsError | None = None

    def looked(self) -> None:
        self.handed_over += 1

    def named(self, name: str) -> None:
        if self.problem is not None and name != "default":
            raise self.problem

    async def policy_moves(self) -> int:
        await trio.lowlevel.checkpoint()
        return self.moves

    async def policies_of_chunks(self, after: bytes, limit: int) -> tuple[bytes, list[tuple[ChunkId, str]]]:
        self.looks.append(trio.current_time())
        await trio.sleep(self.took)
        return b"", []


def played(mount: Mount, body: Callable[[Reassign], Awaitable[None]], text: str = "a text") -> None:
    async def main() -> None:
        written = SimpleNamespace(text=text, policies={"default": None, "family": None})
        state = SimpleNamespace(policies=SimpleNamespace(set=written, named=mount.named))
        duty = Reassign(cast("Any", state), lambda *_: None, mount.looked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty.run, cast("Any", mount))
            await body(duty)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_another_text_and_files_that_were_moved_are_looked_at_at_once() -> None:
    mount = Mount()

    async def body(duty: Reassign) -> None:
        await trio.sleep(100)
        assert len(mount.looks) == 1
        duty.wanted.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(mount.looks) == 2 and mount.looks[1] == trio.current_time()
        await trio.sleep(50)
        mount.moves += 1
        moved = trio.current_time()
        await trio.sleep(100)
        assert len(mount.looks) == 3 and mount.looks[2] - moved <= ASK
        await trio.sleep(2 * EVERY)
        assert len(mount.looks) == 5, "the net"

    played(mount, body)


def test_what_moves_during_a_look_is_seen_by_the_next_one() -> None:
    mount = Mount(took=5)

    async def body(duty: Reassign) -> None:
        await trio.sleep(1)
        mount.moves += 1
        await trio.sleep(5 + 5 * SHARE + ASK)
        assert len(mount.looks) == 2

    played(mount, body)


def test_moving_without_end_is_not_looking_without_end() -> None:
    mount = Mount(took=1)

    async def body(duty: Reassign) -> None:
        for _ in range(1100):
            mount.moves += 1
            await trio.sleep(0.1)
        assert 8 <= len(mount.looks) <= 10

    played(mount, body)


def test_without_a_text_nothing_is_looked_at() -> None:
    mount = Mount()

    async def body(duty: Reassign) -> None:
        mount.moves += 1
        await trio.sleep(3 * EVERY)
        assert not mount.looks

    played(mount, body, "")


def test_nothing_is_looked_at_while_a_code_is_being_chosen() -> None:
    """What would move by the codes that are known would move again by the one that is chosen."""
    mount = Mount()
    mount.problem = PolicyInfeasible(reason="its code is being chosen", choosing=True)

    async def body(duty: Reassign) -> None:
        duty.wanted.set()
        await trio.sleep(1)
        assert not mount.looks and not mount.handed_over
        mount.problem = None
        duty.wanted.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(mount.looks) == mount.handed_over == 1

    played(mount, body)


def test_a_policy_that_can_not_be_kept_holds_up_no_other() -> None:
    mount = Mount()
    mount.problem = PolicyInfeasible(reason="one jurisdiction is there")

    async def body(duty: Reassign) -> None:
        duty.wanted.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(mount.looks) == mount.handed_over == 1

    played(mount, body)


def test_what_was_wished_is_looked_at_again_soon_and_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount()
    left = [3]

    async def once(duty: Reassign, vault: Mount) -> int:
        await vault.policies_of_chunks(b"", 1)
        return left[0]

    monkeypatch.setattr(Reassign, "once", once)

    async def body(duty: Reassign) -> None:
        await trio.sleep(AGAIN + 1)
        assert len(mount.looks) == 2
        await trio.sleep(2 * AGAIN)
        assert len(mount.looks) == 3
        await trio.sleep(4 * AGAIN)
        assert len(mount.looks) == 4
        left[0] = 0
        duty.ask_again()
        await trio.sleep(ASK)
        assert len(mount.looks) == 5
        await trio.sleep(EVERY - 2 * ASK)
        assert len(mount.looks) == 5

    played(mount, body)


def test_while_it_is_not_known_which_policies_files_have_it_says_so() -> None:
    mount = Mount(took=5)

    async def body(duty: Reassign) -> None:
        assert not duty.known
        await trio.sleep(6)
        assert duty.known and mount.handed_over == 1
        duty.ask()
        assert not duty.known
        await trio.sleep(1)
        assert not duty.known
        await trio.sleep(5)
        assert duty.known and mount.handed_over == 2
        changes, mount.moves = duty.changes, 1
        await trio.sleep(5 * SHARE)
        assert duty.changes == changes + 1

    played(mount, body)
