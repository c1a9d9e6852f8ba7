"""What a receipt is worth, when an unknown share may go, what a vault is entitled to."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hivefs.maintenance.accounts import (
    DAY_NS,
    SEEN_NS,
    UNRENEWED_NS,
    Account,
    Contribution,
    clocks_agree,
    deletable,
    entitlement,
    refuse,
)
from hivefs.model.ids import NodeId
from hivefs.model.receipt import Receipt

NODE = NodeId(bytes(32))
LEASE_NS = 120 * DAY_NS
NOW = 1_800_000_000 * 10**9
times = st.integers(0, 1 << 62)


@given(first=times, end=times, now=times)
def test_what_was_renewed_lately_or_noted_lately_is_never_deletable(first: int, end: int, now: int) -> None:
    if deletable(first, end, LEASE_NS, now):
        assert now - first >= SEEN_NS
        # Whoever renews every thirty days, and is ten days late, has not lost it.
        assert end - LEASE_NS <= now - UNRENEWED_NS <= now - 40 * DAY_NS


@given(end=times, more=st.integers(0, 1 << 60), now=times)
def test_a_lease_that_a_node_made_longer_is_younger(end: int, more: int, now: int) -> None:
    assert not deletable(0, end + more, LEASE_NS, now) or deletable(0, end, LEASE_NS, now)


def test_a_day_of_skew_costs_no_share_that_a_living_engine_renews() -> None:
    for skew in (-DAY_NS, 0, DAY_NS):
        renewed = NOW + skew  # by a clock that is wrong by a day
        for days in range(32):  # looked at by ours until it is renewed again
            assert not deletable(0, renewed + LEASE_NS, LEASE_NS, NOW + days * DAY_NS)
    assert clocks_agree(NOW, NOW + DAY_NS) and not clocks_agree(NOW, NOW + DAY_NS + 1)


def test_a_receipt_counts_once() -> None:
    last = Receipt(NODE, bytes(32), 7, NOW, bytes(32), 1, 1)
    assert not refuse(last, None)
    assert not refuse(replace(last, sequence=8), last)
    for number in (7, 6, 1):
        words = refuse(replace(last, sequence=number, leases=9), last)
        assert "stale" in words and str(number) in words and "7" in words


def test_entitlement_is_contribution_times_availability_over_expansion() -> None:
    assert entitlement([], 1.5) == 0
    assert entitlement([Contribution(3000, 1.0), Contribution(3000, 0.5), Contribution(9000, 0.0)], 1.5) == 3000
    assert entitlement([Contribution(1000, 7.0), Contribution(1000, -1.0)], 0.5) == 1000


def test_an_account_is_balanced_only_when_both_say_the_same() -> None:
    good = Account(NODE, leases=3, size=30, book=3, book_size=30)
    assert good.balanced
    assert not replace(good, leases=4).balanced and not replace(good, size=31).balanced
    assert replace(good, leases=4, size=40, transit=1).balanced
    for wrong in ({"missing": 1}, {"unknown": 1}, {"problem": "refused"}):
        assert not replace(good, transit=5, **wrong).balanced  # type: ignore[arg-type]
