"""Kernel references in four bytes: the same answers as a dictionary gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivefs.filesystem.references import MOST, PAGE, References

INOS = st.sampled_from([1, 2, PAGE - 1, PAGE, PAGE + 1, 5 << 40, (5 << 40) + 1, (1 << 64) - 1])


@given(st.lists(st.tuples(st.booleans(), INOS, st.integers(1, 5))))
def test_like_a_dictionary(steps: list[tuple[bool, int, int]]) -> None:
    references, model = References(), dict[int, int]()
    for add, ino, count in steps:
        if add:
            references.add(ino, count)
            model[ino] = model.get(ino, 0) + count
        else:
            left = max(0, model.pop(ino, 0) - count)
            assert references.drop(ino, count) == (left > 0)
            if left:
                model[ino] = left
        assert (ino in references) == (ino in model)
    assert len(references._pages) == len({ino // PAGE for ino in model})


def test_a_count_that_is_full_stays() -> None:
    references = References()
    references.add(7, MOST)
    references.add(7, 1)
    assert references.drop(7, MOST)
    assert 7 in references
