"""Files under several policies in a simulated hive: texts that change, files that are deleted and moved, stripes that are
emptied into others, with the engine's own code, and a broken engine is caught.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from hivefs.maintenance import repack
from hivefs.maintenance.repack import Repack
from hivefs.metadata import engine_reader
from hivefs.model.stripe import ChunkPlace
from hivefs.placement.language import parse
from hivefs.placement.policy import Policy
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

POLICIES = preset("policies", 1)
SHORT = replace(POLICIES, nodes=28, stripes=5, days=24, faults=POLICIES.faults[:2], kills_per_year=60, settle_days=10)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 20))])
def test_data_follows_its_policies_and_nothing_is_lost(seed: int) -> None:
    result = simulate(preset("policies", seed))
    assert result.moved > 10 and not result.lost and result.lives > 2


def _caught(words: str, scenario: Scenario = SHORT, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, scenario, make_life)


def test_data_that_does_not_follow_its_policy_is_caught() -> None:
    class Stays(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.wired.moving.repack.run]

    _caught("still has the code of another policy", make_life=Stays)


def test_an_old_placement_that_goes_before_the_new_one_is_there_is_caught() -> None:
    place = Repack.move

    async def hasty(self: Repack, job: Any) -> bool:
        with self._state.writing():
            for load in job.loads:
                for share in self._state.stripe(load.stripe_id).shares:
                    self._state.trash_share(share.node, share.share_id)
        return await place(self, job)

    with patched([(Repack, "move", hasty)]):
        _caught("is lost with|no more: ")


def test_places_that_are_wrong_after_a_move_are_caught() -> None:
    def wrong(stripe_id: Any, index: int, offset: int, length: int) -> ChunkPlace:
        return ChunkPlace(stripe_id, index, offset + 1, length)

    with patched([(repack, "ChunkPlace", wrong)]):
        _caught("is not where the engine's book says")


def test_stripes_that_nobody_needs_and_nobody_deletes_are_caught() -> None:
    class Keeps(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self._heads]

    _caught("nothing names|nobody needs stripe", make_life=Keeps)


def test_who_a_policy_denies_and_the_engine_does_not_is_caught() -> None:
    def deaf(text: str, default: Policy, **kept: bool) -> SimpleNamespace:
        heard = parse(text.replace('deny = ["FR"]', ""), default)
        return SimpleNamespace(text=text, policies=heard.policies, paths=heard.paths, metadata=heard.metadata)

    with patched([(engine_reader, "parse", deaf)]):
        _caught("is called guaranteed, and node|is not as policy")
