"""The Merkle tree of a share: proof of a range without the rest of it.

Leaves are 64 KiB of the share (the last may be shorter), hashed with BLAKE3 under one context; an inner node is the hash
of its two children under another; the root is the hash of the top node and the share's length under a third. So a leaf
cannot pass for an inner node, and a tree has one shape only: as in RFC 6962, the left child of a node over c leaves
covers the largest power of two below c.

A proof of leaves [first, last) is the list of hashes of the largest subtrees outside them, from left to right. With the
leaves themselves it gives the root, and every hash of it must be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import blake3

from hivefs.errors import Corrupt
from hivefs.model.ids import MAX_SHARE_BYTES

LEAF_BYTES = 64 << 10

_LEAF = "hivefs/1 share merkle leaf"
_NODE = "hivefs/1 share merkle node"
_ROOT = "hivefs/1 share merkle root"


def leaf_hashes(data: bytes | memoryview) -> list[bytes]:
    """One 32-byte hash per 64 KiB. ValueError unless ``data`` has 1 byte to 2 MiB."""
    if not 0 < len(data) <= MAX_SHARE_BYTES:
        raise ValueError("a share has 1 byte to 2 MiB")
    return _hash_leaves(memoryview(data))


def _hash_leaves(view: memoryview) -> list[bytes]:
    return [
        blake3.blake3(view[i : i + LEAF_BYTES], derive_key_context=_LEAF).digest() for i in range(0, len(view), LEAF_BYTES)
    ]


def merkle_root(data: bytes | memoryview) -> bytes:
    """The root over a whole share (1 byte to 2 MiB)."""
    return root_of(leaf_hashes(data), len(data))


def root_of(leaves: Sequence[bytes], size: int) -> bytes:
    """The root of a share of ``size`` bytes with these leaf hashes."""
    return _root(_top(leaves, 0, len(leaves)), size)


def _root(top: bytes, size: int) -> bytes:
    return blake3.blake3(top + size.to_bytes(8, "big"), derive_key_context=_ROOT).digest()


def _inner(left: bytes, right: bytes) -> bytes:
    return blake3.blake3(left + right, derive_key_context=_NODE).digest()


def _split(count: int) -> int:
    """Leaves under the left child of a node over ``count`` (at least 2)."""
    return 1 << ((count - 1).bit_length() - 1)


def _top(leaves: Sequence[bytes], first: int, last: int) -> bytes:
    if last - first == 1:
        return leaves[first]
    middle = first + _split(last - first)
    return _inner(_top(leaves, first, middle), _top(leaves, middle, last))


def span(size: int, offset: int, length: int) -> tuple[int, int]:
    """The leaves [first, last) that hold ``length`` bytes from ``offset`` of a share of ``size`` bytes. ValueError
    when that is empty or not inside the share.
    """
    if offset < 0 or length < 1 or offset + length > size:
        raise ValueError("the range is not inside the share")
    return offset // LEAF_BYTES, -(-(offset + length) // LEAF_BYTES)


def prove(leaves: Sequence[bytes], first: int, last: int) -> list[bytes]:
    """The hashes that, with leaves [first, last), give the root."""
    path: list[bytes] = []

    def walk(low: int, high: int) -> None:
        if high <= first or low >= last:
            path.append(_top(leaves, low, high))
        elif high - low > 1:
            middle = low + _split(high - low)
            walk(low, middle)
            walk(middle, high)

    walk(0, len(leaves))
    return path


def check(root: bytes, size: int, first: int, part: bytes | memoryview, path: Sequence[bytes]) -> None:
    """Raise Corrupt unless ``part`` is exactly the leaves from number ``first`` on of the share with that root and
    size. ``part`` ends at a leaf border or at the end of the share.
    """
    what = "a range of a share"
    if not 0 < size <= MAX_SHARE_BYTES or not len(part):
        raise Corrupt(what=what, reason="its size is impossible")
    count = -(-size // LEAF_BYTES)
    last = first + -(-len(part) // LEAF_BYTES)
    if first < 0 or last > count or len(part) != min(last * LEAF_BYTES, size) - first * LEAF_BYTES:
        raise Corrupt(what=what, reason="it does not lie where it should")
    mine = iter(_hash_leaves(memoryview(part)))
    others = iter(path)
    try:
        top = _rebuild(0, count, first, last, mine, others)
    except StopIteration:
        raise Corrupt(what=what, reason="its proof is too short") from None
    if next(others, None) is not None:
        raise Corrupt(what=what, reason="its proof is too long")
    if _root(top, size) != root:
        raise Corrupt(what=what, reason="its hash is wrong")


def _rebuild(low: int, high: int, first: int, last: int, mine: Iterator[bytes], others: Iterator[bytes]) -> bytes:
    if high <= first or low >= last:
        return next(others)
    if high - low == 1:
        return next(mine)
    middle = low + _split(high - low)
    left = _rebuild(low, middle, first, last, mine, others)
    return _inner(left, _rebuild(middle, high, first, last, mine, others))
