"""What a set of blobs under node keys comes to, in 256 ranges by the first byte of the key.

The sum of a range is the XOR of the SHA-256 of its blobs, so a change costs one hash, and the sum of everything is the XOR
of all ranges. Whoever compares the ranges of two moments fetches only those in which something changed. Who makes blobs can
make two sets with one sum: a sum says what changed at a node that tells the truth, and is no proof of anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import reduce
from operator import xor

from hivefs.protocol.answers import RANGES, SUM_BYTES


class Sums:
    """One set."""

    def __init__(self, sums: Iterable[int] = ()) -> None:
        self._sums = list(sums) or [0] * RANGES

    def copy(self) -> Sums:
        """Another one that is the same now."""
        return Sums(self._sums)

    def change(self, key: bytes, blob: bytes) -> None:
        """A blob comes, or goes when it is in the set."""
        self._sums[key[0]] ^= digest_of(blob)

    @property
    def whole(self) -> bytes:
        """Of everything, 32 bytes."""
        return reduce(xor, self._sums).to_bytes(SUM_BYTES, "big")

    def ranges(self) -> list[bytes]:
        """Of each range, 32 bytes."""
        return [one.to_bytes(SUM_BYTES, "big") for one in self._sums]


def digest_of(blob: bytes) -> int:
    """What a blob adds to the sum of a set; taken twice it is gone."""
    return int.from_bytes(hashlib.sha256(blob).digest(), "big")
