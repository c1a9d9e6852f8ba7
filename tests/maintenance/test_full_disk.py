"""A full disk: duties wait and go on, one line says so, and everything else passes through."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from hivefs.errors import DiskFull, StoreDamaged
from hivefs.maintenance.bad_shares import MOST, BadShares
from hivefs.maintenance.full_disk import LONGEST, FullDisk, full_disk_of
from hivefs.model.ids import ShareId, StripeId
from hivefs.model.stripe import Purpose, Share, Stripe

STRIPE = Stripe(StripeId(bytes(16)), Purpose.DATA, 1, 4096, (Share(ShareId(bytes(32)), bytes(32), None),) * 2)


def full() -> DiskFull:
    return DiskFull(path=Path("engine"), free=0)


class Disk:
    """Full until a time; counts how often it was tried."""

    def __init__(self) -> None:
        self.room_at = 0.0
        self.tries = 0

    def probe(self) -> None:
        self.tries += 1
        self.write()

    def write(self) -> None:
        if trio.current_time() < self.room_at:
            raise full()


def run(test: Callable[[Disk, FullDisk], Awaitable[None]]) -> None:
    async def running() -> None:
        disk = Disk()
        keeper = FullDisk(disk.probe)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            await test(disk, keeper)
            nursery.cancel_scope.cancel()

    trio.run(running, clock=trio.testing.MockClock(autojump_threshold=0))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("full_disk")]


def test_duties_go_on_when_there_is_room_and_two_lines_say_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    written: list[int] = []

    async def duty(number: int) -> str:
        async with trio.open_nursery() as nursery:  # the error comes in a group

            async def write() -> None:
                await trio.sleep(0.1)
                disks[0].write()

            nursery.start_soon(write)
            nursery.start_soon(write)
        written.append(number)
        return f"done {number}"

    async def test(disk: Disk, keeper: FullDisk) -> None:
        disks.append(disk)
        disk.room_at = trio.current_time() + 1000
        answers: list[str] = []

        async def kept(number: int) -> None:
            answers.append(await keeper.keep(f"duty {number}", duty, number))

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(kept, number)
            await trio.sleep(999)
            assert not written
            assert keeper.status()["duties"] == [f"duty {n}" for n in range(5)]
            assert "0 bytes free" in keeper.status()["waiting_for"]
            assert disk.tries < 2 * 1000 / LONGEST  # pauses grow
        assert trio.current_time() < disk.room_at + LONGEST + 1
        assert sorted(answers) == [f"done {n}" for n in range(5)]
        await trio.sleep(LONGEST + 1)
        assert keeper.status() == {"waiting_for": "", "duties": []}

    disks: list[Disk] = []
    run(test)
    said = lines(caplog)
    assert len(said) == 2 and "cannot write" in said[0] and "again" in said[1]


def test_a_disk_that_takes_a_small_write_and_no_large_one_makes_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    began: list[float] = []

    async def duty() -> None:
        began.append(trio.current_time())
        await trio.sleep(0.5)
        if trio.current_time() < 3600:
            raise full()

    async def test(disk: Disk, keeper: FullDisk) -> None:
        await keeper.keep("duty", duty)

    run(test)
    assert len(lines(caplog)) == 1
    assert len(began) < 2 * 3600 / LONGEST


def test_what_is_met_outside_of_a_duty_is_shown_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    async def test(disk: Disk, keeper: FullDisk) -> None:
        for _ in range(3):
            for _ in range(10):
                keeper.note(full())
                await trio.sleep(0.01)
            assert keeper.status()["waiting_for"]
            await trio.sleep(100)
            assert not keeper.status()["waiting_for"]

    run(test)
    assert len(lines(caplog)) == 6


@pytest.mark.parametrize(
    "error",
    [
        StoreDamaged(path=Path("engine"), reason="it is"),
        ValueError("a mistake"),
        ExceptionGroup("both", [full(), ValueError("a mistake")]),
        ExceptionGroup("both", [ExceptionGroup("one", [full()]), ExceptionGroup("other", [OSError()])]),
    ],
    ids=["damaged", "mistake", "with a mistake", "in groups"],
)
def test_everything_else_passes_out(error: Exception) -> None:
    async def duty() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    async def test(disk: Disk, keeper: FullDisk) -> None:
        with pytest.raises(type(error)) as caught:
            await keeper.keep("duty", duty)
        assert caught.value is error

    assert full_disk_of(error) is None
    run(test)


def test_a_duty_that_waits_can_be_cancelled() -> None:
    async def duty() -> None:
        await trio.lowlevel.checkpoint()
        raise full()

    async def test(disk: Disk, keeper: FullDisk) -> None:
        disk.room_at = 1e9
        with trio.move_on_after(50) as scope:
            await keeper.keep("duty", duty)
        assert scope.cancelled_caught and not keeper.waiting

    run(test)


def test_bad_shares_that_could_not_be_recorded_are_recorded_later_and_are_bounded() -> None:
    recorded: list[tuple[int, str]] = []

    async def test(disk: Disk, keeper: FullDisk) -> None:
        def record(stripe: Stripe, index: int, reason: str) -> None:
            disk.write()
            recorded.append((index, reason))

        bad = BadShares(record)
        bad.take(STRIPE, 9, "at once")
        assert recorded == [(9, "at once")]
        disk.room_at = trio.current_time() + 60
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.keep, "bad shares", bad.run)
            await trio.sleep(1)
            for number in range(MOST + 5):
                bad.take(STRIPE, number, "damaged")
                bad.take(STRIPE, number, "damaged again")
            assert bad.waiting == MOST and len(recorded) == 1
            await trio.sleep(100)
            assert sorted(recorded[1:]) == [(n, "damaged again") for n in range(MOST)]
            bad.take(STRIPE, 3, "later")
            assert recorded[-1] == (3, "later") and not bad.waiting
            nursery.cancel_scope.cancel()

    run(test)
