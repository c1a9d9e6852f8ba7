"""A vault whose clock is wrong, in a simulated hive: no lease ends for it, and no old copy is forgotten early."""

from __future__ import annotations

from dataclasses import replace

from hivefs.chunkstore.clocks import Clocks
from hivefs.model.ids import ShareId
from hivefs.node.leases import SKEW_NS
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.nodes import SimNode
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Fault, Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

BEHIND = replace(preset("leases", 1), days=130, stripes=3, faults=(Fault(5, "step", days=-150),))
"""Five months behind for four: what it asks for by that clock, 120 days, ended a month ago."""


def full(self: SimNode, now_ns: int, running_ns: int) -> list[ShareId]:
    """What a node may forget when it needs room, as soon as a lease has ended by its clock."""
    clock = self.time(now_ns, running_ns)
    return [share_id for share_id, held in self.shares.items() if held.lease_ns + SKEW_NS < clock]


FULL = (SimNode, "collectable", full)


def ahead(seed: int) -> Scenario:
    """The nodes of DE are cut off, given up, and come back on day 65 with what was made again elsewhere. Meanwhile the
    machine is off for some minutes, and its clock is 200 days ahead when it starts again. Then what lay in CH has to move.
    """
    ghosts = preset("ghosts", seed)
    faults = (
        Fault(5, "cut", days=60, where="DE"),
        Fault(20, "grow", 0.25),
        Fault(22, "kill"),
        Fault(22.00001, "step", days=200),
        Fault(25, "raze", where="CH"),
    )
    return replace(ghosts, days=75, settle_days=20, faults=faults, kills_per_year=0)


def test_a_clock_that_is_months_behind_ends_no_lease() -> None:
    with patched([FULL]):
        simulate(BEHIND)


def test_leases_by_a_clock_that_is_months_behind_are_caught() -> None:
    heard = Clocks.heard

    def deaf(self: Clocks, *told: object) -> int:
        heard(self, *told)  # type: ignore[arg-type]
        return 0

    with patched([FULL, (Clocks, "heard", deaf)]):
        noticed("the lease of share", BEHIND)


def test_a_clock_that_is_ahead_after_a_start_makes_no_old_copy_forgotten() -> None:
    simulate(ahead(1))


def test_old_copies_that_are_forgotten_by_a_wrong_clock_are_caught() -> None:
    with patched([(Clocks, "right", True)]):
        noticed("DE could bring together 2 of 2", ahead(1))
