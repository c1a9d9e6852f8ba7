"""The instrument that says which steps hold a loop: a step counts by its processor time, and is seen where it is."""

from __future__ import annotations

import gc
import signal
import time

import trio

from hivefs.testing.bench.long_steps import LongSteps


def busy(seconds: float) -> None:
    begun = time.thread_time()
    while time.thread_time() - begun < seconds:
        pass


async def works() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    busy(0.1)
    await trio.lowlevel.checkpoint()


async def sleeps() -> None:
    time.sleep(0.1)
    await trio.lowlevel.checkpoint()


async def collects() -> None:
    busy(0.06)
    gc.collect()
    await trio.lowlevel.checkpoint()


def seen(*tasks: object) -> LongSteps:
    steps = LongSteps(from_s=0.05)

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)  # type: ignore[arg-type]

    handler = signal.getsignal(signal.SIGALRM)
    callbacks = len(gc.callbacks)
    trio.run(go, instruments=[steps])
    assert signal.getsignal(signal.SIGALRM) == handler and len(gc.callbacks) == callbacks
    return steps


def test_a_long_step_is_named_and_seen_in_its_midst() -> None:
    steps = seen(works)
    (step,) = [step for step in steps.long if step.task.endswith("works")]
    assert step.processor >= 0.1 and "busy" in step.seen and "works" in step.seen
    assert steps.steps > 20 and "busy" in steps.worst(1)[0]
    steps.forget()
    assert not steps.worst(1)


def test_waiting_without_the_processor_is_no_long_step() -> None:
    assert not [step for step in seen(sleeps).long if step.task.endswith("sleeps")]


def test_the_part_of_the_collector_is_told() -> None:
    steps = seen(collects)
    (step,) = [step for step in steps.long if step.task.endswith("collects")]
    assert step.generation == 2 and 0 < step.collecting < step.processor
    assert any("the collector (2)" in words for words in steps.worst(9))
