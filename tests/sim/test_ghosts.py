"""Old copies at nodes that were given up, in a simulated hive (decisions/0022): a share waits for them, for 151 days and no
longer; a stripe that is about to be lost does not wait. And definitions, and metadata under several policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hivefs.maintenance import old_copies
from hivefs.maintenance.definitions import Definitions
from hivefs.placement.language import PolicySet
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.presets import OTHER_TEXT, preset
from hivefs.testing.sim.scenario import Fault, Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

GHOSTS = preset("ghosts", 1)
"""All of DE dies, and what was there moves; then all of CH, and that could only go to DE, where old copies may be."""
RISK = replace(
    GHOSTS,
    days=95,
    faults=(
        Fault(5, "raze", days=15, where="DE"),
        Fault(25, "raze", days=60, where="CH"),
        Fault(40, "raze", days=12, where="FI"),
    ),
)
"""While a share waits another one is lost: exactly k are left."""
OFF = replace(
    GHOSTS,
    days=120,
    settle_days=20,
    faults=(Fault(5, "cut", days=100, where="DE"), Fault(20, "grow", 0.25), Fault(25, "raze", where="CH")),
)
"""The nodes of DE are not dead, and come back after 100 days."""
BOOKS = preset("books", 1)
SHORT = replace(BOOKS, days=7, settle_days=7, stripes=3, faults=BOOKS.faults[:1], kills_per_year=0)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6)])
def test_a_share_waits_for_old_copies_for_151_days(seed: int) -> None:
    """It may not wait longer: see patience_days. What was lost on day 25 was due on day 34, and waits for 129 days more."""
    result = simulate(preset("ghosts", seed))
    stripes = round(result.beside / 129)
    assert stripes >= 1 and abs(result.beside / stripes - 129) <= 2 and not result.risked


@pytest.mark.parametrize("seeds", [range(1, 2), pytest.param(range(2, 10), marks=pytest.mark.slow)])
def test_a_stripe_that_is_about_to_be_lost_does_not_wait(seeds: range) -> None:
    """Not with each seed does a stripe lose the share that makes it so; with most."""
    results = [simulate(replace(RISK, seed=seed)) for seed in seeds]
    assert not any(result.lost for result in results)
    assert sum(bool(result.risked) for result in results) > len(results) / 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nodes_that_come_back_have_their_old_copies(seed: int) -> None:
    simulate(replace(OFF, seed=seed))


def _caught(words: str, scenario: Scenario, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, scenario, make_life)


def test_old_copies_that_are_forgotten_too_early_are_caught() -> None:
    with patched([(old_copies, "FORGOTTEN_S", 20 * 86_400)]):
        _caught("DE could bring together 2 of 2", OFF)


@pytest.mark.slow
def test_old_copies_that_are_never_forgotten_are_caught() -> None:
    with patched([(old_copies, "FORGOTTEN_S", 400 * 86_400)]):
        _caught("was not made again in time", GHOSTS)


# ---- definitions and metadata ---------------------------------------------------------------------------------------


def test_metadata_keeps_two_policies_and_then_the_one_that_is_named_for_it() -> None:
    result = simulate(replace(SHORT, faults=(BOOKS.faults[0], replace(BOOKS.faults[1], day=5))))
    assert result.definitions > 10 and result.heads > 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 15))
def test_metadata_keeps_all_policies_and_the_book_what_is_named(seed: int) -> None:
    result = simulate(preset("books", seed))
    assert result.definitions > 15 and result.heads > 5


def test_definitions_that_nobody_removes_are_caught() -> None:
    class Keeps(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.wired.definitions.run]

    other = replace(SHORT, faults=(BOOKS.faults[0], Fault(5, "policy", where=OTHER_TEXT)))
    _caught("in the book that nothing names", other, Keeps)


def test_definitions_that_go_while_stripes_name_them_are_caught() -> None:
    async def once(self: Definitions) -> None:
        keys = [key for prefix in (b"p", b"a") for key in self._state.keys("tree", prefix)]
        with self._state.writing():
            self._state.forget_definitions(keys[:1])

    with patched([(Definitions, "once", once)]):
        _caught("in the book no more", BOOKS)


def test_metadata_that_keeps_one_policy_of_several_is_caught() -> None:
    with patched([(PolicySet, "metadata", lambda self: self.policies["default"])]):
        _caught("is called guaranteed, and|metadata is not as", SHORT)
