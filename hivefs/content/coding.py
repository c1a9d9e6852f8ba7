"""Erasure coding: the only door to zfec (a systematic Reed-Solomon code over GF(256), after Rizzo's fec).

zfec calls the total ``m``; outside this file it is ``total``. zfec may hand back references to its inputs, so what
leaves here is bytes of its own. Its encoder is slow for large n-k: cost grows with every parity share.

zfec says what the code is. Where a faster multiplication is there (product.py), zfec is asked only once for each matrix:
the code is linear, so what it makes of the unit blocks is the matrix, and the shares are the same to the byte. Each matrix
is tried beside zfec before it is used, and one that gives anything else is never used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import zfec

from hivefs.content import product
from hivefs.errors import NotEnoughShares

_TRIAL: Final = 1021
"""Bytes in each block of the trial of a matrix: a prime above the width of any vector, so that ends are tried as well."""


@lru_cache(maxsize=64)
def _encoder(needed: int, total: int) -> zfec.Encoder:
    return zfec.Encoder(needed, total)


@lru_cache(maxsize=64)
def _decoder(needed: int, total: int) -> zfec.Decoder:
    return zfec.Decoder(needed, total)


def _by_zfec(
    needed: int, total: int, order: tuple[int, ...], wanted: tuple[int, ...], blocks: Sequence[bytes]
) -> list[bytes]:
    """The shares ``wanted`` out of those numbered ``order``, where data shares are at the position of their number."""
    data = list(blocks)
    if any(number != place for place, number in enumerate(order)):
        data = _decoder(needed, total).decode(data, list(order))
    parity = [number for number in wanted if number >= needed]
    made = dict(zip(parity, _encoder(needed, total).encode(data, parity), strict=True)) if parity else {}
    return [bytes(made[number] if number >= needed else data[number]) for number in wanted]


@lru_cache(maxsize=256)
def _matrix(needed: int, total: int, order: tuple[int, ...], wanted: tuple[int, ...]) -> product.Matrix | None:
    """None where zfec has to do it."""
    if not product.available():
        return None
    units = [bytes(column == row for column in range(needed)) for row in range(needed)]
    matrix = product.Matrix(_by_zfec(needed, total, order, wanted, units))
    trial = [bytes((row * 89 + column * column * 7 + column) & 255 for column in range(_TRIAL)) for row in range(needed)]
    return matrix if matrix.times(trial) == _by_zfec(needed, total, order, wanted, trial) else None


def _made(needed: int, total: int, order: tuple[int, ...], wanted: tuple[int, ...], blocks: Sequence[bytes]) -> list[bytes]:
    matrix = _matrix(needed, total, order, wanted) if wanted and blocks[0] else None
    return matrix.times(blocks) if matrix else _by_zfec(needed, total, order, wanted, blocks)


def encode(needed: int, total: int, data: Sequence[bytes]) -> list[bytes]:
    """The parity shares (numbers needed..total-1) of ``needed`` data shares of equal length."""
    if len(data) != needed or len({len(block) for block in data}) != 1:
        raise ValueError("needed blocks of one length")
    return _made(needed, total, tuple(range(needed)), tuple(range(needed, total)), data)


def decode(needed: int, total: int, shares: Mapping[int, bytes]) -> list[bytes]:
    """The ``needed`` data shares out of any ``needed`` shares by number. Raises NotEnoughShares."""
    missing = [number for number in range(needed) if number not in shares]
    made = remake(needed, total, shares, missing) if missing else {}
    return [bytes(shares[number]) if number in shares else made[number] for number in range(needed)]


def remake(needed: int, total: int, shares: Mapping[int, bytes], wanted: Sequence[int]) -> dict[int, bytes]:
    """The shares ``wanted`` (data or parity) out of any ``needed`` others. Raises NotEnoughShares."""
    if len(shares) < needed:
        raise NotEnoughShares(have=len(shares), needed=needed, stripe="", reason="too few were given")
    # zfec wants a data share that is present at the position of its own number; the first of the rest fill the gaps.
    spare = iter(sorted(number for number in shares if number >= needed))
    order = tuple(number if number in shares else next(spare) for number in range(needed))
    blocks = [shares[number] for number in order]
    return dict(zip(wanted, _made(needed, total, order, tuple(wanted), blocks), strict=True))
