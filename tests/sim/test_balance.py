"""Rebalancing in a simulated hive: nodes that join, and disks that change; and a broken engine is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hivefs.chunkstore.steps import released
from hivefs.chunkstore.writer import Writer
from hivefs.daemon.engine_moving import EngineMoving
from hivefs.maintenance.rebalance import Rebalance
from hivefs.testing.sim import engine
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import HOUR, Life
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

GROWING = preset("growing", 1)
SHORT = replace(GROWING, days=8, faults=GROWING.faults[:1], settle_days=4, audit_part=0.05, kills_per_year=0)
LATE = [(engine, "HEAD", 12 * HOUR)]
"""Heads come half a day after what they say, later than several rounds of moves."""


def test_nodes_that_join_and_disks_that_change() -> None:
    few = replace(GROWING, days=24, faults=GROWING.faults[:3], settle_days=4, audit_part=0.05)
    result = simulate(few)
    assert result.balancing > 20 and result.farthest < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_nodes_become_about_equally_full_and_nothing_goes_to_and_fro(seed: int) -> None:
    result = simulate(preset("growing", seed))
    assert result.balancing > 20 and result.farthest < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
def test_heads_may_be_late(seed: int) -> None:
    with patched(LATE):
        assert simulate(preset("growing", seed)).balancing > 20


def _caught(words: str, scenario: Scenario = SHORT, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, scenario, make_life)


def test_an_engine_that_never_rebalances_is_caught() -> None:
    class Lazy(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.wired.moving.rebalance.run]

    _caught("fuller or emptier than the mean", make_life=Lazy)


def test_new_nodes_that_stay_empty_because_nobody_knows_them_are_caught() -> None:
    """Found by this simulator: where nobody wrote a new node got nothing, was never audited, and so got nothing."""
    with patched([(EngineMoving, "_takes", lambda self, node_id: 2**60 if self._engine.pool.takes(node_id) else 0)]):
        _caught("fuller or emptier than the mean")


def test_moving_on_because_old_copies_are_still_there_is_caught() -> None:
    """Found by this simulator: until a head was out the giver looked as full as before, and gave too much."""

    async def as_they_are(self: Rebalance) -> Any:
        return self._nodes()

    few = replace(GROWING, days=26, faults=GROWING.faults[:3], audit_part=0.05)
    with patched([*LATE, (Rebalance, "_as_they_will_be", as_they_are)]):
        _caught("goes to and fro|bytes where", few)


def test_moving_without_regard_to_the_policy_is_caught() -> None:
    with patched([(EngineMoving, "_keeps", lambda *about: True)]):
        _caught("broke the policy|could bring together|took its level", replace(SHORT, countries=("CH", "DE", "FI", "FR")))


def test_a_move_that_was_none_is_caught() -> None:
    async def hopeful(self: Writer, *move: Any) -> bool:
        released()  # as after a real one
        return True

    with patched([(Writer, "put_at", hopeful)]):
        _caught("is on its way and not at node")
