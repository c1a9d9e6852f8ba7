"""How much a search may do where somebody waits for it: what takes longer is broken off and done elsewhere. Pure.

One unit is about a microsecond of a machine of 2025. It is counted, not measured: the same question is always broken off at
the same place, or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BRIEF = 800

_left: ContextVar[int | None] = ContextVar("effort", default=None)


class TakesLong(Exception):
    """The answer needs more than was allowed. No HivefsError: nothing that looks for another way may catch it."""


@contextmanager
def within(units: int) -> Iterator[None]:
    """What spends more than this inside raises TakesLong."""
    token = _left.set(units)
    try:
        yield
    finally:
        _left.reset(token)


def spend(units: int) -> None:
    """Count work that is about to be done. Without a bound nothing happens."""
    left = _left.get()
    if left is None:
        return
    if units > left:
        raise TakesLong
    _left.set(left - units)
