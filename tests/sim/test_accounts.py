"""The sum of leases is the sum of shares in a simulated hive at any time, and an engine with wrong accounts is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hivefs.maintenance import ledger
from hivefs.maintenance.ledger import Ledger
from hivefs.metadata.engine_stripes import StripeTables
from hivefs.testing.sim.determinism import patched
from hivefs.testing.sim.engine import Life
from hivefs.testing.sim.presets import preset
from hivefs.testing.sim.scenario import Scenario
from hivefs.testing.sim.world import simulate

from .broken import noticed

ACCOUNTS = preset("accounts", 1)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 12))])
def test_leases_are_the_shares_and_what_nothing_names_goes(seed: int) -> None:
    simulate(preset("accounts", seed))


def _caught(words: str, scenario: Scenario, make_life: Callable[..., Life] = Life) -> None:
    noticed(words, scenario, make_life)


def test_an_engine_that_keeps_no_accounts_is_caught() -> None:
    """What nothing names would stay until its lease ends."""

    class Blind(Life):
        def duties(self) -> list[Callable[[], Any]]:
            return [duty for duty in super().duties() if duty != self.wired.moving.ledger.run]

    _caught("nothing names", replace(ACCOUNTS, days=46, faults=ACCOUNTS.faults[:1]), Blind)


def test_a_share_that_leaves_the_book_and_not_the_disk_is_caught() -> None:
    forget = StripeTables.forget_stripe

    def forgetful(self: StripeTables, stripe_id: Any) -> None:
        stripe = self.stripe(stripe_id)
        forget(self, stripe_id)
        if stripe is not None and stripe.shares[0].node is not None:
            self.trash_done(stripe.shares[0].node, [stripe.shares[0].share_id])

    with patched([(StripeTables, "forget_stripe", forgetful)]):
        _caught("no book knows of it", replace(ACCOUNTS, days=20, faults=(replace(ACCOUNTS.faults[2], day=3, part=1.0),)))


def test_a_ledger_that_takes_named_shares_for_unknown_is_caught() -> None:
    account = Ledger._shares_at

    async def partly(self: Ledger, node_id: Any) -> Any:
        found, size = await account(self, node_id)
        return dict(list(found.items())[1:]), size

    changes = [(Ledger, "_shares_at", partly), (ledger, "deletable", lambda *about: True)]
    with patched(changes):
        _caught("is lost with|still counted|never was at|do not balance", replace(ACCOUNTS, days=20, faults=()))
