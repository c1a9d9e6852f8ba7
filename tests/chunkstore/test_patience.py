"""How long a node's silence is borne, from figures that are given."""

from __future__ import annotations

from hivefs.chunkstore.patience import CEILING, FLOOR, Patience


def test_it_follows_what_nine_of_ten_answers_took() -> None:
    patience = Patience()
    assert patience.limit == FLOOR
    for _ in range(20):
        patience.answered(0.01)
    assert patience.limit == FLOOR
    patience.answered(2.0)
    assert patience.limit == FLOOR, "one of twenty answers says nothing"
    for _ in range(32):
        patience.answered(0.5)
    assert patience.limit == 1.0
    for _ in range(32):
        patience.answered(0.01)
    assert patience.limit == FLOOR, "what was long ago is forgotten"
    for _ in range(32):
        patience.answered(60.0)
    assert patience.limit == CEILING


def test_a_long_line_is_no_late_node() -> None:
    patience = Patience()
    for seconds in (0.9, 0.6, 0.7):
        patience.round_trip(seconds)
    assert patience.limit == FLOOR + 4 * 0.6


def test_a_silent_node_does_not_teach_patience() -> None:
    patience = Patience()
    for _ in range(32):
        patience.answered(0.8)
    assert patience.limit == 1.6
    patience.waited_in_vain()
    assert patience.limit == FLOOR
    patience.answered(0.8)
    assert patience.limit == 1.6
