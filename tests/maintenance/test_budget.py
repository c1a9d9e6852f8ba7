"""The engine's own traffic: a rate that is kept, and people who come first, but not for ever."""

from __future__ import annotations

import trio
import trio.testing

from hivefs.maintenance.budget import PATIENCE, USED, Budget


class Drive:
    def __init__(self) -> None:
        self.used = False
        self.reading = False
        self.asked = 0

    async def calm(self) -> bool:
        self.asked += 1
        return not self.used


def virtual(test: object) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_the_rate_is_kept_over_time_whatever_the_pieces() -> None:
    async def test() -> None:
        drive = Drive()
        budget = Budget(1000, drive.calm, lambda: drive.reading)
        began = trio.current_time()

        async def duty(size: int, count: int) -> None:
            for _ in range(count):
                await budget.take(size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(duty, 5000, 4)  # each more than a second's worth
            nursery.start_soon(duty, 100, 100)
        await budget.take(1)
        assert 30 <= trio.current_time() - began <= 32
        assert budget.taken == 30_001 and budget.waiting_for == ""

    virtual(test)


def test_no_limit_and_nobody_there_means_no_wait() -> None:
    async def test() -> None:
        budget = Budget(0, Drive().calm, lambda: False)
        began = trio.current_time()
        for _ in range(1000):
            await budget.take(1 << 30)
        assert trio.current_time() == began

    virtual(test)


def test_people_come_first_for_a_while_and_what_is_endangered_does_not_wait_for_them() -> None:
    async def test() -> None:
        drive = Drive()
        budget = Budget(0, drive.calm, lambda: drive.reading)
        for way in ("used", "reading"):
            setattr(drive, way, True)
            began = trio.current_time()
            await budget.take(10, urgent=True)
            assert trio.current_time() == began
            async with trio.open_nursery() as nursery:
                nursery.start_soon(budget.take, 10)
                await trio.sleep(1)
                assert budget.waiting_for == USED and trio.current_time() - began < PATIENCE
                await trio.sleep(1)
                setattr(drive, way, False)
            assert trio.current_time() - began < 3
        drive.used = True
        await trio.sleep(1)
        began = trio.current_time()
        for _ in range(5):
            await budget.take(10)
        # A pause of use is waited for once; then a little goes through every second.
        assert PATIENCE + 3 <= trio.current_time() - began <= PATIENCE + 8
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(budget.take, 10)
        assert trio.current_time() - began <= PATIENCE + 14
        assert drive.asked < 1000  # the mount is not asked all the time

    virtual(test)
