"""Packing sealed chunks into the data shares of a stripe.

A chunk never crosses a share, so that one node answers for all of it. Full chunks fill a share each; small ones share
one. A share is padded with random bytes to a size bucket: the padding says nothing, equal stripes do not look equal,
and a node learns a size class instead of a size (Padmé, Nikitin et al. 2019: at most 12 % overhead, log log n bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hivefs.crypto.seal import sealed_length
from hivefs.model.ids import CHUNK_BYTES

FULL_SHARE = sealed_length(CHUNK_BYTES)
"""Payload of a data share that holds one incompressible chunk: 1 MiB and its 32 tags."""

SMALLEST_SHARE = 4096


def bucket(size: int) -> int:
    """The padded size of a share that must hold ``size`` bytes: Padmé's, at least 4 KiB; a full chunk stays exact."""
    if size == FULL_SHARE:
        return size
    if size <= SMALLEST_SHARE:
        return SMALLEST_SHARE
    exponent = size.bit_length() - 1
    bits = exponent - exponent.bit_length()
    mask = (1 << bits) - 1
    padded = (size + mask) & ~mask
    return FULL_SHARE if size < FULL_SHARE < padded else padded


@dataclass(frozen=True, slots=True)
class Packed:
    """Where each chunk went: places[i] = (share index, offset) of the i-th; data shares are padded, equal in size."""

    share_bytes: int
    data: tuple[bytes, ...]
    places: tuple[tuple[int, int], ...]


class Packer:
    """Fills one stripe. ``add`` answers None when the chunk does not fit any more: close it, begin another."""

    def __init__(self, needed: int, capacity: int = FULL_SHARE) -> None:
        self.needed = needed
        self._capacity = capacity
        self._chunks: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        self._fill = [0] * needed

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def size(self) -> int:
        """Sealed bytes inside."""
        return sum(self._fill)

    def fits(self, length: int) -> bool:
        """Whether a sealed chunk of that length still has a place."""
        return min(self._fill) + length <= self._capacity

    def add(self, sealed: bytes) -> tuple[int, int] | None:
        """Take a sealed chunk (at most 1 MiB and its tags) into the emptiest share; its place there, (share, offset),
        which holds if ``pack`` is told to keep places.
        """
        if len(sealed) > self._capacity:
            raise ValueError("a sealed chunk is never larger than a share")
        emptiest = min(range(self.needed), key=self._fill.__getitem__)
        if self._fill[emptiest] + len(sealed) > self._capacity:
            return None
        place = (emptiest, self._fill[emptiest])
        self._fill[emptiest] += len(sealed)
        self._chunks.append(sealed)
        self._places.append(place)
        return place

    def pack(self, random: Callable[[int], bytes], keep_places: bool = False, fresh: int = 0) -> Packed:
        """Lay the chunks out, largest first into the emptiest share, which keeps the shares of a small stripe short. Each
        share has at least ``fresh`` random bytes behind the chunks.

        Large-first can need more room than the order of ``add``; then, or when asked, the places of ``add`` are kept.
        """
        order = sorted(range(len(self._chunks)), key=lambda i: -len(self._chunks[i]))
        places = None if keep_places else self._lay(order)
        if places is None:
            places = self._places
        shares: list[list[bytes]] = [[] for _ in range(self.needed)]
        fill = [0] * self.needed
        for i in sorted(range(len(places)), key=places.__getitem__):
            shares[places[i][0]].append(self._chunks[i])
            fill[places[i][0]] += len(self._chunks[i])
        size = bucket(max(fill) + fresh)
        data = tuple(
            b"".join([*parts, random(size - used)]) if used < size else b"".join(parts)
            for parts, used in zip(shares, fill, strict=True)
        )
        return Packed(size, data, tuple(places))

    def _lay(self, order: Sequence[int]) -> list[tuple[int, int]] | None:
        fill = [0] * self.needed
        places = [(0, 0)] * len(self._chunks)
        for i in order:
            emptiest = min(range(self.needed), key=fill.__getitem__)
            if fill[emptiest] + len(self._chunks[i]) > self._capacity:
                return None
            places[i] = (emptiest, fill[emptiest])
            fill[emptiest] += len(self._chunks[i])
        return places
