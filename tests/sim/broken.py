"""Whether the simulator notices an engine that is broken on purpose: over a few seeds, not by the luck of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.truth import Violation
from hivefs.testing.sim.world import simulate

SEEDS = 4


def noticed(words: str, scenario: Scenario, make_life: Callable[..., Life] = Life) -> None:
    """Some defects need something that not every seed has (a kill in the middle of a repair, say), or show themselves as
    something else first. With one of the scenario's seed and those after it, there has to be a violation in these words.
    """
    seen = []
    for seed in range(scenario.seed, scenario.seed + SEEDS):
        one = replace(scenario, seed=seed, command=scenario.command.replace(f"--seed {scenario.seed}", f"--seed {seed}"))
        try:
            simulate(one, make_life=make_life)
            seen.append(f"seed {seed}: nothing")
        except Violation as violation:
            assert f"--seed {seed}" in str(violation), "it says how to see it again"
            if re.search(words, str(violation)):
                return
            seen.append(f"seed {seed}: {violation}")
    pytest.fail("not noticed; " + "; ".join(seen))
