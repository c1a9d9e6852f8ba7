"""Merkle proofs of share ranges against a tree that is computed in the plainest way."""

from __future__ import annotations

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivefs.content import merkle
from hivefs.content.merkle import LEAF_BYTES
from hivefs.errors import Corrupt

SIZES = st.one_of(
    st.integers(1, 3 * LEAF_BYTES),
    st.sampled_from([n * LEAF_BYTES + d for n in (1, 2, 3, 5, 8, 31, 32) for d in (-1, 0, 1)][:-1]),
)


def data_of(size: int) -> bytes:
    return (b"0123456789abcdefghijklmnopqrstuvwxyz" * (size // 36 + 1))[:size]


def plain_root(data: bytes) -> bytes:
    def derived(context: str, message: bytes) -> bytes:
        return blake3.blake3(message, derive_key_context=context).digest()

    def top(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return derived("hivefs/1 share merkle leaf", leaves[0])
        left = 1
        while left * 2 < len(leaves):
            left *= 2
        return derived("hivefs/1 share merkle node", top(leaves[:left]) + top(leaves[left:]))

    leaves = [data[i : i + LEAF_BYTES] for i in range(0, len(data), LEAF_BYTES)]
    return derived("hivefs/1 share merkle root", top(leaves) + len(data).to_bytes(8, "big"))


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_the_root_is_that_of_the_plain_definition(size: int) -> None:
    data = data_of(size)
    assert merkle.merkle_root(data) == plain_root(data)
    assert merkle.root_of(merkle.leaf_hashes(data), size) == plain_root(data)


@settings(max_examples=150, deadline=None)
@given(SIZES, st.data())
def test_every_range_is_proved_and_no_changed_one(size: int, draw: st.DataObject) -> None:
    data = data_of(size)
    offset = draw.draw(st.integers(0, size - 1))
    length = draw.draw(st.integers(1, size - offset))
    first, last = merkle.span(size, offset, length)
    assert first * LEAF_BYTES <= offset and offset + length <= last * LEAF_BYTES
    part = data[first * LEAF_BYTES : last * LEAF_BYTES]
    leaves = merkle.leaf_hashes(data)
    root = merkle.root_of(leaves, size)
    path = merkle.prove(leaves, first, last)
    merkle.check(root, size, first, part, path)

    at = draw.draw(st.integers(0, len(part) - 1))
    flipped = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
    wrong: list[tuple[int, int, bytes, list[bytes]]] = [
        (size, first, flipped, path),
        (size, first, part[:-1], path),
        (size, first, part + b"x", path),
        (size + 1, first, part, path),
        (max(1, size - 1), first, part, path),
        (size, first + 1, part, path),
        (size, first - 1, part, path),
        (size, first, part, [*path, bytes(32)]),
    ]
    if path:
        wrong += [(size, first, part, path[:-1]), (size, first, part, [bytes(32), *path[1:]])]
    if len(path) > 1:
        wrong.append((size, first, part, path[::-1]))
    for case in wrong:
        if case == (size, first, part, path):
            continue
        with pytest.raises(Corrupt):
            merkle.check(root, *case)


def test_an_inner_node_cannot_pass_for_a_leaf() -> None:
    data = data_of(2 * LEAF_BYTES)
    leaves = merkle.leaf_hashes(data)
    forged = b"".join(leaves)
    assert merkle.merkle_root(forged) != merkle.merkle_root(data)
    with pytest.raises(Corrupt):
        merkle.check(merkle.merkle_root(data), len(forged), 0, forged, [])


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (-1, 5), (0, 101), (100, 1), (50, 51)])
def test_ranges_outside_are_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="inside"):
        merkle.span(100, offset, length)


@pytest.mark.parametrize("size", [0, (2 << 20) + 1])
def test_impossible_shares_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="2 MiB"):
        merkle.leaf_hashes(bytes(size))
    with pytest.raises(Corrupt):
        merkle.check(bytes(32), size, 0, bytes(min(size, 10)), [])
