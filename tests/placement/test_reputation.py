"""Reputation, time-outs and vetting as pure arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hivefs.formats import reputation as reputation_format
from hivefs.placement import reputation
from hivefs.placement.reputation import Owed, Reputation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "reputation.json").read_text())["vectors"]
S = 10**9
NOW = 1_800_000_000 * S
NEW = Reputation(NOW, NOW)


def after(row: Reputation, answers: list[bool], now: int = NOW) -> Reputation:
    for right in answers:
        row = reputation.answered(row, right, now)
    return row


def test_five_wrong_answers_in_a_row_suspend_a_new_node_and_four_do_not() -> None:
    assert not after(NEW, [False] * 4).suspended
    assert after(NEW, [False] * 5).suspended


def test_one_in_ten_is_out_within_eighty_answers_and_one_in_a_hundred_never() -> None:
    tenth = [n % 10 == 9 for n in range(90)]
    assert after(NEW, [not bad for bad in tenth]).suspended
    row = NEW
    for n in range(20_000):
        row = reputation.answered(row, n % 100 != 99, NOW)
        assert not row.suspended
    assert 0.985 < reputation.score(row) < 0.995


def test_a_long_good_past_does_not_pay_for_many_wrong_answers() -> None:
    row = after(NEW, [True] * 50_000)
    assert not after(row, [False] * 30).suspended
    assert after(row, [False] * 60).suspended


def test_a_suspended_node_is_tried_again_when_its_evidence_is_old_but_not_at_the_first_good_answer() -> None:
    row = after(NEW, [False] * 5)
    assert reputation.answered(row, True, NOW).suspended
    for day in range(1, 40):
        row = reputation.answered(row, True, NOW + day * 86_400 * S, weight=0)
    assert not row.suspended


@given(st.lists(st.tuples(st.integers(-(10**10), 10**10), st.booleans()), max_size=60))
def test_a_clock_that_jumps_does_no_harm(steps: list[tuple[int, bool]]) -> None:
    """Whatever the clock says, a step forgets a day at most, and numbers stay in their bounds."""
    row = after(NEW, [False, True] * 200)
    for second, right in steps:
        before = row
        row = reputation.answered(row, right, NOW + second * S)
        assert row.bad >= before.bad * reputation.FORGET * 0.5 ** (1 / 30) - 2
        assert 0 < reputation.score(row) <= 1 and row.good >= 0
        assert reputation.gone_after(row, 60) == 60
    there_and_back = reputation.aged(reputation.aged(row, NOW + 10**9 * S), NOW)
    assert there_and_back.bad >= row.bad * 0.5 ** (1 / 30) - 2


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 10**18))
def test_what_is_said_to_be_left_is_what_ends_a_suspension(answers: list[bool], now: int) -> None:
    row = Reputation(now, now)
    for right in answers:
        row = reputation.answered(row, right, now)
    left = reputation.answers_left(row)
    assert (left > 0) == row.suspended
    took = 0
    while row.suspended:
        row, took = reputation.answered(row, True, now), took + 1
    assert abs(took - left) <= 1 and reputation.answers_left(row) == 0


def test_the_worst_node_comes_back_by_some_thousand_answers_and_not_more() -> None:
    row = Reputation(0, 1, 0, 10**6, suspended=True)  # more than FORGET lets come together
    left = reputation.answers_left(row)
    assert 100 < left < 5000
    for _ in range(left - 20):
        row = reputation.answered(row, True, 1)
    assert row.suspended and reputation.answers_left(row) < 40


def test_vetting_needs_age_and_audits() -> None:
    row = NEW
    for _ in range(reputation.VET_AUDITS):
        row = reputation.audited(row, NOW)
    week = NOW + reputation.VET_S * S
    assert not reputation.vetted(row, week - 1) and reputation.vetted(row, week)
    assert not reputation.vetted(replace(row, audits=reputation.VET_AUDITS - 1), week)


def outage(row: Reputation, seconds: float, at: int = NOW, setting: float = 86_400) -> Reputation:
    return reputation.returned(reputation.watched(row, seconds, False, 1.0), at, setting)


def test_the_time_out_follows_the_node_within_bounds() -> None:
    day = 86_400.0
    row = NEW
    for number in range(reputation.HISTORY):
        assert reputation.gone_after(row, day) == day, number
        row = outage(row, 12 * 3600)  # off every night
    assert reputation.gone_after(row, day) == 18 * 3600
    often = NEW
    for _ in range(32):
        often = outage(often, 900)
    assert reputation.gone_after(often, day) == day / 4, "never below a quarter"
    seldom = NEW
    for _ in range(8):
        seldom = outage(seldom, 20 * day)
    assert reputation.gone_after(seldom, day) == 4 * day, "never above four times"
    # A hive on one machine says 60 s, and short settings stay what they are.
    short = NEW
    for _ in range(8):
        short = outage(short, 2, setting=60)
    assert reputation.gone_after(short, 60) == 60 and reputation.gone_after(short, 1) >= 1


def test_one_long_absence_in_thirty_does_not_make_a_node_slow_to_be_given_up() -> None:
    row = outage(NEW, 30 * 86_400)
    for _ in range(31):
        row = outage(row, 8 * 3600)
    assert reputation.gone_after(row, 86_400) == 12 * 3600


def test_blips_and_doubted_absences_are_no_history() -> None:
    assert outage(NEW, 300).outages == ()
    doubted = reputation.watched(reputation.watched(NEW, 50_000, False, 1.0), 10, False, 0.0)
    back = reputation.returned(doubted, NOW, 86_400)
    assert back.outages == () and back.away_ms == 0 and not back.doubted
    assert reputation.returned(reputation.watched(NEW, 5000, False, 1.0), NOW, 86_400).outages == ((NOW // S - 5000, 5000),)


def test_availability_is_what_was_seen_and_a_new_node_has_all() -> None:
    assert reputation.availability(NEW) == 1
    row = reputation.watched(reputation.watched(NEW, 30 * 86_400, True, 1), 30 * 86_400, False, 1.0)
    assert abs(reputation.availability(row) - 0.508) < 0.001
    assert reputation.availability(reputation.watched(NEW, 10**6, False, 0.0)) == 1, "cut off ourselves: nothing is known"
    for _ in range(1000):
        row = reputation.watched(row, 86_400, True, 1)
    assert reputation.availability(row) > 0.99, "what is long ago counts less"


def test_what_a_node_owes_is_bounded_and_settled() -> None:
    row = NEW
    for number in range(20):
        row, entry = reputation.owes(row, bytes(16), number, NOW, True)
        assert entry.strikes == 1
    assert len(row.owed) == reputation.MOST_OWED
    row, entry = reputation.owes(row, bytes(16), 19, NOW + 5 * S, True)
    row, entry = reputation.owes(row, bytes(16), 19, NOW + 9 * S, False)
    assert (entry.strikes, entry.since_s) == (2, NOW // S)
    assert 19 not in [o.index for o in reputation.settled(row, bytes(16), 19).owed]


def test_rows_are_kept_as_the_vectors_say() -> None:
    full = Reputation(
        first_seen_ns=1_800_000_000 * S,
        updated_ns=1_800_000_500 * S,
        good=123_456,
        bad=2_000,
        audits=77,
        suspended=True,
        online_ms=86_400_000,
        known_ms=90_000_000,
        away_ms=3_600_000,
        doubted=True,
        outages=((1_799_000_000, 7200), (1_799_500_000, 43_200)),
        owed=(Owed(bytes(range(16)), 3, 2, 1_800_000_400),),
        sweep=bytes(range(16)),
    )
    for name, row in (("full", full), ("new", Reputation(1_800_000_000 * S))):
        assert reputation_format.to_bytes(row).hex() == VECTORS[name]
        assert reputation_format.from_bytes(bytes.fromhex(VECTORS[name])) == row
