"""Repair that waits, in a simulated hive: a wide code under the engine's own default, and a broken engine is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hivefs.metadata import engine_reader
from hivefs.model.stripe import Level
from hivefs.placement import lazy
from hivefs.placement.policy import AT_ONCE
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

LAZY = preset("lazy", 1)
NARROW = replace(LAZY, countries=("CH", "DE", "FR"), foreign=0.0, outages=replace(LAZY.outages, per_month=0.0), faults=())
"""Of three jurisdictions each has a third of the shares: no hostage decides before the number that is left does."""


def test_repair_waits_while_it_may() -> None:
    result = simulate(replace(LAZY, days=60, faults=LAZY.faults[:2]))
    assert result.waiting > 100 and result.repaired > 3 and result.next_losses > 5 and not result.lost


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_repair_waits_and_never_too_long(seed: int) -> None:
    result = simulate(preset("lazy", seed))
    assert result.waiting > 100 and result.repaired > 5 and result.next_losses > 5 and not result.lost


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 10))
def test_no_hostage_is_kept_while_repair_waits(seed: int) -> None:
    result = simulate(replace(NARROW, seed=seed))
    assert result.waiting > 20 and not result.lost


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_waiting_moves_less_than_repair_at_once(seed: int) -> None:
    """Churn only, so that the same nodes die on the same days."""
    late = replace(preset("lazy", seed), faults=(), days=365, kills_per_year=0)
    one, other = simulate(late), simulate(replace(late, repair_at=AT_ONCE, waits_above=0))
    assert 2 < other.repair_read / one.repair_read < 5  # (n-r) losses at a time, by the formula 3.5
    assert other.waiting == 0 and not one.lost and not other.lost


def _caught(words: str, scenario: Scenario = LAZY) -> None:
    noticed(words, scenario)


def test_a_threshold_that_is_too_low_is_caught() -> None:
    with patched([(lazy, "threshold", lambda policy, purpose: 15)]):
        _caught("called guaranteed.* 1[67] shares are left, and repair begins at 17")


def test_an_engine_that_waits_below_its_threshold_and_says_so_is_caught() -> None:
    """It is honest about the level, and does not repair."""
    judge = engine_reader.judge

    def late(*arguments: Any, **how: Any) -> Any:
        health = judge(*arguments, **how)
        return replace(health, waits=health.counted > 14)

    with patched([(engine_reader, "judge", late)]):
        _caught("not made again in time: 1[67] shares are left")


def test_waiting_while_no_hostage_is_at_stake_is_caught() -> None:
    def plain(policy: Any, purpose: Any, left: int, verdict: Any) -> bool:
        return left < policy.total and left > lazy.threshold(policy, purpose)

    with patched([(lazy, "waits", plain)]):
        _caught("could withhold it", NARROW)


def test_a_level_that_takes_all_for_waiting_is_caught() -> None:
    judge = engine_reader.judge

    def blind(*arguments: Any, **how: Any) -> Any:
        health = judge(*arguments, **how)
        return replace(health, level=Level.GUARANTEED) if health.level == Level.REMOTE else health

    with patched([(engine_reader, "judge", blind)]):
        _caught("is called guaranteed")
