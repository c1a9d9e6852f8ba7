"""Nodes that are merely known: their ids in order, what is due, and what is known of their conduct, in blocks of bytes."""

from __future__ import annotations

import gc
import itertools
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.chunkstore.due import Due
from hivefs.maintenance import ring
from hivefs.maintenance.ring import Ring
from hivefs.model.ids import NodeId
from hivefs.placement.reputation import Owed, Reputation
from hivefs.placement.reputations import Reputations


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def test_a_walk_names_all_that_are_known_when_their_turn_comes(monkeypatch: Any) -> None:
    monkeypatch.setattr(ring, "BLOCK", 4)
    for seed in range(60):
        dice, met, known, numbers = random.Random(seed), Ring(), dict[NodeId, None](), itertools.count()
        for _ in range(10):
            known[one := node(next(numbers))] = None
            met.add(one)
        walk, passed, forgotten, again = met.walk(), list[NodeId](), set[NodeId](), set[NodeId]()
        at_first = set(known)
        while True:
            for _ in range(dice.randrange(3)):
                match dice.randrange(4):
                    case 0 if known:
                        gone = dice.choice(list(known))
                        del known[gone]
                        met.forget(gone)
                        forgotten.add(gone)
                    case 1 if forgotten:
                        back = dice.choice(sorted(forgotten))
                        forgotten.discard(back)
                        again.add(back)
                        known[back] = None
                        met.add(back)
                    case 2 if next(numbers) < 40:
                        known[one := node(next(numbers))] = None
                        met.add(one)
            found = next(walk, None)
            if found is None:
                break
            assert found in known
            passed.append(found)
        assert len(passed) == len(set(passed)), "none is named twice"
        assert (at_first & known.keys()) - again <= set(passed)
        assert set(met.walk()) == known.keys()


@given(st.lists(st.tuples(st.sampled_from("putdroptake"), st.integers(0, 5), st.floats(-1, 1e9)), max_size=60))
@settings(max_examples=300, deadline=None)
def test_what_is_due_comes_in_the_order_of_its_time_and_once(steps: list[tuple[str, int, float]]) -> None:
    due, model = Due(), dict[NodeId, float]()
    for what, number, when in steps:
        match what:
            case "p" | "u" | "t":
                due.put(node(number), when)
                model[node(number)] = when
            case "d" | "r":
                due.drop(node(number))
                model.pop(node(number), None)
            case _:
                found = due.take(when)
                ready = {n: t for n, t in model.items() if t + 8.0 <= when + 8.0}
                assert (found is None) == (not ready)
                if found is not None:
                    assert model.pop(found) + 8.0 == min(t + 8.0 for t in ready.values())


NUMBERS = st.integers(0, 1 << 62)
ROWS = st.builds(
    Reputation,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.booleans(),
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.booleans(),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=32).map(tuple),
    st.lists(
        st.builds(Owed, st.binary(min_size=16, max_size=16), st.integers(0, 254), st.integers(0, 255), NUMBERS), max_size=8
    ).map(tuple),
    st.sampled_from([b"", bytes(range(16))]),
)


@given(st.lists(ROWS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_what_is_known_of_conduct_comes_back_as_it_was(rows: list[Reputation]) -> None:
    kept = Reputations()
    for number, row in enumerate(rows):
        kept[node(number)] = row
    assert list(kept.items()) == [(node(number), row) for number, row in enumerate(rows)]
    assert kept.get(node(99)) is None and node(99) not in kept and len(kept) == len(rows)


def looked_at() -> int:
    """Objects that the collector of garbage has to look at."""
    gc.collect()
    return len(gc.get_objects())


def test_rows_that_are_replaced_leave_nothing_for_the_collector() -> None:
    kept, due = Reputations(), Due()
    before = looked_at()
    for round_ in range(2):
        for number in range(2000):
            kept[node(number)] = Reputation(1, round_, 5, outages=((1, 2),))
            due.put(node(number), float(round_))
    assert looked_at() - before < 100
