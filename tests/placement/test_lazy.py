"""The threshold of lazy repair follows from the formulas, and small codes do not wait."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.placement import durability
from hivefs.placement.lazy import LAG_DAYS, LOSSES_A_YEAR, MONTHLY, due, repair_at

RATE = durability.daily_rate(MONTHLY)


def test_the_codes_of_the_design() -> None:
    assert {code: repair_at(*code) for code in ((2, 3), (3, 5), (4, 6), (4, 8), (5, 9), (8, 14))} == {
        (2, 3): 0, (3, 5): 0, (4, 6): 0, (4, 8): 0, (5, 9): 0, (8, 14): 0,
    }  # fmt: skip
    assert (repair_at(16, 30), repair_at(16, 40), repair_at(29, 80)) == (24, 24, 38)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 50))
def test_a_threshold_is_safe_and_the_next_lower_one_is_not(needed: int, parity: int) -> None:
    total = needed + parity
    at = repair_at(needed, total)
    if not at:
        if parity > 2:
            assert durability.losses(needed, total, total - 2, LAG_DAYS, RATE) > LOSSES_A_YEAR
        return
    assert needed < at < total
    assert durability.losses(needed, total, at, LAG_DAYS, RATE) <= LOSSES_A_YEAR
    assert at == needed + 1 or durability.losses(needed, total, at - 1, LAG_DAYS, RATE) > LOSSES_A_YEAR


@given(st.integers(0, 30), st.integers(0, 29), st.booleans())
def test_what_cannot_be_proved_never_waits(left: int, threshold: int, proved: bool) -> None:
    now = due(left, 30, threshold, proved)
    assert now == (left < 30 and (not proved or threshold == 0 or left <= threshold))
    assert now or left == 30 or (proved and left > threshold > 0)
