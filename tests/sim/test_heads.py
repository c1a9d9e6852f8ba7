"""What whoever lost their machine would find: heads and the metadata tree in a simulated hive, with real checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from hivefs.daemon.engine_policies import EnginePolicies
from hivefs.metadata.engine_checkpoints import CheckpointTables
from hivefs.metadata.engine_stripes import StripeTables
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Lifetimes, Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 16))])
def test_the_newest_head_and_its_tree_are_never_withheld(seed: int) -> None:
    result = simulate(preset("heads", seed))
    assert result.heads > 10 and result.recoveries > 60


HEADS = preset("heads", 1)


def _caught(words: str, scenario: Scenario = HEADS, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, scenario, make_life)


def test_heads_under_one_jurisdiction_are_caught() -> None:
    keepers = EnginePolicies.keepers

    def near(self: EnginePolicies) -> Iterable[Any]:
        members = self._engine.pool.members
        return [(n, c) for n, c in keepers(self) if members[n].authorities["jurisdiction"] == {"DE"}]

    with patched([(EnginePolicies, "keepers", near), (EnginePolicies, "survives", lambda *about: True)]):
        _caught("DE can withhold it")


def test_old_copies_that_go_before_a_head_names_the_new_ones_are_caught() -> None:
    def at_once(self: StripeTables, stripe_id: Any, node_id: Any, share_id: Any) -> None:
        self.trash_share(node_id, share_id)

    with patched([(StripeTables, "doom_share", at_once)]):
        _caught("that the newest head names there")


def test_a_tree_that_names_where_its_pages_were_is_caught() -> None:
    """Standings that go with each death would have all pages of so small a tree written again in time: here they stay."""

    class Keeps(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.wired.definitions.run]

    few = replace(preset("heads", 2), stripes=1, lifetimes=Lifetimes(50), faults=())
    with patched([(CheckpointTables, "moved", lambda self: {})]):
        _caught("names nodes for stripe|cannot be read", few, Keeps)
