"""The stand-in for trio inside pyfuse3, with workers that do what pyfuse3's do and a socket for /dev/fuse."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from hivefs.fuse.loop import LOAD_SECONDS, ReceiveLoop

LIMIT = 100.0


class Device:
    """Datagrams are requests. Reading when none is there raises: the real receive would block the whole process."""

    def __init__(self) -> None:
        self.theirs, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        self.theirs.setblocking(False)

    def ask(self, request: bytes) -> None:
        self.theirs.send(request)

    def close(self) -> None:
        self.theirs.close()
        self.ours.close()


class Served:
    """Workers as in pyfuse3's _session_loop: wait, receive, start another one if nobody waits, answer."""

    def __init__(self, device: Device, answer: Callable[[bytes], Awaitable[None]]) -> None:
        self.loop = ReceiveLoop()
        self.device = device
        self.answer = answer
        self.readers = 0
        self.workers = 0
        self.ended = 0

    async def run(self) -> None:
        async with self.loop.open_nursery() as nursery:
            self.start(nursery)

    def start(self, nursery: Any) -> None:
        self.workers += 1
        nursery.start_soon(self.worker, nursery, name="worker")

    async def worker(self, nursery: Any) -> None:
        try:
            while True:
                self.readers += 1
                try:
                    async with self.loop.Lock():
                        await self.loop.lowlevel.wait_readable(self.device.ours.fileno())
                except self.loop.ClosedResourceError:
                    return
                finally:
                    self.readers -= 1
                request = self.device.ours.recv(64)
                if not self.readers:
                    self.start(nursery)
                if request == b"end":
                    self.loop.notify_closing(self.device.ours.fileno())
                    return
                await self.answer(request)
        finally:
            self.ended += 1


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(LIMIT):
            await main()

    trio.run(bounded)


def test_requests_are_answered_in_order_and_all_workers_end() -> None:
    device, seen = Device(), []

    async def answer(request: bytes) -> None:
        seen.append(request)

    served = Served(device, answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            for i in range(40):
                device.ask(b"%d" % i)
                if i % 7 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            device.ask(b"end")

    run(main)
    device.close()
    assert seen == [b"%d" % i for i in range(40)]
    assert served.ended == served.workers >= 2


def test_a_request_that_waits_does_not_keep_the_others_waiting() -> None:
    device, seen, freed = Device(), [], trio.Event()

    async def answer(request: bytes) -> None:
        if request.startswith(b"wait"):
            await freed.wait()
        if request == b"free":
            freed.set()
        seen.append(request)

    served = Served(device, answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            for request in (b"wait 1", b"wait 2", b"wait 3", b"quick", b"free"):
                device.ask(request)
            await freed.wait()
            await trio.testing.wait_all_tasks_blocked()
            device.ask(b"end")

    run(main)
    device.close()
    assert seen[:2] == [b"quick", b"free"]
    assert sorted(seen[2:]) == [b"wait 1", b"wait 2", b"wait 3"]


class Steps(trio.abc.Instrument):
    """Counts the turns that workers get."""

    def __init__(self) -> None:
        self.workers = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.workers += task.name == "worker"


def test_workers_without_anything_to_do_are_not_woken() -> None:
    """Requests that come one at a time and do not block wake the one worker that waits, however many are parked."""
    device, freed, steps = Device(), trio.Event(), Steps()
    answered = 0

    async def answer(request: bytes) -> None:
        nonlocal answered
        answered += 1
        if request == b"wait":
            await freed.wait()

    served = Served(device, answer)
    served.loop._clock = Clock()  # however slow the machine is, no turn is over

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            for _ in range(5):
                device.ask(b"wait")
            await trio.testing.wait_all_tasks_blocked()
            freed.set()
            await trio.testing.wait_all_tasks_blocked()
            assert served.workers >= 6
            trio.lowlevel.add_instrument(steps)
            for _ in range(50):
                device.ask(b"quick")
                await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(steps)
            device.ask(b"end")

    run(main)
    device.close()
    assert answered == 55
    assert steps.workers == 50


def test_other_tasks_get_their_turn_under_full_load() -> None:
    """The load goes on until another task has run three times: it must, however many requests there are."""
    device = Device()
    answered = ticks = 0

    async def answer(request: bytes) -> None:
        nonlocal answered
        answered += 1
        assert answered < 3_000_000, "the loop never gave up its turn"
        device.ask(b"more" if ticks < 3 else b"end")

    served = Served(device, answer)

    async def tick() -> None:
        nonlocal ticks
        while ticks < 3:
            await trio.sleep(0)
            ticks += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            device.ask(b"more")
            while not answered:
                await trio.sleep(0)
            nursery.start_soon(tick)

    run(main)
    device.close()
    assert ticks == 3


def test_the_handshake_is_finished_between_the_first_and_the_second_wait() -> None:
    device, order = Device(), []

    async def answer(request: bytes) -> None:
        order.append(request)

    served = Served(device, answer)
    served.loop = ReceiveLoop(lambda: order.append(b"handshake"))

    async def main() -> None:
        device.ask(b"init")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            await trio.testing.wait_all_tasks_blocked()
            device.ask(b"1")
            await trio.testing.wait_all_tasks_blocked()
            device.ask(b"end")

    run(main)
    device.close()
    assert order == [b"init", b"handshake", b"1"]


def test_cancelling_ends_waiting_workers() -> None:
    device = Device()

    async def answer(request: bytes) -> None:
        pass

    served = Served(device, answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            device.ask(b"1")
            device.ask(b"2")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    run(main)
    device.close()
    assert served.ended == served.workers


def test_everything_else_is_trio() -> None:
    loop = ReceiveLoop()
    assert loop.ClosedResourceError is trio.ClosedResourceError
    assert loop.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        _ = loop.no_such_name


class Clock:
    """Goes on by a little whenever it is read, and by what a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 10e-6
        return self.now


def test_how_much_of_the_time_requests_take() -> None:
    device, clock = Device(), Clock()
    loads: list[float] = []

    async def answer(request: bytes) -> None:
        clock.now += 0.1

    served = Served(device, answer)
    served.loop._clock = clock
    served.loop._looked = (clock.now, 0.0)

    async def main() -> None:
        assert served.loop.load() == 0.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            device.ask(b"first")
            await trio.testing.wait_all_tasks_blocked()
            clock.now += 10.0
            loads.append(served.loop.load())  # it waits all the time
            for _ in range(20):
                device.ask(b"work")
            await trio.testing.wait_all_tasks_blocked()
            loads.append(served.loop.load())  # it works all the time
            clock.now += LOAD_SECONDS / 2
            loads.append(served.loop.load())  # too early to say something new
            clock.now += 30.0
            loads.append(served.loop.load())
            device.ask(b"end")

    run(main)
    device.close()
    assert loads[0] < 0.05
    assert loads[1] > 0.95
    assert loads[2] == loads[1]
    assert loads[3] < 0.05
