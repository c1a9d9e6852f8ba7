"""Nodes that fail together by what no attribute says: the engine learns it and spreads; a broken engine is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hivefs.maintenance.trust import Trust
from hivefs.placement import outages
from hivefs.testing.sim import report
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.world import simulate

from .broken import noticed

SEED = 10


def test_what_fails_together_is_learnt_and_new_stripes_are_spread() -> None:
    result = simulate(preset("groups", SEED))
    (before, struck), (since, fewer) = report.struck(result, False), report.struck(result, True)
    assert before > 200 and since > 200 and result.lives > 2
    assert struck > 0.1 * before and fewer / since < 0.2 * struck / before


@pytest.mark.slow
def test_fewer_stripes_are_endangered_than_without_knowing() -> None:
    """Of both kinds on the same days. What is left is two groups, or a group and others, that are away at once."""
    found = [[report.struck(simulate(preset("groups", seed)), since) for since in (False, True)] for seed in range(4, 15)]
    before, since = ([sum(numbers) for numbers in zip(*rows, strict=True)] for rows in zip(*found, strict=True))
    assert before[0] > 2000 and since[0] > 2000
    assert since[1] / since[0] < 0.4 * before[1] / before[0]


def _caught(words: str, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, preset("groups", SEED), make_life)


def test_an_engine_that_never_learns_is_caught() -> None:
    class Unteachable(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.trust.run]

    _caught("failed together 5 times and more, and that is not known", Unteachable)


def test_an_engine_that_takes_all_outages_for_one_is_caught() -> None:
    with patched([(outages, "LEAST", 1), (outages, "WINDOW_S", 86_400), (outages, "DOUBT", 1e9)]):
        _caught("are taken for one")


@pytest.mark.slow
def test_placing_without_regard_to_what_was_learnt_is_caught() -> None:
    with patched([(Trust, "outage", lambda self, node_id: frozenset())]):
        _caught("which is known to fail together")
