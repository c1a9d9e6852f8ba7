"""Packing: every chunk lies whole in one share, sizes are buckets, padding is random."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content.packing import FULL_SHARE, SMALLEST_SHARE, Packer, bucket
from hivefs.model.ids import MAX_SHARE_BYTES


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(16, 300_000), min_size=1, max_size=60))
def test_what_was_added_lies_where_it_is_said(needed: int, sizes: list[int]) -> None:
    packer = Packer(needed)
    added = []
    for number, size in enumerate(sizes):
        chunk = bytes([number % 256]) * size
        fits = packer.fits(size)
        assert (packer.add(chunk) is not None) == fits
        if fits:
            added.append(chunk)
    packed = packer.pack(os.urandom)
    assert len(packed.data) == needed
    assert {len(share) for share in packed.data} == {packed.share_bytes}
    assert packed.share_bytes == bucket(packed.share_bytes) or packed.share_bytes == FULL_SHARE
    taken = set()
    for chunk, (index, offset) in zip(added, packed.places, strict=True):
        assert packed.data[index][offset : offset + len(chunk)] == chunk
        span = {(index, offset + i) for i in range(0, len(chunk), 16)}
        assert not span & taken
        taken |= span


def test_full_chunks_fill_a_share_each_without_padding() -> None:
    packer = Packer(4)
    assert [packer.add(os.urandom(FULL_SHARE)) for _ in range(4)] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert packer.add(b"x" * 16) is None
    packed = packer.pack(os.urandom)
    assert packed.share_bytes == FULL_SHARE
    assert sorted(index for index, _ in packed.places) == [0, 1, 2, 3]


def test_buckets_grow_and_waste_little() -> None:
    last = 0
    for size in range(1, 1_200_000, 997):
        padded = bucket(size)
        assert padded >= size and padded >= SMALLEST_SHARE and padded >= last
        assert size < 2 * SMALLEST_SHARE or padded <= size * 1.13
        assert padded <= MAX_SHARE_BYTES
        last = padded


def test_padding_is_random_so_equal_stripes_differ() -> None:
    made = []
    for _ in range(2):
        packer = Packer(2)
        packer.add(b"same" * 25)
        made.append(packer.pack(os.urandom).data)
    assert made[0][0] != made[1][0] and made[0][1] != made[1][1]


def test_a_chunk_larger_than_a_share_is_a_mistake() -> None:
    with pytest.raises(ValueError):
        Packer(2).add(b"x" * (FULL_SHARE + 1))


def test_places_given_by_add_can_be_kept() -> None:
    packer = Packer(3)
    chunks = [os.urandom(size) for size in (10, 500, 20, 9000, 7, 300)]
    places = [packer.add(chunk) for chunk in chunks]
    packed = packer.pack(os.urandom, keep_places=True)
    assert list(packed.places) == places
    for chunk, place in zip(chunks, places, strict=True):
        assert place is not None and packed.data[place[0]][place[1] : place[1] + len(chunk)] == chunk
