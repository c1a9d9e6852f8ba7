"""content/extents.py against a plain list of bytes, with the accounts of every run."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content.extents import SlotExtents
from hivefs.formats.staged import extents_from_bytes, extents_to_bytes
from hivefs.model.ids import CHUNK_BYTES
from hivefs.model.staged import StagedExtent

SPAN = 300
"""The model looks at so many bytes at the end of the slot, so that its last byte is exercised as well."""
BASE = CHUNK_BYTES - SPAN

places = st.integers(0, SPAN)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), places, places),
        st.tuples(st.just("part"), places, places),
        st.tuples(st.just("remove"), places, places),
        st.tuples(st.just("cut"), places, st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


def run(number: int, start: int, length: int) -> StagedExtent:
    return StagedExtent(start, length, number, 80, start, length)


@settings(max_examples=300, deadline=None)
@given(steps, places, places)
def test_slot_extents_are_a_byte_array(ops: list[tuple[str, int, int]], low: int, high: int) -> None:
    slot = SlotExtents()
    model: list[tuple[int, int] | None] = [None] * SPAN  # (run, start of the run) of each byte
    live: Counter[int] = Counter()
    for number, (op, a, b) in enumerate(ops, 1):
        start, end = min(a, b), max(a, b)
        if op in ("insert", "part") and start < end:
            begin = max(0, start - 7) if op == "part" else start  # a run that was cut before it came here
            extent = StagedExtent(BASE + start, end - start, number, 80, BASE + begin, end - begin)
            dropped = slot.insert(extent)
            live[number] += end - start
            model[start:end] = [(number, begin)] * (end - start)
        elif op == "remove":
            dropped = slot.remove(BASE + start, BASE + end)
            model[start:end] = [None] * (end - start)
        elif op == "cut":
            dropped = slot.cut(BASE + a)
            model[a:] = [None] * (SPAN - a)
        elif op == "clear":
            dropped = slot.clear()
            model = [None] * SPAN
        else:
            continue
        for part in dropped:
            assert part.possible
            live[part.segment] -= part.length

        shown: list[tuple[int, int] | None] = [None] * SPAN
        for extent in slot:
            assert extent.possible
            assert shown[extent.start - BASE : extent.end - BASE] == [None] * extent.length
            shown[extent.start - BASE : extent.end - BASE] = [(extent.segment, extent.run_start - BASE)] * extent.length
        assert shown == model
        named = Counter(cell[0] for cell in model if cell)
        assert +live == named
        assert slot.covered_bytes == named.total()
        assert slot.end == max((BASE + i + 1 for i, cell in enumerate(model) if cell), default=0)

    low, high = min(low, high), max(low, high)
    pieces = slot.cover(BASE + low, BASE + high)
    at = BASE + low
    for start, end, held in pieces:
        assert start == at < end
        at = end
        for byte in range(start - BASE, end - BASE):
            assert model[byte] == (None if held is None else (held.segment, held.run_start - BASE))
    assert at == BASE + high
    assert list(SlotExtents(reversed(list(slot)))) == list(slot)
    assert extents_from_bytes(extents_to_bytes(slot)) == list(slot)


def test_overwriting_the_middle_leaves_both_ends_and_gives_the_middle_back() -> None:
    slot = SlotExtents()
    assert slot.insert(run(1, 0, 100)) == []
    assert slot.insert(run(2, 40, 20)) == [StagedExtent(40, 20, 1, 80, 0, 100)]
    assert list(slot) == [StagedExtent(0, 40, 1, 80, 0, 100), run(2, 40, 20), StagedExtent(60, 40, 1, 80, 0, 100)]
    assert slot.cover(10, 200) == [
        (10, 40, StagedExtent(0, 40, 1, 80, 0, 100)),
        (40, 60, run(2, 40, 20)),
        (60, 100, StagedExtent(60, 40, 1, 80, 0, 100)),
        (100, 200, None),
    ]


def test_the_whole_slot() -> None:
    slot = SlotExtents([run(1, 0, CHUNK_BYTES)])
    assert slot.covered_bytes == slot.end == CHUNK_BYTES
    assert slot.insert(run(2, 0, CHUNK_BYTES)) == [run(1, 0, CHUNK_BYTES)]
    assert slot.cut(CHUNK_BYTES) == []
    assert slot.clear() == [run(2, 0, CHUNK_BYTES)]
    assert not list(slot) and len(slot) == 0 and slot.covered_bytes == 0


@pytest.mark.parametrize(
    "extent",
    [
        StagedExtent(0, 0, 1, 80, 0, 10),  # empty
        StagedExtent(5, 10, 1, 80, 0, 10),  # beyond its run
        StagedExtent(0, 10, 1, 80, 5, 10),  # before its run
        StagedExtent(CHUNK_BYTES - 5, 10, 1, 80, CHUNK_BYTES - 5, 10),  # beyond the slot
        StagedExtent(-1, 10, 1, 80, -1, 10),
    ],
)
def test_impossible_extents_are_refused(extent: StagedExtent) -> None:
    with pytest.raises(ValueError):
        SlotExtents([extent])
    slot = SlotExtents()
    with pytest.raises(ValueError):
        slot.insert(extent)
    assert len(slot) == 0


def test_overlapping_extents_are_refused() -> None:
    with pytest.raises(ValueError):
        SlotExtents([run(1, 0, 10), run(2, 9, 10)])
