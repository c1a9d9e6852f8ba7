"""Erasure coding: any k of n shares give the data back, and what leaves is bytes of its own."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content import coding
from hivefs.errors import NotEnoughShares


@pytest.mark.parametrize(("needed", "total"), [(1, 1), (1, 3), (2, 3), (3, 5), (4, 6), (4, 8)])
def test_every_subset_of_k_shares_decodes(needed: int, total: int) -> None:
    data = [bytes([i + 1]) * 64 + bytes(range(64)) for i in range(needed)]
    shares = dict(enumerate([*data, *coding.encode(needed, total, data)]))
    assert len(shares) == total
    for chosen in combinations(range(total), needed):
        assert coding.decode(needed, total, {i: shares[i] for i in chosen}) == data


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_remake_gives_the_shares_that_were_lost(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 30))
    needed = data.draw(st.integers(1, total))
    size = data.draw(st.integers(1, 200))
    blocks = [data.draw(st.binary(min_size=size, max_size=size)) for _ in range(needed)]
    shares = dict(enumerate([*blocks, *coding.encode(needed, total, blocks)]))
    lost = data.draw(st.sets(st.integers(0, total - 1), max_size=total - needed))
    left = {i: s for i, s in shares.items() if i not in lost}
    assert coding.remake(needed, total, left, sorted(lost)) == {i: shares[i] for i in lost}


def test_too_few_shares_are_refused() -> None:
    data = [b"a" * 8, b"b" * 8]
    parity = coding.encode(2, 4, data)
    with pytest.raises(NotEnoughShares):
        coding.decode(2, 4, {3: parity[1]})


def test_outputs_are_not_the_inputs() -> None:
    first, second = bytearray(b"x" * 32), bytearray(b"y" * 32)
    out = coding.decode(2, 3, {0: bytes(first), 1: bytes(second)})
    parity = coding.encode(2, 3, [bytes(first), bytes(second)])
    assert all(type(block) is bytes for block in [*out, *parity])
