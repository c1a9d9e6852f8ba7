"""That nothing came in between: a guard for what is atomic only because no checkpoint of trio lies in it.

Who looks where copies of a share are and then claims a place, and who lets go of a claim and then records the stripe, must
do both in one step of their task: in between others would change what was looked at. A comment does not hold that; a
``Moment`` does. It raises where steps are counted: in all tests (tests/conftest.py) and in the simulator, which run with a
``Counting``. Where nobody counts it costs nothing and says nothing.
"""

from __future__ import annotations

from typing import Any

import trio.abc
import trio.lowlevel


class Interrupted(AssertionError):
    """A checkpoint of trio came in between: others may have changed what was looked at."""


class Counting(trio.abc.Instrument):
    """Counts the steps of all tasks of one trio run: give it to ``trio.run`` among the instruments."""

    def __init__(self) -> None:
        self.count = 0
        self.released = -1

    def before_run(self) -> None:
        """From now on this run is held to it."""
        _counting.set(self)

    def before_task_step(self, task: Any) -> None:
        """A task goes on."""
        self.count += 1


_counting: trio.lowlevel.RunVar[Counting | None] = trio.lowlevel.RunVar("counting", None)


def _counted() -> Counting | None:
    return _counting.get() if trio.lowlevel.in_trio_run() else None


class Moment:
    """The step in which it is made: when something is looked at that must not change before what follows is done."""

    __slots__ = ("_step",)

    def __init__(self) -> None:
        counting = _counted()
        self._step = None if counting is None else counting.count

    def still(self) -> None:
        """Raises Interrupted when the step is over."""
        counting = _counted()
        if counting is not None and self._step != counting.count:
            raise Interrupted("a checkpoint of trio lies between looking and doing")


def released() -> None:
    """A claim was let go, and what it was for is about to be recorded."""
    counting = _counted()
    if counting is not None:
        counting.released = counting.count


def recording() -> None:
    """Raises Interrupted when no claim was let go in this very step: what is recorded may be deleted already."""
    counting = _counted()
    if counting is not None and counting.released != counting.count:
        raise Interrupted("a checkpoint of trio lies between letting go of a claim and recording what it was for")
